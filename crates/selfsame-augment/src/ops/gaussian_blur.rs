//! Pillow's Gaussian blur (BoxBlur.c): three passes of a box with fractional ends along each axis,
//! after Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
//! filtering" (2011).

use super::kernels::{self, BlurBox, Planes};

#[derive(Debug, Clone, Default)]
pub(crate) struct BlurBuffers {
    /// A row with its border pixels repeated on both sides.
    line: Vec<u8>,
    plane: Vec<u8>,
    sums: Vec<u32>,
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

fn blur_box(radius: f32) -> BlurBox {
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

pub(crate) fn gaussian_blur_planes(planes: &mut Planes, radius: f64, buffers: &mut BlurBuffers) {
    let radius = box_radius(radius.clamp(0.0, 1000.0) as f32);
    let (width, height) = (planes.width, planes.height);
    // A radius that is not a number blurs nothing, like 0.
    if radius.is_nan() || radius <= 0.0 || width == 0 || height == 0 {
        return;
    }
    let kernel = blur_box(radius);
    buffers.plane.resize(width * height, 0);
    for plane in planes.channels_mut() {
        buffers.sums.resize(width, 0);
        for row in plane.chunks_exact_mut(width) {
            blur_row_in_place(row, kernel, buffers);
        }
        let BlurBuffers {
            plane: other, sums, ..
        } = &mut *buffers;
        kernels::blur_columns(other, plane, width, kernel, sums);
        kernels::blur_columns(plane, other, width, kernel, sums);
        kernels::blur_columns(other, plane, width, kernel, sums);
        plane.copy_from_slice(other);
    }
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
            gaussian_blur_planes(&mut planes, radius, &mut BlurBuffers::default());
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
        gaussian_blur_planes(&mut planes, 4.0, &mut BlurBuffers::default());
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
