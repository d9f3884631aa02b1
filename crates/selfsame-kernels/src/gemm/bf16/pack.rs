//! Rounded copies of matrix blocks in the order in which the inner loop reads them.
//!
//! A panel holds `W` vectors (rows of the left matrix, columns of the right one) side by side:
//! for every two steps along the inner dimension a word of two bf16 for each of them, the earlier
//! one in its lower half. Vectors beyond the last, and a step beyond the last, are zeros.
#![expect(unsafe_code, reason = "instructions of AVX512-BF16")]

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm256_castsi256_ps, _mm256_permute2f128_ps,
    _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps,
    _mm512_or_si512, _mm512_slli_epi32,
};

/// `count` vectors of `len` elements within a slice that starts at the first element.
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    pub(super) count: usize,
    pub(super) len: usize,
    /// Distance between vectors.
    pub(super) stride: usize,
    /// Distance between elements of a vector.
    pub(super) step: usize,
}

/// Side of the squares that are transposed at a time.
const SIDE: usize = 8;

/// Packs panels of `W` vectors one after the other into `out`, `depth · W` words each, where
/// `depth` is half of the vectors' length, rounded up.
///
/// # Safety
/// The processor has the features named below.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack<const W: usize>(
    out: &mut [u32],
    data: &[f32],
    vectors: Vectors,
    depth: usize,
) {
    let panels = out.chunks_exact_mut(depth * W);
    for (panel, first) in panels.zip((0..vectors.count).step_by(W)) {
        let width = W.min(vectors.count - first);
        let data = &data[first * vectors.stride..];
        // SAFETY: the processor has the features, as the caller says.
        unsafe {
            if vectors.stride == 1 {
                adjacent::<W>(panel, data, vectors, width);
            } else {
                apart::<W>(panel, data, vectors, width);
            }
        }
    }
}

/// Numbers in a register.
const LANES: usize = 16;

/// The first `len` lanes.
fn first_lanes(len: usize) -> u16 {
    ((1u32 << len.min(LANES)) - 1) as u16
}

/// Up to 16 numbers; zeros after the end of the slice.
///
/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn load(numbers: &[f32]) -> __m512 {
    // SAFETY: only lanes within the slice are read.
    unsafe { _mm512_maskz_loadu_ps(first_lanes(numbers.len()), numbers.as_ptr()) }
}

/// Sixteen numbers rounded to bf16, in order.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(numbers: __m512) -> __m256i {
    let halves = _mm512_cvtneps_pbh(numbers);
    // SAFETY: both are 256 plain bits.
    unsafe { std::mem::transmute(halves) }
}

/// Words of one row's numbers below the next row's.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(row: __m512, next: __m512) -> __m512i {
    let low = _mm512_cvtepu16_epi32(rounded(row));
    let high = _mm512_cvtepu16_epi32(rounded(next));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// Vectors whose elements lie side by side: two rows of `W` make a row of words.
///
/// # Safety
/// As [`pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn adjacent<const W: usize>(
    panel: &mut [u32],
    data: &[f32],
    vectors: Vectors,
    width: usize,
) {
    for (d, out) in panel.chunks_exact_mut(W).enumerate() {
        let row = |k: usize| match k < vectors.len {
            true => &data[k * vectors.step..][..width],
            false => &[],
        };
        let (row, next) = (row(2 * d), row(2 * d + 1));
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let part = |row: &'_ [f32]| -> (usize, usize) {
                let start = (i * LANES).min(row.len());
                (start, (start + LANES).min(row.len()))
            };
            let ((a, b), (c, d)) = (part(row), part(next));
            // SAFETY: the processor has the features; only lanes within `out` are written.
            unsafe {
                let words = paired(load(&row[a..b]), load(&next[c..d]));
                let lanes = first_lanes(out.len());
                _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), lanes, words);
            }
        }
    }
}

/// Vectors that lie one after the other: squares are transposed.
///
/// # Safety
/// As [`pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn apart<const W: usize>(panel: &mut [u32], data: &[f32], vectors: Vectors, width: usize) {
    for (square, rows) in panel.chunks_mut(SIDE * W).enumerate() {
        let first = 2 * square * SIDE;
        let len = (2 * SIDE).min(vectors.len - first.min(vectors.len));
        for group in (0..W).step_by(SIDE) {
            let lanes = SIDE.min(W - group);
            let mut words = [_mm256_setzero_ps(); SIDE];
            let given = lanes.min(width.saturating_sub(group));
            for (lane, words) in words.iter_mut().enumerate().take(given) {
                let vector = &data[(group + lane) * vectors.stride..];
                // SAFETY: the processor has the features.
                unsafe {
                    let numbers = if vectors.step == 1 {
                        load(&vector[first..first + len])
                    } else {
                        let mut gathered = [0f32; LANES];
                        for (i, x) in gathered.iter_mut().enumerate().take(len) {
                            *x = vector[(first + i) * vectors.step];
                        }
                        load(&gathered)
                    };
                    *words = _mm256_castsi256_ps(rounded(numbers));
                }
            }
            let columns = transposed(words);
            for (row, column) in rows.chunks_exact_mut(W).zip(columns) {
                let out = &mut row[group..group + lanes];
                let mut words = [0u32; SIDE];
                // SAFETY: eight words are eight floats' bits.
                unsafe { _mm256_storeu_ps(words.as_mut_ptr().cast(), column) };
                out.copy_from_slice(&words[..lanes]);
            }
        }
    }
}

/// Words of eight rows, column by column.
#[target_feature(enable = "avx512f,avx512vl")]
fn transposed(r: [__m256; SIDE]) -> [__m256; SIDE] {
    let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let ((a0, a1), (a2, a3)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
    let ((a4, a5), (a6, a7)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
    let fours = |a, b| {
        (
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
        )
    };
    let ((b0, b1), (b2, b3)) = (fours(a0, a2), fours(a1, a3));
    let ((b4, b5), (b6, b7)) = (fours(a4, a6), fours(a5, a7));
    let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
    let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
    [
        low(b0, b4),
        low(b1, b5),
        low(b2, b6),
        low(b3, b7),
        high(b0, b4),
        high(b1, b5),
        high(b2, b6),
        high(b3, b7),
    ]
}
