//! A stack of pre-norm transformer blocks (Dosovitskiy et al. 2021) as one operation.
//!
//! On the CPU the forward and the backward pass are written by hand over buffers that are used
//! again ([`pass`]): images are cut into chunks, and a chunk goes through all blocks on one thread.
//! [`composed`] is the same out of this crate's other operations: the readable definition, what
//! other devices run, and what the fused passes are tested against.

mod branch;
pub(crate) mod composed;
mod pass;
mod saved;
mod weight_grads;

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::bundle::{Mailbox, bundle};
use crate::gemm::Precision;
use crate::host::{self, fused, slice, with_slice, with_slices};
use crate::locked::locked;
use crate::sink;
use pass::{Pass, Weights};
use saved::{Room, Saved};

/// The weights of one block, under timm's names; each pair is a weight and a bias.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Layer norm before attention, `[D]` each.
    pub norm1: (Tensor, Tensor),
    /// Queries, keys and values, `[3·D, D]` and `[3·D]`.
    pub qkv: (Tensor, Tensor),
    /// After attention, `[D, D]` and `[D]`.
    pub proj: (Tensor, Tensor),
    /// Layer norm before the MLP, `[D]` each.
    pub norm2: (Tensor, Tensor),
    /// `[F, D]` and `[F]`.
    pub fc1: (Tensor, Tensor),
    /// `[D, F]` and `[D]`.
    pub fc2: (Tensor, Tensor),
}

impl BlockWeights {
    /// All twelve, in the order of the fields.
    pub(crate) fn tensors(&self) -> [&Tensor; 12] {
        let [a, b, c, d, e, f] = [
            &self.norm1,
            &self.qkv,
            &self.proj,
            &self.norm2,
            &self.fc1,
            &self.fc2,
        ];
        [
            &a.0, &a.1, &b.0, &b.1, &c.0, &c.1, &d.0, &d.1, &e.0, &e.1, &f.0, &f.1,
        ]
    }
}

/// What the two residual branches of a block are multiplied by, image by image (drop path).
///
/// On the CPU an image does not go through a branch at all whose factor for it is zero.
#[derive(Clone, Debug, Default)]
pub struct BranchFactors {
    /// Of the attention branch; `None` leaves it as it is.
    pub attention: Option<Vec<f32>>,
    /// Of the MLP branch.
    pub mlp: Option<Vec<f32>>,
}

/// How a stack of blocks is run.
#[derive(Clone, Copy, Debug)]
pub struct BlockOptions {
    /// Attention heads, which divide the width.
    pub num_heads: usize,
    /// Of both layer norms.
    pub eps: f64,
    /// Only the first token leaves the last block, which therefore needs no other's queries,
    /// projection or MLP; exact where nothing else is looked at.
    pub class_token_only: bool,
    /// What the products of the linear layers are computed in. On a CUDA device bf16 also holds what
    /// goes from one to the next, attention included; elsewhere only the fused CPU passes know it.
    pub precision: Precision,
}

/// All blocks, one after the other.
///
/// `factors` has one entry for each block, or is empty.
///
/// # Shape
/// `xs`: `[B, N, D]`; the result is shaped alike, or `[B, D]` with `class_token_only`.
/// # Errors
/// If the shapes do not fit.
pub fn transformer_blocks(
    xs: &Tensor,
    blocks: &[BlockWeights],
    factors: &[BranchFactors],
    options: BlockOptions,
) -> Result<Tensor> {
    let (images, tokens, width) = xs.dims3()?;
    let hidden = check(width, blocks, factors, images, options)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::ops::has_stack(xs, blocks, options.num_heads) {
        return crate::cuda::ops::transformer_blocks(xs, blocks, factors, options, hidden);
    }
    let all: Vec<&Tensor> = blocks.iter().flat_map(BlockWeights::tensors).collect();
    let on_cpu = fused(&[xs]) && fused(&all) && all.iter().all(|weight| weight.is_contiguous());
    if !on_cpu || blocks.is_empty() {
        return composed::transformer_blocks(xs, blocks, factors, options);
    }
    let pass = Pass {
        images,
        tokens,
        width,
        hidden,
        options,
    };
    let mailbox = Mailbox::default();
    let token = bundle(&all, &mailbox)?;
    let op = Blocks {
        pass,
        keep: xs.track_op() || token.track_op(),
        blocks: blocks.to_vec(),
        factors: factors.to_vec(),
        saved: Mutex::new(None),
        mailbox,
    };
    xs.contiguous()?.apply_op2(&token, op)
}

