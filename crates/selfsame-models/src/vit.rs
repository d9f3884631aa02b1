//! The vision transformer (Dosovitskiy et al. 2021) under timm's parameter names.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use selfsame_kernels::{self as kernels, BlockOptions, BlockWeights, BranchFactors, Precision};

use crate::backbone::{Backbone, image_dims};
use crate::config::{InitForm, ModelConfig, PosEmbedResample, VitDims};
use crate::drop_path::DropPath;
use crate::init::Init;
use crate::layers::{LAYER_NORM_EPS, LayerNorm};
use crate::mode::{Branch, Mode};
use crate::params::ParamBuilder;
use crate::pos_embed::{Grid, resample_matrix};

pub(crate) const TRUNC_NORMAL: Init = Init::TruncNormal { std: 0.02 };

/// Patches, a class token, pre-norm blocks; the class token after the final norm is the feature.
#[derive(Debug)]
pub(crate) struct VisionTransformer {
    dims: VitDims,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: PosEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    precision: Precision,
}

impl VisionTransformer {
    pub(crate) fn new(
        config: &ModelConfig,
        dims: VitDims,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let d = dims.embed_dim;
        let cls_init = match config.init {
            InitForm::Official => TRUNC_NORMAL,
            InitForm::Auto | InitForm::Timm => Init::Normal { std: 1e-6 },
        };
        let blocks = (0..dims.depth)
            .map(|index| {
                let drop_path = DropPath::linear(config.drop_path_rate, index, dims.depth);
                Block::new(d, dims.num_heads, drop_path, &params.pp("blocks").pp(index))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            dims,
            patch_embed: PatchEmbed::new(
                d,
                config.patch_size,
                &params.pp("patch_embed").pp("proj"),
            )?,
            cls_token: params.weight("cls_token", (1, 1, d), cls_init)?,
            pos_embed: PosEmbed::new(d, config, params)?,
            blocks,
            norm: LayerNorm::new(d, &params.pp("norm"))?,
            precision: Precision::F32,
        })
    }

    /// `[B, 3, H, W]` to `[B, 1 + N, D]`: class token first, then patches row by row.
    fn tokens(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, _, height, width) = image_dims(xs)?;
        let grid = self.patch_embed.grid(height, width)?;
        if kernels::has_patch_tokens(xs, self.dims.embed_dim) {
            return self.tokens_at_once(xs, grid);
        }
        let patches = self.patch_embed.forward(xs)?;
        let cls = self.cls_token.expand((b, 1, self.dims.embed_dim))?;
        Tensor::cat(&[&cls, &patches], 1)?.broadcast_add(&self.pos_embed.for_grid(grid)?)
    }

    /// The same by one product; all that is added to it is put together first.
    fn tokens_at_once(&self, xs: &Tensor, grid: Grid) -> Result<Tensor> {
        let PatchEmbed {
            weight,
            bias,
            patch_size,
        } = &self.patch_embed;
        let offsets = self.pos_embed.for_grid(grid)?.squeeze(0)?;
        let n = offsets.dim(0)? - 1;
        let first = (offsets.narrow(0, 0, 1)? + self.cls_token.squeeze(0)?)?;
        let others = offsets.narrow(0, 1, n)?.broadcast_add(bias)?;
        let offsets = Tensor::cat(&[&first, &others], 0)?;
        let weight = weight.flatten_from(1)?;
        kernels::patch_tokens(xs, &weight, &offsets, *patch_size, self.precision)
    }

    /// What goes into a block in evaluation mode, `[B, N, D]`.
    fn before(&self, xs: &Tensor, block: usize) -> Result<Tensor> {
        let depth = self.blocks.len();
        if block >= depth {
            bail!("asked for the attention of block {block} of {depth}")
        }
        let xs = self.tokens(xs)?;
        self.through(&self.blocks[..block], &xs, &Mode::Eval, 0, false)
    }

    /// Tokens `[B, N, D]` after some of the blocks; with `class_token_only` just the first,
    /// `[B, D]`.
    fn through(
        &self,
        blocks: &[Block],
        xs: &Tensor,
        mode: &Mode,
        group: usize,
        class_token_only: bool,
    ) -> Result<Tensor> {
        let rows = xs.dim(0)?;
        let factors = |block: &Block, branch| block.drop_path.factors(rows, mode, group, branch);
        let factors: Vec<BranchFactors> = blocks
            .iter()
            .map(|block| BranchFactors {
                attention: factors(block, Branch::Attention),
                mlp: factors(block, Branch::Mlp),
            })
            .collect();
        let none = factors
            .iter()
            .all(|f| f.attention.is_none() && f.mlp.is_none());
        let weights: Vec<BlockWeights> = blocks.iter().map(|b| b.weights.clone()).collect();
        let options = BlockOptions {
            num_heads: self.dims.num_heads,
            eps: LAYER_NORM_EPS,
            class_token_only,
            precision: self.precision,
        };
        let factors = if none { &[] } else { factors.as_slice() };
        kernels::transformer_blocks(xs, &weights, factors, options)
    }
}

