//! The vision transformer of DINOv2 (Oquab et al. 2023): register tokens, a learned scale after
//! each branch, SwiGLU in the largest. Names are timm's.

use candle_core::{Result, Tensor, bail};
use selfsame_kernels as kernels;

use crate::backbone::{Backbone, image_dims};
use crate::config::{MlpKind, ModelConfig, VitDims};
use crate::drop_path::DropPath;
use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use crate::mode::{Branch, Mode};
use crate::params::ParamBuilder;
use crate::vit::{PatchEmbed, PosEmbed, TRUNC_NORMAL};

/// A class token, register tokens, patches; the class token after the final norm is the feature.
#[derive(Debug)]
pub(crate) struct Dinov2 {
    dims: VitDims,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    /// `[1, R, D]`; they have no position.
    reg_token: Option<Tensor>,
    pos_embed: PosEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Dinov2 {
    pub(crate) fn new(
        config: &ModelConfig,
        dims: VitDims,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let d = dims.embed_dim;
        // dinov2/models/vision_transformer.py, init_weights
        let token = Init::Normal { std: 1e-6 };
        let blocks = (0..dims.depth)
            .map(|index| {
                let drop_path = DropPath::linear(config.drop_path_rate, index, dims.depth);
                Block::new(config, dims, drop_path, &params.pp("blocks").pp(index))
            })
            .collect::<Result<Vec<_>>>()?;
        let reg_token = match config.num_registers {
            0 => None,
            count => Some(params.weight("reg_token", (1, count, d), token)?),
        };
        Ok(Self {
            dims,
            patch_embed: PatchEmbed::new(
                d,
                config.patch_size,
                &params.pp("patch_embed").pp("proj"),
            )?,
            cls_token: params.weight("cls_token", (1, 1, d), token)?,
            reg_token,
            pos_embed: PosEmbed::new(d, config, params)?,
            blocks,
            norm: LayerNorm::new(d, &params.pp("norm"))?,
        })
    }

    fn num_registers(&self) -> Result<usize> {
        self.reg_token.as_ref().map_or(Ok(0), |token| token.dim(1))
    }

    /// `[B, 3, H, W]` to `[B, 1 + R + N, D]`: class token, registers, patches row by row.
    fn tokens(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, _, height, width) = image_dims(xs)?;
        let grid = self.patch_embed.grid(height, width)?;
        let patches = self.patch_embed.forward(xs)?;
        let cls = self.cls_token.expand((b, 1, self.dims.embed_dim))?;
        let xs =
            Tensor::cat(&[&cls, &patches], 1)?.broadcast_add(&self.pos_embed.for_grid(grid)?)?;
        let Some(reg_token) = &self.reg_token else {
            return Ok(xs);
        };
        let registers = reg_token.expand((b, reg_token.dim(1)?, self.dims.embed_dim))?;
        let (cls, patches) = (xs.narrow(1, 0, 1)?, xs.narrow(1, 1, xs.dim(1)? - 1)?);
        Tensor::cat(&[&cls, &registers, &patches], 1)
    }

    /// Class token `[B, D]` and patch tokens `[B, N, D]` after the final norm.
    fn normed(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let ys = self.norm.forward(xs)?;
        let first = 1 + self.num_registers()?;
        let patches = ys.narrow(1, first, ys.dim(1)? - first)?.contiguous()?;
        Ok((ys.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, patches))
    }

    /// Those of a block in evaluation mode.
    fn queries_keys_values(&self, xs: &Tensor, block: usize) -> Result<Tensor> {
        let depth = self.blocks.len();
        if block >= depth {
            bail!("asked for the attention of block {block} of {depth}")
        }
        let mut xs = self.tokens(xs)?;
        for earlier in &self.blocks[..block] {
            xs = earlier.forward(&xs, &Mode::Eval, 0)?;
        }
        let block = &self.blocks[block];
        block.qkv.forward(&block.norm1.forward(&xs)?)
    }

    /// Attention without what the registers give or get along a dimension.
    fn without_registers(&self, maps: Tensor, dim: usize) -> Result<Tensor> {
        let first = 1 + self.num_registers()?;
        if first == 1 {
            return Ok(maps);
        }
        let patches = maps.narrow(dim, first, maps.dim(dim)? - first)?;
        Tensor::cat(&[&maps.narrow(dim, 0, 1)?, &patches], dim)
    }
}

impl Backbone for Dinov2 {
    fn embed_dim(&self) -> usize {
        self.dims.embed_dim
    }

    fn forward_group(&self, xs: &Tensor, mode: &Mode, group: usize) -> Result<Tensor> {
        let mut xs = self.tokens(xs)?;
        for block in &self.blocks {
            xs = block.forward(&xs, mode, group)?;
        }
        self.norm
            .forward(&xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)
    }

    fn intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<(Tensor, Tensor)>> {
        let depth = self.blocks.len();
        if n == 0 || n > depth {
            bail!("asked for the last {n} layers of {depth}")
        }
        let mut xs = self.tokens(xs)?;
        let mut layers = Vec::with_capacity(n);
        for (index, block) in self.blocks.iter().enumerate() {
            xs = block.forward(&xs, &Mode::Eval, 0)?;
            if index + n >= depth {
                layers.push(self.normed(&xs)?);
            }
        }
        Ok(layers)
    }

