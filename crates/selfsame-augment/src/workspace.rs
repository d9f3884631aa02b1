use crate::chw::Normalize;
use crate::drawn::DrawnView;
use crate::ops::gaussian_blur::BlurBuffers;
use crate::ops::kernels::Planes;
use crate::ops::resize::ResizeBuffers;
use crate::ops::turned::Turned;
use crate::simd::Level;

/// Buffers that the operations use again and again; keep one per thread.
///
/// They grow to the largest image seen and hold nothing that a later result depends on; 3 MiB of them
/// are weights of resizes, kept for other crops of the same sides. Once grown,
/// [`crate::MultiCrop::write_crops`] allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// The instructions to use.
    pub(crate) level: Level,
    /// The view being made, as three planes of bytes.
    pub(crate) planes: Planes,
    pub(crate) resize: ResizeBuffers,
    pub(crate) blur: BlurBuffers,
    /// The part of an image that its crops share.
    pub(crate) shared: Turned,
    /// The views of the image before, whose memory is used again.
    pub(crate) drawn: Vec<DrawnView>,
    pub(crate) normalize: Option<Normalize>,
}

impl Workspace {
    /// Empty buffers, and the fastest instructions the machine has.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty buffers and other instructions, for tests and comparisons: the results are the same.
    pub fn with_level(level: Level) -> Self {
        Self {
            level,
            ..Self::default()
        }
    }

    /// The instructions in use.
    pub fn level(&self) -> Level {
        self.level
    }
}
