//! The single operations, as functions of an image and explicit values.
//!
//! Each gives the same bytes as Pillow or the torchvision function it is named after. They copy
//! their image; the crops of [`crate::MultiCrop`] run the same code in place on planes of bytes.

pub(crate) mod coefficients;
pub(crate) mod color;
pub(crate) mod flip;
pub(crate) mod gaussian_blur;
pub(crate) mod hue;
pub(crate) mod kernels;
pub(crate) mod resize;
pub(crate) mod turned;

use image::RgbImage;

use crate::chw::Normalize;
use crate::config::Interpolation;
use crate::drawn::{CropBox, DrawnOp};
use crate::workspace::Workspace;
use resize::{Picture, Window};
use turned::Turned;

/// Cuts a box out and resizes it to `width` × `height` (torchvision's `resized_crop`).
///
/// The box is cut first: no pixel outside it is read.
///
/// # Panics
/// If the box is empty or does not lie within the image.
pub fn resized_crop(
    image: &RgbImage,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
    workspace: &mut Workspace,
) -> RgbImage {
    let shared = &Turned::default();
    resize::resize_box(
        Picture { image, shared },
        crop,
        Window::whole(width, height),
        interpolation,
        workspace.level,
        &mut workspace.planes,
        &mut workspace.resize,
    );
    workspace.planes.to_rgb()
}

/// Resizes to `width` × `height` (Pillow's `Image.resize`).
///
/// # Panics
/// If the image has no pixels.
pub fn resize(
    image: &RgbImage,
    width: usize,
    height: usize,
    interpolation: Interpolation,
    workspace: &mut Workspace,
) -> RgbImage {
    let whole = CropBox::whole(image.width() as usize, image.height() as usize);
    resized_crop(image, whole, width, height, interpolation, workspace)
}

/// Left and right change places.
pub fn horizontal_flip(image: &RgbImage) -> RgbImage {
    render(DrawnOp::HorizontalFlip, image)
}

/// Blends with black (torchvision's `adjust_brightness`); a factor of 1 changes nothing.
pub fn brightness(image: &RgbImage, factor: f64) -> RgbImage {
    render(DrawnOp::Brightness(factor), image)
}

/// Blends with the grey of the mean luma (torchvision's `adjust_contrast`).
pub fn contrast(image: &RgbImage, factor: f64) -> RgbImage {
    render(DrawnOp::Contrast(factor), image)
}

/// Blends with the grey image (torchvision's `adjust_saturation`).
pub fn saturation(image: &RgbImage, factor: f64) -> RgbImage {
    render(DrawnOp::Saturation(factor), image)
}

/// Shifts the hue by `turns` (−0.5 to 0.5) of the colour circle through 8-bit HSV (torchvision's
/// `adjust_hue` of a Pillow image); 0 still rounds.
pub fn hue(image: &RgbImage, turns: f64) -> RgbImage {
    render(DrawnOp::Hue(turns), image)
}

/// Every channel becomes the luma (torchvision's `to_grayscale` with three channels).
pub fn grayscale(image: &RgbImage) -> RgbImage {
    render(DrawnOp::Grayscale, image)
}

/// Pillow's `GaussianBlur`: three extended box passes along each axis.
///
/// `radius` is the standard deviation in pixels; values outside 0 to 1000 are clamped.
pub fn gaussian_blur(image: &RgbImage, radius: f64) -> RgbImage {
    render(DrawnOp::GaussianBlur(radius), image)
}

/// Inverts values at or above `threshold` (Pillow's `ImageOps.solarize`).
pub fn solarize(image: &RgbImage, threshold: u8) -> RgbImage {
    render(DrawnOp::Solarize(threshold), image)
}

/// The image as normalised planes `[3, height, width]` (torchvision's `ToTensor`, `Normalize`).
pub fn normalize(image: &RgbImage, normalize: &Normalize, workspace: &mut Workspace) -> Vec<f32> {
    workspace.planes.take_rgb(image);
    let mut out = vec![0.0; 3 * workspace.planes.len_of_plane()];
    normalize.write(&workspace.planes, &mut out, workspace.level);
    out
}

/// [`DrawnOp::render`] with buffers of its own.
fn render(op: DrawnOp, image: &RgbImage) -> RgbImage {
    op.render(image, &mut Workspace::new())
}
