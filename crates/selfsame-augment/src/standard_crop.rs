use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::chw::{ChwImage, Normalize};
use crate::config::{
    IMAGENET_MEAN, IMAGENET_STD, Interpolation, assert_sound, check_mean_std, check_ratio,
    check_scale, check_size,
};
use crate::drawn::{DrawnOp, DrawnView};
use crate::random_resized_crop::random_resized_crop;
use crate::seed::{Purpose, SampleKey};
use crate::workspace::Workspace;

/// The usual supervised training transform: random resized crop, flip, normalise.
///
/// [`Default`] is that of the official linear probe (`eval_linear.py`: torchvision's
/// `RandomResizedCrop(224)` and a flip with p = 0.5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StandardCrop {
    /// Side of the crop in pixels.
    pub image_size: usize,
    /// Smallest and largest share of the image's area.
    pub scale: [f64; 2],
    /// Smallest and largest width / height of the box.
    pub ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip_p: f64,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Mean per channel, in units of full scale.
    pub mean: [f64; 3],
    /// Standard deviation per channel, in units of full scale.
    pub std: [f64; 3],
}

impl Default for StandardCrop {
    fn default() -> Self {
        Self {
            image_size: 224,
            scale: [0.08, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            flip_p: 0.5,
            interpolation: Interpolation::Bilinear,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }
}

impl StandardCrop {
    /// Every problem, each text naming its field; empty if there is none.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        check_size("standard_crop.image_size", self.image_size, &mut problems);
        check_scale("standard_crop.scale", self.scale, &mut problems);
        check_ratio("standard_crop.ratio", self.ratio, &mut problems);
        if !(0.0..=1.0).contains(&self.flip_p) {
            problems.push(format!(
                "standard_crop.flip_p: {} is not a probability",
                self.flip_p
            ));
        }
        check_mean_std("standard_crop", self.mean, self.std, &mut problems);
        problems
    }

    /// Draws the box and the flip for an image of `width` × `height` pixels.
    ///
    /// # Panics
    /// If a side is 0, or [`Self::check`] finds a problem.
    pub fn draw(&self, width: usize, height: usize, key: SampleKey) -> DrawnView {
        assert_sound(&self.check());
        let mut stream = key.stream(Purpose::StandardCrop, 0);
        let crop = random_resized_crop(&mut stream, width, height, self.scale, self.ratio);
        let flip = stream.coin(self.flip_p);
        DrawnView {
            crop,
            size: self.image_size,
            interpolation: self.interpolation,
            ops: flip
                .then_some(DrawnOp::HorizontalFlip)
                .into_iter()
                .collect(),
        }
    }

    /// The crop of an image for a key, in newly allocated memory.
    ///
    /// # Panics
    /// If the image has no pixels, or [`Self::check`] finds a problem.
    pub fn apply(&self, image: &RgbImage, key: SampleKey) -> ChwImage {
        assert_sound(&self.check());
        let mut out = ChwImage::zeroed(self.image_size);
        self.write(image, key, &mut out.data, &mut Workspace::new());
        out
    }

    /// The same, written to a slice of 3·image_size² values with buffers that are used again.
    ///
    /// # Panics
    /// If the image has no pixels, or [`Self::check`] finds a problem, or `out` has another length.
    pub fn write(
        &self,
        image: &RgbImage,
        key: SampleKey,
        out: &mut [f32],
        workspace: &mut Workspace,
    ) {
        assert_sound(&self.check());
        assert_eq!(
            out.len(),
            3 * self.image_size * self.image_size,
            "length of the output"
        );
        let view = self.draw(image.width() as usize, image.height() as usize, key);
        view.render_planes(image, workspace);
        let (planes, level) = (&workspace.planes, workspace.level);
        Normalize::cached(&mut workspace.normalize, self.mean, self.std).write(planes, out, level);
    }
}
