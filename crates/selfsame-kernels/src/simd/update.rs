//! Loops of the optimizers and of the moving average: plain operations in PyTorch's order.
//!
//! Nothing is fused here, so all levels give the same bits.

use super::dispatch;

/// The scalars of one AdamW step, rounded from f64 as PyTorch does.
#[derive(Clone, Copy)]
pub(crate) struct AdamWScalars {
    pub(crate) grad_scale: f32,
    pub(crate) decay: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) minus_step_size: f32,
    pub(crate) bias2_sqrt: f32,
    pub(crate) eps: f32,
}

#[inline(always)]
fn adamw_body<const FMA: bool>(
    param: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    s: AdamWScalars,
) {
    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
        let g = g * s.grad_scale;
        *m += s.one_minus_beta1 * (g - *m);
        *v = *v * s.beta2 + s.one_minus_beta2 * g * g;
        let denom = v.sqrt() / s.bias2_sqrt + s.eps;
        *p = *p * s.decay + s.minus_step_size * *m / denom;
    }
}
dispatch! {
    /// One AdamW step.
    adamw => adamw_body(
        param: &mut [f32],
        grad: &[f32],
        exp_avg: &mut [f32],
        exp_avg_sq: &mut [f32],
        s: AdamWScalars,
    )
}

/// The scalars of one step with a momentum buffer.
#[derive(Clone, Copy)]
pub(crate) struct MomentumScalars {
    pub(crate) grad_scale: f32,
    pub(crate) weight_decay: f32,
    pub(crate) trust: f32,
    pub(crate) momentum: f32,
    pub(crate) lr: f32,
}

#[inline(always)]
fn momentum_body<const FMA: bool>(
    param: &mut [f32],
    grad: &[f32],
    buffer: &mut [f32],
    s: MomentumScalars,
) {
    for ((p, g), m) in param.iter_mut().zip(grad).zip(buffer) {
        let d = (g * s.grad_scale + s.weight_decay * *p) * s.trust;
        *m = *m * s.momentum + d;
        *p -= s.lr * *m;
    }
}
dispatch! {
    /// `buffer = momentum·buffer + trust·(grad + decay·param)`, `param −= lr·buffer`.
    momentum => momentum_body(
        param: &mut [f32],
        grad: &[f32],
        buffer: &mut [f32],
        s: MomentumScalars,
    )
}

#[inline(always)]
fn moving_average_body<const FMA: bool>(average: &mut [f32], values: &[f32], keep: f32, take: f32) {
    for (a, x) in average.iter_mut().zip(values) {
        *a = *a * keep + take * x;
    }
}
dispatch! {
    /// `average = keep·average + take·values`.
    moving_average => moving_average_body(
        average: &mut [f32],
        values: &[f32],
        keep: f32,
        take: f32,
    )
}
