//! Batch normalisation (Ioffe and Szegedy 2015) with the batch's own or with given statistics.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, with_slice, written_by};
use crate::simd::{Level, norm};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// What the result of a batch norm goes through, in the same pass where there is a kernel for it.
#[derive(Debug, Clone, Copy)]
pub enum AfterNorm<'a> {
    /// It stays as it is.
    Nothing,
    /// [`crate::relu`].
    Relu,
    /// This, of the same shape, is added; then [`crate::relu`].
    AddRelu(&'a Tensor),
}

impl AfterNorm<'_> {
    fn of(self, ys: Tensor) -> Result<Tensor> {
        match self {
            AfterNorm::Nothing => Ok(ys),
            AfterNorm::Relu => crate::relu(&ys),
            AfterNorm::AddRelu(residual) => crate::relu(&(ys + residual)?),
        }
    }

    /// Whether the kernels for f32 on a CUDA device can run on this, too.
    #[cfg(feature = "cuda")]
    fn is_for_cuda(self, xs: &Tensor) -> bool {
        match self {
            AfterNorm::Nothing | AfterNorm::Relu => true,
            AfterNorm::AddRelu(residual) => {
                residual.dims() == xs.dims() && crate::cuda::takes_f32(&[residual])
            }
        }
    }
}

/// Batch normalisation with the batch's own statistics, which are returned for the running ones.
///
/// Returns `(ys, mean [C], variance [C])`. The output is normalised by the biased variance, while
/// the returned one is unbiased (divided by n − 1), as PyTorch puts it into `running_var`; neither
/// statistic has a gradient. Sums are in f64, on CUDA devices in f32 around the means of parts.
///
/// # Shape
/// `xs`: `[B, C]` or `[B, C, H, W]`, `weight` and `bias`: `[C]`; `ys` is shaped as `xs`.
/// # Errors
/// If the shapes do not fit or a channel has fewer than two values.
pub fn batch_norm_train(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    batch_norm_train_then(xs, weight, bias, eps, AfterNorm::Nothing)
}

