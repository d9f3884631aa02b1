//! Figures that commands draw alone and a report draws together.

pub(crate) mod attention;
pub(crate) mod grown;
pub(crate) mod map;
pub(crate) mod neighbors;

use image::RgbImage;
use selfsame_data::augment::EvalCrop;
use selfsame_report::SheetCell;

/// What the network sees of a picture, drawn with `side` pixels.
pub(crate) fn shown(picture: &RgbImage, crop: &EvalCrop, side: usize) -> RgbImage {
    let crop = EvalCrop {
        image_size: side,
        mean: [0.0; 3],
        std: [1.0; 3],
        ..crop.clone()
    };
    let seen = crop.apply(picture);
    let plane = side * side;
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let at = y as usize * side + x as usize;
        image::Rgb([0, 1, 2].map(|c| (255.0 * seen.data[c * plane + at]).round() as u8))
    })
}

/// A cell with words below it.
pub(crate) fn cell(title: impl Into<String>, notes: Vec<String>, image: RgbImage) -> SheetCell {
    SheetCell {
        title: title.into(),
        notes,
        image,
        frame: None,
    }
}
