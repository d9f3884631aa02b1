use image::RgbImage;
use serde::Serialize;

use crate::config::Interpolation;
use crate::ops::{color, flip, gaussian_blur, hue, resize};
use crate::workspace::Workspace;

/// A rectangle of pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct CropBox {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

impl CropBox {
    /// The box that covers a whole image.
    pub fn whole(width: usize, height: usize) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }
}

/// An operation with the values that were drawn for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "op", content = "value", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DrawnOp {
    /// Left and right change places.
    HorizontalFlip,
    /// Factor of the brightness; 1 changes nothing.
    Brightness(f64),
    /// Factor of the distance to the mean luma; 1 changes nothing.
    Contrast(f64),
    /// Factor of the distance to each pixel's luma; 1 changes nothing.
    Saturation(f64),
    /// Shift of the hue in turns, −0.5 to 0.5.
    Hue(f64),
    /// Every channel becomes the luma.
    Grayscale,
    /// Standard deviation in pixels.
    GaussianBlur(f64),
    /// First inverted value.
    Solarize(u8),
}

/// All that was drawn for one view: with an image it gives the crop, without any more randomness.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawnView {
    /// The part of the image that becomes the view.
    pub crop: CropBox,
    /// Side of the view in pixels.
    pub size: usize,
    /// Filter of the resize from the box to the view.
    pub interpolation: Interpolation,
    /// The operations in the order in which they are applied; those that the coin left out are
    /// not here.
    pub ops: Vec<DrawnOp>,
}

impl DrawnView {
    /// True if the view is a mirror image of its crop.
    pub fn flipped(&self) -> bool {
        self.ops
            .iter()
            .filter(|op| matches!(op, DrawnOp::HorizontalFlip))
            .count()
            % 2
            == 1
    }

    /// The view as an 8-bit image of `size` × `size`, before normalisation.
    ///
    /// # Panics
    /// If the box does not lie within the image.
    pub fn render(&self, image: &RgbImage, workspace: &mut Workspace) -> RgbImage {
        self.render_planes(image, workspace);
        workspace.planes.to_rgb()
    }

    /// The same, left in `workspace.planes`.
    pub(crate) fn render_planes(&self, image: &RgbImage, workspace: &mut Workspace) {
        let Workspace {
            planes,
            resize: buffers,
            blur,
        } = workspace;
        resize::resize_box(
            image,
            self.crop,
            self.size,
            self.size,
            self.interpolation,
            planes,
            buffers,
        );
        for op in &self.ops {
            match *op {
                DrawnOp::HorizontalFlip => flip::horizontal_flip_planes(planes),
                DrawnOp::Brightness(factor) => color::brightness_planes(planes, factor),
                DrawnOp::Contrast(factor) => color::contrast_planes(planes, factor),
                DrawnOp::Saturation(factor) => color::saturation_planes(planes, factor),
                DrawnOp::Hue(shift) => hue::hue_planes(planes, shift),
                DrawnOp::Grayscale => color::grayscale_planes(planes),
                DrawnOp::GaussianBlur(radius) => {
                    gaussian_blur::gaussian_blur_planes(planes, radius, blur);
                }
                DrawnOp::Solarize(threshold) => color::solarize_planes(planes, threshold),
            }
        }
    }
}
