//! Loops of GELU and of the bias around it.

use super::dispatch;
use super::math::gelu_and_slope;
use std::mem::MaybeUninit;

#[inline(always)]
fn gelu_body<const FMA: bool>(xs: &[f32], ys: &mut [MaybeUninit<f32>]) {
    for (x, y) in xs.iter().zip(ys) {
        y.write(gelu_and_slope::<FMA>(*x).0);
    }
}
dispatch! {
    /// `ys = gelu(xs)`; writes all of `ys`.
    gelu => gelu_body(xs: &[f32], ys: &mut [MaybeUninit<f32>])
}

#[inline(always)]
fn gelu_grad_body<const FMA: bool>(xs: &[f32], grad: &[f32], dx: &mut [MaybeUninit<f32>]) {
    for ((x, g), d) in xs.iter().zip(grad).zip(dx) {
        d.write(g * gelu_and_slope::<FMA>(*x).1);
    }
}
dispatch! {
    /// `dx = grad · gelu'(xs)`; writes all of `dx`.
    gelu_grad => gelu_grad_body(xs: &[f32], grad: &[f32], dx: &mut [MaybeUninit<f32>])
}

#[inline(always)]
fn bias_gelu_body<const FMA: bool>(hs: &mut [f32], bias: &[f32]) {
    for row in hs.chunks_exact_mut(bias.len()) {
        for (h, b) in row.iter_mut().zip(bias) {
            *h = gelu_and_slope::<FMA>(*h + b).0;
        }
    }
}
dispatch! {
    /// Rows `hs = gelu(hs + bias)` in place.
    bias_gelu => bias_gelu_body(hs: &mut [f32], bias: &[f32])
}

#[inline(always)]
fn bias_gelu_keep_body<const FMA: bool>(hs: &mut [f32], bias: &[f32], ys: &mut [MaybeUninit<f32>]) {
    let n = bias.len();
    for (row, out) in hs.chunks_exact_mut(n).zip(ys.chunks_exact_mut(n)) {
        for ((h, b), y) in row.iter_mut().zip(bias).zip(out) {
            let (value, slope) = gelu_and_slope::<FMA>(*h + b);
            y.write(value);
            *h = slope;
        }
    }
}
dispatch! {
    /// Rows `ys = gelu(hs + bias)`, while `hs` becomes the slope there; writes all of `ys`.
    bias_gelu_keep_slope => bias_gelu_keep_body(
        hs: &mut [f32],
        bias: &[f32],
        ys: &mut [MaybeUninit<f32>],
    )
}

#[inline(always)]
fn multiply_and_sum_body<const FMA: bool>(slopes: &mut [f32], grad: &[f32], sums: &mut [f32]) {
    let n = sums.len();
    for (row, grad) in slopes.chunks_exact_mut(n).zip(grad.chunks_exact(n)) {
        for ((s, g), sum) in row.iter_mut().zip(grad).zip(sums.iter_mut()) {
            *s *= g;
            *sum += *s;
        }
    }
}
dispatch! {
    /// Rows `slopes *= grad` in place; their column sums are added to `sums`.
    multiply_and_sum_columns => multiply_and_sum_body(
        slopes: &mut [f32],
        grad: &[f32],
        sums: &mut [f32],
    )
}
