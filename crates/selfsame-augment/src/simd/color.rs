//! The colour operations: the scalar loops compiled for wider instructions, but for the hue, which
//! has a form of its own without branches and without `f64`.

#![expect(
    unsafe_code,
    reason = "conversions of numbers known to be in range, without the checks"
)]

use crate::ops::{hue, kernels};
use crate::simd::level::dispatch;
use crate::simd::normalize::Divisor;
use crate::simd::{Level, by_level};

/// Blends each pixel with its luma.
pub(crate) fn blend_with_luma(level: Level, planes: [&mut [u8]; 3], alpha: f32) {
    dispatch!(level, {
        scalar: kernels::blend_with_luma(planes, alpha),
        avx2: avx2::blend_with_luma(planes, alpha),
        avx512: avx512::blend_with_luma(planes, alpha),
        neon: neon::blend_with_luma(planes, alpha),
    });
}

macro_rules! blends {
    ($level:ident, $features:literal) => {
        mod $level {
            use crate::simd::words::BlendWeight;
            use crate::simd::words::$level::*;

            #[target_feature(enable = $features)]
            pub(super) fn blend_with_luma([r, g, b]: [&mut [u8]; 3], alpha: f32) {
                let Some(weight) = BlendWeight::new(alpha) else {
                    return super::blend_planes_with_luma([r, g, b], alpha);
                };
                let (red, r) = r.as_chunks_mut();
                let (green, g) = g.as_chunks_mut();
                let (blue, b) = b.as_chunks_mut();
                for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
                    let pixels = [load_bytes(red), load_bytes(green), load_bytes(blue)];
                    let grey = luma(pixels);
                    store_bytes(red, saturated(blended(grey, pixels[0], weight)));
                    store_bytes(green, saturated(blended(grey, pixels[1], weight)));
                    store_bytes(blue, saturated(blended(grey, pixels[2], weight)));
                }
                super::blend_planes_with_luma([r, g, b], alpha);
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
blends!(avx2, "avx2");
#[cfg(target_arch = "x86_64")]
blends!(avx512, "avx512f,avx512bw,avx512vl,avx512vnni");
#[cfg(target_arch = "aarch64")]
blends!(neon, "neon");

/// In `f32`: for the weights that words do not reach.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn blend_planes_with_luma([red, green, blue]: [&mut [u8]; 3], alpha: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let grey = kernels::luma(*r, *g, *b);
        *r = blend(grey, *r, alpha);
        *g = blend(grey, *g, alpha);
        *b = blend(grey, *b, alpha);
    }
}

/// [`kernels::blend`], whose saturating conversion the compiler does one by one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn blend(from: u8, to: u8, alpha: f32) -> u8 {
    let distance = f32::from(to) - f32::from(from);
    let blended = f32::from(from) + alpha * distance;
    #[expect(
        clippy::manual_clamp,
        reason = "`max` makes 0 of what is not a number, as a conversion does; `clamp` keeps it"
    )]
    let within = blended.max(0.0).min(255.0);
    // SAFETY: the number lies within 0 and 255.
    unsafe { within.to_int_unchecked::<i32>() as u8 }
}

by_level! {
    /// Sets each pixel to its luma.
    fn set_to_luma(planes: [&mut [u8]; 3]) = kernels::set_to_luma;
}

by_level! {
    /// Sum of the luma over all pixels.
    fn sum_of_luma(planes: [&[u8]; 3]) -> u64 = kernels::sum_of_luma;
}

by_level! {
    /// Inverts values at or above a threshold.
    fn solarize(bytes: &mut [u8], threshold: u8) = kernels::solarize;
}

/// Shifts the hue of each pixel by `shift`/255 of the circle, through 8-bit HSV.
pub(crate) fn shift_hue(level: Level, planes: [&mut [u8]; 3], shift: u8) {
    if level == Level::SCALAR {
        hue::shift_hue(planes, shift);
    } else {
        shift_hue_branchless(level, planes, shift);
    }
}

