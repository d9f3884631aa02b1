//! The updates of [`crate::multi_tensor`] written with candle's own operations.

use crate::multi_tensor::{AdamW, Lars, Sgd};
use candle_core::{DType, Result, Tensor, bail};

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

/// See [`crate::multi_tensor::adamw_step`].
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
    let (bias1, bias2) = options.bias_corrections();
    let denom = ((v.sqrt()? / bias2.sqrt())? + options.eps)?;
    let decayed = (param.detach() * (1.0 - options.lr * options.weight_decay))?;
    let updated = (decayed - ((&m * (options.lr / bias1))? / denom)?)?;
    assign(exp_avg, &m)?;
    assign(exp_avg_sq, &v)?;
    assign(param, &updated)
}

/// See [`crate::multi_tensor::sgd_step`].
pub fn sgd_step(param: &Tensor, grad: &Tensor, buffer: &Tensor, options: Sgd) -> Result<()> {
    let p = param.detach();
    let d = (scaled(grad, options.grad_scale)? + (&p * options.weight_decay)?)?;
    momentum_step(param, buffer, &d, options.momentum, options.lr)
}

/// See [`crate::multi_tensor::lars_step`].
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
    momentum_step(param, mu, &d, options.momentum, options.lr)
}

fn momentum_step(
    param: &Tensor,
    buffer: &Tensor,
    update: &Tensor,
    momentum: f64,
    lr: f64,
) -> Result<()> {
    let m = ((buffer.detach() * momentum)? + update)?;
    let updated = (param.detach() - (&m * lr)?)?;
    assign(buffer, &m)?;
    assign(param, &updated)
}

/// See [`crate::multi_tensor::ema`].
pub fn ema(teacher: &Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    let updated = ((teacher.detach() * momentum)? + (student.detach() * (1.0 - momentum))?)?;
    assign(teacher, &updated)
}

/// Adds 1 to every element.
pub(crate) fn count_up(counts: &Tensor) -> Result<()> {
    assign(counts, &counts.detach().affine(1.0, 1.0)?)
}

/// Sum of squares in f32 or f64, by the device's own order.
pub fn sum_of_squares(xs: &Tensor) -> Result<f64> {
    let dtype = if xs.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    xs.detach()
        .to_dtype(dtype)?
        .sqr()?
        .sum_all()?
        .to_dtype(DType::F64)?
        .to_scalar::<f64>()
}
