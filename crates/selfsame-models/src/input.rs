//! What pictures a backbone was trained on.

use serde::{Deserialize, Serialize};

use crate::config::{MOST_PIXELS, ModelConfig};

/// Size and normalisation of the pictures that a backbone was trained with, as stored with weights
/// under [`crate::INPUT_KEY`].
///
/// A network is given `(value − mean) / std` of values from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputConfig {
    /// Side of the pictures in pixels.
    pub image_size: usize,
    /// Mean per channel: red, green, blue.
    pub mean: [f64; 3],
    /// Standard deviation per channel.
    pub std: [f64; 3],
}

impl InputConfig {
    /// ImageNet's mean and standard deviation, which most published weights were trained with, at
    /// the size of `model`.
    pub fn imagenet(model: &ModelConfig) -> Self {
        Self {
            image_size: model.native_size(),
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }

    /// Every problem, each naming its key.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=MOST_PIXELS).contains(&self.image_size) {
            let size = self.image_size;
            problems.push(format!("image_size: {size} is not from 1 to {MOST_PIXELS}"));
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            problems.push(format!("mean: {:?} are not three numbers", self.mean));
        }
        if !self.std.iter().all(|std| *std > 0.0 && std.is_finite()) {
            problems.push(format!(
                "std: {:?} are not three positive numbers",
                self.std
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_picture_can_be_is_told_by_its_key() {
        let sound = InputConfig::imagenet(&ModelConfig::default());
        assert!(sound.check().is_empty());
        let wrong = InputConfig {
            image_size: 0,
            mean: [0.5, f64::NAN, 0.5],
            std: [0.2, 0.0, 0.2],
        };
        let problems = wrong.check();
        assert_eq!(problems.len(), 3);
        for (problem, key) in problems.iter().zip(["image_size: 0 ", "mean: ", "std: "]) {
            assert!(problem.starts_with(key), "{problem}");
        }
        let size = |image_size| InputConfig {
            image_size,
            ..sound.clone()
        };
        assert!(size(16_384).check().is_empty());
        assert!(!size(16_385).check().is_empty());
    }
}
