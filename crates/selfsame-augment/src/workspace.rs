use crate::ops::gaussian_blur::BlurBuffers;
use crate::ops::kernels::Planes;
use crate::ops::resize::ResizeBuffers;

/// Buffers that the operations use again and again; keep one per thread.
///
/// They grow to the largest image seen and hold nothing that a later result depends on.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// The view being made, as three planes of bytes.
    pub(crate) planes: Planes,
    pub(crate) resize: ResizeBuffers,
    pub(crate) blur: BlurBuffers,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }
}
