//! Draws all views of a picture on one sheet, after the picture itself with the crop boxes on it.
//!
//! `cargo run -p selfsame-augment --example contact_sheet -- [IMAGE or -] [OUT.png] [SEED]`

use std::{env, error::Error};

use image::{Rgb, RgbImage, imageops::replace};
use selfsame_augment::{AugmentConfig, CropBox, EvalCrop, MultiCrop, SampleKey, Workspace};

const CELL: usize = 128;
const COLUMNS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let picture = match arguments.first().map(String::as_str) {
        None | Some("-") => generated(),
        Some(path) => image::open(path)?.to_rgb8(),
    };
    let out = arguments.get(1).map_or("contact_sheet.png", |s| s.as_str());
    let run_seed = arguments.get(2).map_or(Ok(0), |seed| seed.parse())?;

    // The notebook's recipe; local crops smaller than its 128, so that they are told apart.
    let base = AugmentConfig::default();
    let multi_crop = MultiCrop::new(AugmentConfig {
        local_size: 96,
        ..base
    })?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let base = SampleKey::default();
    let key = SampleKey { run_seed, ..base };
    let views = multi_crop.draw(width, height, key);

    let mut workspace = Workspace::new();
    let mut marked = picture.clone();
    for (i, view) in views.iter().enumerate() {
        let colour = if i < 2 { [255, 220, 0] } else { [0, 220, 255] };
        outline(&mut marked, view.crop, Rgb(colour));
        eprintln!("{i}: {:?}, {:?}", view.crop, view.ops);
    }
    let whole = EvalCrop {
        image_size: CELL,
        ..EvalCrop::default()
    };
    let mut cells = Vec::from([&picture, &marked].map(|image| whole.render(image, &mut workspace)));
    for view in &views {
        cells.push(view.render(&picture, &mut workspace));
    }

    let step = (CELL + 8) as u32;
    let (columns, rows) = (COLUMNS as u32, cells.len().div_ceil(COLUMNS) as u32);
    let mut sheet = RgbImage::from_pixel(columns * step + 8, rows * step + 8, Rgb([255; 3]));
    for (cell, i) in cells.iter().zip(0u32..) {
        let (x, y) = (i % columns * step + 8, i / columns * step + 8);
        replace(&mut sheet, cell, i64::from(x), i64::from(y));
    }
    sheet.save(out)?;
    eprintln!("wrote {out}");
    Ok(())
}

/// Coloured rings on a ramp, with a checkerboard in one corner.
fn generated() -> RgbImage {
    RgbImage::from_fn(320, 240, |x, y| {
        let ring = ((x as f32 - 190.0).hypot(y as f32 - 100.0) / 18.0) as u32;
        match ring {
            0..=4 => Rgb([(250 - 40 * ring) as u8, (60 * ring) as u8, 90]),
            _ if x < 90 && y > 150 => Rgb([((x / 10 + y / 10) % 2 * 220) as u8; 3]),
            _ => Rgb([(x / 2) as u8, 140, y as u8]),
        }
    })
}

fn outline(image: &mut RgbImage, crop: CropBox, colour: Rgb<u8>) {
    let (x0, y0) = (crop.left as u32, crop.top as u32);
    let (x1, y1) = (x0 + crop.width as u32 - 1, y0 + crop.height as u32 - 1);
    let mut put = |x, y| image.put_pixel(x, y, colour);
    (x0..=x1).for_each(|x| [y0, y1].into_iter().for_each(|y| put(x, y)));
    (y0..=y1).for_each(|y| [x0, x1].into_iter().for_each(|x| put(x, y)));
}
