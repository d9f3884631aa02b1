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
