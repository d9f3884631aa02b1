//! Differentiable operations that candle lacks or does slowly on a CPU, and in-place updates.

pub mod composed;
pub mod cross_entropy;
pub mod multi_tensor;

pub use cross_entropy::soft_cross_entropy;

use candle_core::{Result, Tensor, bail};

/// Output length of a pooling window, as in PyTorch with `ceil_mode` off.
pub(crate) fn pooled_len(
    op: &str,
    len: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<usize> {
    if padding * 2 > kernel {
        bail!("{op}: a padding of {padding} is more than half the kernel {kernel}");
    }
    conv_len(op, len, kernel, stride, padding)
}

/// Output length of a convolution.
pub(crate) fn conv_len(
    op: &str,
    len: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<usize> {
    if kernel == 0 || stride == 0 || len + 2 * padding < kernel {
        bail!("{op}: kernel {kernel}, stride {stride}, padding {padding} on a length of {len}");
    }
    Ok((len + 2 * padding - kernel) / stride + 1)
}

/// Layer normalisation over the last dimension.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    composed::layer_norm(xs, weight, bias, eps)
}

/// GELU in its exact (erf) form.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    composed::gelu(xs)
}

/// `xs · weightᵀ + bias`.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    composed::linear(xs, weight, bias)
}

/// `gelu(linear(xs, weight, bias))`.
pub fn linear_gelu(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    composed::gelu(&composed::linear(xs, weight, bias)?)
}

/// Softmax over the last dimension.
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    composed::softmax_last_dim(xs)
}

/// Logarithm of the softmax over the last dimension.
pub fn log_softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    composed::log_softmax_last_dim(xs)
}

/// Multi-head self-attention on packed `[B, N, 3*H*D]` queries, keys and values.
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    composed::attention(qkv, num_heads)
}

/// The attention probabilities `[B, H, N, N]`, without a gradient.
pub fn attention_weights(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    composed::attention_weights(&qkv.detach(), num_heads)
}

/// Non-overlapping patches, `[B, C, H, W]` to `[B, N, C*P*P]`, row-major.
pub fn patchify(xs: &Tensor, patch: usize) -> Result<Tensor> {
    composed::patchify(xs, patch)
}

/// ReLU with gradient 0 at 0.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    composed::relu(xs)
}

/// Max pooling with PyTorch's tie rule.
pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    composed::max_pool2d(xs, kernel, stride, padding)
}

/// Convolution without bias, groups or dilation; `weight [out, in, kh, kw]`.
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    composed::conv2d(xs, weight, stride, padding)
}

/// Batch normalisation with the batch's own statistics: `(ys, mean [C], unbiased variance [C])`.
pub fn batch_norm_train(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    composed::batch_norm_train(xs, weight, bias, eps)
}

/// Batch normalisation with given statistics.
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    composed::batch_norm_eval(xs, mean, var, weight, bias, eps)
}

/// Rows divided by their Euclidean norm, at least `eps`.
pub fn l2_normalize_last_dim(xs: &Tensor, eps: f64) -> Result<Tensor> {
    composed::l2_normalize_last_dim(xs, eps)
}
