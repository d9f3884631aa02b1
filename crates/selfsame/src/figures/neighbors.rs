//! A picture and those whose features are nearest, in a row.

use std::sync::Arc;

use anyhow::Context;
use image::RgbImage;
use selfsame_data::Dataset;
use selfsame_data::augment::EvalCrop;
use selfsame_report::{COLORS, SheetCell};

use super::{cell, shown};

/// Side of the drawn pictures in pixels.
pub(crate) const SIDE: usize = 160;

/// The picture asked about, framed.
pub(crate) fn query(
    name: &str,
    labels: Vec<String>,
    picture: &RgbImage,
    crop: &EvalCrop,
) -> SheetCell {
    let mut asked = cell(name, labels, shown(picture, crop, SIDE));
    asked.frame = Some(COLORS[0]);
    asked
}

/// The neighbours of a picture, nearest first, with cosine distances and labels.
pub(crate) fn found(
    set: &Arc<dyn Dataset>,
    crop: &EvalCrop,
    nearest: &[(usize, f32)],
) -> anyhow::Result<Vec<SheetCell>> {
    let one = |(i, (sample, similarity)): (usize, &(usize, f32))| {
        let name = set.name(*sample);
        let picture = set.decode(*sample).with_context(|| name.to_owned())?;
        let mut notes = vec![format!("distance {:.3}", 1.0 - similarity)];
        notes.extend(labels(set, *sample));
        Ok(cell(
            format!("{}", i + 1),
            notes,
            shown(&picture, crop, SIDE),
        ))
    };
    nearest.iter().enumerate().map(one).collect()
}

/// "gender f" for each label of a picture.
pub(crate) fn labels(set: &Arc<dyn Dataset>, sample: usize) -> Vec<String> {
    let labels = set.labels(sample).into_iter();
    labels
        .map(|(name, value)| format!("{name} {value}"))
        .collect()
}
