//! A stack of transformer blocks out of this crate's other operations.

use candle_core::{Result, Tensor};

use super::{BlockOptions, BlockWeights, BranchFactors};
use crate::{attention, gelu, layer_norm, linear};

/// See [`crate::transformer_blocks`].
pub fn transformer_blocks(
    xs: &Tensor,
    blocks: &[BlockWeights],
    factors: &[BranchFactors],
    options: BlockOptions,
) -> Result<Tensor> {
    let unscaled = BranchFactors::default();
    let mut xs = xs.clone();
    for (index, block) in blocks.iter().enumerate() {
        let factors = factors.get(index).unwrap_or(&unscaled);
        let class_only = options.class_token_only && index + 1 == blocks.len();
        xs = transformer_block(&xs, block, factors, options, class_only)?;
    }
    match options.class_token_only {
        true => xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous(),
        false => Ok(xs),
    }
}

fn transformer_block(
    xs: &Tensor,
    block: &BlockWeights,
    factors: &BranchFactors,
    options: BlockOptions,
    class_only: bool,
) -> Result<Tensor> {
    let norm = |xs: &Tensor, (w, b): &(Tensor, Tensor)| layer_norm(xs, w, b, options.eps);
    let dense = |xs: &Tensor, (w, b): &(Tensor, Tensor)| linear(xs, w, Some(b));

    let qkv = dense(&norm(xs, &block.norm1)?, &block.qkv)?;
    let mixed = attention(&qkv, options.num_heads)?;
    let (xs, mixed) = match class_only {
        false => (xs.clone(), mixed),
        true => (
            xs.narrow(1, 0, 1)?.contiguous()?,
            mixed.narrow(1, 0, 1)?.contiguous()?,
        ),
    };
    let xs = (xs + scaled(dense(&mixed, &block.proj)?, factors.attention.as_deref())?)?;
    let ys = dense(&norm(&xs, &block.norm2)?, &block.fc1)?;
    let ys = dense(&gelu(&ys)?, &block.fc2)?;
    xs + scaled(ys, factors.mlp.as_deref())?
}

/// Each image of `[B, N, D]` times its factor.
fn scaled(xs: Tensor, factors: Option<&[f32]>) -> Result<Tensor> {
    match factors {
        None => Ok(xs),
        Some(factors) => {
            let factors = Tensor::from_slice(factors, (factors.len(), 1, 1), xs.device())?;
            xs.broadcast_mul(&factors.to_dtype(xs.dtype())?)
        }
    }
}
