//! Exact fixed-point arithmetic in words of 16 bits, of which a vector holds most.
//!
//! A sum of products of bytes with weights in units of 2⁻²⁴ needs 32 bits, but what becomes a byte
//! in the end lies within 0..=255: bits above the 32nd and below the 16th matter only through
//! carries. So everything is computed modulo 2¹⁶ in units of 2⁻⁸.

/// A weight within 0 and 1 in units of 2⁻²⁴: `high · 2¹⁶ + low`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Weight {
    high: i16,
    low: i16,
}

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

pub(super) const LOW_BITS: u32 = 12;

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

/// The formulas, from operations by the same names of each width.
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
        fn rounded_sums(pairs: Vector, weights: WeightPair) -> Vector {
            // ⌊(rest · 2¹² + low + 2²³) / 2²⁴⌋, the low bits dropped as soon as nothing depends on them.
            let low = add_32(multiply_add(pairs, splat_32(weights.low)), splat_32(1 << 23));
            let rest = multiply_add(pairs, splat_32(weights.rest));
            shift_right_32::<12>(add_32(shift_right_32::<12>(low), rest))
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
pub(super) mod avx2 {
    use super::{Weight, WeightPair};
    pub(in crate::simd) use crate::simd::lanes::{
        load_16_as_words as load_bytes, load_16_words as load, opaque_16 as opaque,
        store_16_bytes as store_bytes, store_16_words as store, words_16_as_bytes as bytes,
    };
    use std::arch::x86_64::{
        __m256i as Vector, _mm256_add_epi32 as add_32, _mm256_madd_epi16 as multiply_add,
        _mm256_mulhi_epi16 as multiply_high, _mm256_mullo_epi16 as multiply_low,
        _mm256_packus_epi32 as pack, _mm256_set1_epi16 as splat, _mm256_set1_epi32 as splat_32,
        _mm256_slli_epi16 as shift_left, _mm256_srli_epi16 as shift_right,
        _mm256_srli_epi32 as shift_right_32, _mm256_unpackhi_epi16 as unpack_high,
        _mm256_unpacklo_epi16 as unpack_low,
    };
    pub(in crate::simd) use std::arch::x86_64::{
        _mm256_add_epi16 as add, _mm256_sub_epi16 as subtract,
    };

    pub(in crate::simd) const LANES: usize = 16;

    formulas!("avx2");
}

/// 32 words.
pub(super) mod avx512 {
    use super::{Weight, WeightPair};
    pub(in crate::simd) use crate::simd::lanes::{
        load_32_as_words as load_bytes, load_32_words as load, opaque_32 as opaque,
        store_32_bytes as store_bytes, store_32_words as store, words_32_as_bytes as bytes,
    };
    use std::arch::x86_64::{
        __m512i as Vector, _mm512_add_epi32 as add_32, _mm512_madd_epi16 as multiply_add,
        _mm512_mulhi_epi16 as multiply_high, _mm512_mullo_epi16 as multiply_low,
        _mm512_packus_epi32 as pack, _mm512_set1_epi16 as splat, _mm512_set1_epi32 as splat_32,
        _mm512_slli_epi16 as shift_left, _mm512_srli_epi16 as shift_right,
        _mm512_srli_epi32 as shift_right_32, _mm512_unpackhi_epi16 as unpack_high,
        _mm512_unpacklo_epi16 as unpack_low,
    };
    pub(in crate::simd) use std::arch::x86_64::{
        _mm512_add_epi16 as add, _mm512_sub_epi16 as subtract,
    };

    pub(in crate::simd) const LANES: usize = 32;

    formulas!("avx512f,avx512bw,avx512vl,avx512vnni");
}

#[cfg(test)]
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
    fn weight_pairs_hold_both_weights() {
        for w in [[0, 0], [1 << 22, -1], [-700_000, 5_000_000], [4095, -4096]] {
            assert_eq!(WeightPair::new(w[0], w[1]).weights(), w);
        }
    }
}