/// As [`batch_norm_train`], with what the result goes through.
///
/// # Errors
/// As [`batch_norm_train`], or if what is added is of another shape.
pub fn batch_norm_train_then(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    after: AfterNorm<'_>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let sizes = Sizes::new(xs.shape())?;
    if weight.dims() != [sizes.channels] || bias.dims() != [sizes.channels] {
        let (weight, bias) = (weight.dims(), bias.dims());
        bail!(
            "batch_norm: weight {weight:?} and bias {bias:?} do not fit {:?}",
            xs.dims()
        );
    }
    if sizes.per_channel() < 2 {
        bail!(
            "batch_norm_train: {} value(s) per channel give no variance",
            sizes.per_channel()
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::takes_f32(&[xs, weight, bias]) && after.is_for_cuda(xs) {
        return crate::cuda::ops::batch_norm_train(xs, [weight, bias], eps, after);
    }
    let (ys, mean, var) = match fused(&[xs, weight, bias]) {
        true => sizes.train(xs, weight, bias, eps)?,
        false => composed::batch_norm_train(xs, weight, bias, eps)?,
    };
    Ok((after.of(ys)?, mean, var))
}

/// Batch normalisation with given statistics: `(xs − mean) / √(var + eps) · weight + bias`.
///
/// # Shape
/// `xs`: `[B, C]` or `[B, C, H, W]`, all others `[C]`; the result is shaped as `xs`.
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    batch_norm_eval_then(xs, [mean, var], weight, bias, eps, AfterNorm::Nothing)
}

/// As [`batch_norm_eval`] of statistics `[mean, var]`, with what the result goes through.
///
/// # Errors
/// As [`batch_norm_eval`], or if what is added is of another shape.
pub fn batch_norm_eval_then(
    xs: &Tensor,
    [mean, var]: [&Tensor; 2],
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    after: AfterNorm<'_>,
) -> Result<Tensor> {
    let sizes = Sizes::new(xs.shape())?;
    let all = [mean, var, weight, bias];
    if let Some(other) = all.iter().find(|of| of.dims() != [sizes.channels]) {
        let (other, xs) = (other.dims(), xs.dims());
        bail!("batch_norm: {other:?} does not fit {xs:?}");
    }
    // There the statistics get no gradient.
    #[cfg(feature = "cuda")]
    if crate::cuda::takes_f32(&[xs, mean, var, weight, bias])
        && after.is_for_cuda(xs)
        && !mean.track_op()
        && !var.track_op()
    {
        return crate::cuda::ops::batch_norm_eval(xs, [mean, var], [weight, bias], eps, after);
    }
    // One multiplication and one addition per element: candle's own operations will do.
    after.of(composed::batch_norm_eval(xs, mean, var, weight, bias, eps)?)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    channels: usize,
    /// Positions per image: H·W, or 1.
    plane: usize,
}

#[derive(Clone, Copy, Default)]
struct Moments {
    mean: f64,
    var: f64,
}

/// Channels per chunk where they lie side by side.
const SIDE_BY_SIDE: usize = 64;

impl Sizes {
    fn new(shape: &Shape) -> Result<Sizes> {
        match *shape.dims() {
            [batch, channels] => Ok(Sizes {
                batch,
                channels,
                plane: 1,
            }),
            [batch, channels, h, w] => Ok(Sizes {
                batch,
                channels,
                plane: h * w,
            }),
            _ => bail!("batch_norm: expected [B, C] or [B, C, H, W], got {shape:?}"),
        }
    }

    fn per_channel(&self) -> usize {
        self.batch * self.plane
    }

    /// Planes of one channel in all images.
    fn planes<'a>(&self, xs: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> {
        xs.chunks_exact(self.plane)
            .skip(channel)
            .step_by(self.channels)
    }

    /// Mean and biased variance of each channel, in two passes.
    fn moments(&self, xs: &[f32]) -> Vec<Moments> {
        let (level, count) = (Level::best(), self.per_channel() as f64);
        let mut moments = vec![Moments::default(); self.channels];
        if self.plane == 1 {
            for_each_chunk(&mut moments, SIDE_BY_SIDE, |i, moments| {
                let first = i * SIDE_BY_SIDE;
                for row in xs.chunks_exact(self.channels) {
                    for (m, x) in moments.iter_mut().zip(&row[first..]) {
                        m.mean += f64::from(*x);
                    }
                }
                moments.iter_mut().for_each(|m| m.mean /= count);
                for row in xs.chunks_exact(self.channels) {
                    for (m, x) in moments.iter_mut().zip(&row[first..]) {
                        m.var += (f64::from(*x) - m.mean).powi(2);
                    }
                }
                moments.iter_mut().for_each(|m| m.var /= count);
            });
            return moments;
        }
        for_each_chunk(&mut moments, 1, |channel, moments| {
            let mut sum = 0.0;
            for plane in self.planes(xs, channel) {
                sum += norm::plane_moments(level, plane, 0.0).0;
            }
            let mean = sum / count;
            let mut squares = 0.0;
            for plane in self.planes(xs, channel) {
                squares += norm::plane_moments(level, plane, mean).1;
            }
            moments[0] = Moments {
                mean,
                var: squares / count,
            };
        });
        moments
    }

    /// Per channel the sums of `grad` and of `grad · x̂`.
    fn grad_sums(
        &self,
        xs: &[f32],
        grad: &[f32],
        mean: &[f32],
        inv_std: &[f32],
    ) -> Vec<(f64, f64)> {
        let level = Level::best();
        let mut sums = vec![(0f64, 0f64); self.channels];
        if self.plane == 1 {
            for_each_chunk(&mut sums, SIDE_BY_SIDE, |i, sums| {
                let first = i * SIDE_BY_SIDE;
                let rows = xs
                    .chunks_exact(self.channels)
                    .zip(grad.chunks_exact(self.channels));
                for (x, g) in rows {
                    for (c, sum) in (first..).zip(sums.iter_mut()) {
                        let hat = f64::from((x[c] - mean[c]) * inv_std[c]);
                        sum.0 += f64::from(g[c]);
                        sum.1 += f64::from(g[c]) * hat;
                    }
                }
            });
            return sums;
        }
        for_each_chunk(&mut sums, 1, |c, sums| {
            for (x, g) in self.planes(xs, c).zip(self.planes(grad, c)) {
                let (a, b) = norm::plane_grad_sums(level, x, g, mean[c], inv_std[c]);
                sums[0].0 += a;
                sums[0].1 += b;
            }
        });
        sums
    }

    /// Mean, variance and result on the CPU, see [`batch_norm_train`].
    fn train(
        self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let xs = xs.contiguous()?;
        let moments = with_slice(&xs, |xs| Ok(self.moments(xs)))?;
        let count = self.per_channel() as f64;
        let mean: Vec<f32> = moments.iter().map(|m| m.mean as f32).collect();
        let unbiased = moments
            .iter()
            .map(|m| (m.var * count / (count - 1.0)) as f32)
            .collect();
        let inv_std = moments
            .iter()
            .map(|m| (1.0 / (m.var + eps).sqrt()) as f32)
            .collect();
        let shape = Shape::from(self.channels);
        let (batch_mean, batch_var) = (
            host::tensor(mean.clone(), &shape)?,
            host::tensor(unbiased, &shape)?,
        );
        let op = BatchNorm {
            sizes: self,
            mean,
            inv_std,
        };
        let ys = xs.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
        Ok((ys, batch_mean, batch_var))
    }

    /// Calls `f(channel, start)` for each plane of a chunk of planes, and writes what it does.
    ///
    /// # Safety
    /// `f` writes all of the slice that it is handed.
    unsafe fn write_planes(
        &self,
        f: impl Fn(usize, usize, &mut [std::mem::MaybeUninit<f32>]) + Sync + Send,
    ) -> Vec<f32> {
        let step = rows_per_chunk(self.plane) * self.plane;
        let len = self.batch * self.channels * self.plane;
        // SAFETY: chunks of whole planes cover the output, and the caller vouches for `f`.
        unsafe {
            written_by(len, |out| {
                for_each_chunk(out, step, |i, out| {
                    for (j, out) in out.chunks_exact_mut(self.plane).enumerate() {
                        let start = i * step + j * self.plane;
                        f(start / self.plane % self.channels, start, out);
                    }
                });
            })
        }
    }
}

