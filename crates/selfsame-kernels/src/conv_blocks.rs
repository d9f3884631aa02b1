//! A stack of convolution blocks as one operation: a whole ResNet (He et al. 2016).
//!
//! On the CPU channels lie side by side from the first convolution to the last ([`channels_last`]),
//! so that 1×1 convolutions are products of the maps as they are. What is between two products is
//! done while the results are in the cache where that is possible: sums for batch norm, the mask of
//! a ReLU ([`products`]). Maps lie in one buffer that is used again.
//! In evaluation nothing is kept, and each batch norm is part of the convolution before it
//! ([`evaluate`]).
//! CUDA devices do the same by kernels (`cuda/ops/conv_blocks.rs`).
//! [`conv_block_train`] or [`crate::conv_block_eval`] and [`max_pool2d`] one after the other are the
//! same, and what runs elsewhere.

mod backward;
mod channels_last;
mod evaluate;
mod norm;
mod pass;
mod plan;
mod pool;
mod products;
mod weight_grads;
mod weights;

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::bundle::{Mailbox, bundle};
use crate::conv_block::{ConvNorm, Shortcut, Statistics, conv_block_train, layers};
use crate::gemm::Precision;
use crate::host::{self, fused, slice, with_slice, with_slices};
use crate::locked::locked;
use crate::max_pool::max_pool2d;
use crate::sink;
pub use evaluate::conv_blocks_eval;
use pass::{Kept, Weights};
use plan::Plan;

/// What [`conv_block_train`] takes, and the pooling behind it.
#[derive(Debug, Clone)]
pub struct ConvBlock<'a> {
    /// One after the other.
    pub branch: Vec<ConvNorm<'a>>,
    /// Added before the last ReLU.
    pub shortcut: Shortcut<ConvNorm<'a>>,
    /// What the result goes through.
    pub pool: Option<MaxPool>,
}

/// What [`max_pool2d`] takes.
#[derive(Debug, Clone, Copy)]
pub struct MaxPool {
    /// Positions of a window's side.
    pub kernel: usize,
    /// Between windows.
    pub stride: usize,
    /// Of −∞ on all sides.
    pub padding: usize,
}

impl<'a> ConvBlock<'a> {
    /// In the order of the statistics.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &ConvNorm<'a>> {
        layers(&self.branch, &self.shortcut)
    }
}

/// All blocks, one after the other, with the batch's statistics in each batch norm.
///
/// Returns the result and the statistics of all blocks, as [`conv_block_train`] does for each.
/// On CUDA devices with bf16 factors, all maps from the first convolution on and their gradients are
/// rounded to bf16, as under PyTorch's autocast; sums, statistics, what is computed between two maps
/// and the gradients of weights are f32.
///
/// # Shape
/// `xs`: `[B, C, H, W]`; the result is that of the last block.
/// # Errors
/// Those of [`conv_block_train`] and of [`max_pool2d`].
pub fn conv_blocks_train(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    eps: f64,
    precision: Precision,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    let tensors = weights_of(blocks);
    #[cfg(feature = "cuda")]
    if crate::cuda::ops::has_conv_blocks(xs, blocks) {
        return crate::cuda::ops::conv_blocks_train(xs, blocks, eps, precision);
    }
    let is_plain = tensors.iter().all(|weight| weight.is_contiguous());
    if tensors.is_empty() || !is_plain || !fused(&[xs]) || !fused(&tensors) {
        return one_by_one(xs, blocks, eps, precision);
    }
    if precision != Precision::F32 {
        bail!("conv_blocks: {precision:?} is for f32 images on CUDA devices");
    }
    let plan = Plan::new(xs.dims4()?, blocks, Statistics::Batch)?;
    let mailbox = Mailbox::default();
    let token = bundle(&tensors, &mailbox)?;
    let norms = Arc::default();
    let op = ConvBlocks {
        plan,
        eps,
        keep: xs.track_op() || token.track_op(),
        weights: tensors.into_iter().cloned().collect(),
        kept: Mutex::new(None),
        stats: Arc::clone(&norms),
        mailbox,
    };
    let ys = xs.contiguous()?.apply_op2(&token, op)?;
    let stats = std::mem::take(&mut *locked(&norms));
    let stats = stats.into_iter().map(|[mean, variance]| {
        let shape = Shape::from(mean.len());
        Ok([host::tensor(mean, &shape)?, host::tensor(variance, &shape)?])
    });
    Ok((ys, stats.collect::<Result<_>>()?))
}

