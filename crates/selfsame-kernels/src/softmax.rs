//! Softmax and its logarithm over the last dimension, with gradients.
//!
//! candle's own fused softmax cuts the gradient without an error.

use crate::composed;
use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, with_slice};
use crate::simd::{Level, softmax};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Softmax over the last dimension, with a gradient.
///
/// # Errors
/// If `xs` has no dimension.
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
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
    if !fused(&[xs]) || xs.rank() == 0 {
        return composed::log_softmax_last_dim(xs);
    }
    xs.contiguous()?.apply_op1(Softmax { log: true })
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
