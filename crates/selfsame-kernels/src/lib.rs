//! Differentiable operations that candle lacks or does slowly on a CPU, and in-place updates of
//! parameters.
//! In f32 on a CPU each has a hand-written forward and backward pass, compiled for several
//! instruction sets and chosen at run time; with the feature `cuda` those of transformers, their
//! loss and their optimizer have kernels in f32 and bf16, and so have those of ResNets, whose maps
//! are bf16 too where a whole ResNet is one operation. Elsewhere they are composed of candle's operations ([`composed`]).
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//! use selfsame_kernels as kernels;
//!
//! # fn main() -> Result<()> {
//! let xs = Tensor::randn(0f32, 1.0, (2, 5, 8), &Device::Cpu)?;
//! let weight = Var::randn(0f32, 0.1, (24, 8), &Device::Cpu)?;
//! let qkv = kernels::linear(&xs, &weight, None)?;
//! let ys = kernels::attention(&qkv, 2)?;
//! assert_eq!(ys.dims(), [2, 5, 8]);
//! let grads = ys.sqr()?.sum_all()?.backward()?;
//! assert!(grads.get(&weight).is_some());
//! # Ok(())
//! # }
//! ```
//!
//! Results have the same bits for any number of threads; between instruction sets they may differ
//! in the last ones.
//! This crate does not know what a network, a layer or a parameter name is, and between calls it
//! keeps nothing but free buffers.

mod attention;
mod batch_norm;
mod blocks;
mod buffers;
mod bundle;
pub mod composed;
mod conv2d;
mod conv_block;
mod conv_blocks;
mod crops;
mod cross_entropy;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod device_memory;
mod gelu;
mod gemm;
mod host;
mod layer_norm;
mod linear;
mod locked;
mod max_pool;
pub mod multi_tensor;
mod normalize;
mod normalized_linear;
mod patchify;
mod relu;
mod simd;
mod sink;
mod softmax;
#[cfg(test)]
mod testing;
mod upload;

pub use attention::{attention, attention_weights, first_token_attention};
pub use batch_norm::{
    AfterNorm, batch_norm_eval, batch_norm_eval_then, batch_norm_train, batch_norm_train_then,
};
pub use blocks::{
    BlockOptions, BlockWeights, BranchFactors, transformer_blocks, transformer_blocks_bytes,
};
pub use conv_block::{ConvNorm, Shortcut, conv_block_eval, conv_block_train};
pub use conv_blocks::{ConvBlock, MaxPool, conv_blocks_eval, conv_blocks_train};
pub use conv2d::conv2d;
pub use crops::normalize_crops;
pub use cross_entropy::{soft_cross_entropy, soft_cross_entropy_rows};
pub use device_memory::{check_device, device_memory, keep_freed_memory};
pub use gelu::gelu;
pub use gemm::Precision;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_gelu};
pub use max_pool::max_pool2d;
pub use normalize::l2_normalize_last_dim;
pub use normalized_linear::normalized_linear;
pub use patchify::{has_patch_tokens, patch_tokens, patchify};
pub use relu::relu;
pub use sink::GradSink;
pub use softmax::{centered_softmax, log_softmax_last_dim, softmax_last_dim};
pub use upload::CropUploader;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
