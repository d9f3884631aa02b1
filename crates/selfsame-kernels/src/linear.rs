//! Linear layers, alone and followed by GELU.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::gemm::{Mat, Threads, View, multiply, multiply_add};
use crate::host::{
    self, for_each_chunk, fused, rows_per_chunk, slice, sum_over_rows, with_slice, written_by,
};
use crate::locked::locked;
use crate::simd::{Level, activation, reduce};
use crate::sink;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::Mutex;

/// `xs · weightᵀ + bias`, PyTorch's `nn.Linear`.
///
/// A weight of another type than `xs` (f32 beside bf16) is rounded to it, and its gradient is of its
/// own type.
///
/// # Shape
/// `xs`: `[…, in]`, `weight`: `[out, in]`, `bias`: `[out]`; the result is `[…, out]`.
/// # Errors
/// If the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(xs, weight, bias)?;
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) if fused(&[&xs, &weight, bias]) => {
            xs.apply_op3(&weight, &bias.contiguous()?, Linear)
        }
        None if fused(&[&xs, &weight]) => xs.apply_op2(&weight, Linear),
        #[cfg(feature = "cuda")]
        Some(bias) if crate::cuda::takes(&xs) => {
            crate::cuda::ops::add_bias(&mixed(&xs, &weight, None)?, bias)
        }
        _ => mixed(&xs, &weight, bias),
    }
}

/// Out of candle's operations, in the type of `xs`.
fn mixed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let weight = weight.to_dtype(xs.dtype())?;
    let bias = bias.map(|bias| bias.to_dtype(xs.dtype())).transpose()?;
    composed::linear(xs, &weight, bias.as_ref())
}

/// `gelu(linear(xs, weight, bias))` in one pass over the hidden layer.
///
/// The backward pass keeps the slope of the GELU instead of its input, so that no exponential is
/// computed twice.
///
/// # Shape
/// As [`linear`].
/// # Errors
/// If the shapes do not fit.
pub fn linear_gelu(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(xs, weight, bias)?;
    match bias {
        Some(bias) if fused(&[xs, weight, bias]) => {
            let keep_slope = xs.track_op() || weight.track_op() || bias.track_op();
            let op = LinearGelu {
                keep_slope,
                slope: Mutex::new(None),
            };
            xs.contiguous()?
                .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
        }
        #[cfg(feature = "cuda")]
        _ if crate::cuda::takes(xs) => crate::cuda::ops::bias_gelu(&mixed(xs, weight, None)?, bias),
        _ => crate::gelu(&linear(xs, weight, bias)?),
    }
}

fn check(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (out_dim, in_dim) = weight.dims2()?;
    if xs.dims().last() != Some(&in_dim) {
        bail!(
            "linear: weight [{out_dim}, {in_dim}] does not fit {:?}",
            xs.dims()
        );
    }
    match bias {
        Some(bias) if bias.dims() != [out_dim] => {
            bail!(
                "linear: bias {:?} does not fit weight [{out_dim}, {in_dim}]",
                bias.dims()
            )
        }
        _ => Ok(()),
    }
}

/// Rows, inputs and outputs of one product.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Sizes {
    fn new(xs: &Layout, weight: &Layout) -> Result<(Sizes, Shape)> {
        let (outputs, inputs) = weight.shape().dims2()?;
        let mut shape = xs.dims().to_vec();
        match shape.last_mut() {
            Some(last) => *last = outputs,
            None => bail!("linear: the input has no dimension"),
        }
        let rows = xs.shape().elem_count() / inputs;
        Ok((
            Sizes {
                rows,
                inputs,
                outputs,
            },
            shape.into(),
        ))
    }

    fn of(xs: &Tensor, weight: &Tensor) -> Result<Sizes> {
        Ok(Sizes::new(xs.layout(), weight.layout())?.0)
    }

    fn x<'a>(&self, data: &'a [f32]) -> Mat<'a> {
        Mat(data, View::row_major(self.rows, self.inputs))
    }

    fn w<'a>(&self, data: &'a [f32]) -> Mat<'a> {
        Mat(data, View::row_major(self.outputs, self.inputs))
    }

    fn y(&self) -> View {
        View::row_major(self.rows, self.outputs)
    }
}

