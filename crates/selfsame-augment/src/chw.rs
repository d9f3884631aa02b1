use crate::ops::kernels::Planes;

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
}

impl Normalize {
    /// Tables for a mean and a standard deviation per channel, in units of full scale.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (c, values) in table.iter_mut().enumerate() {
            for (v, value) in values.iter_mut().enumerate() {
                *value = (v as f32 / 255.0 - mean[c] as f32) / std[c] as f32;
            }
        }
        Self { table }
    }

    /// The normalised value of a byte of a channel (0 red, 1 green, 2 blue).
    pub fn value(&self, channel: usize, byte: u8) -> f32 {
        self.table[channel][usize::from(byte)]
    }

    /// Normalises three planes into `out`, `[3, height, width]`.
    pub(crate) fn write(&self, planes: &Planes, out: &mut [f32]) {
        let n = planes.len_of_plane();
        if n == 0 {
            return;
        }
        let channels = planes.channels().into_iter().zip(out.chunks_exact_mut(n));
        for ((plane, out), table) in channels.zip(self.table.iter()) {
            for (out, &byte) in out.iter_mut().zip(plane) {
                *out = table[usize::from(byte)];
            }
        }
    }
}
