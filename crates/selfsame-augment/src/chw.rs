use crate::ops::kernels::Planes;
use crate::simd::Level;
use crate::simd::normalize::{self, Divisor};

/// A square image of three planes (red, green, blue) of `f32`, as a network takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChwImage {
    /// Side in pixels.
    pub size: usize,
    /// Values in the order [3, size, size].
    pub data: Vec<f32>,
}

impl ChwImage {
    /// An image of zeros, to be written into.
    pub(crate) fn zeroed(size: usize) -> Self {
        Self {
            size,
            data: vec![0.0; 3 * size * size],
        }
    }
}

/// Bytes to normalised values: (v / 255 − mean) / std, in the order and precision of torchvision.
///
/// Made once from mean and std: a table of the 256 results per channel, hence equal to
/// torchvision's to the last bit.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalize {
    table: Box<[[f32; 256]; 3]>,
    mean: [f32; 3],
    std: [f32; 3],
    /// Whether the vector routine gives the table's values for all 256 bytes of each channel.
    calculates: bool,
}

impl Normalize {
    /// Tables for a mean and a standard deviation per channel, in units of full scale.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        let (mean, std) = (mean.map(|v| v as f32), std.map(|v| v as f32));
        let mut table = Box::new([[0.0; 256]; 3]);
        let mut calculates = true;
        for (c, values) in table.iter_mut().enumerate() {
            let divisors = [Divisor::new(255.0), Divisor::new(std[c])];
            for (byte, value) in (0..=255u8).zip(values) {
                *value = (f32::from(byte) / 255.0 - mean[c]) / std[c];
                let calculated = normalize::normalized(byte, mean[c], divisors);
                calculates &= calculated.to_bits() == value.to_bits();
            }
        }
        Self {
            table,
            mean,
            std,
            calculates,
        }
    }

    /// The one in `slot`, which is replaced if it is for other values.
    pub(crate) fn cached(slot: &mut Option<Self>, mean: [f64; 3], std: [f64; 3]) -> &Self {
        let is_same = |cached: &Self| {
            cached.mean == mean.map(|v| v as f32) && cached.std == std.map(|v| v as f32)
        };
        if !slot.as_ref().is_some_and(is_same) {
            *slot = None;
        }
        slot.get_or_insert_with(|| Self::new(mean, std))
    }

    /// The normalised value of a byte of a channel (0 red, 1 green, 2 blue).
    ///
    /// # Panics
    /// If `channel` is above 2.
    pub fn value(&self, channel: usize, byte: u8) -> f32 {
        self.table[channel][usize::from(byte)]
    }

    /// Normalises three planes into `out`, `[3, height, width]`.
    pub(crate) fn write(&self, planes: &Planes, out: &mut [f32], level: Level) {
        let n = planes.len_of_plane();
        if n == 0 {
            return;
        }
        let channels = planes.channels().into_iter().zip(out.chunks_exact_mut(n));
        for (c, (plane, out)) in channels.enumerate() {
            if self.calculates && level != Level::SCALAR {
                normalize::normalize(level, out, plane, self.mean[c], self.std[c]);
            } else {
                for (out, &byte) in out.iter_mut().zip(plane) {
                    *out = self.table[c][usize::from(byte)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IMAGENET_MEAN, IMAGENET_STD};

    #[test]
    fn usual_values_are_calculated_and_extreme_ones_looked_up() {
        assert!(Normalize::new(IMAGENET_MEAN, IMAGENET_STD).calculates);
        assert!(Normalize::new([0.5; 3], [0.5; 3]).calculates);
        assert!(!Normalize::new([0.0; 3], [1e-39; 3]).calculates);
    }

    #[test]
    fn every_level_gives_the_values_of_the_table() {
        for (mean, std) in [
            (IMAGENET_MEAN, IMAGENET_STD),
            ([0.0, 0.5, -3.0], [1.0, 0.5, 1e-3]),
            ([0.1; 3], [1e-39; 3]),
        ] {
            let normalize = Normalize::new(mean, std);
            for width in [1, 7, 16, 256, 300] {
                let mut planes = Planes::default();
                planes.reset(width, 1);
                for (byte, i) in planes.data.iter_mut().zip(0usize..) {
                    *byte = (i * 7) as u8;
                }
                let mut table = vec![0.0; 3 * width];
                normalize.write(&planes, &mut table, Level::SCALAR);
                for level in Level::available() {
                    let mut out = vec![0.0; 3 * width];
                    normalize.write(&planes, &mut out, level);
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
                    let (got, expected): (Vec<u32>, Vec<u32>) = (bits(&out), bits(&table));
                    assert_eq!(got, expected, "{level}, {width} pixels, std {std:?}");
                }
            }
        }
    }
}