/// Bytes that [`transformer_blocks`] takes on the CPU beside its input and its output if no gradient
/// is asked for and no factors are given: those of the chunks that so many threads have in hand.
///
/// # Shape
/// `[images, tokens, width]`, and the width inside the MLP.
pub fn transformer_blocks_bytes(
    [images, tokens, width]: [usize; 3],
    hidden: usize,
    options: BlockOptions,
    threads: usize,
) -> usize {
    if images == 0 || tokens == 0 {
        return 0;
    }
    let pass = Pass {
        images,
        tokens,
        width,
        hidden,
        options,
    };
    let size = pass.chunk_images();
    let at_once = images.div_ceil(size).min(threads.max(1));
    // A block and, if only the class token leaves the last one, that one's input beside it.
    let numbers = [false, true].map(|class_only| {
        let room = Room {
            class_only,
            ..Room::default()
        };
        let lens = Saved::lens(&pass, size, room);
        if class_only && !options.class_token_only {
            return 0;
        }
        lens.iter().sum()
    });
    numbers[0]
        .saturating_add(numbers[1])
        .saturating_mul(4 * at_once)
}

/// The hidden width, after all shapes were found to fit.
fn check(
    d: usize,
    blocks: &[BlockWeights],
    factors: &[BranchFactors],
    images: usize,
    options: BlockOptions,
) -> Result<usize> {
    if options.num_heads == 0 || !d.is_multiple_of(options.num_heads) {
        bail!(
            "transformer_blocks: {} heads do not divide {d}",
            options.num_heads
        );
    }
    if !factors.is_empty() && factors.len() != blocks.len() {
        let (blocks, factors) = (blocks.len(), factors.len());
        bail!("transformer_blocks: factors of {factors} blocks do not fit {blocks}");
    }
    for branch in factors
        .iter()
        .flat_map(|f| [&f.attention, &f.mlp])
        .flatten()
    {
        if branch.len() != images {
            let factors = branch.len();
            bail!("transformer_blocks: {factors} factors do not fit {images} images");
        }
    }
    let f = match blocks.first() {
        Some(block) => block.fc1.1.dims1()?,
        None => 0,
    };
    let shapes: [&[usize]; 12] = [
        &[d],
        &[d],
        &[3 * d, d],
        &[3 * d],
        &[d, d],
        &[d],
        &[d],
        &[d],
        &[f, d],
        &[f],
        &[d, f],
        &[d],
    ];
    for block in blocks {
        for (tensor, shape) in block.tensors().iter().zip(shapes) {
            if tensor.dims() != shape {
                let dims = tensor.dims();
                bail!("transformer_blocks: a weight is {dims:?} instead of {shape:?}");
            }
        }
    }
    Ok(f)
}

struct Blocks {
    pass: Pass,
    keep: bool,
    blocks: Vec<BlockWeights>,
    factors: Vec<BranchFactors>,
    /// What the backward pass needs, by chunk and block; taken by the first one.
    saved: Mutex<Option<Vec<Vec<Saved>>>>,
    mailbox: Mailbox,
}

impl Blocks {
    fn tensors(&self) -> Vec<&Tensor> {
        self.blocks.iter().flat_map(BlockWeights::tensors).collect()
    }

    /// Runs `f` on the weights of all blocks as slices.
    fn with_weights<R>(&self, f: impl FnOnce(&[Weights<'_>]) -> Result<R>) -> Result<R> {
        with_slices(&self.tensors(), |slices| {
            let (weights, _) = slices.as_chunks::<12>();
            let weights: Vec<Weights<'_>> = weights.iter().map(|w| Weights::new(*w)).collect();
            f(&weights)
        })
    }

    /// Adds the gradients of all weights to the sink, or leaves them in the mailbox.
    fn weight_grads(&self, saved: &[Vec<Saved>], sums: &[Vec<f32>], top: &[f32]) -> Result<()> {
        let ((), left) = sink::with_sums(&self.tensors(), |grads| {
            let (grads, _) = grads.as_chunks_mut::<12>();
            self.pass.weight_grads(saved, sums, top, grads);
        })?;
        self.mailbox.fill(left);
        Ok(())
    }
}

impl CustomOp2 for Blocks {
    fn name(&self) -> &'static str {
        "transformer-blocks"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        _token: &CpuStorage,
        _token_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let xs = slice(xs, layout)?;
        let (ys, saved) = self
            .with_weights(|weights| Ok(self.pass.forward(xs, weights, &self.factors, self.keep)))?;
        if self.keep {
            *locked(&self.saved) = Some(saved);
        }
        Ok((CpuStorage::F32(ys), self.pass.output_shape()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        token: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let kept = locked(&self.saved).take();
        let dx = self.with_weights(|weights| {
            let mut saved = match kept {
                Some(saved) => saved,
                // A second backward pass through the same graph.
                None => with_slice(xs, |xs| {
                    Ok(self.pass.forward(xs, weights, &self.factors, true).1)
                })?,
            };
            with_slice(&grad, |grad| {
                let (dx, sums) = self.pass.backward(&mut saved, weights, &self.factors, grad);
                self.weight_grads(&saved, &sums, grad)?;
                Ok(dx)
            })
        })?;
        let dx = match xs.track_op() {
            true => Some(host::tensor(dx, xs.shape())?),
            false => None,
        };
        Ok((
            dx,
            token.track_op().then(|| token.zeros_like()).transpose()?,
        ))
    }
}
