//! Sums: over columns, over all elements, and of rows.

use super::dispatch;
use super::math::fma;

/// Sums in this many lanes, whatever the instruction set, so that the order is always the same.
pub(super) const LANES: usize = 32;

/// Sum of a term of each element: lane by lane, the tail last.
#[inline(always)]
pub(super) fn lane_sum(xs: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, tail) = xs.as_chunks::<LANES>();
    for chunk in whole {
        for j in 0..LANES {
            lanes[j] += term(chunk[j]);
        }
    }
    let mut rest = 0f32;
    for x in tail {
        rest += term(*x);
    }
    fold_lanes(lanes) + rest
}

/// Sum of products, in the order of [`lane_sum`].
#[inline(always)]
pub(super) fn lane_dot(xs: &[f32], ys: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, tail) = xs.as_chunks::<LANES>();
    let (whole_y, tail_y) = ys.as_chunks::<LANES>();
    for (xs, ys) in whole.iter().zip(whole_y) {
        for j in 0..LANES {
            lanes[j] += xs[j] * ys[j];
        }
    }
    let mut rest = 0f32;
    for (x, y) in tail.iter().zip(tail_y) {
        rest += x * y;
    }
    fold_lanes(lanes) + rest
}

/// Sum of the lanes, halves onto halves.
#[inline(always)]
pub(super) fn fold_lanes(lanes: [f32; LANES]) -> f32 {
    // Without a look at what follows the compiler sums in whole vectors, otherwise by twos.
    let mut lanes = std::hint::black_box(lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum_columns_body<const FMA: bool>(rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (x, sum) in row.iter().zip(sums.iter_mut()) {
            *sum += x;
        }
    }
}
dispatch! {
    /// Adds the column sums of `rows` to `sums`.
    sum_columns => sum_columns_body(rows: &[f32], sums: &mut [f32])
}

#[inline(always)]
fn sum_of_squares_body<const FMA: bool>(xs: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (whole, tail) = xs.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = f64::from(*x);
            *lane += x * x;
        }
    }
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    for x in tail {
        sum += f64::from(*x) * f64::from(*x);
    }
    sum
}
dispatch! {
    /// Sum of squares in f64; the same bits at every level.
    sum_of_squares => sum_of_squares_body(xs: &[f32]) -> f64
}

#[inline(always)]
fn decayed_square_body<const FMA: bool>(
    grad: &[f32],
    param: &[f32],
    grad_scale: f32,
    weight_decay: f32,
) -> f64 {
    let mut lanes = [0f64; LANES];
    let (grads, grad_tail) = grad.as_chunks::<LANES>();
    let (params, param_tail) = param.as_chunks::<LANES>();
    for (grads, params) in grads.iter().zip(params) {
        for ((lane, g), p) in lanes.iter_mut().zip(grads).zip(params) {
            let d = f64::from(g * grad_scale + weight_decay * p);
            *lane += d * d;
        }
    }
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    for (g, p) in grad_tail.iter().zip(param_tail) {
        let d = f64::from(g * grad_scale + weight_decay * p);
        sum += d * d;
    }
    sum
}
dispatch! {
    /// Sum of squares of `grad_scale·grad + weight_decay·param`; the same bits at every level.
    decayed_sum_of_squares => decayed_square_body(
        grad: &[f32],
        param: &[f32],
        grad_scale: f32,
        weight_decay: f32,
    ) -> f64
}

#[inline(always)]
fn normalize_rows_body<const FMA: bool>(
    xs: &[f32],
    n: usize,
    eps: f32,
    ys: &mut [std::mem::MaybeUninit<f32>],
) {
    for (x, y) in xs.chunks_exact(n).zip(ys.chunks_exact_mut(n)) {
        let norm = lane_dot(x, x).sqrt();
        let norm = if norm < eps { eps } else { norm };
        for (x, y) in x.iter().zip(y) {
            y.write(x / norm);
        }
    }
}
dispatch! {
    /// Rows of `n` divided by their norm, at least `eps`; writes all of `ys`.
    normalize_rows => normalize_rows_body(
        xs: &[f32],
        n: usize,
        eps: f32,
        ys: &mut [std::mem::MaybeUninit<f32>],
    )
}

#[inline(always)]
fn normalize_rows_grad_body<const FMA: bool>(
    xs: &[f32],
    grad: &[f32],
    n: usize,
    eps: f32,
    dx: &mut [std::mem::MaybeUninit<f32>],
) {
    for ((x, g), d) in xs
        .chunks_exact(n)
        .zip(grad.chunks_exact(n))
        .zip(dx.chunks_exact_mut(n))
    {
        let norm = lane_dot(x, x).sqrt();
        if norm < eps {
            for (g, d) in g.iter().zip(d) {
                d.write(g / eps);
            }
            continue;
        }
        // dx = (g − y (y·g)) / |x| with y = x / |x|
        let inverse = 1.0 / norm;
        let along = -lane_dot(x, g) * inverse * inverse;
        for ((x, g), d) in x.iter().zip(g).zip(d) {
            d.write(fma::<FMA>(*x, along, *g) * inverse);
        }
    }
}
dispatch! {
    /// Gradient of [`normalize_rows`]; writes all of `dx`.
    normalize_rows_grad => normalize_rows_grad_body(
        xs: &[f32],
        grad: &[f32],
        n: usize,
        eps: f32,
        dx: &mut [std::mem::MaybeUninit<f32>],
    )
}
