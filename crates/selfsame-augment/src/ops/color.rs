//! Brightness, contrast, saturation, grayscale and solarize: Pillow's `ImageEnhance`, `convert`
//! and `ImageOps` on bytes.

use super::kernels::{self, Planes};

pub(crate) fn brightness_planes(planes: &mut Planes, factor: f64) {
    blend_with_constant(planes, 0, factor);
}

pub(crate) fn contrast_planes(planes: &mut Planes, factor: f64) {
    let n = planes.len_of_plane();
    if n == 0 {
        return;
    }
    let mean = kernels::sum_of_luma(planes.channels()) as f64 / n as f64;
    blend_with_constant(planes, (mean + 0.5) as u8, factor);
}

pub(crate) fn saturation_planes(planes: &mut Planes, factor: f64) {
    kernels::blend_with_luma(planes.channels_mut(), factor as f32);
}

pub(crate) fn grayscale_planes(planes: &mut Planes) {
    kernels::set_to_luma(planes.channels_mut());
}

pub(crate) fn solarize_planes(planes: &mut Planes, threshold: u8) {
    let mut table = [0; 256];
    for (v, out) in (0..=255u8).zip(&mut table) {
        *out = if v < threshold { v } else { 255 - v };
    }
    kernels::map_bytes(&mut planes.data, &table);
}

fn blend_with_constant(planes: &mut Planes, constant: u8, factor: f64) {
    let mut table = [0; 256];
    for (v, out) in (0..=255u8).zip(&mut table) {
        *out = kernels::blend(constant, v, factor as f32);
    }
    kernels::map_bytes(&mut planes.data, &table);
}
