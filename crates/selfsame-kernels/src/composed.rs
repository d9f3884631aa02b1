//! Every operation of this crate written with candle's own operations, for any device and type.
//!
//! These are what runs where no fused kernel exists (f64, bf16, some sizes on CUDA), and what the fused kernels
//! are tested against.
//! Only candle operations with a correct gradient are used: `max` and `detach` are fine, candle's
//! pooling and fused softmax are not.

pub mod update;

pub use crate::blocks::composed::transformer_blocks;

use crate::conv2d::output_len;
use std::f64::consts::FRAC_1_SQRT_2;

use candle_core::{D, DType, Result, Tensor, bail};

/// See [`crate::layer_norm`].
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centered = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let std = (centered.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centered
        .broadcast_div(&std)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// See [`crate::gelu`].
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    // Not `gelu_erf`: the constant in its gradient has six digits.
    ((xs * FRAC_1_SQRT_2)?.erf()? + 1.0)?.mul(&(xs * 0.5)?)
}

/// See [`crate::linear`].
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_dim, in_dim) = weight.dims2()?;
    let mut shape = xs.dims().to_vec();
    let Some(last) = shape.last_mut() else {
        bail!("linear: the input has no dimension")
    };
    *last = out_dim;
    let ys = xs
        .contiguous()?
        .reshape(((), in_dim))?
        .matmul(&weight.t()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    ys.reshape(shape)
}

/// See [`crate::softmax_last_dim`].
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    let exp = xs
        .broadcast_sub(&xs.detach().max_keepdim(D::Minus1)?)?
        .exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// See [`crate::log_softmax_last_dim`].
pub fn log_softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    let shifted = xs.broadcast_sub(&xs.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// `[3, B, H, N, D]` from packed `[B, N, 3*H*D]`.
fn split_heads(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (b, n, packed) = qkv.dims3()?;
    if num_heads == 0 || packed % (3 * num_heads) != 0 {
        bail!("attention: a width of {packed} does not split into q, k, v of {num_heads} heads");
    }
    qkv.reshape((b, n, 3, num_heads, packed / (3 * num_heads)))?
        .permute((2, 0, 3, 1, 4))
}

/// See [`crate::attention`].
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let weights = attention_weights(qkv, num_heads)?;
    let values = split_heads(qkv, num_heads)?.get(2)?.contiguous()?;
    let (b, n, packed) = qkv.dims3()?;
    weights
        .matmul(&values)?
        .transpose(1, 2)?
        .reshape((b, n, packed / 3))
}

/// See [`crate::attention_weights`]. This one has a gradient.
pub fn attention_weights(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let heads = split_heads(qkv, num_heads)?;
    let scale = 1.0 / (heads.dim(D::Minus1)? as f64).sqrt();
    let q = heads.get(0)?.contiguous()?;
    let k = heads.get(1)?.contiguous()?;
    softmax_of_scores(&q.matmul(&k.t()?)?, scale)
}

/// Softmax of scaled scores in f32 at least, as that of the kernels, in the type that came in.
fn softmax_of_scores(scores: &Tensor, scale: f64) -> Result<Tensor> {
    let dtype = scores.dtype();
    let scores = match dtype {
        DType::F16 | DType::BF16 => scores.to_dtype(DType::F32)?,
        _ => scores.clone(),
    };
    softmax_last_dim(&(scores * scale)?)?.to_dtype(dtype)
}

/// See [`crate::first_token_attention`].
pub fn first_token_attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let heads = split_heads(qkv, num_heads)?;
    let scale = 1.0 / (heads.dim(D::Minus1)? as f64).sqrt();
    let q = heads.get(0)?.narrow(2, 0, 1)?.contiguous()?;
    let k = heads.get(1)?.contiguous()?;
    softmax_of_scores(&q.matmul(&k.t()?)?, scale)?.squeeze(2)
}

/// See [`crate::patchify`].
pub fn patchify(xs: &Tensor, patch: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    if patch == 0 || h % patch != 0 || w % patch != 0 {
        bail!("patchify: {h}x{w} is not a multiple of the patch size {patch}");
    }
    let (rows, cols) = (h / patch, w / patch);
    xs.reshape(&[b, c, rows, patch, cols, patch][..])?
        .permute([0, 2, 4, 1, 3, 5])?
        .reshape((b, rows * cols, c * patch * patch))
}

