//! One pass of an extended box over a plane, along its rows or across them.

use crate::ops::kernels::BlurBox;
use crate::simd::Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::lanes::*;
use crate::simd::level::dispatch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The largest radius of the box whose sums of bytes fit 16 bits with a sign: 127 · 255.
pub(crate) const MAX_RADIUS: usize = 63;

/// Where the taps of an output row lie.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Axis {
    /// In the same row, one byte from tap to tap: rows of `stride` bytes hold a row with its first
    /// and last byte repeated radius + 1 times on either side.
    Along {
        /// Bytes from one row to the next.
        stride: usize,
    },
    /// In the rows above and below, of which there are `height`; those beyond repeat the border.
    Across {
        /// Number of rows.
        height: usize,
    },
}

/// A plane to write rows of `width` bytes into.
pub(crate) struct Target<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Where the first row starts.
    pub(crate) start: usize,
}

/// One pass with a box of few taps:
/// `out[x] = whole · Σ inner[i][x] + edge · (outer[0][x] + outer[1][x])`, rounded, where `N` inner
/// rows (2 · radius + 1) lie between the two outer ones.
///
/// # Panics
/// If a slice ends before what is read or written, or `N` is too large for [`MAX_RADIUS`].
pub(crate) fn blur_few<const N: usize>(
    level: Level,
    out: Target,
    source: &[u8],
    axis: Axis,
    kernel: BlurBox,
) {
    assert!(
        N == 2 * kernel.radius + 1 && kernel.radius <= MAX_RADIUS,
        "{N} taps for a radius of {}",
        kernel.radius
    );
    dispatch!(level, {
        scalar: few::<N>(out, source, axis, |out, inner, outer| {
            few_scalar(out, inner, outer, kernel);
        }),
        avx2: pass_few_avx2::<N>(out, source, axis, kernel),
        avx512: pass_few_avx512::<N>(out, source, axis, kernel),
    });
}

