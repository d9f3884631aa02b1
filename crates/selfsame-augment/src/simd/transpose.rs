//! Rows and columns of bytes change places.

use crate::simd::Level;
use crate::simd::level::dispatch;

/// `out[x · out_stride + y] = rows[y · stride + x]` for `width` × `height` bytes.
///
/// # Panics
/// If a slice ends before the last byte that is read or written.
pub(crate) fn transpose(
    level: Level,
    out: &mut [u8],
    out_stride: usize,
    rows: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    dispatch!(level, {
        scalar: scalar(out, out_stride, rows, stride, (width, height)),
        avx2: avx2::transpose(out, out_stride, rows, stride, (width, height)),
        avx512: avx2::transpose(out, out_stride, rows, stride, (width, height)),
        neon: neon::transpose(out, out_stride, rows, stride, (width, height)),
    });
}

/// Like [`transpose`], from interleaved pixels (`stride` bytes from row to row) to three planes.
pub(crate) fn transpose_rgb(
    level: Level,
    out: [&mut [u8]; 3],
    out_stride: usize,
    rgb: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    dispatch!(level, {
        scalar: scalar_rgb(out, out_stride, rgb, stride, (width, height)),
        avx2: avx2::transpose_rgb(out, out_stride, rgb, stride, (width, height)),
        avx512: avx2::transpose_rgb(out, out_stride, rgb, stride, (width, height)),
        neon: neon::transpose_rgb(out, out_stride, rgb, stride, (width, height)),
    });
}

fn scalar(
    out: &mut [u8],
    out_stride: usize,
    rows: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    for x in 0..width {
        let out = &mut out[x * out_stride..][..height];
        for (y, out) in out.iter_mut().enumerate() {
            *out = rows[y * stride + x];
        }
    }
}

