//! The inner loops, all on plain slices of one row or plane, and the planes they work on.
//!
//! They are the reference of [`crate::simd`], whose routines give the same bytes; what is
//! `inline(always)` here is compiled there once more for wider instructions.

use image::RgbImage;

use super::coefficients::{HALF, clip8};

/// Three planes of bytes: all red, then all green, then all blue values, row by row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Planes {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) data: Vec<u8>,
}

impl Planes {
    /// Becomes a copy of an image.
    pub(crate) fn take_rgb(&mut self, image: &RgbImage) {
        self.reset(image.width() as usize, image.height() as usize);
        let n = self.len_of_plane();
        let [red, green, blue] = self.channels_mut();
        // The image's memory may be longer than its pixels.
        for (i, pixel) in image.as_raw().chunks_exact(3).take(n).enumerate() {
            red[i] = pixel[0];
            green[i] = pixel[1];
            blue[i] = pixel[2];
        }
    }

    pub(crate) fn to_rgb(&self) -> RgbImage {
        let [red, green, blue] = self.channels();
        let mut data = Vec::with_capacity(self.data.len());
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            data.extend_from_slice(&[r, g, b]);
        }
        RgbImage::from_raw(self.width as u32, self.height as u32, data)
            .expect("three values were pushed per pixel")
    }

    /// Takes a new size; the contents are unspecified until written.
    pub(crate) fn reset(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.data.resize(3 * width * height, 0);
    }

    /// Number of pixels.
    pub(crate) fn len_of_plane(&self) -> usize {
        self.width * self.height
    }

    pub(crate) fn channels(&self) -> [&[u8]; 3] {
        let (red, rest) = self.data.split_at(self.len_of_plane());
        let (green, blue) = rest.split_at(self.len_of_plane());
        [red, green, blue]
    }

    pub(crate) fn channels_mut(&mut self) -> [&mut [u8]; 3] {
        let n = self.len_of_plane();
        let (red, rest) = self.data.split_at_mut(n);
        let (green, blue) = rest.split_at_mut(n);
        [red, green, blue]
    }

    /// Moves the image onto a larger black one, `left` and `top` pixels from its corner.
    pub(crate) fn pad(&mut self, width: usize, height: usize, left: usize, top: usize) {
        let small = std::mem::take(self);
        self.reset(width, height);
        self.data.fill(0);
        for (from, to) in small.channels().into_iter().zip(self.channels_mut()) {
            for (y, row) in from.chunks_exact(small.width).enumerate() {
                to[(top + y) * width + left..][..row.len()].copy_from_slice(row);
            }
        }
    }
}

/// Weighted sum of the RGB pixels of `taps` (interleaved), one per coefficient.
pub(crate) fn resample_pixel(taps: &[u8], coefficients: &[i32]) -> [u8; 3] {
    let mut sums = [HALF; 3];
    for (pixel, &k) in taps.chunks_exact(3).zip(coefficients) {
        sums[0] += i32::from(pixel[0]) * k;
        sums[1] += i32::from(pixel[1]) * k;
        sums[2] += i32::from(pixel[2]) * k;
    }
    sums.map(clip8)
}

/// Weighted sum of whole rows: `out[x] = Σ coefficients[i] · rows[i · stride + x]`; of the last row
/// only as much as `out` needs has to be there.
pub(crate) fn resample_rows(
    out: &mut [u8],
    rows: &[u8],
    stride: usize,
    coefficients: &[i32],
    sums: &mut Vec<i32>,
) {
    sums.clear();
    sums.resize(out.len(), HALF);
    for (row, &k) in rows.chunks(stride).zip(coefficients) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += i32::from(value) * k;
        }
    }
    for (out, &sum) in out.iter_mut().zip(sums.iter()) {
        *out = clip8(sum);
    }
}

/// Replaces each byte by its entry in a table.
pub(crate) fn map_bytes(bytes: &mut [u8], table: &[u8; 256]) {
    for byte in bytes {
        *byte = table[usize::from(*byte)];
    }
}

/// Weights of red, green and blue in Pillow's luma, in units of 2⁻¹⁶ (ITU-R 601; Convert.c, `L24`).
pub(crate) const LUMA: [u16; 3] = [19595, 38470, 7471];

/// Pillow's luma of a pixel: the weighted sum, rounded.
///
/// The high and the low bytes of the weights add up to 255 and 256, so that both sums fit 16 bits.
#[inline(always)]
pub(crate) fn luma(r: u8, g: u8, b: u8) -> u8 {
    let sum_by = |byte: usize| -> u16 {
        let [by_r, by_g, by_b] = LUMA.map(|weight| u16::from(weight.to_be_bytes()[byte]));
        by_r * u16::from(r) + by_g * u16::from(g) + by_b * u16::from(b)
    };
    ((sum_by(0) + (sum_by(1) >> 8) + 128) >> 8) as u8
}