#[inline(always)]
fn few<const N: usize>(
    out: Target,
    source: &[u8],
    axis: Axis,
    blur_row: impl Fn(&mut [u8], [&[u8]; N], [&[u8]; 2]),
) {
    let rows = out.bytes[out.start..].chunks_mut(out.stride);
    for (y, row) in rows.take(out.height).enumerate() {
        let tap = |i: usize| {
            let start = match axis {
                Axis::Along { stride } => y * stride + i,
                Axis::Across { height } => {
                    let y = (y + i).saturating_sub(N / 2 + 1).min(height - 1);
                    y * out.width
                }
            };
            &source[start..start + out.width]
        };
        let inner = std::array::from_fn(|i| tap(i + 1));
        blur_row(&mut row[..out.width], inner, [tap(0), tap(N + 1)]);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pass_few_avx2<const N: usize>(out: Target, source: &[u8], axis: Axis, kernel: BlurBox) {
    let weights = split(kernel);
    few::<N>(out, source, axis, |out, inner, outer| {
        if out.len() < 16 {
            few_scalar(out, inner, outer, kernel);
        } else {
            few_avx2(out, inner, outer, weights);
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pass_few_avx512<const N: usize>(out: Target, source: &[u8], axis: Axis, kernel: BlurBox) {
    let weights = split(kernel);
    few::<N>(out, source, axis, |out, inner, outer| {
        few_avx512(out, inner, outer, weights);
    });
}

/// One row of a pass with any radius: `sums` holds the sum of the inner rows of the row before, from which
/// `gone` is taken away and to which `come` is added first.
///
/// # Panics
/// If a row or `sums` is shorter than `out`, or the radius is above [`MAX_RADIUS`].
pub(crate) fn blur_many(
    level: Level,
    out: &mut [u8],
    sums: &mut [u16],
    [gone, come]: [&[u8]; 2],
    outer: [&[u8]; 2],
    kernel: BlurBox,
) {
    assert!(kernel.radius <= MAX_RADIUS, "the sums fit 16 bits");
    move_sums(level, sums, gone, come);
    dispatch!(level, {
        scalar: many_scalar(out, sums, outer, kernel),
        avx2: many_avx2(out, sums, outer, kernel),
        avx512: many_avx512(out, sums, outer, kernel),
    });
}

crate::simd::by_level! {
    /// `sums[x] += come[x] − gone[x]`.
    fn move_sums(sums: &mut [u16], gone: &[u8], come: &[u8]) = move_sums_body;
}

#[inline(always)]
fn move_sums_body(sums: &mut [u16], gone: &[u8], come: &[u8]) {
    for ((sum, &gone), &come) in sums.iter_mut().zip(gone).zip(come) {
        *sum = sum
            .wrapping_add(u16::from(come))
            .wrapping_sub(u16::from(gone));
    }
}

fn few_scalar<const N: usize>(
    out: &mut [u8],
    inner: [&[u8]; N],
    [left, right]: [&[u8]; 2],
    kernel: BlurBox,
) {
    for (x, out) in out.iter_mut().enumerate() {
        let sum = inner.iter().map(|row| u32::from(row[x])).sum();
        *out = kernel.weigh(sum, u32::from(left[x]) + u32::from(right[x]));
    }
}

fn many_scalar(out: &mut [u8], sums: &[u16], [left, right]: [&[u8]; 2], kernel: BlurBox) {
    for (x, out) in out.iter_mut().enumerate() {
        *out = kernel.weigh(u32::from(sums[x]), u32::from(left[x]) + u32::from(right[x]));
    }
}

/// The two weights, cut into 12 low bits and the rest: 16-bit factors of an inner and an outer sum.
#[cfg(target_arch = "x86_64")]
fn split(kernel: BlurBox) -> [i32; 2] {
    let (whole, edge) = (kernel.whole as i32, kernel.edge as i32);
    let rest = (whole >> 12) | ((edge >> 12) << 16);
    let low = (whole & 4095) | ((edge & 4095) << 16);
    [rest, low]
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn few_avx2<const N: usize>(
    out: &mut [u8],
    inner: [&[u8]; N],
    outer: [&[u8]; 2],
    weights: [i32; 2],
) {
    for x in blocks(out.len(), 16) {
        let mut sum = _mm256_setzero_si256();
        for row in inner {
            sum = _mm256_add_epi16(sum, _mm256_cvtepu8_epi16(load_16(row, x)));
        }
        store_16(out, x, weigh_16(sum, outer, x, weights));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn many_avx2(out: &mut [u8], sums: &[u16], outer: [&[u8]; 2], kernel: BlurBox) {
    if out.len() < 16 {
        return many_scalar(out, sums, outer, kernel);
    }
    let weights = split(kernel);
    for x in blocks(out.len(), 16) {
        let sum = load_16_words(sums, x);
        store_16(out, x, weigh_16(sum, outer, x, weights));
    }
}

/// 16 results from their inner sums and the outer rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn weigh_16(inner: __m256i, [left, right]: [&[u8]; 2], x: usize, weights: [i32; 2]) -> __m128i {
    let left = _mm256_cvtepu8_epi16(load_16(left, x));
    let right = _mm256_cvtepu8_epi16(load_16(right, x));
    let outer = _mm256_add_epi16(left, right);
    // Columns 0..4 and 8..12, then 4..8 and 12..16; the packing of words undoes it.
    let a = weigh_8(_mm256_unpacklo_epi16(inner, outer), weights);
    let b = weigh_8(_mm256_unpackhi_epi16(inner, outer), weights);
    let words = _mm256_packus_epi32(a, b);
    _mm_packus_epi16(
        _mm256_castsi256_si128(words),
        _mm256_extracti128_si256::<1>(words),
    )
}

/// Eight weighted sums of pairs (inner, outer), in units of 1 and rounded.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn weigh_8(pairs: __m256i, [rest, low]: [i32; 2]) -> __m256i {
    let rest = _mm256_madd_epi16(pairs, _mm256_set1_epi32(rest));
    let low = _mm256_madd_epi16(pairs, _mm256_set1_epi32(low));
    // ⌊(rest · 2¹² + low + 2²³) / 2²⁴⌋, the low bits dropped as soon as nothing depends on them.
    let low = _mm256_srli_epi32::<12>(_mm256_add_epi32(low, _mm256_set1_epi32(1 << 23)));
    _mm256_srli_epi32::<12>(_mm256_add_epi32(rest, low))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn few_avx512<const N: usize>(
    out: &mut [u8],
    inner: [&[u8]; N],
    [left, right]: [&[u8]; 2],
    weights: [i32; 2],
) {
    let len = out.len();
    if len < 32 {
        let mut sum = _mm512_setzero_si512();
        for row in inner {
            sum = _mm512_add_epi16(sum, _mm512_cvtepu8_epi16(load_up_to_32(&row[..len])));
        }
        let (left, right) = (load_up_to_32(&left[..len]), load_up_to_32(&right[..len]));
        return store_up_to_32(out, weigh_32(sum, left, right, weights));
    }
    for x in blocks(len, 32) {
        let mut sum = _mm512_setzero_si512();
        for row in inner {
            sum = _mm512_add_epi16(sum, _mm512_cvtepu8_epi16(load_32(row, x)));
        }
        let (left, right) = (load_32(left, x), load_32(right, x));
        store_32(out, x, weigh_32(sum, left, right, weights));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn many_avx512(out: &mut [u8], sums: &[u16], [left, right]: [&[u8]; 2], kernel: BlurBox) {
    if out.len() < 32 {
        return many_scalar(out, sums, [left, right], kernel);
    }
    let weights = split(kernel);
    for x in blocks(out.len(), 32) {
        let sum = load_32_words(sums, x);
        let (left, right) = (load_32(left, x), load_32(right, x));
        store_32(out, x, weigh_32(sum, left, right, weights));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weigh_32(inner: __m512i, left: __m256i, right: __m256i, weights: [i32; 2]) -> __m256i {
    let outer = _mm512_add_epi16(_mm512_cvtepu8_epi16(left), _mm512_cvtepu8_epi16(right));
    let a = weigh_16_wide(_mm512_unpacklo_epi16(inner, outer), weights);
    let b = weigh_16_wide(_mm512_unpackhi_epi16(inner, outer), weights);
    _mm512_cvtepi16_epi8(_mm512_packus_epi32(a, b))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn weigh_16_wide(pairs: __m512i, [rest, low]: [i32; 2]) -> __m512i {
    // ⌊(rest · 2¹² + low + 2²³) / 2²⁴⌋, the low bits dropped as soon as nothing depends on them.
    let half = _mm512_set1_epi32(1 << 23);
    let low = _mm512_dpwssd_epi32(half, pairs, _mm512_set1_epi32(low));
    let low = _mm512_srli_epi32::<12>(low);
    let sum = _mm512_dpwssd_epi32(low, pairs, _mm512_set1_epi32(rest));
    _mm512_srli_epi32::<12>(sum)
}
