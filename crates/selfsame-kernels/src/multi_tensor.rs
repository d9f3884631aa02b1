//! Updates of weights, teachers and running statistics, in place on the storage that a `Var` holds.
//!
//! "In place" means that everybody who shares the storage sees the new values, in particular
//! teachers built on [`candle_core::Var::as_detached_tensor`].
//! Two arguments that share a storage are refused: the call would wait for its own lock.

mod running_stats;
mod step;

pub use running_stats::{RunningStats, move_running_stats};
#[cfg(feature = "cuda")]
pub(crate) use step::Constants;
pub use step::{Clip, StepWeight, Update, clip_factor, whole_step};

use crate::composed;
use crate::host::{CHUNK, for_each_chunk, fused, storage_address, with_slice, with_slice_mut};
use crate::simd::update::{AdamWScalars, MomentumScalars};
use crate::simd::{Level, reduce, update};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// What [`adamw_step`] needs to know about this step of this parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment, 0.9 in PyTorch.
    pub beta1: f64,
    /// Decay of the second moment, 0.999 in PyTorch.
    pub beta2: f64,
    /// Added to the root of the second moment, 1e-8 in PyTorch.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update of this parameter, the first being 1.
    pub step: u64,
    /// Factor on the gradient, which is how clipping is applied; 1 leaves it as it is.
    pub grad_scale: f64,
}

impl Default for AdamW {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
            step: 1,
            grad_scale: 1.0,
        }
    }
}

/// What [`sgd_step`] needs to know: PyTorch's SGD with momentum, no dampening, no Nesterov.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// Factor on the momentum buffer, 0.9 here.
    pub momentum: f64,
    /// L2 decay, added to the gradient.
    pub weight_decay: f64,
    /// Factor on the gradient; 1 leaves it as it is.
    pub grad_scale: f64,
}

/// What [`lars_step`] needs to know (official `utils.py`, class `LARS`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lars {
    /// Learning rate of this step.
    pub lr: f64,
    /// Factor on the momentum buffer, 0.9 there.
    pub momentum: f64,
    /// L2 decay, added to the gradient of parameters with more than one dimension.
    pub weight_decay: f64,
    /// Trust coefficient, 0.001 there.
    pub eta: f64,
    /// Factor on the gradient; 1 leaves it as it is.
    pub grad_scale: f64,
}

/// One AdamW update of `param`, `exp_avg` and `exp_avg_sq`.
///
/// The order of operations is that of PyTorch's single-tensor implementation
/// (`torch/optim/adamw.py`): decay, first moment by `lerp`, second moment, both bias corrections as
/// f64 scalars.
///
/// # Shape
/// All four tensors alike.
/// # Errors
/// If shapes differ, two tensors share a storage, a written one is not contiguous, or
/// `options.step` is 0: the first step is 1.
pub fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    options: AdamW,
) -> Result<()> {
    check("adamw_step", &[param, grad, exp_avg, exp_avg_sq])?;
    if options.step == 0 {
        bail!("adamw_step: step 0; the first step is 1");
    }
    if !fused(&[param, grad, exp_avg, exp_avg_sq]) {
        return composed::update::adamw_step(param, grad, exp_avg, exp_avg_sq, options);
    }
    let (bias1, bias2) = options.bias_corrections();
    let scalars = AdamWScalars {
        grad_scale: options.grad_scale as f32,
        decay: (1.0 - options.lr * options.weight_decay) as f32,
        one_minus_beta1: (1.0 - options.beta1) as f32,
        beta2: options.beta2 as f32,
        one_minus_beta2: (1.0 - options.beta2) as f32,
        minus_step_size: (-(options.lr / bias1)) as f32,
        bias2_sqrt: bias2.sqrt() as f32,
        eps: options.eps as f32,
    };
    let level = Level::best();
    with_slice(&grad.contiguous()?, |grad| {
        with_slice_mut(param, |param| {
            with_slice_mut(exp_avg, |m| {
                with_slice_mut(exp_avg_sq, |v| {
                    let state = m.chunks_mut(CHUNK).zip(v.chunks_mut(CHUNK));
                    let mut chunks: Vec<_> = param
                        .chunks_mut(CHUNK)
                        .zip(grad.chunks(CHUNK))
                        .zip(state)
                        .collect();
                    for_each_chunk(&mut chunks, 1, |_, chunk| {
                        let ((param, grad), (m, v)) = &mut chunk[0];
                        update::adamw(level, param, grad, m, v, scalars);
                    });
                    Ok(())
                })
            })
        })
    })
}

/// One SGD update: `momentum_buffer ← momentum·buffer + grad + wd·param`, `param −= lr·buffer`.
///
/// A buffer of zeros before the first step gives PyTorch's first step.
///
/// # Errors
/// As [`adamw_step`].
pub fn sgd_step(
    param: &Tensor,
    grad: &Tensor,
    momentum_buffer: &Tensor,
    options: Sgd,
) -> Result<()> {
    check("sgd_step", &[param, grad, momentum_buffer])?;
    if !fused(&[param, grad, momentum_buffer]) {
        return composed::update::sgd_step(param, grad, momentum_buffer, options);
    }
    let scalars = MomentumScalars {
        grad_scale: options.grad_scale as f32,
        weight_decay: options.weight_decay as f32,
        trust: 1.0,
        momentum: options.momentum as f32,
        lr: options.lr as f32,
    };
    momentum_step(param, grad, momentum_buffer, scalars)
}

