//! Loops of softmax and of the cross-entropy on it.

use super::dispatch;
use super::math::{exp_nonpositive, fma};

const LANES: usize = 16;
/// Elements summed in f32 before the sum goes on in f64.
const BLOCK: usize = 1024;

/// Largest element; NaN elements do not count.
#[inline(always)]
fn row_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, tail) = row.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for x in lanes.iter().chain(tail) {
        max = if *x > max { *x } else { max };
    }
    max
}

/// Replaces a row by `exp((x − max) · scale)` and returns their sum.
#[inline(always)]
fn exp_row<const FMA: bool>(row: &mut [f32], max: f32, scale: f32) -> f64 {
    let mut sum = 0f64;
    for block in row.chunks_mut(BLOCK) {
        let mut lanes = [0f32; LANES];
        let (whole, tail) = block.as_chunks_mut::<LANES>();
        for chunk in whole {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let e = exp_nonpositive::<FMA>((*x - max) * scale);
                *x = e;
                *lane += e;
            }
        }
        // The tail takes the same vector path: one scalar exp costs as much as sixteen.
        let mut rest = [f32::NEG_INFINITY; LANES];
        rest[..tail.len()].copy_from_slice(tail);
        for (lane, x) in lanes.iter_mut().zip(&mut rest) {
            *x = exp_nonpositive::<FMA>((*x - max) * scale);
            *lane += *x;
        }
        tail.copy_from_slice(&rest[..tail.len()]);
        let mut total = 0f32;
        for lane in lanes {
            total += lane;
        }
        sum += f64::from(total);
    }
    sum
}

#[inline(always)]
fn softmax_body<const FMA: bool>(rows: &mut [f32], n: usize, scale: f32) {
    for row in rows.chunks_exact_mut(n) {
        let max = row_max(row);
        let inverse = (1.0 / exp_row::<FMA>(row, max, scale)) as f32;
        for x in row {
            *x *= inverse;
        }
    }
}
dispatch! {
    /// Rows of `n` replaced by the softmax of `row · scale`, `scale > 0`.
    softmax_rows => softmax_body(rows: &mut [f32], n: usize, scale: f32)
}

#[inline(always)]
fn softmax_grad_body<const FMA: bool>(probs: &[f32], grad: &mut [f32], n: usize, scale: f32) {
    for (p, g) in probs.chunks_exact(n).zip(grad.chunks_exact_mut(n)) {
        let mut lanes = [0f32; LANES];
        let (whole_p, tail_p) = p.as_chunks::<LANES>();
        let (whole_g, tail_g) = g.as_chunks::<LANES>();
        for (p, g) in whole_p.iter().zip(whole_g) {
            for ((lane, p), g) in lanes.iter_mut().zip(p).zip(g) {
                *lane = fma::<FMA>(*p, *g, *lane);
            }
        }
        let mut dot = 0f32;
        for lane in lanes {
            dot += lane;
        }
        for (p, g) in tail_p.iter().zip(tail_g) {
            dot = fma::<FMA>(*p, *g, dot);
        }
        for (p, g) in p.iter().zip(g) {
            *g = p * (*g - dot) * scale;
        }
    }
}
dispatch! {
    /// Turns the gradient of softmax rows into that of their input, in place.
    softmax_rows_grad => softmax_grad_body(
        probs: &[f32],
        grad: &mut [f32],
        n: usize,
        scale: f32,
    )
}

#[inline(always)]
fn log_softmax_body<const FMA: bool>(rows: &mut [f32], n: usize, scratch: &mut [f32]) {
    for row in rows.chunks_exact_mut(n) {
        scratch.copy_from_slice(row);
        let max = row_max(row);
        let log_sum = exp_row::<FMA>(scratch, max, 1.0).ln() as f32;
        for x in row {
            *x = (*x - max) - log_sum;
        }
    }
}
dispatch! {
    /// Rows of `n` replaced by their log-softmax; `scratch` holds `n` values.
    log_softmax_rows => log_softmax_body(rows: &mut [f32], n: usize, scratch: &mut [f32])
}

#[inline(always)]
fn log_softmax_grad_body<const FMA: bool>(log_probs: &[f32], grad: &mut [f32], n: usize) {
    for (p, g) in log_probs.chunks_exact(n).zip(grad.chunks_exact_mut(n)) {
        let mut sum = 0f64;
        for block in g.chunks(BLOCK) {
            sum += f64::from(super::reduce::lane_sum(block, |x| x));
        }
        let sum = sum as f32;
        for (p, g) in p.iter().zip(g) {
            *g = fma::<FMA>(-exp_nonpositive::<FMA>(*p), sum, *g);
        }
    }
}
dispatch! {
    /// Turns the gradient of log-softmax rows into that of their input, in place.
    log_softmax_rows_grad => log_softmax_grad_body(
        log_probs: &[f32],
        grad: &mut [f32],
        n: usize,
    )
}

#[inline(always)]
fn cross_entropy_body<const FMA: bool>(
    row: &mut [f32],
    targets: [Option<&[f32]>; 2],
    inverse_temp: f32,
    factor: f32,
) -> f64 {
    let max = row_max(row);
    // Σ q·(max − x)/temp and Σ q: both sums of terms that are not negative.
    let (mut distance, mut mass) = (0f64, 0f64);
    for target in targets.into_iter().flatten() {
        for (xs, qs) in row.chunks(BLOCK).zip(target.chunks(BLOCK)) {
            let mut below = [0f32; LANES];
            let mut weight = [0f32; LANES];
            let (xs, x_tail) = xs.as_chunks::<LANES>();
            let (qs, q_tail) = qs.as_chunks::<LANES>();
            for (xs, qs) in xs.iter().zip(qs) {
                for j in 0..LANES {
                    below[j] = fma::<FMA>(qs[j], max - xs[j], below[j]);
                    weight[j] += qs[j];
                }
            }
            for (j, (x, q)) in x_tail.iter().zip(q_tail).enumerate() {
                below[j] = fma::<FMA>(*q, max - x, below[j]);
                weight[j] += q;
            }
            for j in 0..LANES {
                distance += f64::from(below[j]);
                mass += f64::from(weight[j]);
            }
        }
    }
    let sum = exp_row::<FMA>(row, max, inverse_temp);
    let of_probs = (mass / sum * f64::from(factor)) as f32;
    match targets {
        [Some(a), Some(b)] => {
            for ((x, a), b) in row.iter_mut().zip(a).zip(b) {
                *x = fma::<FMA>(*x, of_probs, -factor * (a + b));
            }
        }
        [Some(q), None] | [None, Some(q)] => {
            for (x, q) in row.iter_mut().zip(q) {
                *x = fma::<FMA>(*x, of_probs, -factor * q);
            }
        }
        [None, None] => row.fill(0.0),
    }
    distance * f64::from(inverse_temp) + mass * sum.ln()
}
dispatch! {
    /// Sum over `targets` of the cross-entropy with `softmax(row · inverse_temp)`; `row` becomes its
    /// gradient with respect to `row · inverse_temp`, times `factor`.
    cross_entropy_row => cross_entropy_body(
        row: &mut [f32],
        targets: [Option<&[f32]>; 2],
        inverse_temp: f32,
        factor: f32,
    ) -> f64
}
