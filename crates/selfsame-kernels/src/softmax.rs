//! Softmax and its logarithm over the last dimension, with gradients.
//!
//! candle's own fused softmax cuts the gradient without an error.

use crate::composed;
use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, with_slice};
use crate::simd::{Level, softmax};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

/// Softmax over the last dimension, with a gradient.
///
/// # Errors
/// If `xs` has no dimension.
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && xs.rank() > 0 {
        return crate::cuda::ops::softmax(xs, false);
    }
    if !fused(&[xs]) || xs.rank() == 0 {
        return composed::softmax_last_dim(xs);
    }
    xs.contiguous()?.apply_op1(Softmax { log: false })
}

/// Logarithm of the softmax over the last dimension, with a gradient.
///
/// # Errors
/// If `xs` has no dimension.
pub fn log_softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && xs.rank() > 0 {
        return crate::cuda::ops::softmax(xs, true);
    }
    if !fused(&[xs]) || xs.rank() == 0 {
        return composed::log_softmax_last_dim(xs);
    }
    xs.contiguous()?.apply_op1(Softmax { log: true })
}

/// Softmax of `(logits − center) / temp` over the last dimension, without a gradient.
///
/// # Shape
/// `logits`: `[N, K]`, `center`: `[1, K]`; the result is `[N, K]`, f32.
/// # Errors
/// If the shapes do not fit, or `temp` is not above 0.
pub fn centered_softmax(logits: &Tensor, center: &Tensor, temp: f64) -> Result<Tensor> {
    if temp.is_nan() || temp <= 0.0 {
        bail!("centered_softmax: the temperature {temp} is not positive");
    }
    let logits = logits.detach().to_dtype(DType::F32)?;
    let center = center.detach().to_dtype(DType::F32)?;
    if center.dims() != [1, logits.dims2()?.1] {
        let (center, logits) = (center.dims(), logits.dims());
        bail!("centered_softmax: a centre of {center:?} does not fit {logits:?}");
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&logits) {
        return crate::cuda::ops::centered_softmax(&logits, &center, (1.0 / temp) as f32);
    }
    softmax_last_dim(&(logits.broadcast_sub(&center)? / temp)?)
}

struct Softmax {
    log: bool,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log-softmax" } else { "softmax" }
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut ys = slice(xs, layout)?.to_vec();
        let (level, n) = (Level::best(), last_dim(layout.dims()));
        for_each_chunk(&mut ys, rows_per_chunk(n) * n, |_, rows| {
            if self.log {
                softmax::log_softmax_rows(level, rows, n, &mut vec![0f32; n]);
            } else {
                softmax::softmax_rows(level, rows, n, 1.0);
            }
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (level, n) = (Level::best(), last_dim(xs.dims()));
        let grad = grad.contiguous()?;
        let mut dx = with_slice(&grad, |grad| Ok(grad.to_vec()))?;
        with_slice(ys, |ys| {
            let chunk = rows_per_chunk(n) * n;
            for_each_chunk(&mut dx, chunk, |i, rows| {
                let ys = &ys[i * chunk..][..rows.len()];
                if self.log {
                    softmax::log_softmax_rows_grad(level, ys, rows, n);
                } else {
                    softmax::softmax_rows_grad(level, ys, rows, n, 1.0);
                }
            });
            Ok(())
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}

fn last_dim(dims: &[usize]) -> usize {
    dims.last().copied().unwrap_or(1)
}