by_level! {
    fn shift_hue_branchless(planes: [&mut [u8]; 3], shift: u8) = shift_hue_of_planes;
}

/// Pixels that go through each step of the hue shift together: a step has numbers of one width, of
/// which a vector then holds as many as it can.
const BLOCK: usize = 512;

#[inline(always)]
fn shift_hue_of_planes([red, green, blue]: [&mut [u8]; 3], shift: u8) {
    let (r, red) = red.as_chunks_mut();
    let (g, green) = green.as_chunks_mut();
    let (b, blue) = blue.as_chunks_mut();
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        shift_hue_of_block([r, g, b], shift);
    }
    let n = red.len();
    if n == 0 {
        return;
    }
    let mut rest = [[0; BLOCK]; 3];
    let [r, g, b] = &mut rest;
    r[..n].copy_from_slice(red);
    g[..n].copy_from_slice(green);
    b[..n].copy_from_slice(blue);
    shift_hue_of_block([&mut *r, &mut *g, &mut *b], shift);
    red.copy_from_slice(&r[..n]);
    green.copy_from_slice(&g[..n]);
    blue.copy_from_slice(&b[..n]);
}

/// [`hue::shift_hue`] of some pixels in `f32`, found by looking at all that can occur: the tests
/// below and the golden vectors go through every colour.
#[inline(always)]
fn shift_hue_of_block([red, green, blue]: [&mut [u8; BLOCK]; 3], shift: u8) {
    let mut pixels = Extremes::default();
    pixels.find([red, green, blue]);
    let (mut hue, mut saturation) = ([0; BLOCK], [0; BLOCK]);
    for i in 0..BLOCK {
        [hue[i], saturation[i]] = pixels.hue_and_saturation(i, shift);
    }
    for (saturation, range) in saturation.iter_mut().zip(pixels.range) {
        // Grey has a range of 0, which counts as 1 above.
        *saturation = if range == 0 { 0 } else { *saturation };
    }
    colours([red, green, blue], &hue, &saturation, &pixels.max);
}

/// What the hue of pixels depends on.
struct Extremes {
    max: [u8; BLOCK],
    range: [u8; BLOCK],
    /// Where the largest channel's neighbour on the circle is that the hue lies next to, in sixths.
    place: [i8; BLOCK],
    /// How far the middle channel lies below the largest; negative if that is against the circle.
    to_middle: [i16; BLOCK],
}

impl Default for Extremes {
    #[inline(always)]
    fn default() -> Self {
        Self {
            max: [0; BLOCK],
            range: [0; BLOCK],
            place: [0; BLOCK],
            to_middle: [0; BLOCK],
        }
    }
}

impl Extremes {
    #[inline(always)]
    fn find(&mut self, [red, green, blue]: [&[u8; BLOCK]; 3]) {
        let mut distance = [0; BLOCK];
        let mut is_next = [0; BLOCK];
        for i in 0..BLOCK {
            let (r, g, b) = (red[i], green[i], blue[i]);
            let max = r.max(g).max(b);
            let range = max - r.min(g).min(b);
            // The other two channels in the direction of the circle, and the place of the largest.
            let (next, previous, place) = if r == max {
                (g, b, 0)
            } else if g == max {
                (b, r, 2)
            } else {
                (r, g, 4)
            };
            let (to_next, to_previous) = (max - next, max - previous);
            // One of the two is the range, whose quotient is 1, so that the other alone is rounded.
            distance[i] = to_next.wrapping_add(to_previous).wrapping_sub(range);
            is_next[i] = u8::from(to_previous == range);
            self.max[i] = max;
            self.range[i] = range;
            self.place[i] = if to_previous == range {
                place + 1
            } else {
                place - 1
            };
        }
        for i in 0..BLOCK {
            let distance = i16::from(distance[i]);
            self.to_middle[i] = if is_next[i] != 0 { -distance } else { distance };
        }
    }

