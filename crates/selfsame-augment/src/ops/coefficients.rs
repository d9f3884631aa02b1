//! The weights of a resize along one axis: Pillow's antialiasing filters in fixed point (Resample.c).

use std::ops::Range;

use crate::config::Interpolation;
use crate::simd::Level;
use crate::simd::weights::{Axis, ExactWeights};
use crate::simd::words::WeightPair;

/// Fixed-point bits of a resize coefficient: 32 − 8 bits of the value − 2 of headroom (Resample.c).
pub(crate) const PRECISION_BITS: u32 = 22;
/// One half, added before the bits behind the point are dropped.
pub(crate) const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// A weighted sum as a byte.
pub(crate) fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Where each output pixel of one axis reads, and with which weights.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coefficients {
    /// First input pixel and number of input pixels, per output pixel.
    spans: Vec<(usize, usize)>,
    /// `stride` fixed-point weights per output pixel, the unused ones 0; `stride` is even.
    weights: Vec<i32>,
    /// The weights two by two, as the vector routines take them.
    pairs: Vec<WeightPair>,
    stride: usize,
    exact: ExactWeights,
}

impl Coefficients {
    /// Fills the table for the output pixels `window` of a resize from `input` to `output` pixels.
    pub(crate) fn prepare(
        &mut self,
        level: Level,
        input: usize,
        output: usize,
        window: Range<usize>,
        interpolation: Interpolation,
    ) {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = interpolation.support() * filter_scale;
        let axis = Axis {
            input: input as f64,
            scale,
            support,
            inverse: 1.0 / filter_scale,
            start: window.start,
            count: window.len(),
        };
        let exact = &mut self.exact;
        exact.weigh(level, axis, interpolation);
        let (count, stride) = (axis.count, exact.stride);
        self.stride = stride;

        self.spans.clear();
        let ends = exact.first.iter().zip(&exact.end);
        self.spans
            .extend(ends.map(|(&first, &end)| (first as usize, (end - first) as usize)));
        self.weights.clear();
        self.weights.resize(count * stride, 0);
        for (tap, row) in exact.fixed.chunks_exact(count.max(1)).enumerate() {
            for (weights, &weight) in self.weights.chunks_exact_mut(stride.max(1)).zip(row) {
                weights[tap] = weight;
            }
        }
        self.pairs.clear();
        let pairs = self.weights.chunks_exact(2);
        self.pairs
            .extend(pairs.map(|pair| WeightPair::new(pair[0], pair[1])));
    }

    /// Number of output pixels.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// First input pixel, number of input pixels and weights of each output pixel of the window.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize, &[i32])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride.max(1)))
            .map(|(&(first, count), weights)| (first, count, &weights[..count]))
    }

    /// The same with the weights in pairs; where there is an odd number, the last one is 0.
    #[inline(always)]
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, usize, &[WeightPair])> {
        self.spans
            .iter()
            .zip(self.pairs.chunks_exact((self.stride / 2).max(1)))
            .map(|(&(first, count), pairs)| (first, count, &pairs[..count.div_ceil(2)]))
    }

    /// All input pixels that the window reads.
    pub(crate) fn input_range(&self) -> Range<usize> {
        let first = self.spans.first().map_or(0, |&(first, _)| first);
        let end = self.spans.last().map_or(0, |&(first, count)| first + count);
        first..end
    }
}

impl Interpolation {
    /// Half width of the filter at scale 1, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear | Self::BilinearPillow13 => 1.0,
            Self::Bicubic | Self::BicubicPillow13 => 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `precompute_coeffs` of Resample.c, one output pixel after the other.
    fn reference(
        input: usize,
        output: usize,
        x: usize,
        interpolation: Interpolation,
    ) -> (usize, Vec<i32>) {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = interpolation.support() * filter_scale;
        let center = (x as f64 + 0.5) * scale;
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(input);
        let weight = |i: usize| {
            let x = ((i as f64 - center + 0.5) * (1.0 / filter_scale)).abs();
            match interpolation {
                Interpolation::Bilinear if x < 1.0 => 1.0 - x,
                Interpolation::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
                _ => 0.0,
            }
        };
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let mut sum = 0.0;
        for weight in &weights {
            sum += weight;
        }
        let fixed = weights.iter().map(|weight| {
            let share = if sum != 0.0 { weight / sum } else { *weight };
            (share * f64::from(1 << PRECISION_BITS) + 0.5_f64.copysign(share)) as i32
        });
        (first, fixed.collect())
    }

    #[test]
    fn weights_are_those_of_pillow_pixel_by_pixel_at_every_level() {
        let mut table = Coefficients::default();
        let sizes = [1, 2, 3, 5, 17, 64, 97, 128, 250, 1000];
        for (input, output) in sizes.iter().flat_map(|i| sizes.map(|o| (*i, o))) {
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
                for level in Level::available() {
                    let window = output / 3..output;
                    table.prepare(level, input, output, window.clone(), interpolation);
                    let what = format!("{input} to {output}, {interpolation:?}, {level}");
                    assert_eq!(table.len(), window.len(), "{what}");
                    for (x, (first, count, weights)) in window.zip(table.iter()) {
                        let (expected_first, expected) = reference(input, output, x, interpolation);
                        assert_eq!(
                            (first, weights),
                            (expected_first, &expected[..]),
                            "{what}, {x}"
                        );
                        assert_eq!(count, expected.len(), "{what}, {x}");
                    }
                }
            }
        }
    }
}