fn scalar_rgb(
    out: [&mut [u8]; 3],
    out_stride: usize,
    rgb: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    for (channel, out) in out.into_iter().enumerate() {
        for x in 0..width {
            let out = &mut out[x * out_stride..][..height];
            for (y, out) in out.iter_mut().enumerate() {
                *out = rgb[y * stride + 3 * x + channel];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{scalar, scalar_rgb};
    use crate::simd::lanes::{blocks, x86_64::*};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn transpose(
        out: &mut [u8],
        out_stride: usize,
        rows: &[u8],
        stride: usize,
        (width, height): (usize, usize),
    ) {
        if width < 32 || height < 16 {
            return scalar(out, out_stride, rows, stride, (width, height));
        }
        for y in blocks(height, 16) {
            for x in blocks(width, 32) {
                let columns = transpose_blocks(load_16_rows(rows, y * stride + x, stride));
                store_32_columns(out, x * out_stride + y, out_stride, columns);
            }
        }
    }

    /// Two blocks of 16 rows and 16 columns side by side: the i-th result holds the i-th column of each.
    ///
    /// Four rounds, each of which interleaves row i with row i + 8: after it the index of a byte
    /// within its row has become one bit longer at the cost of the index of its row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose_blocks(mut rows: [__m256i; 16]) -> [__m256i; 16] {
        for _ in 0..4 {
            let from = rows;
            for i in 0..8 {
                rows[2 * i] = _mm256_unpacklo_epi8(from[i], from[i + 8]);
                rows[2 * i + 1] = _mm256_unpackhi_epi8(from[i], from[i + 8]);
            }
        }
        rows
    }

    /// For each channel and each 16 of 48 bytes: which of them are that channel's, and where they go.
    const PICK: [[[u8; 16]; 3]; 3] = {
        let mut pick = [[[0x80; 16]; 3]; 3]; // 0x80 gives a zero
        let mut channel = 0;
        while channel < 3 {
            let mut x = 0;
            while x < 16 {
                let byte = 3 * x + channel;
                pick[channel][byte / 16][x] = (byte % 16) as u8;
                x += 1;
            }
            channel += 1;
        }
        pick
    };

    #[target_feature(enable = "avx2")]
    pub(super) fn transpose_rgb(
        out: [&mut [u8]; 3],
        out_stride: usize,
        rgb: &[u8],
        stride: usize,
        (width, height): (usize, usize),
    ) {
        if width < 32 || height < 16 {
            return scalar_rgb(out, out_stride, rgb, stride, (width, height));
        }
        let mut pick = [[_mm256_setzero_si256(); 3]; 3];
        for (pick, parts) in pick.iter_mut().flatten().zip(PICK.iter().flatten()) {
            *pick = _mm256_broadcastsi128_si256(load_16(parts));
        }
        for y in blocks(height, 16) {
            for x in blocks(width, 32) {
                // 16 pixels in each half: three parts of 16 bytes, the other half 48 bytes on.
                let start = y * stride + 3 * x;
                let part = |i: usize| load_16_rows_twice(rgb, start + 16 * i, 48, stride);
                let (a, b, c) = (part(0), part(1), part(2));
                for (channel, pick) in pick.iter().enumerate() {
                    let mut plane = [_mm256_setzero_si256(); 16];
                    for (i, row) in plane.iter_mut().enumerate() {
                        let a = _mm256_shuffle_epi8(a[i], pick[0]);
                        let b = _mm256_shuffle_epi8(b[i], pick[1]);
                        let c = _mm256_shuffle_epi8(c[i], pick[2]);
                        *row = _mm256_or_si256(_mm256_or_si256(a, b), c);
                    }
                    let columns = transpose_blocks(plane);
                    store_32_columns(out[channel], x * out_stride + y, out_stride, columns);
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{scalar, scalar_rgb};
    use crate::simd::lanes::{aarch64::*, blocks};
    use std::arch::aarch64::*;

    #[target_feature(enable = "neon")]
    pub(super) fn transpose(
        out: &mut [u8],
        out_stride: usize,
        rows: &[u8],
        stride: usize,
        (width, height): (usize, usize),
    ) {
        if width < 16 || height < 16 {
            return scalar(out, out_stride, rows, stride, (width, height));
        }
        for y in blocks(height, 16) {
            for x in blocks(width, 16) {
                let mut block = [vdupq_n_u8(0); 16];
                for (i, row) in block.iter_mut().enumerate() {
                    *row = load_16(vector(&rows[(y + i) * stride + x..]));
                }
                store(out, x * out_stride + y, out_stride, block);
            }
        }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn transpose_rgb(
        mut out: [&mut [u8]; 3],
        out_stride: usize,
        rgb: &[u8],
        stride: usize,
        (width, height): (usize, usize),
    ) {
        if width < 16 || height < 16 {
            return scalar_rgb(out, out_stride, rgb, stride, (width, height));
        }
        for y in blocks(height, 16) {
            for x in blocks(width, 16) {
                let mut planes = [[vdupq_n_u8(0); 16]; 3];
                for i in 0..16 {
                    let pixels = load_16_pixels(vector(&rgb[(y + i) * stride + 3 * x..]));
                    for (plane, row) in planes.iter_mut().zip(pixels) {
                        plane[i] = row;
                    }
                }
                for (out, plane) in out.iter_mut().zip(planes) {
                    store(out, x * out_stride + y, out_stride, plane);
                }
            }
        }
    }

    #[inline(always)]
    fn vector<const N: usize>(bytes: &[u8]) -> &[u8; N] {
        bytes.first_chunk().expect("a block within the rows")
    }

    /// Writes the columns of a block as rows, the first from `at` on: four rounds, each of which
    /// interleaves row i with row i + 8, as for AVX2.
    #[inline]
    #[target_feature(enable = "neon")]
    fn store(out: &mut [u8], at: usize, out_stride: usize, mut rows: [uint8x16_t; 16]) {
        for _ in 0..4 {
            let from = rows;
            for i in 0..8 {
                rows[2 * i] = vzip1q_u8(from[i], from[i + 8]);
                rows[2 * i + 1] = vzip2q_u8(from[i], from[i + 8]);
            }
        }
        for (i, column) in rows.into_iter().enumerate() {
            let out = out[at + i * out_stride..].first_chunk_mut();
            store_16(out.expect("a block within the rows"), column);
        }
    }
}
