//! Exact fixed-point arithmetic in words of 16 bits, of which a vector holds most.
//!
//! A sum of products of bytes with weights in units of 2⁻²⁴ needs 32 bits, but what becomes a byte
//! in the end lies within 0..=255: bits above the 32nd and below the 16th matter only through
//! carries. So everything is computed modulo 2¹⁶ in units of 2⁻⁸.

/// A weight within 0 and 1 in units of 2⁻²⁴: `high · 2¹⁶ + low`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Weight {
    high: i16,
    low: i16,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Weight {
    pub(super) fn new(units: u32) -> Self {
        let low = units as i16;
        Self {
            high: ((units as i32 - i32::from(low)) >> 16) as i16,
            low,
        }
    }
}

/// Two neighbouring weights, each cut into 12 low bits and the signed rest, so that a product with
/// a byte fits the 16-bit multiplications of the processor.
///
/// `w = rest · 2¹² + low`; a word holds the first weight's part in its lower half.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct WeightPair {
    pub(super) rest: i32,
    pub(super) low: i32,
}

const LOW_BITS: u32 = 12;

/// Bits behind the point of a resize that the rests have.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const REST_BITS: u32 = crate::ops::coefficients::PRECISION_BITS - LOW_BITS;

impl WeightPair {
    pub(crate) fn new(first: i32, second: i32) -> Self {
        let low = |w: i32| w & ((1 << LOW_BITS) - 1);
        Self {
            rest: (first >> LOW_BITS) & 0xffff | (second >> LOW_BITS) << 16,
            low: low(first) | low(second) << 16,
        }
    }

    pub(super) fn weights(self) -> [i32; 2] {
        let first = (i32::from(self.rest as i16) << LOW_BITS) + (self.low & 0xffff);
        let second = ((self.rest >> 16) << LOW_BITS) + (self.low >> 16);
        [first, second]
    }
}

/// A weight of a blend that comes out as in `f32`, in units of 2⁻²¹.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BlendWeight(Weight);

/// Bits behind the point of a blend in words: 765 · 2⁵ < 2¹⁵.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const BLEND_BITS: u32 = 5;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl BlendWeight {
    /// `None` if a blend of two bytes could be cut off otherwise than one in `f32`: if it comes as
    /// close to a whole number as both can be off.
    ///
    /// In `f32` the product (below 512) is off by 2⁻¹⁶ at most and the sum (below 1024) by 2⁻¹⁵,
    /// here the weight by 2⁻²², that is 255 times as much for the product.
    pub(super) fn new(alpha: f32) -> Option<Self> {
        const CLOSE: f64 = 1.0 / 8192.0;
        let is_far = |difference: u8| {
            let product = f64::from(alpha) * f64::from(difference);
            let fraction = product - f64::from(product as i32);
            (CLOSE..=1.0 - CLOSE).contains(&fraction)
        };
        let is_exact = (0.0..=2.0).contains(&alpha) && (1..=255).all(is_far);
        let units = f64::from(alpha) * f64::from(1 << (16 + BLEND_BITS));
        is_exact.then(|| Self(Weight::new(units.round() as u32)))
    }
}

/// The formulas, from operations by the same names of each width.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! formulas {
    ($features:literal) => {
        /// `base + difference · weight`, rounded, which must lie within 0..=255.
        #[inline]
        #[target_feature(enable = $features)]
        pub(in crate::simd) fn moved(base: Vector, difference: Vector, weight: Weight) -> Vector {
            rounded(add(shift_left::<8>(base), times(difference, weight)))
        }

        /// `a · weights[0] + b · weights[1]` in units of 2⁻²⁴, rounded, which must lie within 0..=255.
        #[inline]
        #[target_feature(enable = $features)]
        pub(in crate::simd) fn weighted_sum(a: Vector, b: Vector, weights: WeightPair) -> Vector {
            let lower = rounded_sums(unpack_low(a, b), weights);
            pack(lower, rounded_sums(unpack_high(a, b), weights))
        }

        /// The weighted sums of pairs of words.
        #[inline]
        #[target_feature(enable = $features)]
        fn rounded_sums(pairs: Pairs, weights: WeightPair) -> Sums {
            // ⌊(rest · 2¹² + low + 2²³) / 2²⁴⌋, the low bits dropped as soon as nothing depends on them.
            let low = add_products(splat_32(1 << 23), pairs, splat_32(weights.low));
            let low = shift_right_32::<LOW_BITS>(low);
            shift_right_32::<{ 24 - LOW_BITS }>(add_products(low, pairs, splat_32(weights.rest)))
        }

        /// Luma of pixels, as [`crate::ops::kernels::luma`].
        #[inline]
        #[target_feature(enable = $features)]
        pub(in crate::simd) fn luma(pixels: [Vector; 3]) -> Vector {
            let (high, low) = (sum_by_byte(pixels, 0), sum_by_byte(pixels, 1));
            rounded(add(high, shift_right::<8>(low)))
        }

        /// The pixels' sum weighted by the high or the low bytes of [`LUMA`].
        #[inline]
        #[target_feature(enable = $features)]
        fn sum_by_byte([r, g, b]: [Vector; 3], byte: usize) -> Vector {
            let weight = |channel: usize| i16::from(LUMA[channel].to_be_bytes()[byte]);
            let red = multiply_low(r, splat(weight(0)));
            let green = multiply_low(g, splat(weight(1)));
            add(add(red, green), multiply_low(b, splat(weight(2))))
        }

        /// `from + weight · (to − from)`, cut off; it can exceed a byte at both ends.
        #[inline]
        #[target_feature(enable = $features)]
        pub(in crate::simd) fn blended(from: Vector, to: Vector, weight: BlendWeight) -> Vector {
            let moved = times(subtract(to, from), weight.0);
            shift_right_signed::<BLEND_BITS>(add(shift_left::<BLEND_BITS>(from), moved))
        }

        /// Products in units of 2⁻⁸, cut off.
        #[inline]
        #[target_feature(enable = $features)]
        fn times(numbers: Vector, weight: Weight) -> Vector {
            add(
                multiply_low(numbers, splat(weight.high)),
                multiply_high(numbers, opaque(splat(weight.low))),
            )
        }

        /// The nearest whole numbers to units of 2⁻⁸, halves upwards.
        #[inline]
        #[target_feature(enable = $features)]
        fn rounded(words: Vector) -> Vector {
            shift_right::<8>(add(words, splat(128)))
        }
    };
}

