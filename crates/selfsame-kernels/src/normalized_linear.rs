//! A linear layer over weight rows of a fixed length, without a copy of the weights.

use crate::composed;
use crate::gemm::{Mat, Threads, View, multiply_add, multiply_into};
use crate::host::{self, for_each_chunk, fused, rows_per_chunk, slice, sum_over_rows, with_slice};
use crate::sink;
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `linear(xs, length · weight / |weight|)`: every row of the weight is brought to its length, or
/// divided by `eps` if it is shorter than that.
///
/// PyTorch's `weight_norm` with `weight` as its `weight_v` and `length` as a `weight_g` that is not
/// trained. The product is taken with the rows as they are and its columns are scaled, so neither
/// the pass forward nor the one back holds a second matrix of the weight's size on a CPU: with 65,536
/// prototypes of 256 numbers that is 64 MiB each.
///
/// # Shape
/// `xs`: `[N, in]`, `weight`: `[out, in]`, `length`: `[out, 1]`, no gradient goes to it; the result
/// is `[N, out]`, on a CUDA device in f32 even for bf16 inputs.
/// # Errors
/// If the shapes do not fit.
pub fn normalized_linear(
    xs: &Tensor,
    weight: &Tensor,
    length: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let ((_, inputs), (outputs, width)) = (xs.dims2()?, weight.dims2()?);
    if inputs != width {
        bail!("normalized_linear: weight [{outputs}, {width}] does not fit {inputs} inputs");
    }
    if let Some(length) = length
        && length.dims() != [outputs, 1]
    {
        bail!(
            "normalized_linear: lengths {:?} for {outputs} rows",
            length.dims()
        );
    }
    let length = length.map(Tensor::detach);
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && weight.dtype() == DType::F32 {
        return crate::cuda::ops::normalized_linear(xs, weight, length.as_ref(), eps);
    }
    if !fused(&[xs, weight]) || length.as_ref().is_some_and(|length| !fused(&[length])) {
        return composed::normalized_linear(xs, weight, length.as_ref(), eps);
    }
    let length = match length {
        None => vec![1.0; outputs],
        Some(length) => length.flatten_all()?.to_vec1::<f32>()?,
    };
    let op = NormalizedLinear {
        length,
        eps: eps as f32,
    };
    xs.contiguous()?.apply_op2(&weight.contiguous()?, op)
}

struct NormalizedLinear {
    length: Vec<f32>,
    eps: f32,
}

/// What a row of the weight is multiplied by, and what its gradient along itself is divided by.
struct RowScale {
    /// `length / max(|w|, eps)`.
    factor: f32,
    /// `1 / |w|²`, or 0 where `eps` holds the row.
    inverse_square: f32,
}

impl NormalizedLinear {
    fn scales(&self, weight: &[f32], inputs: usize) -> Vec<RowScale> {
        let of_row = |(row, length): (&[f32], &f32)| {
            let square: f64 = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
            let norm = square.sqrt() as f32;
            RowScale {
                factor: length / norm.max(self.eps),
                inverse_square: match norm > self.eps {
                    true => (1.0 / square) as f32,
                    false => 0.0,
                },
            }
        };
        let rows = weight.par_chunks_exact(inputs).zip(&self.length);
        rows.with_min_len(rows_per_chunk(inputs))
            .map(of_row)
            .collect()
    }
}

impl CustomOp2 for NormalizedLinear {
    fn name(&self) -> &'static str {
        "normalized-linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = xs_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        let (xs, weight) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        let scales = self.scales(weight, inputs);
        let mut ys = vec![0.0; rows * outputs];
        let x = Mat(xs, View::row_major(rows, inputs));
        let w = Mat(weight, View::row_major(outputs, inputs).t());
        multiply_into(&mut ys, View::row_major(rows, outputs), x, w, Threads::Pool);
        scale_columns(&mut ys, &scales);
        Ok((CpuStorage::F32(ys), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), (outputs, _)) = (xs.dims2()?, weight.dims2()?);
        let scales = with_slice(weight, |weight| Ok(self.scales(weight, inputs)))?;
        let mut scaled = with_slice(&grad.contiguous()?, |grad| Ok(grad.to_vec()))?;
        // How much each row's gradient points along the row.
        let along = with_slice(ys, |ys| {
            Ok(sum_over_rows(rows, outputs, outputs, |first, end, sums| {
                let range = first * outputs..end * outputs;
                let pairs = scaled[range.clone()].chunks_exact(outputs);
                for (grad, y) in pairs.zip(ys[range].chunks_exact(outputs)) {
                    for ((sum, g), y) in sums.iter_mut().zip(grad).zip(y) {
                        *sum += g * y;
                    }
                }
            }))
        })?;
        scale_columns(&mut scaled, &scales);
        let scaled = Mat(&scaled, View::row_major(rows, outputs));
        let dx = match xs.track_op() {
            false => None,
            true => Some(with_slice(weight, |weight| {
                let mut dx = vec![0.0; rows * inputs];
                let view = View::row_major(rows, inputs);
                let w = Mat(weight, View::row_major(outputs, inputs));
                multiply_into(&mut dx, view, scaled, w, Threads::Pool);
                host::tensor(dx, xs.shape())
            })?),
        };
        let dw = match weight.track_op() {
            false => None,
            true => {
                let kept = sink::take(weight);
                let given = kept.is_some();
                let mut dw = kept.unwrap_or_else(|| vec![0.0; outputs * inputs]);
                with_slice(xs, |xs| {
                    let view = View::row_major(outputs, inputs);
                    let d_out = Mat(scaled.0, scaled.1.t());
                    let x = Mat(xs, View::row_major(rows, inputs));
                    multiply_add(&mut dw, view, d_out, x, Threads::Pool);
                    Ok(())
                })?;
                with_slice(weight, |weight| {
                    let step = rows_per_chunk(inputs);
                    for_each_chunk(&mut dw, step * inputs, |chunk, dw| {
                        let rows = dw.chunks_exact_mut(inputs).enumerate();
                        for (index, row) in rows {
                            let index = chunk * step + index;
                            let share = along[index] * scales[index].inverse_square;
                            for (d, w) in row.iter_mut().zip(&weight[index * inputs..]) {
                                *d -= share * w;
                            }
                        }
                    });
                    Ok(())
                })?;
                if given {
                    sink::give(weight, dw);
                    None
                } else {
                    Some(host::tensor(dw, weight.shape())?)
                }
            }
        };
        Ok((dx, dw))
    }
}

fn scale_columns(matrix: &mut [f32], scales: &[RowScale]) {
    let rows = rows_per_chunk(scales.len());
    for_each_chunk(matrix, rows * scales.len(), |_, rows| {
        for row in rows.chunks_exact_mut(scales.len()) {
            for (value, scale) in row.iter_mut().zip(scales) {
                *value *= scale.factor;
            }
        }
    });
}
