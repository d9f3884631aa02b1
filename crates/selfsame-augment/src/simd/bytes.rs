//! A function of single bytes, through a table where there are wide ones.

use crate::ops::kernels;
use crate::simd::Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::lanes::x86_64::*;
use crate::simd::level::dispatch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Blends each byte with a constant: `constant + alpha · (byte − constant)` in `f32`, cut off.
pub(crate) fn blend_with_constant(level: Level, bytes: &mut [u8], constant: u8, alpha: f32) {
    let table = || std::array::from_fn(|byte| kernels::blend(constant, byte as u8, alpha));
    dispatch!(level, {
        scalar: kernels::map_bytes(bytes, &table()),
        avx2: avx2::blend(bytes, constant, alpha),
        avx512: map_bytes_avx512(bytes, &table()),
        neon: neon::blend(bytes, constant, alpha),
    });
}

/// Without wide tables the calculation is faster.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! blends {
    ($level:ident, $features:literal) => {
        mod $level {
            use crate::simd::words::BlendWeight;
            use crate::simd::words::$level::*;

            #[target_feature(enable = $features)]
            pub(super) fn blend(bytes: &mut [u8], constant: u8, alpha: f32) {
                let in_f32 = |bytes: &mut [u8]| {
                    for byte in bytes {
                        *byte = crate::simd::color::blend(constant, *byte, alpha);
                    }
                };
                let Some(weight) = BlendWeight::new(alpha) else {
                    return in_f32(bytes);
                };
                let constants = load_bytes(&[constant; LANES]);
                let (vectors, rest) = bytes.as_chunks_mut();
                for bytes in vectors {
                    let blended = blended(constants, load_bytes(bytes), weight);
                    store_bytes(bytes, saturated(blended));
                }
                in_f32(rest);
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
blends!(avx2, "avx2");
#[cfg(target_arch = "aarch64")]
blends!(neon, "neon");

/// A quarter of the table in each of four registers: one permutation looks up in two of them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn map_bytes_avx512(bytes: &mut [u8], table: &[u8; 256]) {
    let [a, b, c, d] = table.as_chunks().0 else {
        unreachable!("256 bytes are four times 64");
    };
    let (a, b, c, d) = (load_64(a), load_64(b), load_64(c), load_64(d));
    let (vectors, rest) = bytes.as_chunks_mut();
    for bytes in vectors {
        let index = load_64(bytes);
        let lower = _mm512_permutex2var_epi8(a, index, b);
        let upper = _mm512_permutex2var_epi8(c, index, d);
        let is_upper = _mm512_movepi8_mask(index);
        store_64(bytes, _mm512_mask_blend_epi8(is_upper, lower, upper));
    }
    kernels::map_bytes(rest, table);
}
