//! ReLU whose gradient at zero is zero.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::host::{self, CHUNK, for_each_chunk, fused, slice, with_slice, written_by};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `max(xs, 0)` with gradient 0 at exactly 0, as in PyTorch.
///
/// candle's own gradient there is 1, which matters where a zero-initialised residual branch ends.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) {
        return crate::cuda::ops::relu(xs);
    }
    if !fused(&[xs]) {
        return composed::relu(xs);
    }
    xs.contiguous()?.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice(xs, layout)?;
        // SAFETY: the chunks cover the output, and every element of a chunk is written.
        let ys = unsafe {
            written_by(xs.len(), |ys| {
                for_each_chunk(ys, CHUNK, |i, ys| {
                    for (y, x) in ys.iter_mut().zip(&xs[i * CHUNK..]) {
                        // A NaN is not ≤ 0 and goes through.
                        y.write(if *x <= 0.0 { 0.0 } else { *x });
                    }
                });
            })
        };
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = with_slice(ys, |ys| {
            with_slice(&grad, |grad| {
                // SAFETY: the chunks cover the output, and every element of a chunk is written.
                Ok(unsafe {
                    written_by(ys.len(), |dx| {
                        for_each_chunk(dx, CHUNK, |i, dx| {
                            let (ys, grad) = (&ys[i * CHUNK..], &grad[i * CHUNK..]);
                            for ((d, y), g) in dx.iter_mut().zip(ys).zip(grad) {
                                d.write(if *y <= 0.0 { 0.0 } else { *g });
                            }
                        });
                    })
                })
            })
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}
