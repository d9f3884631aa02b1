//! Loops of layer normalisation and of batch normalisation.

use super::dispatch;
use super::math::fma;
use super::reduce::{LANES, fold_lanes, lane_sum};
use std::mem::MaybeUninit;

#[inline(always)]
fn layer_norm_body<const FMA: bool>(
    xs: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    ys: &mut [MaybeUninit<f32>],
    stats: &mut [f32],
) {
    let n = weight.len();
    let rows = xs
        .chunks_exact(n)
        .zip(ys.chunks_exact_mut(n))
        .zip(stats.chunks_exact_mut(2));
    for ((x, y), stats) in rows {
        let mean = lane_sum(x, |x| x) / n as f32;
        let var = lane_sum(x, |x| (x - mean) * (x - mean)) / n as f32;
        let inv_std = 1.0 / (var + eps).sqrt();
        stats.copy_from_slice(&[mean, inv_std]);
        for (((x, y), w), b) in x.iter().zip(y).zip(weight).zip(bias) {
            y.write(fma::<FMA>((x - mean) * inv_std, *w, *b));
        }
    }
}
dispatch! {
    /// Normalises rows; writes all of `ys` and, per row, mean and 1/std to `stats`.
    layer_norm => layer_norm_body(
        xs: &[f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
        ys: &mut [MaybeUninit<f32>],
        stats: &mut [f32],
    )
}

/// Adds one row's share to the gradients of weight and bias; the means over the row of the gradient
/// of its normalised values, and of that times those values.
#[inline(always)]
fn add_row<const FMA: bool>(
    (x, g): (&[f32], &[f32]),
    (mean, inv_std): (f32, f32),
    weight: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) -> (f32, f32) {
    let n = weight.len();
    let whole = n / LANES * LANES;
    let mut lanes = [0f32; LANES];
    let mut lanes_hat = [0f32; LANES];
    for start in (0..whole).step_by(LANES) {
        let (x, g) = (&x[start..start + LANES], &g[start..start + LANES]);
        let w = &weight[start..start + LANES];
        let dw = &mut d_weight[start..start + LANES];
        let db = &mut d_bias[start..start + LANES];
        for j in 0..LANES {
            let hat = (x[j] - mean) * inv_std;
            let gw = g[j] * w[j];
            dw[j] = fma::<FMA>(g[j], hat, dw[j]);
            db[j] += g[j];
            lanes[j] += gw;
            lanes_hat[j] = fma::<FMA>(gw, hat, lanes_hat[j]);
        }
    }
    let (mut sum, mut sum_hat) = (fold_lanes(lanes), fold_lanes(lanes_hat));
    for j in whole..n {
        let hat = (x[j] - mean) * inv_std;
        let gw = g[j] * weight[j];
        d_weight[j] = fma::<FMA>(g[j], hat, d_weight[j]);
        d_bias[j] += g[j];
        sum += gw;
        sum_hat = fma::<FMA>(gw, hat, sum_hat);
    }
    (sum / n as f32, sum_hat / n as f32)
}

#[inline(always)]
fn layer_norm_grad_body<const FMA: bool>(
    xs: &[f32],
    stats: &[f32],
    weight: &[f32],
    grad: &[f32],
    dx: &mut [MaybeUninit<f32>],
    sums: &mut [f32],
) {
    let n = weight.len();
    let (d_weight, d_bias) = sums.split_at_mut(n);
    let rows = xs
        .chunks_exact(n)
        .zip(grad.chunks_exact(n))
        .zip(dx.chunks_exact_mut(n));
    for (((x, g), dx), stats) in rows.zip(stats.chunks_exact(2)) {
        let (mean, inv_std) = (stats[0], stats[1]);
        let (sum, sum_hat) = add_row::<FMA>((x, g), (mean, inv_std), weight, d_weight, d_bias);
        for (((x, g), w), d) in x.iter().zip(g).zip(weight).zip(dx) {
            let hat = (x - mean) * inv_std;
            d.write(inv_std * (g * w - sum - hat * sum_hat));
        }
    }
}
dispatch! {
    /// Gradient of [`layer_norm`]: writes all of `dx`, adds to `sums` = `[d_weight | d_bias]`.
    layer_norm_grad => layer_norm_grad_body(
        xs: &[f32],
        stats: &[f32],
        weight: &[f32],
        grad: &[f32],
        dx: &mut [MaybeUninit<f32>],
        sums: &mut [f32],
    )
}

#[inline(always)]
fn layer_norm_grad_replace_body<const FMA: bool>(
    xs: &mut [f32],
    stats: &[f32],
    weight: &[f32],
    grad: &[f32],
    residual: &[f32],
    sums: &mut [f32],
) {
    let n = weight.len();
    let (d_weight, d_bias) = sums.split_at_mut(n);
    let rows = xs
        .chunks_exact_mut(n)
        .zip(grad.chunks_exact(n))
        .zip(residual.chunks_exact(n));
    for (((x, g), residual), stats) in rows.zip(stats.chunks_exact(2)) {
        let (mean, inv_std) = (stats[0], stats[1]);
        let (sum, sum_hat) = add_row::<FMA>((x, g), (mean, inv_std), weight, d_weight, d_bias);
        for (((x, g), w), r) in x.iter_mut().zip(g).zip(weight).zip(residual) {
            let hat = (*x - mean) * inv_std;
            *x = r + inv_std * (g * w - sum - hat * sum_hat);
        }
    }
}
dispatch! {
    /// Replaces the input of [`layer_norm`] by its gradient plus `residual`; adds to `sums` =
    /// `[d_weight | d_bias]`.
    layer_norm_grad_replace => layer_norm_grad_replace_body(
        xs: &mut [f32],
        stats: &[f32],
        weight: &[f32],
        grad: &[f32],
        residual: &[f32],
        sums: &mut [f32],
    )
}

/// Lanes of sums in f64.
const WIDE: usize = 16;

/// Sum over `n` values of two quantities, in f64 lanes.
#[inline(always)]
fn wide_sums(n: usize, term: impl Fn(usize) -> (f64, f64)) -> (f64, f64) {
    let (mut first, mut second) = ([0f64; WIDE], [0f64; WIDE]);
    let whole = n / WIDE * WIDE;
    for start in (0..whole).step_by(WIDE) {
        for j in 0..WIDE {
            let (a, b) = term(start + j);
            first[j] += a;
            second[j] += b;
        }
    }
    let (mut a, mut b) = (0.0, 0.0);
    for j in 0..WIDE {
        a += first[j];
        b += second[j];
    }
    for i in whole..n {
        let (x, y) = term(i);
        a += x;
        b += y;
    }
    (a, b)
}

#[inline(always)]
fn plane_moments_body<const FMA: bool>(xs: &[f32], shift: f64) -> (f64, f64) {
    wide_sums(xs.len(), |i| {
        let x = f64::from(xs[i]) - shift;
        (x, x * x)
    })
}
dispatch! {
    /// Sums of `xs − shift` and of its square, in f64.
    plane_moments => plane_moments_body(xs: &[f32], shift: f64) -> (f64, f64)
}

#[inline(always)]
fn plane_grad_sums_body<const FMA: bool>(
    xs: &[f32],
    grad: &[f32],
    mean: f32,
    inv_std: f32,
) -> (f64, f64) {
    let n = xs.len();
    let grad = &grad[..n];
    wide_sums(n, |i| {
        let hat = f64::from((xs[i] - mean) * inv_std);
        (f64::from(grad[i]), f64::from(grad[i]) * hat)
    })
}
dispatch! {
    /// Sums of `grad` and of `grad · x̂`, in f64.
    plane_grad_sums => plane_grad_sums_body(
        xs: &[f32],
        grad: &[f32],
        mean: f32,
        inv_std: f32,
    ) -> (f64, f64)
}

#[inline(always)]
fn plane_affine_body<const FMA: bool>(
    xs: &[f32],
    mean: f32,
    scale: f32,
    bias: f32,
    ys: &mut [MaybeUninit<f32>],
) {
    for (x, y) in xs.iter().zip(ys) {
        y.write(fma::<FMA>(x - mean, scale, bias));
    }
}
dispatch! {
    /// `ys = (xs − mean) · scale + bias`; writes all of `ys`.
    plane_affine => plane_affine_body(
        xs: &[f32],
        mean: f32,
        scale: f32,
        bias: f32,
        ys: &mut [MaybeUninit<f32>],
    )
}

#[inline(always)]
fn plane_grad_body<const FMA: bool>(
    xs: &[f32],
    grad: &[f32],
    mean: f32,
    factors: [f32; 3],
    dx: &mut [MaybeUninit<f32>],
) {
    let [of_grad, of_centered, constant] = factors;
    for ((x, g), d) in xs.iter().zip(grad).zip(dx) {
        d.write(fma::<FMA>(
            *g,
            of_grad,
            fma::<FMA>(x - mean, of_centered, constant),
        ));
    }
}
dispatch! {
    /// `dx = grad·f0 + (xs − mean)·f1 + f2`; writes all of `dx`.
    plane_grad => plane_grad_body(
        xs: &[f32],
        grad: &[f32],
        mean: f32,
        factors: [f32; 3],
        dx: &mut [MaybeUninit<f32>],
    )
}
