//! The same weights in candle-transformers' models: a second opinion by other hands.
//!
//! They evaluate only, at their native size, and give no attention maps. Where they differ:
//! DINOv2 there has the tanh form of GELU and layer norms with an eps of 1e-5 where the published
//! models (dinov2/models/vision_transformer.py, dinov2/layers/block.py) have the erf form and
//! 1e-6, takes pictures of 518 pixels in patches of 14, one at a time, no registers and no SwiGLU.
//! ViT there has
//! no difference beyond rounding.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::{LayerNorm, VarBuilder, layer_norm};
use candle_transformers::models::{dinov2, vit};

use crate::backbone::Backbone;
use crate::config::{MlpKind, ModelConfig, VitDims};
use crate::error::ModelError;
use crate::interop::to_hf;
use crate::layers::LAYER_NORM_EPS;
use crate::mode::Mode;
use crate::params::ParamStore;

/// Side of candle-transformers' DINOv2 pictures and of their patches, in pixels.
const DINOV2_SIZES: (usize, usize) = (518, 14);

/// Outputs of its classifier, which cannot be left off.
const DINOV2_CLASSES: usize = 1000;

/// A frozen backbone of candle-transformers.
#[derive(Debug)]
struct Reference {
    network: Network,
    dims: VitDims,
    image_size: usize,
    patch_size: usize,
}

enum Network {
    Vit {
        embeddings: vit::Embeddings,
        encoder: vit::Encoder,
        norm: LayerNorm,
    },
    /// Its classifier repeats the class token.
    Dinov2(dinov2::DinoVisionTransformer),
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vit { .. } => "candle_transformers::models::vit",
            Self::Dinov2(_) => "candle_transformers::models::dinov2",
        })
    }
}

/// The backbone of `store` (names `backbone.…`) run by candle-transformers instead of this crate.
///
/// # Errors
/// [`ModelError::Config`] if candle-transformers has no such model.
pub fn reference_backbone(
    config: &ModelConfig,
    store: &ParamStore,
) -> std::result::Result<Box<dyn Backbone>, ModelError> {
    let Some(dims) = config.vit_dims() else {
        return Err(refused(
            "model.arch",
            "the reference has vision transformers only",
        ));
    };
    let network = if config.is_dinov2() {
        of_dinov2(config, dims, store)?
    } else {
        of_vit(config, dims, store)?
    };
    Ok(Box::new(Reference {
        network,
        dims,
        image_size: config.image_size,
        patch_size: config.patch_size,
    }))
}

fn refused(key: &str, why: &str) -> ModelError {
    ModelError::Config(vec![format!("{key}: {why}")])
}

fn of_vit(
    config: &ModelConfig,
    dims: VitDims,
    store: &ParamStore,
) -> std::result::Result<Network, ModelError> {
    let theirs = vit::Config {
        hidden_size: dims.embed_dim,
        num_hidden_layers: dims.depth,
        num_attention_heads: dims.num_heads,
        intermediate_size: 4 * dims.embed_dim,
        hidden_act: candle_nn::Activation::Gelu,
        layer_norm_eps: LAYER_NORM_EPS,
        image_size: config.image_size,
        patch_size: config.patch_size,
        num_channels: 3,
        qkv_bias: true,
    };
    let vars = builder(to_hf(&store.tensors())?, &store.device());
    let norm = layer_norm(dims.embed_dim, LAYER_NORM_EPS, vars.pp("layernorm"))?;
    Ok(Network::Vit {
        embeddings: vit::Embeddings::new(&theirs, false, vars.pp("embeddings"))?,
        encoder: vit::Encoder::new(&theirs, vars.pp("encoder"))?,
        norm,
    })
}