impl Backbone for VisionTransformer {
    fn embed_dim(&self) -> usize {
        self.dims.embed_dim
    }

    fn forward_group(&self, xs: &Tensor, mode: &Mode, group: usize) -> Result<Tensor> {
        // Only the class token leaves the last block, so only its row goes through the rest.
        let xs = self.through(&self.blocks, &self.tokens(xs)?, mode, group, true)?;
        self.norm.forward(&xs)
    }

    fn intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<(Tensor, Tensor)>> {
        let depth = self.blocks.len();
        if n == 0 || n > depth {
            bail!("asked for the last {n} layers of {depth}")
        }
        let mut xs = self.tokens(xs)?;
        let mut layers = Vec::with_capacity(n);
        for (index, block) in self.blocks.iter().enumerate() {
            xs = self.through(std::slice::from_ref(block), &xs, &Mode::Eval, 0, false)?;
            if index + n >= depth {
                let ys = self.norm.forward(&xs)?;
                let patches = ys.narrow(1, 1, ys.dim(1)? - 1)?.contiguous()?;
                layers.push((ys.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, patches));
            }
        }
        Ok(layers)
    }

    fn attention_maps(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>> {
        let xs = self.before(xs, block)?;
        let block = &self.blocks[block];
        kernels::attention_weights(&block.queries_keys_values(&xs)?, block.num_heads).map(Some)
    }

    fn class_attention(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>> {
        let xs = self.before(xs, block)?;
        let block = &self.blocks[block];
        kernels::first_token_attention(&block.queries_keys_values(&xs)?, block.num_heads).map(Some)
    }

    fn use_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        let p = self.patch_embed.patch_size;
        let tokens = 1 + (height / p) * (width / p);
        // Per token: what crosses the layers of a block, and its row of attention weights.
        let floats = 17 * self.dims.embed_dim + self.dims.num_heads * tokens;
        (4 * tokens)
            .saturating_mul(floats)
            .saturating_mul(self.blocks.len())
    }

    fn bytes_to_evaluate(
        &self,
        images: usize,
        [height, width]: [usize; 2],
        threads: usize,
    ) -> usize {
        let (d, p) = (self.dims.embed_dim, self.patch_embed.patch_size);
        let tokens = 1 + (height / p) * (width / p);
        let product =
            |factors: &[usize]| factors.iter().fold(4, |a: usize, b| a.saturating_mul(*b));
        // The images as rows of patches, what the product makes of them, and with positions.
        let embedding =
            product(&[images, 3, height, width]).saturating_add(product(&[images, tokens, 2 * d]));
        let options = BlockOptions {
            num_heads: self.dims.num_heads,
            eps: LAYER_NORM_EPS,
            class_token_only: true,
            precision: self.precision,
        };
        let in_hand =
            kernels::transformer_blocks_bytes([images, tokens, d], 4 * d, options, threads);
        // Input and output, or queries, keys and values of a whole block for attention maps.
        let blocks = product(&[images, tokens, 2 * d]).saturating_add(in_hand);
        let positions = product(&[tokens, self.pos_embed.num_patches()]);
        embedding.max(blocks).saturating_add(positions)
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn patch_size(&self) -> usize {
        self.patch_embed.patch_size
    }
}

/// A convolution whose stride is its kernel, done as one matrix product over patches.
#[derive(Debug)]
pub(crate) struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
    pub(crate) patch_size: usize,
}

impl PatchEmbed {
    /// Both references leave this layer at PyTorch's default.
    pub(crate) fn new(
        embed_dim: usize,
        patch_size: usize,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let init = Init::pytorch_default(3 * patch_size * patch_size);
        Ok(Self {
            weight: params.weight("weight", (embed_dim, 3, patch_size, patch_size), init)?,
            bias: params.weight("bias", embed_dim, init)?,
            patch_size,
        })
    }

