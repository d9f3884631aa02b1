//! Figures that commands draw alone and a report draws together.

pub(crate) mod attention;
pub(crate) mod grown;
pub(crate) mod map;
pub(crate) mod neighbors;
pub(crate) mod pictures;

use std::path::Path;

use image::RgbImage;
use selfsame_data::augment::EvalCrop;
use selfsame_report::{Remark, SheetCell, shortened};

use crate::cli::{WeightsArgs, Which};
use crate::run_dir::CONFIG_FILE;
use crate::weights::{Weights, without_prefix};

/// Characters of `--weights` in a picture.
const MAX_SPEC: usize = 48;

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

/// A line of words on a sheet.
pub(crate) fn remark(text: impl Into<String>) -> Remark {
    Remark {
        sample: None,
        text: text.into(),
    }
}

/// Which weights a picture is of: what they are, where they came from, teacher or student.
pub(crate) fn whose(weights: &Weights, flags: &WeightsArgs) -> String {
    let spec = shortened(&flags.weights, MAX_SPEC);
    if Weights::is_baseline(&flags.weights) {
        return match weights {
            Weights::Pixels => "raw pixels".to_owned(),
            Weights::Backbone(_) => format!("{}, {spec}", weights.describe()),
        };
    }
    let path = Path::new(without_prefix(&flags.weights));
    // What has both of them; a file of other programs has but one.
    let has_both = [CONFIG_FILE, "manifest.json"].map(|name| path.join(name).exists());
    let which = match flags.which {
        Which::Student => " (student)",
        Which::Teacher if has_both.contains(&true) => " (teacher)",
        Which::Teacher => "",
    };
    format!("{}, weights {spec}{which}", weights.describe())
}
