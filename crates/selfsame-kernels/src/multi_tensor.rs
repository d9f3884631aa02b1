//! Optimizer and teacher updates, in place on the storage that a `Var` holds.
//!
//! "In place" means that everybody who shares the storage sees the new values, in particular
//! teachers built on [`candle_core::Var::as_detached_tensor`].
//! A tensor must not be handed in twice to one call (param and gradient, say): it would wait for
//! its own lock.

use candle_core::{Result, Tensor, bail};

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

/// Writes `values` into the storage of `dst`.
fn assign(dst: &Tensor, values: &Tensor) -> Result<()> {
    if !dst.is_contiguous() {
        bail!(
            "an in-place update needs a contiguous tensor, got {:?}",
            dst.layout()
        );
    }
    let values = values
        .detach()
        .to_dtype(dst.dtype())?
        .contiguous()?
        .flatten_all()?;
    dst.detach().flatten_all()?.slice_set(&values, 0, 0)
}

fn scaled(grad: &Tensor, grad_scale: f64) -> Result<Tensor> {
    let grad = grad.detach();
    if grad_scale == 1.0 {
        Ok(grad)
    } else {
        grad * grad_scale
    }
}

/// One AdamW update of `param`, `exp_avg` and `exp_avg_sq`, in PyTorch's order of operations.
///
/// # Shape
/// All four tensors alike.
/// # Errors
/// If shapes differ or a written tensor is not contiguous.
pub fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    options: AdamW,
) -> Result<()> {
    let grad = scaled(grad, options.grad_scale)?;
    let m = exp_avg.detach();
    let m = (&m + ((&grad - &m)? * (1.0 - options.beta1))?)?;
    let v = ((exp_avg_sq.detach() * options.beta2)? + (grad.sqr()? * (1.0 - options.beta2))?)?;
    let bias1 = 1.0 - options.beta1.powi(options.step as i32);
    let bias2 = 1.0 - options.beta2.powi(options.step as i32);
    let denom = ((v.sqrt()? / bias2.sqrt())? + options.eps)?;
    let decayed = (param.detach() * (1.0 - options.lr * options.weight_decay))?;
    let updated = (decayed - ((&m * (options.lr / bias1))? / denom)?)?;
    assign(exp_avg, &m)?;
    assign(exp_avg_sq, &v)?;
    assign(param, &updated)
}

/// One SGD update: `momentum_buffer ← momentum·buffer + grad + wd·param`, `param −= lr·buffer`.
///
/// A buffer of zeros before the first step gives PyTorch's first step.
/// # Errors
/// If shapes differ or a written tensor is not contiguous.
pub fn sgd_step(param: &Tensor, grad: &Tensor, buffer: &Tensor, options: Sgd) -> Result<()> {
    let p = param.detach();
    let d = (scaled(grad, options.grad_scale)? + (&p * options.weight_decay)?)?;
    let m = ((buffer.detach() * options.momentum)? + d)?;
    let updated = (p - (&m * options.lr)?)?;
    assign(buffer, &m)?;
    assign(param, &updated)
}

/// One LARS update as in the official code: decay and adaptation only with more than one dimension.
///
/// `mu ← momentum·mu + q·(grad + wd·param)`, `param −= lr·mu`, with
/// `q = eta·|param| / |grad + wd·param|`, or 1 if either norm is zero.
/// # Errors
/// If shapes differ or a written tensor is not contiguous.
pub fn lars_step(param: &Tensor, grad: &Tensor, mu: &Tensor, options: Lars) -> Result<()> {
    let p = param.detach();
    let mut d = scaled(grad, options.grad_scale)?;
    if p.rank() > 1 {
        d = (d + (&p * options.weight_decay)?)?;
        let param_norm = sum_of_squares(&p)?.sqrt();
        let update_norm = sum_of_squares(&d)?.sqrt();
        if param_norm > 0.0 && update_norm > 0.0 {
            d = (d * (options.eta * param_norm / update_norm))?;
        }
    }
    let m = ((mu.detach() * options.momentum)? + d)?;
    let updated = (p - (&m * options.lr)?)?;
    assign(mu, &m)?;
    assign(param, &updated)
}

/// Moves the teacher towards the student: `teacher ← momentum·teacher + (1 − momentum)·student`.
///
/// # Errors
/// If shapes differ or the teacher is not contiguous.
pub fn ema(teacher: &Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    let updated = ((teacher.detach() * momentum)? + (student.detach() * (1.0 - momentum))?)?;
    assign(teacher, &updated)
}

/// Sum of all squared elements, in f64 and in a fixed order on the CPU.
///
/// # Errors
/// [`candle_core::Error`] if the tensor is not of a floating-point type.
pub fn sum_of_squares(xs: &Tensor) -> Result<f64> {
    crate::composed::sum_of_squares(xs)
}
