//! Every vector routine on slices that end, or begin, at a forbidden page, against the scalar one.

mod guarded;

use guarded::{Guarded, Side};

use super::blur::{MAX_RADIUS, blur_many};
use super::resample::{Order, Rows, resample};
use super::{Level, bytes, color, normalize, transpose};
use crate::config::Interpolation;
use crate::ops::coefficients::{AxisResize, Tables};
use crate::ops::gaussian_blur::{BlurBuffers, blur_box, blur_plane};
use crate::ops::kernels::BlurBox;

/// Lengths around every vector width, and some between.
const LENGTHS: [usize; 23] = [
    1, 2, 3, 7, 8, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 127, 128, 129, 300,
];

const SIDES: [Side; 2] = [Side::Start, Side::End];

/// Bytes without a pattern.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn vector_levels() -> impl Iterator<Item = Level> {
    Level::available().filter(|&level| level != Level::SCALAR)
}

/// Runs a routine on guarded copies of its output and inputs at every level and side, and compares
/// the output with the scalar routine's on plain memory.
fn compare<T: Copy + PartialEq + std::fmt::Debug>(
    what: &str,
    out: &[T],
    inputs: &[&[u8]],
    mut run: impl FnMut(Level, &mut [T], &[&[u8]]),
) {
    let mut expected = out.to_vec();
    run(Level::SCALAR, &mut expected, inputs);
    for level in vector_levels() {
        for side in SIDES {
            let mut guarded = Guarded::new(out, side);
            let inputs: Vec<_> = inputs.iter().map(|i| Guarded::new(i, side)).collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(|input| &**input).collect();
            run(level, &mut guarded, &inputs);
            assert_eq!(*guarded, expected[..], "{what}, {level}, at the {side:?}");
        }
    }
}

/// Three planes of one slice.
fn planes(bytes: &mut [u8]) -> [&mut [u8]; 3] {
    let n = bytes.len() / 3;
    let (red, rest) = bytes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    [red, green, blue]
}

#[test]
fn resample_stays_within_its_rows() {
    for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
        for (input, output) in [(5, 9), (9, 5), (40, 3), (7, 7), (1, 4), (3, 1)] {
            let mut tables = Tables::default();
            let axis = AxisResize {
                input,
                output,
                window: 0..output,
                interpolation,
            };
            let [table, _] = tables.of(Level::SCALAR, [axis.clone(), axis]);
            for len in LENGTHS {
                for (stride, order) in [(len, Order::Forward), (len + 3, Order::Mirrored)] {
                    // The last row holds no more than what is read.
                    let source = noise((input - 1) * stride + len, len as u32);
                    let out = vec![0u8; (output - 1) * stride + len];
                    let what = format!("{input} to {output} rows of {len}");
                    compare(&what, &out, &[&source], |level, out, inputs| {
                        let rows = Rows {
                            bytes: inputs[0],
                            stride,
                            len,
                        };
                        resample(level, out, stride, rows, table, order);
                    });
                }
            }
        }
    }
}

#[test]
fn resample_saturates_like_the_scalar_routine() {
    // Extremes side by side make a bicubic sum leave 0..=255 on both ends.
    let mut tables = Tables::default();
    let axis = AxisResize {
        input: 8,
        output: 31,
        window: 0..31,
        interpolation: Interpolation::Bicubic,
    };
    let [table, _] = tables.of(Level::SCALAR, [axis.clone(), axis]);
    let source: Vec<u8> = (0..8 * 64)
        .map(|i| if (i / 64 + i) % 3 == 0 { 255 } else { 0 })
        .collect();
    compare(
        "extremes",
        &[0u8; 31 * 64],
        &[&source],
        |level, out, inputs| {
            let rows = Rows {
                bytes: inputs[0],
                stride: 64,
                len: 64,
            };
            resample(level, out, 64, rows, table, Order::Forward);
        },
    );
}

#[test]
fn thousands_of_taps_are_summed_like_in_the_scalar_routine() {
    for (input, output) in [(4000, 3), (8000, 8), (16_384, 16)] {
        let mut tables = Tables::default();
        let axis = AxisResize {
            input,
            output,
            window: 0..output,
            interpolation: Interpolation::Bicubic,
        };
        let [table, _] = tables.of(Level::SCALAR, [axis.clone(), axis]);
        for len in [16, 33, 64] {
            for source in [vec![255; input * len], noise(input * len, 9)] {
                let is_white = source.iter().all(|byte| *byte == 255);
                let what = format!("{input} to {output} rows of {len}, white: {is_white}");
                let out = vec![0u8; output * len];
                compare(&what, &out, &[&source], |level, out, inputs| {
                    let rows = Rows {
                        bytes: inputs[0],
                        stride: len,
                        len,
                    };
                    resample(level, out, len, rows, table, Order::Forward);
                    assert!(!is_white || out.iter().all(|byte| *byte == 255), "{level}");
                });
            }
        }
    }
}