/// 16 words.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use super::{BlendWeight, Weight, WeightPair};
    use crate::ops::kernels::LUMA;
    pub(in crate::simd) use crate::simd::lanes::x86_64::{
        add_products_16 as add_products, load_16_as_words as load_bytes, load_16_words as load,
        opaque_16 as opaque, saturated_16 as saturated, store_16 as store_bytes,
        store_16_words as store, words_16_as_bytes as narrowed,
    };
    pub(in crate::simd) use crate::simd::lanes::{last, last_mut};
    pub(in crate::simd) use std::arch::x86_64::{
        __m256i as Vector, __m256i as Pairs, __m256i as Sums, _mm256_add_epi16 as add,
        _mm256_add_epi32 as add_32, _mm256_packus_epi32 as pack, _mm256_set1_epi16 as splat,
        _mm256_set1_epi32 as splat_32, _mm256_srai_epi32 as shift_right_signed_32,
        _mm256_sub_epi16 as subtract, _mm256_unpackhi_epi16 as unpack_high,
        _mm256_unpacklo_epi16 as unpack_low,
    };
    use std::arch::x86_64::{
        _mm256_mulhi_epi16 as multiply_high, _mm256_mullo_epi16 as multiply_low,
        _mm256_slli_epi16 as shift_left, _mm256_srai_epi16 as shift_right_signed,
        _mm256_srli_epi16 as shift_right, _mm256_srli_epi32 as shift_right_32,
    };

    const BLEND_BITS: i32 = super::BLEND_BITS as i32;
    pub(in crate::simd) const LOW_BITS: i32 = super::LOW_BITS as i32;
    pub(in crate::simd) const REST_BITS: i32 = super::REST_BITS as i32;

    pub(in crate::simd) const LANES: usize = 16;

    formulas!("avx2");
}

/// 32 words.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use super::{BLEND_BITS, BlendWeight, Weight, WeightPair};
    use crate::ops::kernels::LUMA;
    pub(in crate::simd) use crate::simd::lanes::x86_64::{
        load_32_as_words as load_bytes, load_32_words as load, opaque_32 as opaque,
        saturated_32 as saturated, store_32 as store_bytes, store_32_words as store,
        words_32_as_bytes as narrowed,
    };
    pub(in crate::simd) use crate::simd::lanes::{last, last_mut};
    pub(in crate::simd) use std::arch::x86_64::{
        __m512i as Vector, __m512i as Pairs, __m512i as Sums, _mm512_add_epi16 as add,
        _mm512_add_epi32 as add_32, _mm512_dpwssd_epi32 as add_products,
        _mm512_packus_epi32 as pack, _mm512_set1_epi16 as splat, _mm512_set1_epi32 as splat_32,
        _mm512_srai_epi32 as shift_right_signed_32, _mm512_sub_epi16 as subtract,
        _mm512_unpackhi_epi16 as unpack_high, _mm512_unpacklo_epi16 as unpack_low,
    };
    use std::arch::x86_64::{
        _mm512_mulhi_epi16 as multiply_high, _mm512_mullo_epi16 as multiply_low,
        _mm512_slli_epi16 as shift_left, _mm512_srai_epi16 as shift_right_signed,
        _mm512_srli_epi16 as shift_right, _mm512_srli_epi32 as shift_right_32,
    };

    pub(in crate::simd) const LOW_BITS: u32 = super::LOW_BITS;
    pub(in crate::simd) const REST_BITS: u32 = super::REST_BITS;
    pub(in crate::simd) const LANES: usize = 32;

    formulas!("avx512f,avx512bw,avx512vl,avx512vnni");
}

