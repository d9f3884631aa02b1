use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::config::Interpolation;
use crate::ops::resize::{Picture, Window};
use crate::ops::turned::Turned;
use crate::ops::{color, flip, gaussian_blur, hue, resize};
use crate::simd::resample::Order;
use crate::workspace::Workspace;

/// A rectangle of pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// The smallest box that holds two.
    pub(crate) fn around(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self {
            left,
            top,
            width: right - left,
            height: bottom - top,
        }
    }
}

/// An operation with the values that were drawn for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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

impl DrawnOp {
    /// Changes the view in `workspace.planes`.
    pub(crate) fn apply(self, workspace: &mut Workspace) {
        let level = workspace.level;
        let planes = &mut workspace.planes;
        match self {
            Self::HorizontalFlip => flip::horizontal_flip_planes(planes),
            Self::Brightness(factor) => color::brightness_planes(planes, factor, level),
            Self::Contrast(factor) => color::contrast_planes(planes, factor, level),
            Self::Saturation(factor) => color::saturation_planes(planes, factor, level),
            Self::Hue(shift) => hue::hue_planes(planes, shift, level),
            Self::Grayscale => color::grayscale_planes(planes, level),
            Self::GaussianBlur(radius) => {
                gaussian_blur::gaussian_blur_planes(planes, radius, level, &mut workspace.blur);
            }
            Self::Solarize(threshold) => color::solarize_planes(planes, threshold, level),
        }
    }

    /// The image after this operation.
    pub fn render(self, image: &RgbImage, workspace: &mut Workspace) -> RgbImage {
        workspace.planes.take_rgb(image);
        self.apply(workspace);
        workspace.planes.to_rgb()
    }
}

/// All that was drawn for one view: with an image it gives the crop, without any more randomness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        let shared = &Turned::default();
        self.render_picture(Picture { image, shared }, workspace);
    }

    /// The same from an image of which a part may be shared with other views.
    pub(crate) fn render_picture(&self, picture: Picture, workspace: &mut Workspace) {
        let mut window = Window::whole(self.size, self.size);
        // The resize writes a mirror image as fast as any other.
        let ops = match self.ops.split_first() {
            Some((DrawnOp::HorizontalFlip, rest)) => {
                window.order = Order::Mirrored;
                rest
            }
            _ => &self.ops,
        };
        resize::resize_box(
            picture,
            self.crop,
            window,
            self.interpolation,
            workspace.level,
            &mut workspace.planes,
            &mut workspace.resize,
        );
        for op in ops {
            op.apply(workspace);
        }
    }
}
