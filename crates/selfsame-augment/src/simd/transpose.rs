//! Rows and columns of bytes change places.

use crate::simd::Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::lanes::*;
use crate::simd::level::dispatch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

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
        avx2: avx2(out, out_stride, rows, stride, (width, height)),
        // Shuffles of 16 bytes are what this is made of; wider ones need more of them.
        avx512: avx2(out, out_stride, rows, stride, (width, height)),
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
        avx2: avx2_rgb(out, out_stride, rgb, stride, (width, height)),
        avx512: avx2_rgb(out, out_stride, rgb, stride, (width, height)),
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
#[target_feature(enable = "avx2")]
fn avx2(
    out: &mut [u8],
    out_stride: usize,
    rows: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    if width.min(height) < 16 {
        return scalar(out, out_stride, rows, stride, (width, height));
    }
    for y in blocks(height, 16) {
        for x in blocks(width, 16) {
            let block = load_16_rows(rows, y * stride + x, stride);
            store_16_rows(out, x * out_stride + y, out_stride, transpose_block(block));
        }
    }
}

/// Four rounds, each of which interleaves row i with row i + 8: after it the index of a byte
/// within its row has become one bit longer at the cost of the index of its row.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_block(mut block: [__m128i; 16]) -> [__m128i; 16] {
    for _ in 0..4 {
        let from = block;
        for i in 0..8 {
            block[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
            block[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
        }
    }
    block
}

/// For each channel and each 16 of 48 bytes: which of them are that channel's, and where they go.
#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2_rgb(
    out: [&mut [u8]; 3],
    out_stride: usize,
    rgb: &[u8],
    stride: usize,
    (width, height): (usize, usize),
) {
    if width.min(height) < 16 {
        return scalar_rgb(out, out_stride, rgb, stride, (width, height));
    }
    let mut pick = [[_mm_setzero_si128(); 3]; 3];
    for (pick, parts) in pick.iter_mut().flatten().zip(PICK.iter().flatten()) {
        *pick = load_16(parts, 0);
    }
    for y in blocks(height, 16) {
        for x in blocks(width, 16) {
            let start = y * stride + 3 * x;
            let a = load_16_rows(rgb, start, stride);
            let b = load_16_rows(rgb, start + 16, stride);
            let c = load_16_rows(rgb, start + 32, stride);
            for (channel, pick) in pick.iter().enumerate() {
                let mut plane = [_mm_setzero_si128(); 16];
                for (i, row) in plane.iter_mut().enumerate() {
                    let a = _mm_shuffle_epi8(a[i], pick[0]);
                    let b = _mm_shuffle_epi8(b[i], pick[1]);
                    let c = _mm_shuffle_epi8(c[i], pick[2]);
                    *row = _mm_or_si128(_mm_or_si128(a, b), c);
                }
                let columns = transpose_block(plane);
                store_16_rows(out[channel], x * out_stride + y, out_stride, columns);
            }
        }
    }
}
