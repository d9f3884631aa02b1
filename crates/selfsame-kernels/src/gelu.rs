//! GELU (Hendrycks and Gimpel 2016) in its exact form.

use crate::composed;
use crate::host::{self, CHUNK, for_each_chunk, fused, slice, with_slice, written_by};
use crate::simd::{Level, activation};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// GELU in its exact form, `x · Φ(x)` with the error function, as published ViTs use it.
///
/// Within 5e-7 · max(1, |x|) of the exact value; candle's `Tensor::gelu` is the tanh form.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) {
        return crate::cuda::ops::bias_gelu(xs, None);
    }
    if !fused(&[xs]) {
        return composed::gelu(xs);
    }
    xs.contiguous()?.apply_op1(Gelu)
}

struct Gelu;

#[expect(unsafe_code, reason = "outputs are written, not zeroed first")]
impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, level) = (slice(xs, layout)?, Level::best());
        // SAFETY: the chunks cover the output, and the kernel writes every element.
        let ys = unsafe {
            written_by(xs.len(), |ys| {
                for_each_chunk(ys, CHUNK, |i, ys| {
                    activation::gelu(level, &xs[i * CHUNK..][..ys.len()], ys);
                });
            })
        };
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (grad, level) = (grad.contiguous()?, Level::best());
        let dx = with_slice(xs, |xs| {
            with_slice(&grad, |grad| {
                // SAFETY: the chunks cover the output, and the kernel writes every element.
                Ok(unsafe {
                    written_by(xs.len(), |dx| {
                        for_each_chunk(dx, CHUNK, |i, dx| {
                            let (start, len) = (i * CHUNK, dx.len());
                            let (xs, grad) = (&xs[start..][..len], &grad[start..][..len]);
                            activation::gelu_grad(level, xs, grad, dx);
                        });
                    })
                })
            })
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}
