//! Rows of unit length.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, with_slice, written_by};
use crate::simd::{Level, reduce};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

/// Divides each row (the last dimension) by its Euclidean norm, or by `eps` if that is larger.
///
/// PyTorch's `F.normalize(xs, dim=-1, eps=eps)`, whose default `eps` is 1e-12. Norms of bf16 and f16
/// rows are taken in f32.
pub fn l2_normalize_last_dim(xs: &Tensor, eps: f64) -> Result<Tensor> {
    if let half @ (DType::BF16 | DType::F16) = xs.dtype() {
        let ys = l2_normalize_last_dim(&xs.to_dtype(DType::F32)?, eps)?;
        return ys.to_dtype(half);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && xs.rank() > 0 {
        return crate::cuda::ops::l2_normalize_last_dim(xs, eps);
    }
    if !fused(&[xs]) || xs.rank() == 0 {
        return composed::l2_normalize_last_dim(xs, eps);
    }
    xs.contiguous()?.apply_op1(Normalize { eps: eps as f32 })
}

struct Normalize {
    eps: f32,
}

impl CustomOp1 for Normalize {
    fn name(&self) -> &'static str {
        "l2-normalize"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, level) = (slice(xs, layout)?, Level::best());
        let n = layout.dims().last().copied().unwrap_or(1);
        let chunk = rows_per_chunk(n) * n;
        // SAFETY: chunks of whole rows cover the output, and the kernel writes every row.
        let ys = unsafe {
            written_by(xs.len(), |ys| {
                for_each_chunk(ys, chunk, |i, ys| {
                    reduce::normalize_rows(level, &xs[i * chunk..][..ys.len()], n, self.eps, ys);
                });
            })
        };
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (level, n) = (Level::best(), xs.dims().last().copied().unwrap_or(1));
        let (grad, chunk) = (grad.contiguous()?, rows_per_chunk(n) * n);
        let dx = with_slice(xs, |xs| {
            with_slice(&grad, |grad| {
                // SAFETY: chunks of whole rows cover the output, and the kernel writes every row.
                Ok(unsafe {
                    written_by(xs.len(), |dx| {
                        for_each_chunk(dx, chunk, |i, dx| {
                            let (start, len) = (i * chunk, dx.len());
                            let (xs, grad) = (&xs[start..][..len], &grad[start..][..len]);
                            reduce::normalize_rows_grad(level, xs, grad, n, self.eps, dx);
                        });
                    })
                })
            })
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}