/// Out of this crate's other operations.
fn one_by_one(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    eps: f64,
    precision: Precision,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    let (mut ys, mut stats) = (xs.clone(), Vec::new());
    for block in blocks {
        let (next, own) = conv_block_train(&ys, &block.branch, block.shortcut, eps, precision)?;
        stats.extend(own);
        ys = match block.pool {
            None => next,
            Some(pool) => max_pool2d(&next, pool.kernel, pool.stride, pool.padding)?,
        };
    }
    Ok((ys, stats))
}

/// Three for each layer: of the convolution, weight and bias of the batch norm.
pub(crate) fn weights_of<'t>(blocks: &[ConvBlock<'t>]) -> Vec<&'t Tensor> {
    let layers = blocks.iter().flat_map(ConvBlock::layers);
    let tensors = layers.flat_map(|of| [of.weight, of.norm[0], of.norm[1]]);
    tensors.collect()
}

struct ConvBlocks {
    plan: Plan,
    eps: f64,
    keep: bool,
    /// Three for each layer.
    weights: Vec<Tensor>,
    /// Taken by the first backward pass.
    kept: Mutex<Option<Kept>>,
    /// Mean and unbiased variance by layer, of the forward pass.
    stats: Arc<Mutex<Vec<[Vec<f32>; 2]>>>,
    mailbox: Mailbox,
}

impl ConvBlocks {
    /// Runs `f` on all weights as slices.
    fn with_weights<R>(&self, f: impl FnOnce(&[Weights<'_>]) -> Result<R>) -> Result<R> {
        let weights: Vec<&Tensor> = self.weights.iter().collect();
        with_slices(&weights, |slices| f(slices.as_chunks().0))
    }

    /// Runs `f` on sums of the gradients of all weights, which go to the sink or the mailbox.
    fn with_grads<R>(&self, f: impl FnOnce(&mut [[Vec<f32>; 3]]) -> R) -> Result<R> {
        let weights: Vec<&Tensor> = self.weights.iter().collect();
        let (result, left) = sink::with_sums(&weights, |sums| f(sums.as_chunks_mut().0))?;
        self.mailbox.fill(left);
        Ok(result)
    }
}

impl CustomOp2 for ConvBlocks {
    fn name(&self) -> &'static str {
        "conv-blocks"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        _token: &CpuStorage,
        _token_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let xs = slice(xs, layout)?;
        let (ys, kept) =
            self.with_weights(|weights| Ok(self.plan.forward(xs, weights, self.eps)))?;
        let stats = kept.norms.iter();
        let stats = stats.map(|norm| [norm.mean.clone(), norm.variance.clone()]);
        *locked(&self.stats) = stats.collect();
        if self.keep {
            *locked(&self.kept) = Some(kept);
        }
        Ok((CpuStorage::F32(ys), self.plan.shape()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        token: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let kept = locked(&self.kept).take();
        let dx = self.with_weights(|weights| {
            let mut kept = match kept {
                Some(kept) => kept,
                // A second backward pass through the same graph.
                None => with_slice(xs, |xs| Ok(self.plan.forward(xs, weights, self.eps).1))?,
            };
            with_slice(&grad, |grad| {
                self.with_grads(|grads| {
                    let need_dx = xs.track_op();
                    self.plan.backward(&mut kept, weights, grad, grads, need_dx)
                })
            })
        })?;
        let dx = dx.map(|dx| host::tensor(dx, xs.shape())).transpose()?;
        let of_token = token.track_op().then(|| token.zeros_like()).transpose()?;
        Ok((dx, of_token))
    }
}
