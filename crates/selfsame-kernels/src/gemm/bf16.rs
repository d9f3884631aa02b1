//! Products of factors rounded to bf16, summed in f32.
//!
//! With AVX512-BF16 the factors are rounded while they are packed, and the processor multiplies
//! pairs of them. Elsewhere rounded copies go through the ordinary product: slower than f32, but
//! with the same rounding, so that a run can be continued on another machine.

#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod tile;

use super::{Mat, Threads, View, multiply_add, multiply_into};

/// Whether this processor multiplies bf16 by itself.
pub(super) fn is_native() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static NATIVE: OnceLock<bool> = OnceLock::new();
        *NATIVE.get_or_init(|| {
            !cfg!(selfsame_no_avx512)
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `out (+)= a · b`, whose sizes fit.
///
/// # Panics
/// If a view reaches over the end of its slice.
pub(super) fn product(out: &mut [f32], view: View, add: bool, a: Mat<'_>, b: Mat<'_>) {
    // For products as small as an image's the packing would not pay.
    #[cfg(target_arch = "x86_64")]
    if is_native() && view.col_stride == 1 {
        packed::product(out, view, add, a, b);
        return;
    }
    portable(out, view, add, a, b);
}

/// The same out of rounded copies.
fn portable(out: &mut [f32], view: View, add: bool, a: Mat<'_>, b: Mat<'_>) {
    let (a_data, b_data) = (rounded(a), rounded(b));
    let (a, b) = (Mat(&a_data, a.1), Mat(&b_data, b.1));
    match add {
        true => multiply_add(out, view, a, b, Threads::One),
        false => multiply_into(out, view, a, b, Threads::One),
    }
}

fn rounded(mat: Mat<'_>) -> Vec<f32> {
    let reach = &mat.0[..mat.1.extent()];
    reach
        .iter()
        .map(|x| f32::from_bits(bf16(*x) << 16))
        .collect()
}

/// The nearest bf16, ties to even, in the lower half of a word; NaN stays NaN.
#[inline(always)]
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn rounding_is_to_the_nearest_and_to_even() {
        let rounded = |x: f32| f32::from_bits(bf16(x) << 16);
        // bf16 has 8 bits of precision: 1 + 1/128 is the next number after 1.
        assert_eq!(rounded(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(1.0 + 1.1 / 256.0), 1.0 + 2.0 / 256.0);
        assert_eq!(rounded(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
        assert!(rounded(f32::NAN).is_nan());
    }

    #[test]
    fn products_are_those_of_rounded_factors_for_all_orders_and_edges() {
        for (rows, inner, cols) in [(1, 1, 1), (14, 32, 32), (33, 801, 70), (169, 65, 513)] {
            let (a, b) = (values(rows * inner, 1, 1.0), values(inner * cols, 2, 1.0));
            let view = View::row_major(rows, cols);
            let a_views = [
                View::row_major(rows, inner),
                View::row_major(inner, rows).t(),
            ];
            let b_views = [
                View::row_major(inner, cols),
                View::row_major(cols, inner).t(),
            ];
            for (a_view, b_view) in a_views.iter().flat_map(|a| b_views.map(|b| (*a, b))) {
                for add in [false, true] {
                    let start = values(rows * cols, 3, 1.0);
                    let (mut native, mut plain) = (start.clone(), start.clone());
                    product(&mut native, view, add, Mat(&a, a_view), Mat(&b, b_view));
                    portable(&mut plain, view, add, Mat(&a, a_view), Mat(&b, b_view));
                    let rounded = |x: f32| f64::from(f32::from_bits(bf16(x) << 16));
                    let at = |view: View, matrix: &[f32], i: usize, j: usize| {
                        rounded(matrix[i * view.row_stride + j * view.col_stride])
                    };
                    let bound = 1e-5 * (inner as f64).sqrt().max(1.0);
                    for (place, (x, y)) in native.iter().zip(&plain).enumerate() {
                        let (i, j) = (place / cols, place % cols);
                        let sum: f64 = (0..inner)
                            .map(|k| at(a_view, &a, i, k) * at(b_view, &b, k, j))
                            .sum();
                        let want = sum + if add { f64::from(start[place]) } else { 0.0 };
                        for got in [*x, *y] {
                            let apart = (f64::from(got) - want).abs();
                            assert!(apart < bound, "{rows} {inner} {cols}: {got} {want}");
                        }
                    }
                }
            }
        }
    }
}