/// Pillow's blend of two bytes, `from + alpha · (to − from)` in f32 without fused multiply-add,
/// cut off to a byte (Blend.c). Rust's cast saturates, as Pillow's extrapolating branch does.
pub(crate) fn blend(from: u8, to: u8, alpha: f32) -> u8 {
    let distance = (i32::from(to) - i32::from(from)) as f32;
    (f32::from(from) + alpha * distance) as u8
}

/// Inverts values at or above a threshold.
#[inline(always)]
pub(crate) fn solarize(bytes: &mut [u8], threshold: u8) {
    for byte in bytes {
        *byte = if *byte < threshold {
            *byte
        } else {
            255 - *byte
        };
    }
}

/// Blends each pixel with its luma.
pub(crate) fn blend_with_luma([red, green, blue]: [&mut [u8]; 3], alpha: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let grey = luma(*r, *g, *b);
        *r = blend(grey, *r, alpha);
        *g = blend(grey, *g, alpha);
        *b = blend(grey, *b, alpha);
    }
}

/// Sets each pixel to its luma.
#[inline(always)]
pub(crate) fn set_to_luma([red, green, blue]: [&mut [u8]; 3]) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let grey = luma(*r, *g, *b);
        (*r, *g, *b) = (grey, grey, grey);
    }
}

/// Sum of the luma over all pixels.
#[inline(always)]
pub(crate) fn sum_of_luma([red, green, blue]: [&[u8]; 3]) -> u64 {
    // Blocks whose sums fit 16 bits, as the luma itself is computed in: 256 · 255 < 2¹⁶.
    let blocks = red.chunks(256).zip(green.chunks(256)).zip(blue.chunks(256));
    blocks
        .map(|((red, green), blue)| {
            let pixels = red.iter().zip(green).zip(blue);
            u64::from(
                pixels
                    .map(|((&r, &g), &b)| u16::from(luma(r, g, b)))
                    .sum::<u16>(),
            )
        })
        .sum()
}

/// The box of one blur pass: `radius` whole pixels on each side with weight `whole`, one more on
/// each side with weight `edge`, both in units of 2⁻²⁴.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BlurBox {
    pub(crate) radius: usize,
    pub(crate) whole: u32,
    pub(crate) edge: u32,
}

impl BlurBox {
    #[inline(always)]
    pub(crate) fn weigh(self, inner: u32, outer: u32) -> u8 {
        // At most 255 · 2²⁴ + 2²³, which fits 32 bits.
        ((inner * self.whole + outer * self.edge + (1 << 23)) >> 24) as u8
    }
}

/// One blur pass along a row. `line` holds `radius + 1` copies of the border pixel on either side
/// of the row; `sums` has the row's length.
pub(crate) fn blur_row(out: &mut [u8], line: &[u8], kernel: BlurBox, sums: &mut [u32]) {
    let (n, r) = (out.len(), kernel.radius);
    if r <= 4 {
        sums.fill(0);
        for shift in 1..=2 * r + 1 {
            for (sum, &value) in sums.iter_mut().zip(&line[shift..shift + n]) {
                *sum += u32::from(value);
            }
        }
    } else {
        let mut sum: u32 = line[..2 * r + 1].iter().map(|&v| u32::from(v)).sum();
        for (i, slot) in sums.iter_mut().enumerate() {
            sum = sum + u32::from(line[i + 2 * r + 1]) - u32::from(line[i]);
            *slot = sum;
        }
    }
    let outer = line[..n].iter().zip(&line[2 * r + 2..][..n]);
    for ((out, &sum), (&left, &right)) in out.iter_mut().zip(sums.iter()).zip(outer) {
        *out = kernel.weigh(sum, u32::from(left) + u32::from(right));
    }
}

/// One blur pass down a plane of rows of `width` bytes; rows beyond the border repeat it.
pub(crate) fn blur_columns(
    out: &mut [u8],
    plane: &[u8],
    width: usize,
    kernel: BlurBox,
    sums: &mut [u32],
) {
    let height = plane.len() / width;
    let r = kernel.radius as isize;
    let row = |y: isize| &plane[y.clamp(0, height as isize - 1) as usize * width..][..width];
    sums.fill(0);
    // The window of row −1, so that each row only adds one and takes one away.
    for y in -1 - r..r {
        for (sum, &value) in sums.iter_mut().zip(row(y)) {
            *sum += u32::from(value);
        }
    }
    for (y, out) in out.chunks_exact_mut(width).enumerate() {
        let y = y as isize;
        let (above, last, below) = (row(y - r - 1), row(y + r), row(y + r + 1));
        for ((sum, &gone), &come) in sums.iter_mut().zip(above).zip(last) {
            *sum = *sum + u32::from(come) - u32::from(gone);
        }
        for (((out, &sum), &above), &below) in out.iter_mut().zip(sums.iter()).zip(above).zip(below)
        {
            *out = kernel.weigh(sum, u32::from(above) + u32::from(below));
        }
    }
}
