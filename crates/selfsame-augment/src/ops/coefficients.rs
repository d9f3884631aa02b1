//! The weights of a resize along one axis: Pillow's antialiasing filters in fixed point (Resample.c).

use std::ops::Range;

use crate::config::Interpolation;
use crate::simd::resample::WeightPair;

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
    /// The weights of one pixel before rounding.
    exact: Vec<f64>,
}

impl Coefficients {
    /// Fills the table for the output pixels `window` of a resize from `input` to `output` pixels.
    pub(crate) fn prepare(
        &mut self,
        input: usize,
        output: usize,
        window: Range<usize>,
        interpolation: Interpolation,
    ) {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = interpolation.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        self.stride = support.ceil() as usize * 2 + 2;
        self.spans.clear();
        self.weights.clear();
        self.weights.resize(window.len() * self.stride, 0);
        self.exact.resize(self.stride, 0.0);
        for (x, weights) in window.zip(self.weights.chunks_exact_mut(self.stride)) {
            let center = (x as f64 + 0.5) * scale;
            // The casts cut off towards zero, and negative values become 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let exact = &mut self.exact[..end - first];
            let mut sum = 0.0;
            for (i, exact) in (first..end).zip(exact.iter_mut()) {
                *exact = interpolation.weight((i as f64 - center + 0.5) * inverse);
                sum += *exact;
            }
            for (weight, exact) in weights.iter_mut().zip(exact) {
                let exact = if sum != 0.0 { *exact / sum } else { *exact };
                let fixed = exact * f64::from(1u32 << PRECISION_BITS);
                *weight = (fixed + 0.5_f64.copysign(exact)) as i32;
            }
            self.spans.push((first, end - first));
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
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}
