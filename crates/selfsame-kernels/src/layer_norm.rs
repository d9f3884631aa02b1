//! Layer normalisation (Ba et al. 2016) over the last dimension.

use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, with_slice};
use crate::simd::{Level, norm};
use crate::{composed, host::written_by};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// Layer normalisation over the last dimension: `(xs − mean) / √(var + eps) · weight + bias`.
///
/// The variance is the biased one, as in PyTorch. Weights of another type than `xs` (f32 beside
/// bf16) are taken as they are, and all is computed in f32.
///
/// # Shape
/// `xs`: `[…, C]`, `weight` and `bias`: `[C]`; the result is shaped as `xs` and of its type.
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    layer_norm_as(xs, weight, bias, eps, xs.dtype())
}

/// [`layer_norm`] with a result of another type, without a pass of its own where a kernel does it.
pub(crate) fn layer_norm_as(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let width = weight.dims1()?;
    if xs.dims().last() != Some(&width) || bias.dims() != [width] {
        let (xs, bias) = (xs.dims(), bias.dims());
        bail!("layer_norm: weight [{width}] and bias {bias:?} do not fit {xs:?}");
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && [xs.dtype(), DType::BF16].contains(&dtype) {
        return crate::cuda::ops::layer_norm(xs, weight, bias, eps, dtype);
    }
    if !fused(&[xs, weight, bias]) || dtype != DType::F32 {
        return composed_as(xs, weight, bias, eps, dtype);
    }
    let op = LayerNorm {
        eps: eps as f32,
        stats: OnceLock::new(),
    };
    xs.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// Out of candle's operations, in f32 where types are mixed.
fn composed_as(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    if [weight, bias].iter().all(|t| t.dtype() == xs.dtype()) {
        return composed::layer_norm(xs, weight, bias, eps)?.to_dtype(dtype);
    }
    let [xs, weight, bias] = [xs, weight, bias].map(|t| t.to_dtype(DType::F32));
    composed::layer_norm(&xs?, &weight?, &bias?, eps)?.to_dtype(dtype)
}

struct LayerNorm {
    eps: f32,
    /// Mean and 1/std per row, from the forward pass.
    stats: OnceLock<Vec<f32>>,
}

#[expect(unsafe_code, reason = "outputs are written, not zeroed first")]
impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, weight) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        let bias = slice(bias, bias_layout)?;
        let (level, n) = (Level::best(), weight.len());
        let step = rows_per_chunk(n);
        let mut stats = vec![0f32; xs.len() / n * 2];
        // SAFETY: chunks of whole rows cover the output, and the kernel writes every row.
        let ys = unsafe {
            written_by(xs.len(), |ys| {
                let mut chunks: Vec<_> = ys
                    .chunks_mut(step * n)
                    .zip(stats.chunks_mut(step * 2))
                    .collect();
                for_each_chunk(&mut chunks, 1, |i, chunk| {
                    let (ys, stats) = &mut chunk[0];
                    let xs = &xs[i * step * n..][..ys.len()];
                    norm::layer_norm(level, xs, weight, bias, self.eps, ys, stats);
                });
            })
        };
        // A second forward pass of the same op would be a second op.
        let _ = self.stats.set(stats);
        Ok((CpuStorage::F32(ys), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(stats) = self.stats.get() else {
            bail!("layer_norm: backward before forward")
        };
        let grad = grad.contiguous()?;
        let (mut dx, sums) = with_slice(xs, |xs| {
            with_slice(weight, |weight| {
                with_slice(&grad, |grad| Ok(backward(xs, stats, weight, grad)))
            })
        })?;
        let d_bias = sums[weight.elem_count()..].to_vec();
        let mut d_weight = sums;
        d_weight.truncate(d_bias.len());
        let dx = match xs.track_op() {
            true => Some(host::tensor(std::mem::take(&mut dx), xs.shape())?),
            false => None,
        };
        Ok((
            dx,
            Some(host::tensor(d_weight, weight.shape())?),
            Some(host::tensor(d_bias, bias.shape())?),
        ))
    }
}

/// `dx` and `[d_weight | d_bias]`.
#[expect(unsafe_code, reason = "outputs are written, not zeroed first")]
fn backward(xs: &[f32], stats: &[f32], weight: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (level, n) = (Level::best(), weight.len());
    let rows = xs.len() / n;
    let step = host::rows_per_sum(rows, n);
    let mut partial = vec![0f32; rows.div_ceil(step) * 2 * n];
    // SAFETY: chunks of whole rows cover the output, and the kernel writes every row.
    let dx = unsafe {
        written_by(xs.len(), |dx| {
            let mut chunks: Vec<_> = dx
                .chunks_mut(step * n)
                .zip(partial.chunks_mut(2 * n))
                .collect();
            for_each_chunk(&mut chunks, 1, |i, chunk| {
                let (dx, sums) = &mut chunk[0];
                let (start, len) = (i * step * n, dx.len());
                let stats = &stats[i * step * 2..][..len / n * 2];
                let (xs, grad) = (&xs[start..][..len], &grad[start..][..len]);
                norm::layer_norm_grad(level, xs, stats, weight, grad, dx, sums);
            });
        })
    };
    (dx, host::add_partial_sums(partial, 2 * n))
}