/// 8 words.
#[cfg(target_arch = "aarch64")]
pub(super) mod neon {
    use super::{BlendWeight, Weight, WeightPair};
    use crate::ops::kernels::LUMA;
    pub(in crate::simd) use crate::simd::lanes::aarch64::{
        load_8_as_words as load_bytes, load_8_words as load, store_8 as store_bytes,
        store_8_words as store,
    };
    pub(in crate::simd) use crate::simd::lanes::{last, last_mut};
    use std::arch::aarch64::*;
    pub(in crate::simd) use std::arch::aarch64::{
        int16x8_t as Vector, int32x4_t as Sums, vaddq_s16 as add, vaddq_s32 as add_32,
        vdupq_n_s16 as splat, vdupq_n_s32 as splat_32, vqmovun_s16 as saturated,
        vshrq_n_s32 as shift_right_signed_32, vsubq_s16 as subtract,
    };
    use std::arch::aarch64::{
        vmulq_s16 as multiply_low, vshlq_n_s16 as shift_left, vshrq_n_s16 as shift_right_signed,
    };

    const BLEND_BITS: i32 = super::BLEND_BITS as i32;
    pub(in crate::simd) const LOW_BITS: i32 = super::LOW_BITS as i32;
    pub(in crate::simd) const REST_BITS: i32 = super::REST_BITS as i32;

    pub(in crate::simd) const LANES: usize = 8;

    /// Words side by side that are multiplied by a weight each: no two of them need to change
    /// places here, as products of four words at a time are added up.
    pub(in crate::simd) type Pairs = (int16x4_t, int16x4_t);

    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn unpack_low(a: Vector, b: Vector) -> Pairs {
        (vget_low_s16(a), vget_low_s16(b))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn unpack_high(a: Vector, b: Vector) -> Pairs {
        (vget_high_s16(a), vget_high_s16(b))
    }

    /// Adds the sums of two products each; `weights` holds the two factors four times.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn add_products(sums: Sums, (a, b): Pairs, weights: Sums) -> Sums {
        let weights = vreinterpretq_s16_s32(weights);
        vmlal_laneq_s16::<1>(vmlal_laneq_s16::<0>(sums, a, weights), b, weights)
    }

    /// Numbers that fit words without a sign, others cut off.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn pack(a: Sums, b: Sums) -> Vector {
        vreinterpretq_s16_u16(vcombine_u16(vqmovun_s32(a), vqmovun_s32(b)))
    }

    /// Words within 0..=255 as bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn narrowed(words: Vector) -> uint8x8_t {
        vmovn_u16(vreinterpretq_u16_s16(words))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn shift_right<const N: i32>(words: Vector) -> Vector {
        vreinterpretq_s16_u16(vshrq_n_u16::<N>(vreinterpretq_u16_s16(words)))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn shift_right_32<const N: i32>(sums: Sums) -> Sums {
        vreinterpretq_s32_u32(vshrq_n_u32::<N>(vreinterpretq_u32_s32(sums)))
    }

    /// The upper words of the products, of which not both factors may be −2¹⁵.
    #[inline]
    #[target_feature(enable = "neon")]
    fn multiply_high(a: Vector, b: Vector) -> Vector {
        vshrq_n_s16::<1>(vqdmulhq_s16(a, b)) // that of twice the product, halved
    }

    #[inline(always)]
    fn opaque(words: Vector) -> Vector {
        words
    }

    formulas!("neon");
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;

    #[test]
    fn weights_are_cut_into_two_words() {
        for units in [0, 1, 0x7fff, 0x8000, 0xffff, 0x12_8001, 5_592_405, 1 << 24] {
            let Weight { high, low } = Weight::new(units);
            assert_eq!((i32::from(high) << 16) + i32::from(low), units as i32);
        }
    }

    #[test]
    fn blends_by_weights_are_those_in_f32() {
        let mut refused = 0;
        for step in 0..400 {
            let alpha = 0.500_13 + step as f32 * 0.003_1;
            let Some(BlendWeight(Weight { high, low })) = BlendWeight::new(alpha) else {
                refused += 1;
                continue;
            };
            let units = (i32::from(high) << 16) + i32::from(low);
            for from in 0..=255u8 {
                for to in 0..=255u8 {
                    let moved = (i32::from(to) - i32::from(from)) * units;
                    let blended = i32::from(from) + (moved >> (16 + BLEND_BITS));
                    let expected = crate::ops::kernels::blend(from, to, alpha);
                    assert_eq!(blended.clamp(0, 255), i32::from(expected), "{alpha}");
                }
            }
        }
        assert!(refused < 60, "{refused}");
        assert_eq!(BlendWeight::new(0.5), None);
        assert_eq!(BlendWeight::new(f32::NAN), None);
        assert_eq!(BlendWeight::new(2.1), None);
    }

    #[test]
    fn weight_pairs_hold_both_weights() {
        for w in [[0, 0], [1 << 22, -1], [-700_000, 5_000_000], [4095, -4096]] {
            assert_eq!(WeightPair::new(w[0], w[1]).weights(), w);
        }
    }
}