#[test]
fn transpose_stays_within_its_planes() {
    for width in LENGTHS {
        for height in [1, 5, 15, 16, 17, 31, 33, 50] {
            let source = noise(width * height, 3);
            let out = vec![0u8; width * height];
            let what = format!("{width} x {height}");
            compare(&what, &out, &[&source], |level, out, inputs| {
                transpose::transpose(level, out, height, inputs[0], width, (width, height));
            });
            let rgb = noise(3 * width * height, 4);
            let out = vec![0u8; 3 * width * height];
            compare(&what, &out, &[&rgb], |level, out, inputs| {
                let stride = 3 * width;
                let out = planes(out);
                transpose::transpose_rgb(level, out, height, inputs[0], stride, (width, height));
            });
        }
    }
}

/// A box of a radius with a part of it in the edges.
fn kernel(radius: usize) -> BlurBox {
    let whole = (1u32 << 24) / (2 * radius as u32 + 2);
    BlurBox {
        radius,
        whole,
        edge: ((1 << 24) - (2 * radius as u32 + 1) * whole) / 2,
    }
}

#[test]
fn blur_equals_the_scalar_one_and_stays_within_its_plane() {
    // Of the first six some are weighed by differences and some are not.
    for radius in [
        0.0123, 0.1, 0.2718, 0.25, 0.314, 0.9, 1.0, 1.2, 1.9, 2.0, 3.5,
    ] {
        let kernel = blur_box(radius);
        let mut buffers = BlurBuffers::default();
        for width in LENGTHS {
            for height in [1, 2, 3, 9, 40] {
                let plane = noise(width * height, 5);
                let what = format!("radius {radius}, {width} x {height}");
                compare(&what, &plane, &[], |level, plane, _| {
                    blur_plane(plane, width, kernel, level, &mut buffers);
                });
            }
        }
    }
}

#[test]
fn blur_of_many_taps_stays_within_its_rows() {
    for radius in [2, 3, 17, MAX_RADIUS] {
        for len in LENGTHS {
            // Sums that a plane can have, before and after a byte is added and one taken away.
            let largest = (2 * radius as u16 + 1) * 255;
            let sums: Vec<i16> = noise(len, 7)
                .iter()
                .map(|&v| (255 + u16::from(v) * 90 % (largest - 510)) as i16)
                .collect();
            let rows: Vec<_> = (0..4).map(|seed| noise(len, seed)).collect();
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let what = format!("radius {radius}, {len} columns");
            for side in SIDES {
                compare(&what, &vec![0u8; len], &rows, |level, out, inputs| {
                    let mut sums = Guarded::new(&sums, side);
                    let (moved, outer) = ([inputs[0], inputs[1]], [inputs[2], inputs[3]]);
                    blur_many(level, out, &mut sums, moved, outer, kernel(radius));
                });
            }
        }
    }
}

#[test]
fn colours_stay_within_their_planes() {
    for len in LENGTHS {
        let pixels = noise(3 * len, 8);
        let what = format!("{len} pixels");
        for alpha in [0.0, 0.63, 1.0, 1.41, 9.5, -3.0, f32::INFINITY] {
            compare(&what, &pixels, &[], |level, out, _| {
                bytes::blend_with_constant(level, out, 117, alpha);
            });
            compare(&what, &pixels, &[], |level, out, _| {
                color::blend_with_luma(level, planes(out), alpha);
            });
        }
        for shift in [0, 1, 25, 200, 255] {
            compare(&what, &pixels, &[], |level, out, _| {
                color::shift_hue(level, planes(out), shift);
            });
        }
        compare(&what, &pixels, &[], |level, out, _| {
            color::set_to_luma(level, planes(out));
        });
        compare(&what, &[0u64], &[&pixels], |level, out, inputs| {
            let (red, rest) = inputs[0].split_at(len);
            let (green, blue) = rest.split_at(len);
            out[0] = color::sum_of_luma(level, [red, green, blue]);
        });
        compare(&what, &pixels, &[], |level, out, _| {
            color::solarize(level, out, 100);
        });
        compare(
            &what,
            &vec![0f32; len],
            &[&pixels[..len]],
            |level, out, inputs| {
                normalize::normalize(level, out, inputs[0], 0.45, 0.225);
            },
        );
    }
}