fn transposed(mat: Mat<'_>) -> Mat<'_> {
    Mat(mat.0, mat.1.t())
}

/// `xs · weightᵀ (+ bias)`.
fn forward(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, sizes: Sizes) -> Vec<f32> {
    let (x, w) = (sizes.x(xs), transposed(sizes.w(weight)));
    let Some(bias) = bias else {
        // SAFETY: the product writes every element of a row-major view of the whole output.
        return unsafe {
            written_by(sizes.rows * sizes.outputs, |ys| {
                multiply(ys, sizes.y(), x, w, Threads::Pool);
            })
        };
    };
    // SAFETY: every row becomes the bias, which has one element per output.
    let mut ys = unsafe {
        written_by(sizes.rows * sizes.outputs, |ys| {
            for_each_chunk(
                ys,
                rows_per_chunk(sizes.outputs) * sizes.outputs,
                |_, rows| {
                    for row in rows.chunks_exact_mut(bias.len()) {
                        for (y, b) in row.iter_mut().zip(bias) {
                            y.write(*b);
                        }
                    }
                },
            );
        })
    };
    multiply_add(&mut ys, sizes.y(), x, w, Threads::Pool);
    ys
}

/// `(dx, dw)`, each only if it is asked for.
fn backward(
    xs: &Tensor,
    weight: &Tensor,
    grad: &[f32],
    sizes: Sizes,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let g = Mat(grad, sizes.y());
    let dx = match xs.track_op() {
        false => None,
        true => Some(with_slice(weight, |weight| {
            let view = View::row_major(sizes.rows, sizes.inputs);
            // SAFETY: the product writes every element of a row-major view of the whole output.
            let dx = unsafe {
                written_by(sizes.rows * sizes.inputs, |dx| {
                    multiply(dx, view, g, sizes.w(weight), Threads::Pool);
                })
            };
            host::tensor(dx, xs.shape())
        })?),
    };
    let dw = match weight.track_op() {
        false => None,
        true => with_slice(xs, |xs| {
            let view = View::row_major(sizes.outputs, sizes.inputs);
            if let Some(mut sum) = sink::take(weight) {
                let (d_out, xs) = (transposed(g), sizes.x(xs));
                multiply_add(&mut sum, view, d_out, xs, Threads::Pool);
                sink::give(weight, sum);
                return Ok(None);
            }
            // SAFETY: the product writes every element of a row-major view of the whole output.
            let dw = unsafe {
                written_by(sizes.outputs * sizes.inputs, |dw| {
                    multiply(dw, view, transposed(g), sizes.x(xs), Threads::Pool);
                })
            };
            host::tensor(dw, weight.shape()).map(Some)
        })?,
    };
    Ok((dx, dw))
}

/// `xs · weightᵀ + bias`; without a bias it is an op of two arguments.
struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (sizes, shape) = Sizes::new(xs_layout, weight_layout)?;
        let (xs, weight) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        Ok((CpuStorage::F32(forward(xs, weight, None, sizes)), shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(xs, weight)?;
        with_slice(&grad.contiguous()?, |grad| {
            backward(xs, weight, grad, sizes)
        })
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-bias"
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
        let (sizes, shape) = Sizes::new(xs_layout, weight_layout)?;
        let (xs, weight) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        let bias = slice(bias, bias_layout)?;
        Ok((
            CpuStorage::F32(forward(xs, weight, Some(bias), sizes)),
            shape,
        ))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (sizes, level) = (Sizes::of(xs, weight)?, Level::best());
        with_slice(&grad.contiguous()?, |grad| {
            let db = match bias.track_op() {
                false => None,
                true => {
                    let n = sizes.outputs;
                    let db = sum_over_rows(sizes.rows, n, n, |first, end, sums| {
                        reduce::sum_columns(level, &grad[first * n..end * n], sums);
                    });
                    sink::add(bias, db)?
                }
            };
            let (dx, dw) = backward(xs, weight, grad, sizes)?;
            Ok((dx, dw, db))
        })
    }
}

struct LinearGelu {
    keep_slope: bool,
    /// Slope of the GELU at every hidden value, taken by the first backward pass.
    slope: Mutex<Option<Vec<f32>>>,
}

impl LinearGelu {
    /// The output and, if `keep_slope`, the slopes.
    fn run(
        xs: &[f32],
        weight: &[f32],
        bias: &[f32],
        sizes: Sizes,
        keep_slope: bool,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let level = Level::best();
        let mut hidden = forward(xs, weight, None, sizes);
        let chunk = rows_per_chunk(sizes.outputs) * sizes.outputs;
        if !keep_slope {
            for_each_chunk(&mut hidden, chunk, |_, rows| {
                activation::bias_gelu(level, rows, bias)
            });
            return (hidden, None);
        }
        // SAFETY: chunks of whole rows cover the output, and the kernel writes every row.
        let ys = unsafe {
            written_by(hidden.len(), |ys| {
                let mut chunks: Vec<_> =
                    hidden.chunks_mut(chunk).zip(ys.chunks_mut(chunk)).collect();
                for_each_chunk(&mut chunks, 1, |_, chunk| {
                    let (hidden, ys) = &mut chunk[0];
                    activation::bias_gelu_keep_slope(level, hidden, bias, ys);
                });
            })
        };
        (ys, Some(hidden))
    }
}

impl CustomOp3 for LinearGelu {
    fn name(&self) -> &'static str {
        "linear-gelu"
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
        let (sizes, shape) = Sizes::new(xs_layout, weight_layout)?;
        let (xs, weight) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        let bias = slice(bias, bias_layout)?;
        let (ys, slope) = LinearGelu::run(xs, weight, bias, sizes, self.keep_slope);
        *locked(&self.slope) = slope;
        Ok((CpuStorage::F32(ys), shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (sizes, level) = (Sizes::of(xs, weight)?, Level::best());
        let n = sizes.outputs;
        let kept = locked(&self.slope).take();
        let mut hidden_grad = match kept {
            Some(slope) => slope,
            // A second backward pass through the same graph.
            None => with_slice(xs, |xs| {
                with_slice(weight, |weight| {
                    with_slice(bias, |bias| {
                        Ok(LinearGelu::run(xs, weight, bias, sizes, true)
                            .1
                            .unwrap_or_default())
                    })
                })
            })?,
        };
        let step = host::rows_per_sum(sizes.rows, n);
        let mut partial = vec![0f32; sizes.rows.div_ceil(step) * n];
        with_slice(&grad.contiguous()?, |grad| {
            let mut chunks: Vec<_> = hidden_grad
                .chunks_mut(step * n)
                .zip(partial.chunks_mut(n))
                .collect();
            for_each_chunk(&mut chunks, 1, |i, chunk| {
                let (rows, sums) = &mut chunk[0];
                let grad = &grad[i * step * n..][..rows.len()];
                activation::multiply_and_sum_columns(level, rows, grad, sums);
            });
            Ok(())
        })?;
        let db = match bias.track_op() {
            false => None,
            true => sink::add(bias, host::add_partial_sums(partial, n))?,
        };
        let (dx, dw) = backward(xs, weight, &hidden_grad, sizes)?;
        Ok((dx, dw, db))
    }
}