/// See [`crate::relu`].
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    // `x <= 0` is false for NaN, which therefore goes through as in PyTorch.
    xs.le(0.0)?.where_cond(&xs.zeros_like()?, xs)
}

/// Every `stride`-th index of dimension `dim`, `len` of them from `start`.
fn strided(xs: &Tensor, dim: usize, start: usize, stride: usize, len: usize) -> Result<Tensor> {
    if stride == 1 {
        return xs.narrow(dim, start, len);
    }
    let index: Vec<u32> = (0..len).map(|i| (start + i * stride) as u32).collect();
    xs.index_select(&Tensor::new(index, xs.device())?, dim)
}

/// `xs [B,C,H,W]` with `padding` rows and columns of `value` on each side.
fn pad_with(xs: &Tensor, padding: usize, value: f64) -> Result<Tensor> {
    if padding == 0 {
        return Ok(xs.clone());
    }
    let (b, c, h, _) = xs.dims4()?;
    let block = |shape: (usize, usize, usize, usize)| {
        Tensor::full(value as f32, shape, xs.device())?.to_dtype(xs.dtype())
    };
    let side = block((b, c, h, padding))?;
    let xs = Tensor::cat(&[&side, xs, &side], 3)?;
    let edge = block((b, c, padding, xs.dim(3)?))?;
    Tensor::cat(&[&edge, &xs, &edge], 2)
}

/// See [`crate::max_pool2d`].
pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    let h_out = output_len("max_pool2d", h, kernel, stride, padding)?;
    let w_out = output_len("max_pool2d", w, kernel, stride, padding)?;
    let padded = pad_with(xs, padding, f64::NEG_INFINITY)?;
    let mut best: Option<Tensor> = None;
    for row in 0..kernel {
        let rows = strided(&padded, 2, row, stride, h_out)?;
        for col in 0..kernel {
            let here = strided(&rows, 3, col, stride, w_out)?.contiguous()?;
            best = Some(match best {
                None => here,
                // Only a strictly larger value replaces an earlier one; a NaN always does.
                Some(best) => {
                    let wins = (here.gt(&best)? + here.ne(&here)?)?;
                    wins.where_cond(&here, &best)?
                }
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("max_pool2d: empty kernel".to_string()))
}

/// See [`crate::conv2d`]: patches gathered by index and one matrix product.
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    let (out, c_weight, kh, kw) = weight.dims4()?;
    if c != c_weight {
        bail!("conv2d: the input has {c} channels, the weight {c_weight}");
    }
    let h_out = output_len("conv2d", h, kh, stride, padding)?;
    let w_out = output_len("conv2d", w, kw, stride, padding)?;
    let padded = pad_with(xs, padding, 0.0)?;
    let width = padded.dim(3)?;
    let mut index = Vec::with_capacity(kh * kw * h_out * w_out);
    for i in 0..kh {
        for j in 0..kw {
            for y in 0..h_out {
                for x in 0..w_out {
                    index.push(((y * stride + i) * width + x * stride + j) as u32);
                }
            }
        }
    }
    let columns = padded
        .flatten_from(2)?
        .contiguous()?
        .index_select(&Tensor::new(index, xs.device())?, 2)?
        .reshape((b, c * kh * kw, h_out * w_out))?;
    weight
        .reshape((1, out, c * kh * kw))?
        .broadcast_as((b, out, c * kh * kw))?
        .contiguous()?
        .matmul(&columns)?
        .reshape((b, out, h_out, w_out))
}

/// `[1, C]` or `[1, C, 1, 1]`, to broadcast per-channel values over `xs`.
fn channel_shape(xs: &Tensor) -> Result<Vec<usize>> {
    match *xs.dims() {
        [_, c] => Ok(vec![1, c]),
        [_, c, _, _] => Ok(vec![1, c, 1, 1]),
        _ => bail!(
            "batch_norm: expected [B, C] or [B, C, H, W], got {:?}",
            xs.dims()
        ),
    }
}

/// See [`crate::batch_norm_train`].
pub fn batch_norm_train(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let shape = channel_shape(xs)?;
    let c = shape[1];
    let count = xs.elem_count() / c.max(1);
    if count < 2 {
        bail!("batch_norm_train: {count} value(s) per channel give no variance");
    }
    let mean_over = |ts: &Tensor| -> Result<Tensor> {
        match ts.rank() {
            2 => ts.mean_keepdim(0),
            _ => ts.mean_keepdim((0, 2, 3)),
        }
    };
    let mean = mean_over(xs)?;
    let centered = xs.broadcast_sub(&mean)?;
    let var = mean_over(&centered.sqr()?)?;
    let ys = centered
        .broadcast_div(&(&var + eps)?.sqrt()?)?
        .broadcast_mul(&weight.reshape(shape.as_slice())?)?
        .broadcast_add(&bias.reshape(shape.as_slice())?)?;
    let unbiased = (var.detach().flatten_all()? * (count as f64 / (count - 1) as f64))?;
    Ok((ys, mean.detach().flatten_all()?, unbiased))
}

/// See [`crate::batch_norm_eval`].
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let shape = channel_shape(xs)?;
    let scale = weight.div(&(var + eps)?.sqrt()?)?;
    let shift = bias.sub(&mean.mul(&scale)?)?;
    xs.broadcast_mul(&scale.reshape(shape.as_slice())?)?
        .broadcast_add(&shift.reshape(shape.as_slice())?)
}

