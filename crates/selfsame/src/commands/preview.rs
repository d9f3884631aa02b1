//! `selfsame preview`: what the configured augmentation makes of a picture, on two sheets.

use std::path::Path;

use anyhow::Context;
use image::RgbImage;
use selfsame_checkpoint::write_bytes;
use selfsame_data::augment::{
    AugmentConfig, CropBox, DrawnOp, DrawnView, Interpolation, MultiCrop, SampleKey, Workspace, ops,
};
use selfsame_report::{
    COLORS, Outlined, Sheet, SheetCell, class_color, encode_png, outline, stack,
};
use selfsame_train::RunConfig;

use crate::cli::Preview;
use crate::config::{Merged, OwnFlag};
use crate::data;
use crate::exit::{Done, usage};
use crate::figures::pictures::of_image;
use crate::memory::check_preview;
use crate::out;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::stderr::tell;

/// Longest side of the pictures of the first sheet, in pixels.
const SINGLE: usize = 256;
/// Longest side of the original with all boxes on it.
const LARGE: usize = 540;
/// How far colours are apart that nobody takes for one another: the sum over red, green and blue.
const UNLIKE: u32 = 100;
/// Pictures of a row.
const COLUMNS: usize = 4;
/// Strengths of the first sheet, the same for every picture and configuration.
const JITTER: [DrawnOp; 4] = [
    DrawnOp::Brightness(1.3),
    DrawnOp::Contrast(1.3),
    DrawnOp::Saturation(1.2),
    DrawnOp::Hue(0.08),
];

pub(crate) fn run(args: &Preview) -> anyhow::Result<Done> {
    out::kind(&args.out, &["png"])?;
    let out = ("--out", args.out.as_path());
    let named = [
        ("--image", &args.image),
        ("--config", &args.settings.config),
    ];
    let named = named
        .into_iter()
        .filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
    refuse_overwriting(out, &named.collect::<Vec<_>>())?;
    let merged = Merged::from_settings(&args.settings, OwnFlag::seed(args.seed)?)?;
    let config = merged.resolve()?;
    refuse_overwriting(out, &[("--data", Path::new(&config.data.train))])?;
    check_preview(&config.augment)?;
    let (name, picture) = match &args.image {
        Some(path) => of_image(path, &data::limits(&config.data))?,
        None if config.data.train.is_empty() => {
            return Err(usage(
                "--image FILE or --data SPEC: say which picture to show",
            ));
        }
        None => {
            let set = data::of_run(&config.data.train, &config.data)?;
            refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
            if args.index >= set.len() {
                return Err(usage(format!(
                    "--index {}: {} has {} pictures",
                    args.index,
                    config.data.train,
                    set.len()
                )));
            }
            let name = set.name(args.index).to_owned();
            let picture = set.decode(args.index).with_context(|| name.clone())?;
            (name, picture)
        }
    };
    let key = SampleKey {
        run_seed: config.seed,
        epoch: 0,
        sample: args.index as u64,
    };
    let mut preview = PreviewOf::new(picture, config.augment, key)?;
    let size = preview.picture.dimensions();
    let title = format!("{name}, {} × {}", size.0, size.1);
    let sheets = [
        preview.operations(&title).draw(),
        preview.crops(&title, key)?.draw(),
    ];
    let png = encode_png(&stack(&sheets))?;
    write_bytes(&args.out, &png)?;
    tell!("wrote {}", args.out.display());
    Ok(Done::Well)
}

/// All views of multi-crop of one picture of a run's first epoch, with their drawn values.
pub(super) fn crops_sheet(
    config: &RunConfig,
    name: &str,
    picture: RgbImage,
    sample: usize,
) -> anyhow::Result<RgbImage> {
    let key = SampleKey {
        run_seed: config.seed,
        epoch: 0,
        sample: sample as u64,
    };
    let mut preview = PreviewOf::new(picture, config.augment.clone(), key)?;
    Ok(preview.crops(name, key)?.draw())
}

struct PreviewOf {
    picture: RgbImage,
    views: Vec<DrawnView>,
    multi_crop: MultiCrop,
    workspace: Workspace,
}

impl PreviewOf {
    fn new(picture: RgbImage, augment: AugmentConfig, key: SampleKey) -> anyhow::Result<Self> {
        let multi_crop = MultiCrop::new(augment)?;
        Ok(Self {
            views: multi_crop.draw(picture.width() as usize, picture.height() as usize, key),
            picture,
            multi_crop,
            workspace: Workspace::new(),
        })
    }

