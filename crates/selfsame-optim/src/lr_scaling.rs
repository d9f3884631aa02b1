//! Learning rate and batch size.

use serde::{Deserialize, Serialize};

/// Whether the learning rate of a configuration is for 256 images or for the batch as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// `lr · effective_batch / 256` (`main_dino.py`, "linear scaling rule").
    #[default]
    Linear,
    /// `lr` as it stands.
    None,
}

/// The peak learning rate for steps over `effective_batch` images (batch × accumulate × ranks).
pub fn scaled_lr(lr: f64, scaling: LrScaling, effective_batch: usize) -> f64 {
    match scaling {
        LrScaling::Linear => lr * effective_batch as f64 / 256.0,
        LrScaling::None => lr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_is_one_at_256_images() {
        assert_eq!(scaled_lr(5e-4, LrScaling::Linear, 256), 5e-4);
        assert_eq!(scaled_lr(5e-4, LrScaling::Linear, 32), 6.25e-5);
        assert_eq!(scaled_lr(5e-4, LrScaling::None, 32), 5e-4);
    }
}
