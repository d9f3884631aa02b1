use crate::config::Interpolation;

/// A text that names no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not the name of an [`Interpolation`].
    #[error("{name:?} is no interpolation; known are {}", Interpolation::ALL.map(Interpolation::name).join(", "))]
    Interpolation {
        /// The text.
        name: String,
    },
    /// Not the name of a [`Level`](crate::Level), or of one that this machine does not have.
    #[error("{name:?} is not a level of instructions that this machine has")]
    Level {
        /// The text.
        name: String,
    },
}

/// What can go wrong between a configuration, an image and the crops.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AugmentError {
    /// The configuration does not pass its check; every problem is listed and names its key.
    #[error("invalid augmentation: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The image has no pixels, so there is nothing to crop.
    #[error("the image has no pixels ({width} x {height})")]
    EmptyImage {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The caller handed another number of outputs than there are views.
    #[error("{got} outputs for {expected} views")]
    ViewCount {
        /// Number of views of the configuration.
        expected: usize,
        /// Number of slices given.
        got: usize,
    },
    /// An output slice has another length than its view or batch needs.
    #[error("the output for {what} holds {got} values instead of {expected}")]
    OutputLength {
        /// Which output, for example `view 3` or `the global batch`.
        what: String,
        /// Number of values needed.
        expected: usize,
        /// Number of values given.
        got: usize,
    },
}
