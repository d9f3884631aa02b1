//! The colour operations: the scalar loops compiled for wider instructions, but for the hue, which
//! has a form of its own without branches and without `f64`.

#![expect(
    unsafe_code,
    reason = "conversions of numbers known to be in range, without the checks"
)]

use crate::ops::{hue, kernels};
use crate::simd::{Level, by_level};

/// Blends each pixel with its luma.
pub(crate) fn blend_with_luma(level: Level, planes: [&mut [u8]; 3], alpha: f32) {
    if level == Level::SCALAR {
        kernels::blend_with_luma(planes, alpha);
    } else {
        blend_with_luma_unchecked(level, planes, alpha);
    }
}

by_level! {
    fn blend_with_luma_unchecked(planes: [&mut [u8]; 3], alpha: f32) = blend_planes_with_luma;
}

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

#[inline(always)]
fn shift_hue_of_planes([red, green, blue]: [&mut [u8]; 3], shift: u8) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        [*r, *g, *b] = shift_hue_of([*r, *g, *b], shift);
    }
}

/// [`hue::shift_hue`] of one pixel in `f32`, found by looking at all that can occur: the test below
/// and the golden vectors go through every colour.
#[inline(always)]
fn shift_hue_of([r, g, b]: [u8; 3], shift: u8) -> [u8; 3] {
    let max = r.max(g).max(b);
    let range = max - r.min(g).min(b);
    // The other two channels in the direction of the circle, and the place of the largest on it.
    let (next, previous, place) = if r == max {
        (g, b, 0.0)
    } else if g == max {
        (b, r, 2.0)
    } else {
        (r, g, 4.0)
    };
    let (to_next, to_previous) = (max - next, max - previous);
    // One of the two is the range, whose quotient is 1, so that the other alone is rounded.
    let to_middle = to_next.wrapping_add(to_previous).wrapping_sub(range);
    let is_next = to_previous == range;
    // One division for both quotients; what it lacks in precision one correction brings back.
    let (range, value) = (f32::from(range.max(1)), f32::from(max.max(1)));
    let inverse = 1.0 / (range * value);
    let (per_range, per_value) = (inverse * value, inverse * range);
    let quotient = corrected_quotient(f32::from(to_middle), range, per_range);
    let sextant = if is_next {
        (place + 1.0) - quotient
    } else {
        (place - 1.0) + quotient
    };
    let turn = corrected_quotient(sextant, 6.0, 1.0 / 6.0);
    let turn = if turn < 0.0 { turn + 1.0 } else { turn };
    // The exact number is a whole one or at least 1/255 away from it.
    let saturation = (255.0 * range).mul_add(per_value, 1e-3);
    // SAFETY: 255 times a number within 0 and 1, and up to 255.001.
    let (hue, saturation): (i32, i32) = unsafe {
        (
            (turn * 255.0).to_int_unchecked(),
            saturation.to_int_unchecked(),
        )
    };
    // Grey has a range of 0, which stood as 1 above.
    let saturation = if to_next == 0 && to_previous == 0 {
        0
    } else {
        saturation
    };
    colour_of((hue + i32::from(shift)) & 255, saturation, max)
}

/// `a / b` from a reciprocal of `b` that may be off in its last bits.
#[inline(always)]
fn corrected_quotient(a: f32, b: f32, reciprocal: f32) -> f32 {
    let quotient = a * reciprocal;
    (-quotient).mul_add(b, a).mul_add(reciprocal, quotient)
}

/// The colour of a hue and a saturation within 0..=255 and a value.
#[inline(always)]
fn colour_of(hue: i32, saturation: i32, value: u8) -> [u8; 3] {
    // In 1/255 of a sixth of the circle; each channel is lowered by how far the hue is from it.
    let place = (hue * 6) as f32;
    let value = f32::from(value);
    let lost_per_step = value * (saturation as f32 * (1.0 / 65025.0));
    #[expect(
        clippy::manual_clamp,
        reason = "`clamp` would keep what is not a number, which costs an instruction"
    )]
    let lowered = |steps: f32| {
        let kept = (-lost_per_step).mul_add(steps.max(0.0).min(255.0), value + 0.5);
        // SAFETY: at most `value` is lost, itself at most 255, but for the last bit.
        unsafe { kept.to_int_unchecked::<i32>() as u8 }
    };
    [
        lowered(510.0 - (place - 765.0).abs()),
        lowered((place - 510.0).abs() - 255.0),
        lowered((place - 1020.0).abs() - 255.0),
    ]
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
                for h in 0..=255u8 {
                    let expected = hue::hsv_to_rgb(h, saturation, value);
                    let got = colour_of(i32::from(h), i32::from(saturation), value);
                    assert_eq!(expected, got.into(), "{h} {saturation} {value}");
                }
            }
        }
    }
}