struct BatchNorm {
    sizes: Sizes,
    mean: Vec<f32>,
    inv_std: Vec<f32>,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
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
        let (bias, level) = (slice(bias, bias_layout)?, Level::best());
        // SAFETY: the kernel writes all of `ys`.
        let ys = unsafe {
            self.sizes.write_planes(|c, start, ys| {
                let scale = self.inv_std[c] * weight[c];
                let xs = &xs[start..start + ys.len()];
                norm::plane_affine(level, xs, self.mean[c], scale, bias[c], ys);
            })
        };
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
        let level = Level::best();
        let count = self.sizes.per_channel() as f64;
        let (grad, need_dx) = (grad.contiguous()?, xs.track_op());
        let (dx, sums) = with_slice(xs, |xs| {
            with_slice(weight, |weight| {
                with_slice(&grad, |grad| {
                    let sums = self.sizes.grad_sums(xs, grad, &self.mean, &self.inv_std);
                    if !need_dx {
                        return Ok((None, sums));
                    }
                    // dx = w/σ · (g − mean(g) − x̂ · mean(g·x̂)), as g·f0 + (x − μ)·f1 + f2
                    let factors: Vec<[f32; 3]> = (0..self.sizes.channels)
                        .map(|c| {
                            let inv_std = f64::from(self.inv_std[c]);
                            let scale = f64::from(weight[c]) * inv_std;
                            let (sum, sum_hat) = sums[c];
                            let of_centered = -scale * inv_std * sum_hat / count;
                            [
                                scale as f32,
                                of_centered as f32,
                                (-scale * sum / count) as f32,
                            ]
                        })
                        .collect();
                    // SAFETY: the kernel writes all of `dx`.
                    let dx = unsafe {
                        self.sizes.write_planes(|c, start, dx| {
                            let end = start + dx.len();
                            let (xs, grad) = (&xs[start..end], &grad[start..end]);
                            norm::plane_grad(level, xs, grad, self.mean[c], factors[c], dx);
                        })
                    };
                    Ok((Some(dx), sums))
                })
            })
        })?;
        let dx = dx.map(|dx| host::tensor(dx, xs.shape())).transpose()?;
        let d_weight = sums.iter().map(|s| s.1 as f32).collect();
        let d_bias = sums.iter().map(|s| s.0 as f32).collect();
        Ok((
            dx,
            Some(host::tensor(d_weight, weight.shape())?),
            Some(host::tensor(d_bias, bias.shape())?),
        ))
    }
}
