//! What a loader hands out.

use std::time::Duration;

/// What the pixels of crops are handed out as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PixelType {
    /// f32 with mean and standard deviation applied.
    #[default]
    Normalized,
    /// Bytes, a quarter of the size, for a device that normalises by itself.
    Bytes,
}

/// Pixels of crops, one after the other, each in planes.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// `(byte / 255 − mean) / std` by channel.
    Normalized(Vec<f32>),
    /// Before normalisation.
    Bytes(Vec<u8>),
}

impl Pixels {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Pixels::Normalized(values) => values.len(),
            Pixels::Bytes(values) => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, if they are normalised.
    pub fn normalized(&self) -> Option<&[f32]> {
        match self {
            Pixels::Normalized(values) => Some(values),
            Pixels::Bytes(_) => None,
        }
    }
}

/// The crops of a batch of images, view-major: all images of view 0, then of view 1, …
#[derive(Clone, Debug, PartialEq)]
pub struct HostBatch {
    /// The epoch it belongs to.
    pub epoch: u64,
    /// Its number within the epoch, from 0.
    pub index: usize,
    /// Which images: indices into the data set, stand-ins for undecodable ones included.
    pub samples: Vec<usize>,
    /// B, the number of images.
    pub batch_size: usize,
    /// Number of global crops of an image, always 2.
    pub num_global: usize,
    /// G, the side of a global crop in pixels.
    pub global_size: usize,
    /// `[2, B, 3, G, G]`.
    pub global: Pixels,
    /// L, the number of local crops of an image.
    pub num_local: usize,
    /// S, the side of a local crop in pixels.
    pub local_size: usize,
    /// `[L, B, 3, S, S]`, of the same type.
    pub local: Pixels,
    /// How long the consumer waited for it: what loading costs a step.
    pub wait: Duration,
}

/// A view of each of some images, or two, for evaluation or supervised training.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalBatch {
    /// Which images: indices into the data set, one for each view, undecodable ones left out.
    pub samples: Vec<usize>,
    /// `[samples.len(), 3, image_size, image_size]`, normalised.
    pub images: Vec<f32>,
    /// Side in pixels.
    pub image_size: usize,
}
