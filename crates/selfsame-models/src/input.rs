//! What pictures a backbone was trained on.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// Size and normalisation of the pictures that a backbone was trained with, as stored with weights
/// under [`crate::INPUT_KEY`].
///
/// A network is given `(value − mean) / std` of values from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}