    fn attention_maps(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>> {
        let qkv = self.queries_keys_values(xs, block)?;
        let mut maps = kernels::attention_weights(&qkv, self.blocks[block].num_heads)?;
        for dim in [2, 3] {
            maps = self.without_registers(maps, dim)?;
        }
        Ok(Some(maps))
    }

    fn class_attention(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>> {
        let qkv = self.queries_keys_values(xs, block)?;
        let row = kernels::first_token_attention(&qkv, self.blocks[block].num_heads)?;
        self.without_registers(row, 2).map(Some)
    }

    fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        let p = self.patch_embed.patch_size;
        let registers = self.num_registers().unwrap_or(0);
        let tokens = 1 + registers + (height / p) * (width / p);
        // Per token: what crosses the layers of a block, where every operation keeps its input
        // and SwiGLU's halves count too, and its row of attention weights.
        let floats = 30 * self.dims.embed_dim + self.dims.num_heads * tokens;
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
        let registers = self.num_registers().unwrap_or(0);
        let tokens = 1 + registers + (height / p) * (width / p);
        let product =
            |factors: &[usize]| factors.iter().fold(4, |a: usize, b| a.saturating_mul(*b));
        // Between two operations of the MLP: before it, its hidden layer and what is made of it.
        let batch = product(&[images, tokens, 12 * d]).max(product(&[images, 3, height, width]));
        // The heads of an image, on each thread.
        let at_once = images.min(threads.max(1));
        let attention = product(&[at_once, self.dims.num_heads, tokens, tokens]);
        let positions = product(&[tokens, self.pos_embed.num_patches()]);
        batch.saturating_add(attention).saturating_add(positions)
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn patch_size(&self) -> usize {
        self.patch_embed.patch_size
    }
}

/// A pre-norm block whose branches are scaled per channel before they are added.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    ls1: Option<Tensor>,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    ls2: Option<Tensor>,
    mlp: MlpKind,
    num_heads: usize,
    drop_path: DropPath,
}

impl Block {
    fn new(
        config: &ModelConfig,
        dims: VitDims,
        drop_path: DropPath,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let d = dims.embed_dim;
        let (attn, mlp) = (params.pp("attn"), params.pp("mlp"));
        let linear = |dims, params: ParamBuilder<'_>| {
            Linear::new(dims, (TRUNC_NORMAL, Init::ZEROS), &params)
        };
        let scale = |name: &str| match config.layer_scale {
            0.0 => Ok(None),
            value => {
                let params = params.pp(name);
                params.weight("gamma", d, Init::Constant(value)).map(Some)
            }
        };
        let (wide, hidden) = match config.mlp {
            MlpKind::Gelu => (4 * d, 4 * d),
            MlpKind::Swiglu => (2 * swiglu_dim(d), swiglu_dim(d)),
        };
        Ok(Self {
            norm1: LayerNorm::new(d, &params.pp("norm1"))?,
            qkv: linear((d, 3 * d), attn.pp("qkv"))?,
            proj: linear((d, d), attn.pp("proj"))?,
            ls1: scale("ls1")?,
            norm2: LayerNorm::new(d, &params.pp("norm2"))?,
            fc1: linear((d, wide), mlp.pp("fc1"))?,
            fc2: linear((hidden, d), mlp.pp("fc2"))?,
            ls2: scale("ls2")?,
            mlp: config.mlp,
            num_heads: dims.num_heads,
            drop_path,
        })
    }

    fn forward(&self, xs: &Tensor, mode: &Mode, group: usize) -> Result<Tensor> {
        let drop = |ys: Tensor, branch| -> Result<Tensor> {
            let rows = ys.dim(0)?;
            match self.drop_path.factors(rows, mode, group, branch) {
                None => Ok(ys),
                Some(factors) => {
                    ys.broadcast_mul(&Tensor::from_vec(factors, (rows, 1, 1), ys.device())?)
                }
            }
        };
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?)?;
        let ys = self
            .proj
            .forward(&kernels::attention(&qkv, self.num_heads)?)?;
        let xs = (xs + drop(scaled(ys, &self.ls1)?, Branch::Attention)?)?;
        let ys = self.fc1.forward(&self.norm2.forward(&xs)?)?;
        let ys = match self.mlp {
            MlpKind::Gelu => kernels::gelu(&ys)?,
            MlpKind::Swiglu => {
                let halves = ys.chunk(2, candle_core::D::Minus1)?;
                (halves[0].contiguous()?.silu()? * halves[1].contiguous()?)?
            }
        };
        let ys = self.fc2.forward(&ys)?;
        &xs + drop(scaled(ys, &self.ls2)?, Branch::Mlp)?
    }
}

fn scaled(ys: Tensor, gamma: &Option<Tensor>) -> Result<Tensor> {
    match gamma {
        Some(gamma) => ys.broadcast_mul(gamma),
        None => Ok(ys),
    }
}

/// Width inside a SwiGLU block: two thirds of four times the outer one, rounded up to a multiple
/// of 8 (dinov2/layers/swiglu_ffn.py, SwiGLUFFNFused).
fn swiglu_dim(embed_dim: usize) -> usize {
    (4 * embed_dim * 2 / 3).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_dinov2_giant_is_4096() {
        assert_eq!(swiglu_dim(1536), 4096);
        assert_eq!(swiglu_dim(32), 88);
    }
}
