use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::chw::{ChwImage, Normalize};
use crate::config::{
    IMAGENET_MEAN, IMAGENET_STD, Interpolation, LARGEST_SIZE, assert_sound, check_mean_std,
    check_size,
};
use crate::drawn::CropBox;
use crate::ops::resize::{self, Picture, Window};
use crate::ops::turned::Turned;
use crate::workspace::Workspace;

/// The deterministic transform of every evaluation: resize, centre crop, normalise.
///
/// The shorter side becomes round(image_size · resize_ratio), the longer side ⌊that · long / short⌋
/// (torchvision's `Resize`), then the centre is cut out (`CenterCrop`; rounding half to even, and
/// black borders where the ratio is below 1).
/// Only the pixels of the cut are computed, so a long thin image costs no more than a square one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalCrop {
    /// Side of the result in pixels.
    pub image_size: usize,
    /// Shorter side after the resize, over `image_size`; the official protocol has 256/224.
    pub resize_ratio: f64,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Mean per channel, in units of full scale.
    pub mean: [f64; 3],
    /// Standard deviation per channel, in units of full scale.
    pub std: [f64; 3],
}

impl Default for EvalCrop {
    fn default() -> Self {
        Self {
            image_size: 224,
            resize_ratio: 1.0,
            interpolation: Interpolation::Bicubic,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }
}

impl EvalCrop {
    /// Every problem, each text naming its field; empty if there is none.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        check_size("eval_crop.image_size", self.image_size, &mut problems);
        if !(self.resize_ratio.is_finite() && self.resize_ratio > 0.0) {
            problems.push(format!(
                "eval_crop.resize_ratio: {} is not above 0",
                self.resize_ratio
            ));
        } else if self.image_size <= LARGEST_SIZE && self.shorter_side() > LARGEST_SIZE {
            problems.push(format!(
                "eval_crop.resize_ratio: {} makes more than {LARGEST_SIZE} pixels of {}",
                self.resize_ratio, self.image_size
            ));
        }
        check_mean_std("eval_crop", self.mean, self.std, &mut problems);
        problems
    }

    /// The shorter side after the resize.
    fn shorter_side(&self) -> usize {
        let side = self.image_size as f64 * self.resize_ratio;
        (side.round_ties_even() as usize).max(1)
    }

    /// Width and height of an image of `width` × `height` pixels after the resize, before the cut.
    pub fn resized_dimensions(&self, width: usize, height: usize) -> (usize, usize) {
        let short = self.shorter_side();
        let long =
            |long: usize, side: usize| (short.saturating_mul(long) as f64 / side as f64) as usize;
        if width <= height {
            (short, long(height, width))
        } else {
            (long(width, height), short)
        }
    }

    /// The transform of an image, in newly allocated memory.
    ///
    /// # Panics
    /// If the image has no pixels, or [`Self::check`] finds a problem.
    pub fn apply(&self, image: &RgbImage) -> ChwImage {
        assert_sound(&self.check());
        let mut out = ChwImage::zeroed(self.image_size);
        self.write(image, &mut out.data, &mut Workspace::new());
        out
    }

    /// The same, written to a slice of 3·image_size² values with buffers that are used again.
    ///
    /// # Panics
    /// If the image has no pixels, or [`Self::check`] finds a problem, or `out` has another length.
    pub fn write(&self, image: &RgbImage, out: &mut [f32], workspace: &mut Workspace) {
        assert_sound(&self.check());
        assert_eq!(
            out.len(),
            3 * self.image_size * self.image_size,
            "length of the output"
        );
        self.render_planes(image, workspace);
        let (planes, level) = (&workspace.planes, workspace.level);
        Normalize::cached(&mut workspace.normalize, self.mean, self.std).write(planes, out, level);
    }

    /// The transform as an 8-bit image, before normalisation.
    ///
    /// # Panics
    /// If the image has no pixels, or [`Self::check`] finds a problem.
    pub fn render(&self, image: &RgbImage, workspace: &mut Workspace) -> RgbImage {
        self.render_planes(image, workspace);
        workspace.planes.to_rgb()
    }

    fn render_planes(&self, image: &RgbImage, workspace: &mut Workspace) {
        let (width, height) = (image.width() as usize, image.height() as usize);
        assert!(width > 0 && height > 0, "an image has pixels");
        assert_sound(&self.check());
        let (full_width, full_height) = self.resized_dimensions(width, height);
        let x = CentreCut::new(full_width, self.image_size);
        let y = CentreCut::new(full_height, self.image_size);
        resize::resize_box(
            Picture {
                image,
                shared: &Turned::default(),
            },
            CropBox::whole(width, height),
            Window {
                columns: x.first..x.first + x.len,
                rows: y.first..y.first + y.len,
                ..Window::whole(full_width, full_height)
            },
            self.interpolation,
            workspace.level,
            &mut workspace.planes,
            &mut workspace.resize,
        );
        if x.len < self.image_size || y.len < self.image_size {
            workspace
                .planes
                .pad(self.image_size, self.image_size, x.border, y.border);
        }
    }
}

/// Where torchvision's `CenterCrop` cuts along one axis.
struct CentreCut {
    first: usize,
    len: usize,
    /// Black pixels before the first.
    border: usize,
}

impl CentreCut {
    fn new(full: usize, size: usize) -> Self {
        if full < size {
            Self {
                first: 0,
                len: full,
                border: (size - full) / 2,
            }
        } else {
            // int(round((full − size) / 2.0)), half to even
            let first = ((full - size) as f64 / 2.0).round_ties_even() as usize;
            Self {
                first,
                len: size,
                border: 0,
            }
        }
    }
}