/// One LARS update as in the official code: decay and adaptation only with more than one dimension.
///
/// `mu ← momentum·mu + q·(grad + wd·param)`, `param −= lr·mu`, with
/// `q = eta·|param| / |grad + wd·param|`, or 1 if either norm is zero.
///
/// # Errors
/// As [`adamw_step`].
pub fn lars_step(param: &Tensor, grad: &Tensor, mu: &Tensor, options: Lars) -> Result<()> {
    check("lars_step", &[param, grad, mu])?;
    if !fused(&[param, grad, mu]) {
        return composed::update::lars_step(param, grad, mu, options);
    }
    let adapts = param.rank() > 1;
    let mut scalars = MomentumScalars {
        grad_scale: options.grad_scale as f32,
        weight_decay: if adapts {
            options.weight_decay as f32
        } else {
            0.0
        },
        trust: 1.0,
        momentum: options.momentum as f32,
        lr: options.lr as f32,
    };
    if adapts {
        let param_norm = sum_of_squares(param)?.sqrt();
        let update_norm = with_slice(&param.contiguous()?, |param| {
            with_slice(&grad.contiguous()?, |grad| {
                let level = Level::best();
                let (scale, decay) = (scalars.grad_scale, scalars.weight_decay);
                Ok(chunk_sums(param.len(), |start, end| {
                    let (grad, param) = (&grad[start..end], &param[start..end]);
                    reduce::decayed_sum_of_squares(level, grad, param, scale, decay)
                }))
            })
        })?
        .sqrt();
        if param_norm > 0.0 && update_norm > 0.0 {
            scalars.trust = (options.eta * param_norm / update_norm) as f32;
        }
    }
    momentum_step(param, grad, mu, scalars)
}

fn momentum_step(
    param: &Tensor,
    grad: &Tensor,
    buffer: &Tensor,
    scalars: MomentumScalars,
) -> Result<()> {
    let level = Level::best();
    with_slice(&grad.contiguous()?, |grad| {
        with_slice_mut(param, |param| {
            with_slice_mut(buffer, |buffer| {
                let mut chunks: Vec<_> = param
                    .chunks_mut(CHUNK)
                    .zip(grad.chunks(CHUNK))
                    .zip(buffer.chunks_mut(CHUNK))
                    .collect();
                for_each_chunk(&mut chunks, 1, |_, chunk| {
                    let ((param, grad), buffer) = &mut chunk[0];
                    update::momentum(level, param, grad, buffer, scalars);
                });
                Ok(())
            })
        })
    })
}

/// Moves the teacher towards the student: `teacher ← momentum·teacher + (1 − momentum)·student`.
///
/// # Errors
/// As [`adamw_step`].
pub fn ema(teacher: &Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    check("ema", &[teacher, student])?;
    if !fused(&[teacher, student]) {
        return composed::update::ema(teacher, student, momentum);
    }
    let (level, keep, take) = (Level::best(), momentum as f32, (1.0 - momentum) as f32);
    with_slice(&student.contiguous()?, |student| {
        with_slice_mut(teacher, |teacher| {
            for_each_chunk(teacher, CHUNK, |i, teacher| {
                let student = &student[i * CHUNK..][..teacher.len()];
                update::moving_average(level, teacher, student, keep, take);
            });
            Ok(())
        })
    })
}

/// Sum of all squared elements, in f64 and in a fixed order on the CPU.
///
/// # Errors
/// [`candle_core::Error`] if the tensor is not of a floating-point type.
pub fn sum_of_squares(xs: &Tensor) -> Result<f64> {
    if !fused(&[xs]) {
        return composed::update::sum_of_squares(xs);
    }
    let level = Level::best();
    with_slice(&xs.contiguous()?, |xs| {
        Ok(chunk_sums(xs.len(), |start, end| {
            reduce::sum_of_squares(level, &xs[start..end])
        }))
    })
}

/// Euclidean norm of gradients whose squares add up to `sum`: infinite if that is more than an f32
/// holds.
///
/// The second moment of such a gradient would be infinite too, and AdamW would never again move the
/// weight that it belongs to.
pub fn norm_of_squares(sum: f64) -> f64 {
    let rounded = sum as f32;
    if rounded.is_finite() {
        sum.sqrt()
    } else {
        f64::from(rounded)
    }
}

/// Sum of `f` over chunks, which are computed in parallel and added in order.
fn chunk_sums(len: usize, f: impl Fn(usize, usize) -> f64 + Sync + Send) -> f64 {
    if len <= CHUNK {
        return f(0, len);
    }
    let sums: Vec<f64> = (0..len.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| f(i * CHUNK, len.min((i + 1) * CHUNK)))
        .collect();
    sums.iter().sum()
}

/// Same shapes, and no storage twice: its lock would be waited for by its own holder.
fn check(op: &str, tensors: &[&Tensor]) -> Result<()> {
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.shape() != tensors[0].shape() {
            bail!(
                "{op}: shapes {:?} and {:?} differ",
                tensors[0].dims(),
                tensor.dims()
            );
        }
        if tensors[..i]
            .iter()
            .any(|other| storage_address(other) == storage_address(tensor))
        {
            bail!("{op}: two of the tensors share a storage");
        }
    }
    Ok(())
}

impl AdamW {
    /// `1 − beta^step` for both moments.
    pub(crate) fn bias_corrections(&self) -> (f64, f64) {
        let step = self.step as f64;
        (1.0 - self.beta1.powf(step), 1.0 - self.beta2.powf(step))
    }
}