    /// Single operations at fixed strength, and the picture beside its first local crop.
    fn operations(&mut self, title: &str) -> Sheet {
        let whole = CropBox {
            left: 0,
            top: 0,
            width: self.picture.width() as usize,
            height: self.picture.height() as usize,
        };
        let original = self.fitted(SINGLE);
        // A share of the area of one half, in the middle.
        let half = |side: usize| ((side as f64 * 0.5f64.sqrt()).round() as usize).max(1);
        let centre = CropBox {
            left: (whole.width - half(whole.width)) / 2,
            top: (whole.height - half(whole.height)) / 2,
            width: half(whole.width),
            height: half(whole.height),
        };
        let size = self.multi_crop.config().global_size;
        let crop = self.view(centre, size);

        let mut jitter = original.clone();
        for op in JITTER {
            jitter = op.render(&jitter, &mut self.workspace);
        }
        let mut single = |op: DrawnOp| op.render(&original, &mut self.workspace);
        let rendered = [
            ("jitter", JITTER.iter().map(describe).collect(), jitter),
            ("grayscale", vec![], single(DrawnOp::Grayscale)),
            (
                "blur",
                vec!["radius 1.0".to_owned()],
                single(DrawnOp::GaussianBlur(1.0)),
            ),
            (
                "solarize",
                vec!["threshold 128".to_owned()],
                single(DrawnOp::Solarize(128)),
            ),
        ];
        let mut cells = vec![
            cell("original", vec![], original.clone()),
            cell(
                "crop",
                vec!["half of the area".to_owned(), format!("{size} × {size}")],
                enlarged(crop, SINGLE),
            ),
        ];
        cells.extend(rendered.map(|(title, notes, image)| cell(title, notes, image)));
        if let Some(view) = self.views.get(MultiCrop::NUM_GLOBAL).cloned() {
            let mut marked = original;
            let frame = self.marked(&marked, view.crop, COLORS[0], "local 1", 2);
            outline(&mut marked, &[frame]);
            let local = enlarged(self.view(view.crop, view.size), SINGLE);
            let mut local = cell("local crop", vec![describe_box(view.crop)], local);
            local.frame = Some(COLORS[0]);
            cells.extend([cell("original", vec![], marked), local]);
        }
        let rows = cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec).collect();
        Sheet {
            heading: format!("Single operations: {title}"),
            remarks: Vec::new(),
            rows,
        }
    }

    /// The picture with every box, and every view as the network gets it, with what was drawn.
    fn crops(&mut self, title: &str, key: SampleKey) -> anyhow::Result<Sheet> {
        let mut original = self.fitted(LARGE);
        let colors = colors(self.views.len());
        let names: Vec<String> = (0..self.views.len()).map(short_name).collect();
        let boxes = self.views.iter().zip(&names).zip(&colors).enumerate();
        let boxes: Vec<Outlined> = boxes
            .map(|(i, ((view, name), color))| {
                let thickness = if i < MultiCrop::NUM_GLOBAL { 4 } else { 2 };
                self.marked(&original, view.crop, *color, name, thickness)
            })
            .collect();
        outline(&mut original, &boxes);
        let mut values: Vec<Vec<f32>> = (0..self.views.len())
            .map(|i| vec![0.0; 3 * self.multi_crop.view_size(i).pow(2)])
            .collect();
        let mut out: Vec<&mut [f32]> = values.iter_mut().map(Vec::as_mut_slice).collect();
        self.multi_crop
            .write_crops(&self.picture, key, &mut out, &mut self.workspace)?;
        let cells = self
            .views
            .iter()
            .zip(&values)
            .enumerate()
            .map(|(i, (view, values))| {
                let image = denormalized(values, view.size, self.multi_crop.config());
                let notes = [describe_box(view.crop)].into_iter();
                SheetCell {
                    title: long_name(i),
                    notes: notes.chain(view.ops.iter().map(describe)).collect(),
                    image: enlarged(image, SINGLE),
                    frame: Some(colors[i]),
                }
            });
        let mut cells: Vec<SheetCell> = cells.collect();
        let locals = cells.split_off(MultiCrop::NUM_GLOBAL);
        let mut first = vec![cell("original with all boxes", vec![], original)];
        first.extend(cells);
        let mut rows = vec![first];
        rows.extend(locals.chunks(COLUMNS).map(<[SheetCell]>::to_vec));
        Ok(Sheet {
            heading: format!("Multi-crop with seed {}: {title}", key.run_seed),
            remarks: Vec::new(),
            rows,
        })
    }

    /// The whole picture with its longer side at most so long.
    fn fitted(&mut self, side: usize) -> RgbImage {
        let (width, height) = (
            self.picture.width() as usize,
            self.picture.height() as usize,
        );
        let scale = side as f64 / width.max(height) as f64;
        let to = |length: usize| ((length as f64 * scale).round() as usize).max(1);
        let filter = Interpolation::Bicubic;
        ops::resize(
            &self.picture,
            to(width),
            to(height),
            filter,
            &mut self.workspace,
        )
    }

    fn view(&mut self, crop: CropBox, size: usize) -> RgbImage {
        let filter = self.multi_crop.config().interpolation;
        ops::resized_crop(&self.picture, crop, size, size, filter, &mut self.workspace)
    }

    /// A box of the picture on a resized copy.
    fn marked<'a>(
        &self,
        image: &RgbImage,
        crop: CropBox,
        color: [u8; 3],
        label: &'a str,
        thickness: u32,
    ) -> Outlined<'a> {
        let x = f64::from(image.width()) / f64::from(self.picture.width());
        let y = f64::from(image.height()) / f64::from(self.picture.height());
        let at = |pixels: usize, scale: f64| (pixels as f64 * scale).round() as u32;
        Outlined {
            place: [
                at(crop.left, x),
                at(crop.top, y),
                at(crop.width, x).max(1),
                at(crop.height, y).max(1),
            ],
            color,
            label,
            thickness,
        }
    }
}

