//! Elementary functions on one f32, written so that a loop over them becomes vector code.

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` for `x ≤ 0`, relative error below 3e-7; 0 below −87, NaN stays NaN.
///
/// Reduction to `2^n · exp(f)` with |f| ≤ ln 2 / 2 and the degree-5 polynomial of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp_nonpositive<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n · ln 2 loses nothing.
    let f = fma::<FMA>(n, -0.693_359_4, clamped);
    let f = fma::<FMA>(n, 2.121_944_4e-4, f);
    let mut p = 1.987_569_1e-4_f32;
    p = fma::<FMA>(p, f, 1.398_2e-3);
    p = fma::<FMA>(p, f, 8.333_452e-3);
    p = fma::<FMA>(p, f, 4.166_579_6e-2);
    p = fma::<FMA>(p, f, 1.666_666_5e-1);
    p = fma::<FMA>(p, f, 5.0e-1);
    p = fma::<FMA>(p, f * f, f + 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { p * power }
}

/// `(gelu(x), gelu'(x))` in the exact (erf) form, absolute error below 5e-7 · max(1, |x|).
///
/// With z = |x|/√2, `erfc(z) = t · P(t) · exp(−z²)`, t = 1 / (1 + z/2). P interpolates
/// `exp(z²) · erfc(z) / t` at Chebyshev nodes (own fit, relative error 7e-8), so that the lower tail
/// keeps its relative precision.
#[inline(always)]
pub(crate) fn gelu_and_slope<const FMA: bool>(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FMA>(z, 0.5, 1.0);
    let mut p = -0.060_782_48_f32;
    p = fma::<FMA>(p, t, 0.292_559_56);
    p = fma::<FMA>(p, t, -0.502_851_7);
    p = fma::<FMA>(p, t, 0.294_839_26);
    p = fma::<FMA>(p, t, -0.037_310_12);
    p = fma::<FMA>(p, t, 0.206_805_13);
    p = fma::<FMA>(p, t, 0.242_171_35);
    p = fma::<FMA>(p, t, 0.282_488_16);
    p = fma::<FMA>(p, t, 0.282_080_84);
    let density = exp_nonpositive::<FMA>(-0.5 * x * x);
    let tail = 0.5 * p * t * density;
    let phi = if x > 0.0 { 1.0 - tail } else { tail };
    // 1/√(2π)
    (x * phi, fma::<FMA>(x * 0.398_942_3, density, phi))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::erf;

    #[test]
    fn exponential_is_close_to_the_exact_one() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            for got in [exp_nonpositive::<true>(x), exp_nonpositive::<false>(x)] {
                let relative = (f64::from(got) / exact - 1.0).abs();
                assert!(
                    relative < 3e-7,
                    "exp({x}) = {got}, relative error {relative}"
                );
            }
        }
        assert_eq!(exp_nonpositive::<true>(0.0), 1.0);
        assert_eq!(exp_nonpositive::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp_nonpositive::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_and_its_slope_are_close_to_the_exact_ones() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x);
            let phi = 0.5 * (1.0 + erf(exact * std::f64::consts::FRAC_1_SQRT_2));
            let density = (-0.5 * exact * exact).exp() / (2.0 * std::f64::consts::PI).sqrt();
            for (y, slope) in [gelu_and_slope::<true>(x), gelu_and_slope::<false>(x)] {
                let bound = 5e-7 * exact.abs().max(1.0);
                assert!(
                    (f64::from(y) - exact * phi).abs() < bound,
                    "gelu({x}) = {y}"
                );
                assert!(
                    (f64::from(slope) - phi - exact * density).abs() < bound,
                    "slope at {x}"
                );
            }
        }
    }

    #[test]
    fn gelu_handles_the_ends_of_the_line() {
        let (y, slope) = gelu_and_slope::<true>(0.0);
        assert!(y == 0.0 && (slope - 0.5).abs() < 1e-7, "{y}, {slope}");
        assert_eq!(gelu_and_slope::<true>(f32::MAX).0, f32::MAX);
        assert!(gelu_and_slope::<true>(f32::NAN).0.is_nan());
    }
}
