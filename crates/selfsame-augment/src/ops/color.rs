//! Brightness, contrast, saturation, grayscale and solarize: Pillow's `ImageEnhance`, `convert`
//! and `ImageOps` on bytes.

use super::kernels::Planes;
use crate::simd::{Level, bytes, color};

pub(crate) fn brightness_planes(planes: &mut Planes, factor: f64, level: Level) {
    bytes::blend_with_constant(level, &mut planes.data, 0, factor as f32);
}

pub(crate) fn contrast_planes(planes: &mut Planes, factor: f64, level: Level) {
    let n = planes.len_of_plane();
    if n == 0 {
        return;
    }
    let mean = color::sum_of_luma(level, planes.channels()) as f64 / n as f64;
    let grey = (mean + 0.5) as u8;
    bytes::blend_with_constant(level, &mut planes.data, grey, factor as f32);
}

pub(crate) fn saturation_planes(planes: &mut Planes, factor: f64, level: Level) {
    color::blend_with_luma(level, planes.channels_mut(), factor as f32);
}

pub(crate) fn grayscale_planes(planes: &mut Planes, level: Level) {
    color::set_to_luma(level, planes.channels_mut());
}

pub(crate) fn solarize_planes(planes: &mut Planes, threshold: u8, level: Level) {
    color::solarize(level, &mut planes.data, threshold);
}