    pub(crate) fn grid(&self, height: usize, width: usize) -> Result<Grid> {
        let p = self.patch_size;
        let fits = |side: usize| side > 0 && side.is_multiple_of(p);
        if !fits(height) || !fits(width) {
            bail!("an image of {height}x{width} is not a whole number of patches of {p}")
        }
        Ok((height / p, width / p))
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let patches = kernels::patchify(xs, self.patch_size)?;
        kernels::linear(&patches, &self.weight.flatten_from(1)?, Some(&self.bias))
    }
}

/// Resampling matrices that are kept: as many sizes as a run has, which goes from one to the other.
/// Pictures at their own sizes have no end of them.
const MOST_MATRICES: usize = 3;

/// Learned position embeddings, with the resampling matrices of the other sizes seen last.
#[derive(Debug)]
pub(crate) struct PosEmbed {
    /// `[1, 1 + N, D]`, the class token's first.
    values: Tensor,
    grid: Grid,
    resample: PosEmbedResample,
    /// The one used last at the end.
    matrices: Mutex<Vec<(Grid, Tensor)>>,
}

impl PosEmbed {
    pub(crate) fn new(
        embed_dim: usize,
        config: &ModelConfig,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let side = config.image_size / config.patch_size;
        Ok(Self {
            values: params.weight("pos_embed", (1, 1 + side * side, embed_dim), TRUNC_NORMAL)?,
            grid: (side, side),
            resample: config.pos_embed_resample,
            matrices: Mutex::default(),
        })
    }

    /// `[1, 1 + rows * columns, D]`.
    pub(crate) fn for_grid(&self, grid: Grid) -> Result<Tensor> {
        if grid == self.grid {
            return Ok(self.values.clone());
        }
        let tokens = self.values.dim(1)?;
        let patches = self
            .values
            .narrow(1, 1, tokens - 1)?
            .squeeze(0)?
            .contiguous()?;
        let patches = self.matrix(grid)?.matmul(&patches)?.unsqueeze(0)?;
        Tensor::cat(&[&self.values.narrow(1, 0, 1)?, &patches], 1)
    }

    /// Patches that the embeddings were learned for: a matrix that resamples them has as many
    /// columns.
    pub(crate) fn num_patches(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    fn matrix(&self, grid: Grid) -> Result<Tensor> {
        let mut matrices = self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
        let matrix = match matrices.iter().position(|(kept, _)| *kept == grid) {
            Some(at) => matrices.remove(at).1,
            None => {
                if matrices.len() == MOST_MATRICES {
                    matrices.remove(0);
                }
                let shape = (grid.0 * grid.1, self.num_patches());
                let matrix = resample_matrix(self.resample, self.grid, grid);
                Tensor::from_vec(matrix, shape, self.values.device())?
            }
        };
        matrices.push((grid, matrix.clone()));
        Ok(matrix)
    }
}

/// A pre-norm transformer block: attention and MLP, each with a residual and drop path.
#[derive(Debug)]
struct Block {
    weights: BlockWeights,
    num_heads: usize,
    drop_path: DropPath,
}

impl Block {
    fn new(
        d: usize,
        num_heads: usize,
        drop_path: DropPath,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let (attn, mlp) = (params.pp("attn"), params.pp("mlp"));
        let norm = |params: ParamBuilder<'_>| -> Result<_> {
            let weight = params.weight("weight", d, Init::ONES)?;
            Ok((weight, params.weight("bias", d, Init::ZEROS)?))
        };
        let linear = |(input, output): (usize, usize), params: ParamBuilder<'_>| -> Result<_> {
            let weight = params.weight("weight", (output, input), TRUNC_NORMAL)?;
            Ok((weight, params.weight("bias", output, Init::ZEROS)?))
        };
        let weights = BlockWeights {
            norm1: norm(params.pp("norm1"))?,
            qkv: linear((d, 3 * d), attn.pp("qkv"))?,
            proj: linear((d, d), attn.pp("proj"))?,
            norm2: norm(params.pp("norm2"))?,
            fc1: linear((d, 4 * d), mlp.pp("fc1"))?,
            fc2: linear((4 * d, d), mlp.pp("fc2"))?,
        };
        Ok(Self {
            weights,
            num_heads,
            drop_path,
        })
    }

    fn queries_keys_values(&self, xs: &Tensor) -> Result<Tensor> {
        let (norm, qkv) = (&self.weights.norm1, &self.weights.qkv);
        let xs = kernels::layer_norm(xs, &norm.0, &norm.1, LAYER_NORM_EPS)?;
        kernels::linear(&xs, &qkv.0, Some(&qkv.1))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_matrices_of_the_grids_used_last_are_kept_and_no_others() {
        let positions = PosEmbed {
            values: Tensor::zeros((1, 17, 2), DType::F32, &Device::Cpu).unwrap(),
            grid: (4, 4),
            resample: PosEmbedResample::Hf,
            matrices: Mutex::default(),
        };
        for side in 6..20 {
            for grid in [(side, 5), (5, 5)] {
                let resampled = positions.for_grid(grid).unwrap();
                assert_eq!(resampled.dims(), [1, 1 + grid.0 * grid.1, 2]);
            }
        }
        let kept = positions.matrices.lock().unwrap();
        let grids: Vec<Grid> = kept.iter().map(|(grid, _)| *grid).collect();
        assert_eq!(grids, [(18, 5), (19, 5), (5, 5)]);
    }
}