fn of_dinov2(
    config: &ModelConfig,
    dims: VitDims,
    store: &ParamStore,
) -> std::result::Result<Network, ModelError> {
    if (config.image_size, config.patch_size) != DINOV2_SIZES {
        return Err(refused(
            "model.image_size",
            "the reference's DINOv2 takes 518 pixels in patches of 14",
        ));
    }
    if config.num_registers > 0 || config.mlp == MlpKind::Swiglu {
        return Err(refused(
            "model.num_registers",
            "the reference's DINOv2 has neither registers nor SwiGLU",
        ));
    }
    if dims.embed_dim > DINOV2_CLASSES {
        return Err(refused(
            "model.embed_dim",
            "the reference's DINOv2 gives features of up to 1000 numbers",
        ));
    }
    let device = store.device();
    let mut ours = BTreeMap::new();
    for (name, tensor) in store.tensors() {
        if let Some(name) = name.strip_prefix("backbone.") {
            ours.insert(name.to_owned(), tensor);
        }
    }
    // Class token and mean of patches go in; the class token comes out, then zeros.
    let d = dims.embed_dim;
    let class_token = Tensor::eye(d, DType::F32, &device)?
        .pad_with_zeros(0, 0, DINOV2_CLASSES - d)?
        .pad_with_zeros(1, 0, d)?;
    ours.insert("head.weight".to_owned(), class_token);
    let no_bias = Tensor::zeros(DINOV2_CLASSES, DType::F32, &device)?;
    ours.insert("head.bias".to_owned(), no_bias);
    let vars = builder(ours, &device);
    let network = dinov2::DinoVisionTransformer::new(vars, dims.depth, d, dims.num_heads)?;
    Ok(Network::Dinov2(network))
}

fn builder(tensors: BTreeMap<String, Tensor>, device: &Device) -> VarBuilder<'static> {
    let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
    VarBuilder::from_tensors(tensors, DType::F32, device)
}

/// Runs images in batches of one, which is all that candle-transformers' DINOv2 takes.
fn one_by_one(xs: &Tensor, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let images = (0..xs.dim(0)?).map(|index| run(&xs.narrow(0, index, 1)?));
    Tensor::cat(&images.collect::<Result<Vec<_>>>()?, 0)
}

impl Reference {
    fn check_size(&self, xs: &Tensor) -> Result<()> {
        let (_, _, height, width) = xs.dims4()?;
        let size = self.image_size;
        if (height, width) != (size, size) {
            bail!("the reference takes its native size of {size} pixels, not {height}x{width}")
        }
        Ok(())
    }
}

impl Backbone for Reference {
    fn embed_dim(&self) -> usize {
        self.dims.embed_dim
    }

    fn forward_group(&self, xs: &Tensor, _mode: &Mode, _group: usize) -> Result<Tensor> {
        self.check_size(xs)?;
        match &self.network {
            Network::Dinov2(network) => one_by_one(xs, |x| {
                network.forward(x)?.narrow(1, 0, self.dims.embed_dim)
            }),
            Network::Vit { .. } => Ok(self.intermediate_layers(xs, 1)?.remove(0).0),
        }
    }

    fn intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<(Tensor, Tensor)>> {
        if n != 1 {
            bail!("the reference gives its last layer only, not the last {n}")
        }
        self.check_size(xs)?;
        match &self.network {
            Network::Vit {
                embeddings,
                encoder,
                norm,
            } => {
                let xs = encoder.forward(&embeddings.forward(xs, None, false)?)?;
                let ys = norm.forward(&xs)?;
                let patches = ys.narrow(1, 1, ys.dim(1)? - 1)?.contiguous()?;
                let class_token = ys.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
                Ok(vec![(class_token, patches)])
            }
            Network::Dinov2(network) => {
                let last = [self.dims.depth - 1];
                let patches = one_by_one(xs, |x| {
                    let layers = network.get_intermediate_layers(x, &last, false, false, true)?;
                    layers.squeeze(0)
                })?;
                Ok(vec![(self.forward(xs, &Mode::Eval)?, patches)])
            }
        }
    }

    fn attention_maps(&self, _xs: &Tensor, _block: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        let tokens = 1 + (height / self.patch_size) * (width / self.patch_size);
        let floats = 30 * self.dims.embed_dim + 4 * self.dims.num_heads * tokens;
        (4 * tokens)
            .saturating_mul(floats)
            .saturating_mul(self.dims.depth)
    }

    fn bytes_to_evaluate(
        &self,
        images: usize,
        [height, width]: [usize; 2],
        _threads: usize,
    ) -> usize {
        self.bytes_per_image(height, width)
            .saturating_mul(images)
            .div_ceil(self.dims.depth.max(1))
    }

    fn num_blocks(&self) -> usize {
        0
    }

    fn patch_size(&self) -> usize {
        self.patch_size
    }
}
