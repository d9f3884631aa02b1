//! Loads and stores of NEON.

#![expect(unsafe_code, reason = "vector loads and stores go through pointers")]

use std::arch::aarch64::*;

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn load_16(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array holds the 16 bytes that are read; any alignment will do.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn store_16(bytes: &mut [u8; 16], value: uint8x16_t) {
    // SAFETY: the array holds the 16 bytes that are written, borrowed exclusively.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), value) }
}

/// 16 pixels as their three channels.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn load_16_pixels(rgb: &[u8; 48]) -> [uint8x16_t; 3] {
    // SAFETY: the array holds the 48 bytes that are read; any alignment will do.
    let uint8x16x3_t(r, g, b) = unsafe { vld3q_u8(rgb.as_ptr()) };
    [r, g, b]
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn load_8_words(words: &[i16; 8]) -> int16x8_t {
    // SAFETY: the array holds the 16 bytes that are read; any alignment will do.
    unsafe { vld1q_s16(words.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn store_8_words(words: &mut [i16; 8], value: int16x8_t) {
    // SAFETY: the array holds the 16 bytes that are written, borrowed exclusively.
    unsafe { vst1q_s16(words.as_mut_ptr(), value) }
}

/// 8 bytes as words.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn load_8_as_words(bytes: &[u8; 8]) -> int16x8_t {
    // SAFETY: the array holds the 8 bytes that are read; any alignment will do.
    let bytes = unsafe { vld1_u8(bytes.as_ptr()) };
    vreinterpretq_s16_u16(vmovl_u8(bytes))
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn store_8(bytes: &mut [u8; 8], value: uint8x8_t) {
    // SAFETY: the array holds the 8 bytes that are written, borrowed exclusively.
    unsafe { vst1_u8(bytes.as_mut_ptr(), value) }
}
