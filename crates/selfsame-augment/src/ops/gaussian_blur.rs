//! Pillow's Gaussian blur (BoxBlur.c): three passes of a box with fractional ends along each axis,
//! after Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
//! filtering" (2011).

use super::kernels::{self, BlurBox, Planes};
use crate::simd::Level;
use crate::simd::blur::{BlurRows, MAX_RADIUS, blur_few, blur_many};
use crate::simd::transpose::transpose;

#[derive(Debug, Clone, Default)]
pub(crate) struct BlurBuffers {
    /// A row with its border pixels repeated on both sides.
    line: Vec<u8>,
    plane: Vec<u8>,
    sums: Vec<u32>,
    vector: VectorBuffers,
}

/// Buffers of the vector routines.
#[derive(Debug, Clone, Default)]
struct VectorBuffers {
    rows: BlurRows,
    planes: [Vec<u8>; 2],
    sums: Vec<i16>,
}

/// Number of box passes along each axis.
const PASSES: usize = 3;

/// Half width of the box whose [`PASSES`]-fold application has standard deviation `sigma`.
fn box_radius(sigma: f32) -> f32 {
    let sigma2 = sigma * sigma / PASSES as f32;
    let length = (12.0 * f64::from(sigma2) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let numerator = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * sigma2);
    let edge = numerator / (6.0 * (sigma2 - (whole + 1.0) * (whole + 1.0)));
    whole + edge
}

/// The box whose half width is `radius`.
pub(crate) fn blur_box(radius: f32) -> BlurBox {
    let one = 1u32 << 24;
    let whole_pixels = radius as u32;
    let whole = (one as f32 / (radius * 2.0 + 1.0)) as u32;
    let edge = (one - (whole_pixels * 2 + 1) * whole) / 2;
    BlurBox {
        radius: whole_pixels as usize,
        whole,
        edge,
    }
}

pub(crate) fn gaussian_blur_planes(
    planes: &mut Planes,
    radius: f64,
    level: Level,
    buffers: &mut BlurBuffers,
) {
    let radius = box_radius(radius.clamp(0.0, 1000.0) as f32);
    let (width, height) = (planes.width, planes.height);
    // A radius that is not a number blurs nothing, like 0.
    if radius.is_nan() || radius <= 0.0 || width == 0 || height == 0 {
        return;
    }
    let kernel = blur_box(radius);
    for plane in planes.channels_mut() {
        blur_plane(plane, width, kernel, level, buffers);
    }
}

/// All passes over a plane of rows of `width` bytes.
pub(crate) fn blur_plane(
    plane: &mut [u8],
    width: usize,
    kernel: BlurBox,
    level: Level,
    buffers: &mut BlurBuffers,
) {
    if level == Level::SCALAR || kernel.radius > MAX_RADIUS {
        return blur_plane_scalar(plane, width, kernel, buffers);
    }
    let buffers = &mut buffers.vector;
    match kernel.radius {
        0 => blur_few::<1>(level, plane, width, kernel, &mut buffers.rows),
        1 => blur_few::<3>(level, plane, width, kernel, &mut buffers.rows),
        _ => blur_with_sums(plane, width, kernel, level, buffers),
    }
}

fn blur_plane_scalar(plane: &mut [u8], width: usize, kernel: BlurBox, buffers: &mut BlurBuffers) {
    buffers.sums.resize(width, 0);
    for row in plane.chunks_exact_mut(width) {
        blur_row_in_place(row, kernel, buffers);
    }
    let BlurBuffers {
        plane: other, sums, ..
    } = &mut *buffers;
    other.resize(plane.len(), 0);
    kernels::blur_columns(other, plane, width, kernel, sums);
    kernels::blur_columns(plane, other, width, kernel, sums);
    kernels::blur_columns(other, plane, width, kernel, sums);
    plane.copy_from_slice(other);
}

