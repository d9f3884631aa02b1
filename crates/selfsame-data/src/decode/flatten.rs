//! Every pixel layout to RGB of 8 bits, alpha over white.

use image::{DynamicImage, RgbImage};

/// Drops alpha by painting the picture on white; scales 16-bit and float channels to 8 bits.
pub(super) fn to_rgb(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let (width, height) = (picture.width(), picture.height());
    let rgba = picture.into_rgba8();
    let mut rgb = RgbImage::new(width, height);
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [r, g, b, alpha] = pixel.0;
        out.0 = [r, g, b].map(|channel| over_white(channel, alpha));
    }
    rgb
}

/// `channel` at `alpha` over 255, rounded to nearest.
fn over_white(channel: u8, alpha: u8) -> u8 {
    let (channel, alpha) = (u32::from(channel), u32::from(alpha));
    ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgba};

    #[test]
    fn transparent_is_white_and_opaque_is_kept() {
        assert_eq!(over_white(10, 0), 255);
        assert_eq!(over_white(10, 255), 10);
        assert_eq!(over_white(0, 128), 127);
        let picture = ImageBuffer::from_pixel(1, 1, Rgba([200u8, 0, 100, 255]));
        assert_eq!(
            to_rgb(DynamicImage::ImageRgba8(picture)).get_pixel(0, 0).0,
            [200, 0, 100]
        );
    }

    #[test]
    fn sixteen_bits_are_scaled_not_clipped() {
        let grey = ImageBuffer::from_pixel(1, 1, Luma([0x8080u16]));
        assert_eq!(
            to_rgb(DynamicImage::ImageLuma16(grey)).get_pixel(0, 0).0,
            [128; 3]
        );
        let half = ImageBuffer::from_pixel(1, 1, LumaA([0u16, 0x8000]));
        assert_eq!(
            to_rgb(DynamicImage::ImageLumaA16(half)).get_pixel(0, 0).0,
            [127; 3]
        );
    }
}
