//! Attention over pictures, and patch features as colours.

use candle_core::Device;
use image::{RgbImage, imageops};
use selfsame_data::augment::EvalCrop;
use selfsame_eval::{Features, Pca};
use selfsame_models::{Backbone, InputConfig};
use selfsame_report::{CellMap, Remark, SheetCell, heat_bar, rgb_cells};
use selfsame_train::{CellMaps, MapKind, attention, patch_features};

use super::{cell, shown};
use crate::weights::Loaded;

/// Side of the drawn pictures in pixels.
pub(crate) const SIDE: usize = 224;
/// Colour of the outline of a share of the attention.
const OUTLINE: [u8; 3] = [80, 255, 120];

/// A picture as the network gets it and as it is drawn.
pub(crate) struct Prepared {
    /// `[3, height, width]`, normalised.
    pixels: Vec<f32>,
    /// Height and width for the network.
    size: [usize; 2],
    /// The same field of view for the eye.
    pub(crate) image: RgbImage,
}

impl Prepared {
    /// Through the evaluation transform.
    pub(crate) fn evaluated(picture: &RgbImage, crop: &EvalCrop) -> Self {
        Self {
            pixels: crop.apply(picture).data,
            size: [crop.image_size; 2],
            image: shown(picture, crop, SIDE),
        }
    }

    /// At its own size, less what is no whole cell at the borders; and what was cut off, if
    /// anything was.
    ///
    /// # Errors
    /// As [`too_small`].
    pub(crate) fn whole(
        picture: &RgbImage,
        cell: usize,
        input: &InputConfig,
    ) -> anyhow::Result<(Self, Option<String>)> {
        if let Some(problem) = too_small(picture, cell) {
            anyhow::bail!(problem);
        }
        let (width, height) = picture.dimensions();
        let whole = |side: u32| side / cell as u32 * cell as u32;
        let (w, h) = (whole(width), whole(height));
        let (left, top) = ((width - w) / 2, (height - h) / 2);
        let seen = imageops::crop_imm(picture, left, top, w, h).to_image();
        let cut = (w, h) != (width, height);
        let note = cut.then(|| format!("cropped from {width} × {height} to {w} × {h}"));
        let mut pixels = Vec::with_capacity(3 * (w * h) as usize);
        for c in 0..3 {
            let value = |p: &image::Rgb<u8>| f64::from(p.0[c]) / 255.0 - input.mean[c];
            pixels.extend(seen.pixels().map(|p| (value(p) / input.std[c]) as f32));
        }
        let times = (SIDE as u32).div_ceil(w.max(h)).max(1);
        let filter = imageops::FilterType::Nearest;
        let prepared = Self {
            pixels,
            size: [h as usize, w as usize],
            image: imageops::resize(&seen, times * w, times * h, filter),
        };
        Ok((prepared, note))
    }

    /// Height and width for the network.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Where a backbone looks in it; without a `block` in its last.
    pub(crate) fn maps(
        &self,
        backbone: &dyn Backbone,
        block: Option<usize>,
        device: &Device,
    ) -> anyhow::Result<CellMaps> {
        Ok(attention(backbone, &self.pixels, self.size, block, device)?)
    }

    /// A map over it, with the outline of `mass` of it if asked for.
    pub(crate) fn overlaid(
        &self,
        maps: &CellMaps,
        values: Vec<f32>,
        mass: Option<f64>,
    ) -> RgbImage {
        let map = CellMap {
            columns: maps.columns,
            rows: maps.rows,
            values,
        };
        let mut image = map.over(&self.image);
        if let Some(share) = mass
            && !map.is_flat()
        {
            map.outline(&mut image, share, OUTLINE);
        }
        image
    }
}

/// Why nothing of a picture is left at its own size, if it has not one whole cell.
pub(crate) fn too_small(picture: &RgbImage, cell: usize) -> Option<String> {
    let (w, h) = picture.dimensions();
    let tiny = (w.min(h) as usize) < cell;
    tiny.then(|| format!("a picture of {w} × {h} is smaller than a patch of {cell}"))
}

/// What a map cannot show, to be said below it.
pub(crate) fn nothing_to_show(maps: &CellMaps) -> Vec<String> {
    match maps.rows * maps.columns {
        1 => vec!["one cell, nothing to show".to_owned()],
        _ => Vec::new(),
    }
}

/// What the colours of maps mean, and the outline of `mass` if there is one.
pub(crate) fn key(mass: Option<f64>) -> Vec<Remark> {
    let mut key = vec![Remark {
        sample: Some(heat_bar(120, 14)),
        text: "lowest to highest of each panel by itself: colours of two panels do not compare"
            .to_owned(),
    }];
    if let Some(share) = mass {
        let mut sample = RgbImage::from_pixel(28, 14, image::Rgb([90; 3]));
        let whole = CellMap {
            columns: 1,
            rows: 1,
            values: vec![1.0],
        };
        whole.outline(&mut sample, 1.0, OUTLINE);
        key.push(Remark {
            sample: Some(sample),
            text: format!("outline: the fewest cells that hold {share} of the sum of their panel"),
        });
    }
    key
}

/// The picture, the mean over the heads, and each head.
pub(crate) fn heads(
    name: &str,
    notes: Vec<String>,
    prepared: &Prepared,
    maps: &CellMaps,
    mass: Option<f64>,
) -> Vec<SheetCell> {
    let mut cells = vec![cell(name, notes, prepared.image.clone())];
    let image = prepared.overlaid(maps, maps.mean(), mass);
    if maps.kind == MapKind::FeatureNorm {
        cells.push(cell("feature norm", nothing_to_show(maps), image));
        return cells;
    }
    cells.push(cell("mean of the heads", nothing_to_show(maps), image));
    for (i, map) in maps.maps.iter().enumerate() {
        let image = prepared.overlaid(maps, map.clone(), mass);
        let title = format!("head {} of {}", i + 1, maps.maps.len());
        cells.push(cell(title, nothing_to_show(maps), image));
    }
    cells
}

/// Pictures above, below each the first three principal components of its patch features as red,
/// green and blue; the components are those of all pictures together, and are given too.
pub(crate) fn patch_components(
    pictures: &[(String, Prepared)],
    loaded: &Loaded,
    device: &Device,
) -> anyhow::Result<(Vec<SheetCell>, Vec<SheetCell>, Pca)> {
    let (mut data, mut counts, mut columns, mut d) = (Vec::new(), Vec::new(), 1, 1);
    for (_, prepared) in pictures {
        let backbone = loaded.backbone.as_ref();
        let (features, grid) = patch_features(backbone, &prepared.pixels, prepared.size, device)?;
        (columns, d) = (grid[1], features.d);
        counts.push(features.n);
        data.extend(features.data);
    }
    let all = Features::new(counts.iter().sum(), d, data)?;
    let pca = Pca::fit(&all, 3, 0)?;
    let places = pca.transform(&all)?;
    let k = pca.variances.len();
    let triple = |place: &[f64]| [0, 1, 2].map(|c| place.get(c).map_or(0.0, |x| *x as f32));
    let mut triples = places.chunks_exact(k).map(triple);
    let of_pictures: Vec<Vec<[f32; 3]>> = counts
        .iter()
        .map(|count| triples.by_ref().take(*count).collect())
        .collect();
    let colours = rgb_cells(&of_pictures, columns, SIDE as u32);
    let above = pictures.iter();
    let above = above.map(|(name, prepared)| cell(name, Vec::new(), prepared.image.clone()));
    let below = colours
        .into_iter()
        .map(|image| cell("patch features", Vec::new(), image));
    Ok((above.collect(), below.collect(), pca))
}
