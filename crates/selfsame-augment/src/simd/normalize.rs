//! Bytes to normalised `f32` without a table.

use crate::simd::by_level;

/// A number to divide by: its reciprocal in two parts, which together have twice the precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Divisor {
    high: f32,
    low: f32,
}

impl Divisor {
    pub(crate) fn new(value: f32) -> Self {
        let exact = 1.0 / f64::from(value);
        let high = exact as f32;
        Self {
            high,
            low: (exact - f64::from(high)) as f32,
        }
    }

    /// The quotient, rounded as a division unless it lies all but halfway between two numbers;
    /// [`crate::Normalize`] compares before it relies on that.
    #[inline(always)]
    pub(super) fn divide(self, x: f32) -> f32 {
        x.mul_add(self.high, x * self.low)
    }
}

/// (v / 255 − mean) / std of a byte; the divisors are 255 and std.
#[inline(always)]
pub(crate) fn normalized(byte: u8, mean: f32, [full_scale, std]: [Divisor; 2]) -> f32 {
    std.divide(full_scale.divide(f32::from(byte)) - mean)
}

by_level! {
    /// Normalises bytes; for levels with fused multiply-add, without which it is slow.
    fn normalize(out: &mut [f32], bytes: &[u8], mean: f32, std: f32) = normalize_body;
}

#[inline(always)]
fn normalize_body(out: &mut [f32], bytes: &[u8], mean: f32, std: f32) {
    let divisors = [Divisor::new(255.0), Divisor::new(std)];
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = normalized(byte, mean, divisors);
    }
}