fn blur_row_in_place(row: &mut [u8], kernel: BlurBox, buffers: &mut BlurBuffers) {
    let border = kernel.radius + 1;
    let BlurBuffers { line, sums, .. } = buffers;
    line.resize(row.len() + 2 * border, 0);
    for _ in 0..PASSES {
        let (first, last) = (row[0], row[row.len() - 1]);
        line[..border].fill(first);
        line[border..border + row.len()].copy_from_slice(row);
        line[border + row.len()..].fill(last);
        kernels::blur_row(row, line, kernel, sums);
    }
}

/// Keeps two planes from lying a multiple of 4096 bytes apart, where a processor takes a load for one
/// of what has just been stored (1.6 times the time).
const APART: usize = 320;

/// Any other radius: sums that move down the rows; along the rows, on the turned plane.
fn blur_with_sums(
    plane: &mut [u8],
    width: usize,
    kernel: BlurBox,
    level: Level,
    buffers: &mut VectorBuffers,
) {
    let height = plane.len() / width;
    let VectorBuffers {
        planes: [a, b],
        sums,
        ..
    } = buffers;
    for buffer in [&mut *a, &mut *b] {
        buffer.resize((plane.len() + APART).max(buffer.len()), 0);
    }
    let (a, b) = (&mut a[..width * height], &mut b[..width * height]);
    transpose(level, a, height, plane, width, (width, height));
    blur_down(b, a, height, kernel, level, sums);
    blur_down(a, b, height, kernel, level, sums);
    blur_down(b, a, height, kernel, level, sums);
    transpose(level, a, width, b, height, (height, width));
    blur_down(b, a, width, kernel, level, sums);
    blur_down(a, b, width, kernel, level, sums);
    blur_down(plane, a, width, kernel, level, sums);
}

/// One pass down the rows of `width` bytes; rows beyond the border repeat it.
fn blur_down(
    out: &mut [u8],
    plane: &[u8],
    width: usize,
    kernel: BlurBox,
    level: Level,
    sums: &mut Vec<i16>,
) {
    let height = plane.len() / width;
    let r = kernel.radius as isize;
    let row = |y: isize| &plane[y.clamp(0, height as isize - 1) as usize * width..][..width];
    // The window of row −1, so that each row only adds one and takes one away.
    sums.clear();
    sums.resize(width, 0);
    for y in -1 - r..r {
        for (sum, &value) in sums.iter_mut().zip(row(y)) {
            *sum += i16::from(value);
        }
    }
    for (out, y) in out.chunks_exact_mut(width).zip(0isize..) {
        let outer = [row(y - r - 1), row(y + r + 1)];
        blur_many(level, out, sums, [outer[0], row(y + r)], outer, kernel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_the_box_add_up_to_one() {
        for step in 1..400 {
            let kernel = blur_box(box_radius(step as f32 * 0.05));
            let sum = (2 * kernel.radius as u32 + 1) * kernel.whole + 2 * kernel.edge;
            assert!(sum == 1 << 24 || sum == (1 << 24) - 1, "{kernel:?}");
        }
    }

    #[test]
    fn flat_image_stays_flat_under_any_radius() {
        for radius in [0.0, 0.1, 0.7, 2.0, 9.0, 1000.0] {
            let mut planes = Planes::default();
            planes.reset(5, 3);
            planes.data.fill(200);
            gaussian_blur_planes(
                &mut planes,
                radius,
                Level::SCALAR,
                &mut BlurBuffers::default(),
            );
            assert!(planes.data.iter().all(|&v| v == 200), "radius {radius}");
        }
    }

    #[test]
    fn point_spreads_with_the_standard_deviation_asked_for() {
        let mut planes = Planes::default();
        planes.reset(61, 1);
        for plane in planes.channels_mut() {
            plane[25..36].fill(255);
        }
        gaussian_blur_planes(&mut planes, 4.0, Level::SCALAR, &mut BlurBuffers::default());
        let red = planes.channels()[0];
        let mass: f64 = red.iter().map(|&v| f64::from(v)).sum();
        let variance: f64 = red
            .iter()
            .enumerate()
            .map(|(x, &v)| f64::from(v) * (x as f64 - 30.0).powi(2))
            .sum::<f64>()
            / mass;
        // An 11-pixel bar has variance 10 of its own.
        assert!((variance - (10.0 + 16.0)).abs() < 0.5, "{variance}");
    }
}
