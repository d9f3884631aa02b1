//! Loads and stores of AVX2 and AVX-512.

#![expect(unsafe_code, reason = "vector loads and stores go through pointers")]

use std::arch::asm;
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array holds the 16 bytes that are read; any alignment will do.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; any alignment will do.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::simd) fn load_64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; any alignment will do.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn store_16(bytes: &mut [u8; 16], value: __m128i) {
    // SAFETY: the array holds the 16 bytes that are written, borrowed exclusively.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn store_32(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written, borrowed exclusively.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::simd) fn store_64(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: the array holds the 64 bytes that are written, borrowed exclusively.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_16_words(words: &[i16; 16]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; any alignment will do.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::simd) fn load_32_words(words: &[i16; 32]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; any alignment will do.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn store_16_words(words: &mut [i16; 16], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written, borrowed exclusively.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::simd) fn store_32_words(words: &mut [i16; 32], value: __m512i) {
    // SAFETY: the array holds the 64 bytes that are written, borrowed exclusively.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), value) }
}

/// The same words, of which the compiler knows nothing.
///
/// It takes a constant factor's conversion to 32 bits out of a loop, and then no longer sees that
/// the multiplication there is one of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn opaque_16(mut words: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(ymm_reg) words, options(nomem, nostack, preserves_flags)) };
    words
}

/// [`opaque_16`] for 32 words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::simd) fn opaque_32(mut words: __m512i) -> __m512i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(zmm_reg) words, options(nomem, nostack, preserves_flags)) };
    words
}

/// 16 bytes as words.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_16_as_words(bytes: &[u8; 16]) -> __m256i {
    _mm256_cvtepu8_epi16(load_16(bytes))
}

/// 32 bytes as words.
#[inline]
#[target_feature(enable = "avx512bw")]
pub(in crate::simd) fn load_32_as_words(bytes: &[u8; 32]) -> __m512i {
    _mm512_cvtepu8_epi16(load_32(bytes))
}

/// 16 words within 0..=255 as bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn words_16_as_bytes(words: __m256i) -> __m128i {
    let upper = _mm256_extracti128_si256::<1>(words);
    _mm_packus_epi16(_mm256_castsi256_si128(words), upper)
}

/// 32 words within 0..=255 as bytes.
#[inline]
#[target_feature(enable = "avx512bw")]
pub(in crate::simd) fn words_32_as_bytes(words: __m512i) -> __m256i {
    _mm512_cvtepi16_epi8(words)
}

/// 16 numbers as bytes, cut off at both ends.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn saturated_16(words: __m256i) -> __m128i {
    words_16_as_bytes(words)
}

/// 32 numbers as bytes, cut off at both ends.
#[inline]
#[target_feature(enable = "avx512bw")]
pub(in crate::simd) fn saturated_32(words: __m512i) -> __m256i {
    _mm512_cvtusepi16_epi8(_mm512_max_epi16(words, _mm512_setzero_si512()))
}

/// Panics unless so many rows of `width` bytes, the first from `at` on, lie within `len` bytes.
#[inline(always)]
fn assert_rows(len: usize, count: usize, width: usize, at: usize, stride: usize) {
    let last = stride.checked_mul(count - 1);
    let end = last.and_then(|last| last.checked_add(at)?.checked_add(width));
    assert!(
        end.is_some_and(|end| end <= len),
        "the rows lie within the slice"
    );
}

/// 32 bytes of each of 16 rows, the first from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_16_rows(bytes: &[u8], at: usize, stride: usize) -> [__m256i; 16] {
    assert_rows(bytes.len(), 16, 32, at, stride);
    let mut rows = [_mm256_setzero_si256(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: the last row ends within the slice, and the others before it.
        *row = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at + i * stride).cast()) };
    }
    rows
}

/// 16 bytes of each of 16 rows, the first from `at` on, and 16 that begin `apart` bytes on from them.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn load_16_rows_twice(
    bytes: &[u8],
    at: usize,
    apart: usize,
    stride: usize,
) -> [__m256i; 16] {
    assert_rows(bytes.len(), 16, apart + 16, at, stride);
    let mut rows = [_mm256_setzero_si256(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: the last row ends within the slice, and the others before it.
        *row = unsafe {
            let start = bytes.as_ptr().add(at + i * stride);
            _mm256_loadu2_m128i(start.add(apart).cast(), start.cast())
        };
    }
    rows
}

/// Writes 32 columns of 16 bytes as rows, the first from `at` on: the lower halves, then the upper
/// ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn store_32_columns(
    bytes: &mut [u8],
    at: usize,
    stride: usize,
    columns: [__m256i; 16],
) {
    assert_rows(bytes.len(), 32, 16, at, stride);
    for (i, column) in columns.into_iter().enumerate() {
        // SAFETY: the last row ends within the slice, and the others before it.
        unsafe {
            let lower = bytes.as_mut_ptr().add(at + i * stride);
            _mm256_storeu2_m128i(lower.add(16 * stride).cast(), lower.cast(), column);
        }
    }
}

/// Adds the sums of two neighbouring products each.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn add_products_16(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sums, _mm256_madd_epi16(a, b))
}
