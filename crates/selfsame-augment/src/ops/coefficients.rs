//! The weights of a resize along one axis: Pillow's antialiasing filters in fixed point (Resample.c).

use std::collections::HashMap;
use std::ops::Range;

use crate::config::Interpolation;
use crate::simd::Level;
use crate::simd::weights::{self, ExactWeights};
use crate::simd::words::WeightPair;

/// Fixed-point bits of a resize coefficient: 32 − 8 bits of the value − 2 of headroom (Resample.c).
pub(crate) const PRECISION_BITS: u32 = 22;
/// One half, added before the bits behind the point are dropped.
pub(crate) const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// A weighted sum as a byte.
pub(crate) fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One axis of a resize: what its table of weights depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AxisResize {
    /// Pixels before and after.
    pub(crate) input: usize,
    pub(crate) output: usize,
    /// The output pixels that are wanted.
    pub(crate) window: Range<usize>,
    pub(crate) interpolation: Interpolation,
}

/// Tables of weights, kept for the crops that have them in common: there are more crops than sides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    places: HashMap<AxisResize, Place>,
    spans: Vec<(u32, u32)>,
    weights: Vec<i32>,
    pairs: Vec<WeightPair>,
    exact: ExactWeights,
}

/// Where the parts of a table are.
#[derive(Debug, Clone)]
struct Place {
    spans: Range<usize>,
    weights: Range<usize>,
    stride: usize,
}

/// Weights that are kept, 3 MiB with their pairs and spans, and their tables; then all begins anew.
const MOST_WEIGHTS: usize = 1 << 18;
const MOST_TABLES: usize = 1 << 10;

/// Where each output pixel of one axis reads, and with which weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients<'a> {
    /// First input pixel and number of input pixels, per output pixel.
    spans: &'a [(u32, u32)],
    /// `stride` fixed-point weights per output pixel, the unused ones 0; `stride` is even.
    weights: &'a [i32],
    /// The weights two by two, as the vector routines take them.
    pairs: &'a [WeightPair],
    stride: usize,
}

impl Tables {
    /// The tables of both axes.
    pub(crate) fn of(&mut self, level: Level, axes: [AxisResize; 2]) -> [Coefficients<'_>; 2] {
        let is_full = self.weights.len() > MOST_WEIGHTS || self.places.len() + 1 >= MOST_TABLES;
        if self.places.is_empty() || is_full {
            self.clear();
        }
        for axis in &axes {
            if !self.places.contains_key(axis) {
                self.add(level, axis.clone());
            }
        }
        axes.map(|axis| self.table(&self.places[&axis]))
    }

    /// Throws all tables away and takes memory for those that will be kept.
    fn clear(&mut self) {
        self.places.clear();
        self.spans.clear();
        self.weights.clear();
        self.pairs.clear();
        self.places.reserve(MOST_TABLES);
        self.spans.reserve(MOST_WEIGHTS / 2);
        self.weights.reserve(MOST_WEIGHTS);
        self.pairs.reserve(MOST_WEIGHTS / 2);
    }

    fn table(&self, place: &Place) -> Coefficients<'_> {
        let Range { start, end } = place.weights;
        Coefficients {
            spans: &self.spans[place.spans.clone()],
            weights: &self.weights[start..end],
            pairs: &self.pairs[start / 2..end / 2],
            stride: place.stride,
        }
    }

    fn add(&mut self, level: Level, axis: AxisResize) {
        let scale = axis.input as f64 / axis.output as f64;
        let filter_scale = scale.max(1.0);
        let place = weights::Axis {
            input: axis.input as f64,
            scale,
            support: axis.interpolation.support() * filter_scale,
            inverse: 1.0 / filter_scale,
            start: axis.window.start,
            count: axis.window.len(),
        };
        self.exact.weigh(level, place, axis.interpolation);

        let (count, stride) = (place.count, self.exact.stride);
        let (first_span, first_weight) = (self.spans.len(), self.weights.len());
        let ends = self.exact.first.iter().zip(&self.exact.end);
        self.spans
            .extend(ends.map(|(&first, &end)| (first as u32, (end - first) as u32)));
        self.weights.resize(first_weight + count * stride, 0);
        let weights = &mut self.weights[first_weight..];
        for (tap, row) in self.exact.fixed.chunks_exact(count.max(1)).enumerate() {
            for (weights, &weight) in weights.chunks_exact_mut(stride.max(1)).zip(row) {
                weights[tap] = weight;
            }
        }
        let pairs = weights.chunks_exact(2);
        self.pairs
            .extend(pairs.map(|pair| WeightPair::new(pair[0], pair[1])));
        let place = Place {
            spans: first_span..self.spans.len(),
            weights: first_weight..self.weights.len(),
            stride,
        };
        self.places.insert(axis, place);
    }
}

impl<'a> Coefficients<'a> {
    /// Number of output pixels.
    pub(crate) fn len(self) -> usize {
        self.spans.len()
    }

    /// First input pixel, number of input pixels and weights of each output pixel of the window.
    pub(crate) fn iter(self) -> impl Iterator<Item = (usize, usize, &'a [i32])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride.max(1)))
            .map(|(&(first, count), weights)| {
                let count = count as usize;
                (first as usize, count, &weights[..count])
            })
    }

    /// The same with the weights in pairs; where there is an odd number, the last one is 0.
    #[inline(always)]
    pub(crate) fn pairs(self) -> impl Iterator<Item = (usize, usize, &'a [WeightPair])> {
        self.spans
            .iter()
            .zip(self.pairs.chunks_exact((self.stride / 2).max(1)))
            .map(|(&(first, count), pairs)| {
                let count = count as usize;
                (first as usize, count, &pairs[..count.div_ceil(2)])
            })
    }

    /// All input pixels that the window reads.
    pub(crate) fn input_range(self) -> Range<usize> {
        let first = self.spans.first().map_or(0, |&(first, _)| first);
        let end = self.spans.last().map_or(0, |&(first, count)| first + count);
        first as usize..end as usize
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
        let mut tables = Tables::default();
        let sizes = [1, 2, 3, 5, 17, 64, 97, 128, 250, 1000];
        for (input, output) in sizes.iter().flat_map(|i| sizes.map(|o| (*i, o))) {
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
                for level in Level::available() {
                    tables.clear();
                    let window = output / 3..output;
                    let axis = AxisResize {
                        input,
                        output,
                        window: window.clone(),
                        interpolation,
                    };
                    let [table, _] = tables.of(level, [axis.clone(), axis]);
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

    #[test]
    fn tables_are_kept_until_there_are_too_many() {
        let pixel = |x| AxisResize {
            input: 3000,
            output: 3000,
            window: x..x + 1,
            interpolation: Interpolation::Bilinear,
        };
        let mut tables = Tables::default();
        let mut most = 0;
        for x in 0..2500 {
            let [first, second] = tables.of(Level::SCALAR, [pixel(x), pixel(x / 2)]);
            assert!(first.input_range().contains(&x));
            assert!(second.input_range().contains(&(x / 2)));
            most = most.max(tables.places.len());
        }
        assert!((MOST_TABLES / 2..=MOST_TABLES).contains(&most), "{most}");
        assert!(tables.places.len() < most, "thrown away in between");
    }
}