fn cell(title: &str, notes: Vec<String>, image: RgbImage) -> SheetCell {
    SheetCell {
        title: title.to_owned(),
        notes,
        image,
        frame: None,
    }
}

/// A colour for each view; those of the global ones have no likeness among the others.
fn colors(views: usize) -> Vec<[u8; 3]> {
    let globals = [0, 1].map(class_color);
    let unlike = |color: &[u8; 3]| {
        globals.iter().all(|global| {
            let parts = color.iter().zip(global);
            parts.map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>() > UNLIKE
        })
    };
    let locals = (globals.len()..).map(class_color).filter(unlike);
    globals.into_iter().chain(locals).take(views).collect()
}

fn long_name(view: usize) -> String {
    match view.checked_sub(MultiCrop::NUM_GLOBAL) {
        None => format!("global {}", view + 1),
        Some(local) => format!("local {}", local + 1),
    }
}

fn short_name(view: usize) -> String {
    match view.checked_sub(MultiCrop::NUM_GLOBAL) {
        None => format!("G{}", view + 1),
        Some(local) => format!("{}", local + 1),
    }
}

fn describe_box(crop: CropBox) -> String {
    let CropBox {
        left,
        top,
        width,
        height,
    } = crop;
    format!("box {width} × {height} at {left}, {top}")
}

fn describe(op: &DrawnOp) -> String {
    match op {
        DrawnOp::HorizontalFlip => "flip".to_owned(),
        DrawnOp::Brightness(factor) => format!("brightness {factor:.2}"),
        DrawnOp::Contrast(factor) => format!("contrast {factor:.2}"),
        DrawnOp::Saturation(factor) => format!("saturation {factor:.2}"),
        DrawnOp::Hue(turns) => format!("hue {turns:+.3}"),
        DrawnOp::Grayscale => "grayscale".to_owned(),
        DrawnOp::GaussianBlur(radius) => format!("blur {radius:.2}"),
        DrawnOp::Solarize(threshold) => format!("solarize {threshold}"),
        other => format!("{other:?}"),
    }
}

/// Back from the values a network takes to bytes.
fn denormalized(values: &[f32], size: usize, config: &AugmentConfig) -> RgbImage {
    let n = size * size;
    RgbImage::from_fn(size as u32, size as u32, |x, y| {
        let at = y as usize * size + x as usize;
        image::Rgb([0, 1, 2].map(|c| {
            let value = f64::from(values[c * n + at]) * config.std[c] + config.mean[c];
            (value * 255.0).round() as u8
        }))
    })
}

/// Each pixel as a square, as many times as fit within `side`.
fn enlarged(image: RgbImage, side: usize) -> RgbImage {
    let times = (side as u32 / image.width().max(image.height())).max(1);
    if times == 1 {
        return image;
    }
    RgbImage::from_fn(image.width() * times, image.height() * times, |x, y| {
        *image.get_pixel(x / times, y / times)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_view_has_the_colour_of_another() {
        let colors = colors(MultiCrop::NUM_GLOBAL + 40);
        assert_eq!(&colors[..10], &COLORS, "up to eight local crops as ever");
        for (i, color) in colors.iter().enumerate() {
            assert!(!colors[..i].contains(color), "view {i}");
        }
    }
}
