//! The weights of a resize along one axis: Pillow's antialiasing filters (Resample.c).

use crate::config::Interpolation;
use crate::ops::coefficients::PRECISION_BITS;
use crate::simd::{Level, by_level};

/// The weights before rounding, tap by tap: whole numbers are in `f64`, as in Resample.c, and what
/// is one loop over the output pixels becomes vector instructions.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExactWeights {
    center: Vec<f64>,
    /// First input pixel, and the one behind the last.
    pub(crate) first: Vec<f64>,
    pub(crate) end: Vec<f64>,
    sum: Vec<f64>,
    /// Taps of the output pixel that has the most, made even.
    pub(crate) stride: usize,
    /// A row of weights for each tap.
    taps: Vec<f64>,
    pub(crate) fixed: Vec<i32>,
}

/// A resize along one axis, seen from some of its output pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    /// Input pixels.
    pub(crate) input: f64,
    /// Input pixels per output pixel.
    pub(crate) scale: f64,
    /// Half width of the filter in input pixels, and what brings it to scale 1.
    pub(crate) support: f64,
    pub(crate) inverse: f64,
    /// First output pixel, and their number.
    pub(crate) start: usize,
    pub(crate) count: usize,
}

impl ExactWeights {
    /// Fills everything for an axis.
    pub(crate) fn weigh(&mut self, level: Level, axis: Axis, interpolation: Interpolation) {
        match interpolation {
            Interpolation::Bilinear | Interpolation::BilinearPillow13 => {
                weigh_bilinear(level, self, axis);
            }
            Interpolation::Bicubic | Interpolation::BicubicPillow13 => {
                weigh_bicubic(level, self, axis);
            }
        }
    }
}

by_level! {
    fn weigh_bilinear(exact: &mut ExactWeights, axis: Axis) = bilinear;
}

by_level! {
    fn weigh_bicubic(exact: &mut ExactWeights, axis: Axis) = bicubic;
}

#[inline(always)]
fn bilinear(exact: &mut ExactWeights, axis: Axis) {
    weigh(exact, axis, |x| (1.0 - x).max(0.0));
}

#[inline(always)]
fn bicubic(exact: &mut ExactWeights, axis: Axis) {
    const A: f64 = -0.5;
    weigh(exact, axis, |x| {
        let near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
        let far = (((x - 5.0) * x + 8.0) * x - 4.0) * A;
        let beyond = if x < 2.0 { far } else { 0.0 };
        if x < 1.0 { near } else { beyond }
    });
}

/// `filter` is the weight at a distance at scale 1.
#[inline(always)]
fn weigh(exact: &mut ExactWeights, axis: Axis, filter: impl Fn(f64) -> f64) {
    let ExactWeights {
        center,
        first,
        end,
        sum,
        stride,
        taps,
        fixed,
    } = exact;
    let count = axis.count;
    for list in [&mut *center, &mut *first, &mut *end, &mut *sum] {
        list.resize(count, 0.0);
    }
    let mut most = 0.0f64;
    for i in 0..count {
        let place = ((axis.start + i) as f64 + 0.5) * axis.scale;
        center[i] = place;
        // Casts of C cut off towards zero.
        first[i] = (place - axis.support + 0.5).max(0.0).trunc();
        end[i] = (place + axis.support + 0.5).trunc().min(axis.input);
        most = most.max(end[i] - first[i]);
    }
    *stride = (most as usize).next_multiple_of(2);
    taps.resize(count * *stride, 0.0);
    fixed.resize(count * *stride, 0);
    sum.fill(0.0);
    let (center, first) = (&center[..count], &first[..count]);
    let (end, sum) = (&end[..count], &mut sum[..count]);
    for (tap, row) in taps.chunks_exact_mut(count.max(1)).enumerate() {
        for i in 0..count {
            let pixel = first[i] + tap as f64;
            let weight = filter(((pixel - center[i] + 0.5) * axis.inverse).abs());
            row[i] = if pixel < end[i] { weight } else { 0.0 };
            sum[i] += row[i];
        }
    }
    let rows = taps.chunks_exact(count.max(1));
    for (row, fixed) in rows.zip(fixed.chunks_exact_mut(count.max(1))) {
        for i in 0..count {
            let share = if sum[i] != 0.0 {
                row[i] / sum[i]
            } else {
                row[i]
            };
            let scaled = share * f64::from(1u32 << PRECISION_BITS);
            fixed[i] = to_whole(scaled + 0.5_f64.copysign(share));
        }
    }
}

/// The number without its fraction, which must fit 32 bits, without the compiler's checks of that.
#[inline(always)]
fn to_whole(x: f64) -> i32 {
    // 1.5 · 2⁵² leaves no bit for a fraction and holds a whole number in the lowest 51.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    (x.trunc() + MAGIC).to_bits() as i32
}
