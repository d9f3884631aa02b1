//! A stack of transformer blocks out of this crate's other operations.

use candle_core::{DType, Result, Tensor};

use super::{BlockOptions, BlockWeights, BranchFactors};
use crate::gemm::Precision;
use crate::layer_norm::layer_norm_as;
use crate::{attention, linear, linear_gelu};

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
    // What goes into matrix products; the branches are added up in the type that came in.
    let factors_dtype = match options.precision {
        Precision::Bf16 if xs.device().is_cuda() => DType::BF16,
        _ => xs.dtype(),
    };
    let norm = |xs: &Tensor, (w, b): &(Tensor, Tensor)| {
        layer_norm_as(xs, w, b, options.eps, factors_dtype)
    };
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
    let mixed = dense(&mixed, &block.proj)?.to_dtype(xs.dtype())?;
    let xs = (xs + scaled(mixed, factors.attention.as_deref())?)?;
    let (weight, bias) = &block.fc1;
    let ys = linear_gelu(&norm(&xs, &block.norm2)?, weight, Some(bias))?;
    let ys = dense(&ys, &block.fc2)?.to_dtype(xs.dtype())?;
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