    /// Of the i-th pixel, as bytes; the hue is shifted.
    #[inline(always)]
    fn hue_and_saturation(&self, i: usize, shift: u8) -> [u8; 2] {
        let (range, value) = (
            f32::from(self.range[i].max(1)),
            f32::from(self.max[i].max(1)),
        );
        let quotient = f32::from(self.to_middle[i]) / range;
        let sextant = f32::from(self.place[i]) + quotient;
        let turn = Divisor::new(6.0).divide(sextant);
        let turn = turn + if turn < 0.0 { 1.0 } else { 0.0 };
        let saturation = 255.0 * range / value;
        // SAFETY: 255 times numbers within 0 and 1.
        let (hue, saturation): (i32, i32) = unsafe {
            (
                (turn * 255.0).to_int_unchecked(),
                saturation.to_int_unchecked(),
            )
        };
        [(hue as u8).wrapping_add(shift), saturation as u8]
    }
}

/// The colours of hues, saturations and values.
#[inline(always)]
fn colours(
    [red, green, blue]: [&mut [u8; BLOCK]; 3],
    hue: &[u8; BLOCK],
    saturation: &[u8; BLOCK],
    value: &[u8; BLOCK],
) {
    // How far the hue is from each channel, in 1/255 of a sixth of the circle, and no further than
    // what lowers the channel.
    let (mut from_red, mut from_green, mut from_blue) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
    for i in 0..BLOCK {
        let place = i16::from(hue[i]) * 6;
        from_red[i] = (510 - (place - 765).abs()).clamp(0, 255);
        from_green[i] = ((place - 510).abs() - 255).clamp(0, 255);
        from_blue[i] = ((place - 1020).abs() - 255).clamp(0, 255);
    }
    for i in 0..BLOCK {
        let value = f32::from(value[i]);
        let lost_per_step = value * (f32::from(saturation[i]) * (1.0 / 65025.0));
        let lowered = |steps: i16| {
            let kept = (-lost_per_step).mul_add(f32::from(steps), value + 0.5);
            // SAFETY: at most `value` is lost, itself at most 255, but for the last bit.
            unsafe { kept.to_int_unchecked::<i32>() as u8 }
        };
        red[i] = lowered(from_red[i]);
        green[i] = lowered(from_green[i]);
        blue[i] = lowered(from_blue[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hue_without_branches_equals_the_reference_for_every_colour() {
        // One shift each: the next test goes through all that a shift can lead to.
        let mut reference = [vec![0u8; 256], vec![0u8; 256], vec![0u8; 256]];
        for red in 0..=255u8 {
            for green in 0..=255u8 {
                let shift = red.wrapping_mul(31) ^ green.wrapping_mul(7);
                reference[0].fill(red);
                reference[1].fill(green);
                for (place, blue) in reference[2].iter_mut().zip(0..=255) {
                    *place = blue;
                }
                let mut branchless = reference.clone();
                hue::shift_hue(reference.each_mut().map(Vec::as_mut_slice), shift);
                shift_hue_of_planes(branchless.each_mut().map(Vec::as_mut_slice), shift);
                assert_eq!(reference, branchless, "{red} {green}, shift {shift}");
            }
        }
    }

    #[test]
    fn every_hue_saturation_and_value_becomes_the_same_colour() {
        for value in 0..=255u8 {
            for saturation in 0..=255u8 {
                {
                    let hues = std::array::from_fn(|i| i as u8);
                    let [mut r, mut g, mut b] = [[0; BLOCK]; 3];
                    let (saturations, values) = ([saturation; BLOCK], [value; BLOCK]);
                    colours([&mut r, &mut g, &mut b], &hues, &saturations, &values);
                    for (i, h) in hues.into_iter().enumerate() {
                        let expected = hue::hsv_to_rgb(h, saturation, value);
                        assert_eq!(expected, (r[i], g[i], b[i]), "{h} {saturation} {value}");
                    }
                }
            }
        }
    }
}