/// See [`crate::soft_cross_entropy`].
pub fn soft_cross_entropy(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    student_temp: f64,
) -> Result<Tensor> {
    soft_cross_entropy_rows(student_logits, teacher_probs, num_crops, 0, student_temp)
}

/// See [`crate::soft_cross_entropy_rows`].
pub fn soft_cross_entropy_rows(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
) -> Result<Tensor> {
    let b = crate::cross_entropy::check(
        student_logits,
        teacher_probs,
        num_crops,
        first_row,
        student_temp,
    )?;
    let end_row = first_row + student_logits.dim(0)?;
    let log_probs = log_softmax_last_dim(&(student_logits / student_temp)?)?;
    let teacher_probs = teacher_probs.detach();
    let mut total: Option<Tensor> = None;
    for iq in 0..2 {
        for v in (0..num_crops).filter(|&v| v != iq) {
            // The rows of this view that are here.
            let (start, end) = ((v * b).max(first_row), ((v + 1) * b).min(end_row));
            if start >= end {
                continue;
            }
            let q = teacher_probs.narrow(0, iq * b + start - v * b, end - start)?;
            let own = log_probs.narrow(0, start - first_row, end - start)?;
            let term = (q.mul(&own)?.sum_all()? * -1.0)?;
            total = Some(match total {
                None => term,
                Some(total) => (total + term)?,
            });
        }
    }
    let pairs = 2 * num_crops - 2;
    let Some(total) = total else {
        bail!("soft_cross_entropy: no pair of different views")
    };
    total / (pairs * b) as f64
}

/// See [`crate::l2_normalize_last_dim`].
pub fn l2_normalize_last_dim(xs: &Tensor, eps: f64) -> Result<Tensor> {
    // Squares, of `eps` above all, are too small or too large for f16.
    if let half @ (DType::F16 | DType::BF16) = xs.dtype() {
        return l2_normalize_last_dim(&xs.to_dtype(DType::F32)?, eps)?.to_dtype(half);
    }
    // Clamped before the root, so that a zero row has a zero gradient instead of a NaN.
    let norm = xs
        .sqr()?
        .sum_keepdim(D::Minus1)?
        .maximum(eps * eps)?
        .sqrt()?;
    xs.broadcast_div(&norm)
}

/// See [`crate::normalized_linear`].
pub fn normalized_linear(
    xs: &Tensor,
    weight: &Tensor,
    length: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let direction = l2_normalize_last_dim(weight, eps)?;
    match length {
        None => linear(xs, &direction.to_dtype(xs.dtype())?, None),
        Some(length) => {
            let length = length.to_dtype(direction.dtype())?;
            let weight = direction.broadcast_mul(&length)?;
            linear(xs, &weight.to_dtype(xs.dtype())?, None)
        }
    }
}
