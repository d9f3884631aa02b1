//! Models of the crate candle-transformers over our weights: frozen, as a second opinion and as a
//! baseline for scores.
//!
//! They take one image size, give features only, and record no usable gradient (candle's layer norm
//! and softmax cut it). Their ViT computes as ours does. Their DINOv2 differs on purpose of nobody:
//! GELU by tanh instead of erf, and without registers a layer norm with 1e-5 instead of 1e-6.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use candle_transformers::models::{dinov2, dinov2reg4, vit};

use crate::backbone::{Backbone, BackboneModel};
use crate::config::{MlpKind, ModelConfig, VitDims};
use crate::error::ModelError;
use crate::interop::to_hf;
use crate::mode::Mode;

/// Image and patch size of candle's DINOv2, which are constants there.
const DINOV2_SIZES: (usize, usize) = (518, 14);

/// Classes of candle's DINOv2 without and with registers; the first D carry the feature out.
const DINOV2_CLASSES: [usize; 2] = [1000, 7806];

/// The model of candle-transformers that `config` describes, over `tensors` named `backbone.…`.
///
/// # Errors
/// [`ModelError::Config`] if candle-transformers has no such model that can be given these weights:
/// a ResNet, SwiGLU, a DINOv2 of another size than 518 pixels in patches of 14, or with a number of
/// registers other than 0 and 4.
pub fn reference_backbone(
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    device: &Device,
) -> std::result::Result<BackboneModel, ModelError> {
    let refuse = |what: String| Err(ModelError::Config(vec![what]));
    let Some(dims) = config.vit_dims() else {
        return refuse(format!(
            "model.arch: there is no reference for {}",
            config.arch
        ));
    };
    let net = if !config.is_dinov2() {
        Net::Vit(plain_vit(config, dims, tensors, device)?)
    } else if config.mlp == MlpKind::Swiglu {
        return refuse("model.mlp: the reference has no swiglu".to_owned());
    } else if (config.image_size, config.patch_size) != DINOV2_SIZES {
        return refuse(format!(
            "model.image_size: the reference takes 518 pixels in patches of 14, not {} in {}",
            config.image_size, config.patch_size
        ));
    } else {
        match config.num_registers {
            0 => Net::Dinov2(Box::new(dinov2::DinoVisionTransformer::new(
                dinov2_weights(dims, tensors, device, 0)?,
                dims.depth,
                dims.embed_dim,
                dims.num_heads,
            )?)),
            4 => Net::Dinov2Reg4(Box::new(dinov2reg4::DinoVisionTransformer::new(
                dinov2_weights(dims, tensors, device, 4)?,
                dims.depth,
                dims.embed_dim,
                dims.num_heads,
            )?)),
            other => {
                return refuse(format!(
                    "model.num_registers: the reference has 0 or 4, not {other}"
                ));
            }
        }
    };
    Ok(Box::new(Reference {
        net,
        embed_dim: dims.embed_dim,
        image_size: config.image_size,
        patch_size: config.patch_size,
    }))
}

fn plain_vit(
    config: &ModelConfig,
    dims: VitDims,
    tensors: &BTreeMap<String, Tensor>,
    device: &Device,
) -> Result<vit::Model> {
    let d = dims.embed_dim;
    let mut theirs: HashMap<String, Tensor> = HashMap::new();
    for (name, tensor) in to_hf(tensors)? {
        theirs.insert(format!("vit.{name}"), tensor);
    }
    // Their model ends in a classifier; this one passes the feature on.
    let identity = Tensor::eye(d, DType::F32, device)?;
    theirs.insert("classifier.weight".to_owned(), identity);
    let zeros = Tensor::zeros(d, DType::F32, device)?;
    theirs.insert("classifier.bias".to_owned(), zeros);
    let config = vit::Config {
        hidden_size: d,
        num_hidden_layers: dims.depth,
        num_attention_heads: dims.num_heads,
        intermediate_size: 4 * d,
        hidden_act: candle_nn::Activation::Gelu,
        layer_norm_eps: 1e-6,
        image_size: config.image_size,
        patch_size: config.patch_size,
        num_channels: 3,
        qkv_bias: true,
    };
    vit::Model::new(
        &config,
        d,
        VarBuilder::from_tensors(theirs, DType::F32, device),
    )
}

fn dinov2_weights<'a>(
    dims: VitDims,
    tensors: &BTreeMap<String, Tensor>,
    device: &Device,
    registers: usize,
) -> Result<VarBuilder<'a>> {
    let d = dims.embed_dim;
    let mut theirs: HashMap<String, Tensor> = HashMap::new();
    for (name, tensor) in tensors {
        if let Some(bare) = name.strip_prefix("backbone.") {
            theirs.insert(bare.to_owned(), tensor.clone());
        }
    }
    let (classes, width) = match registers {
        0 => (DINOV2_CLASSES[0], 2 * d), // class token and mean of the patches
        _ => (DINOV2_CLASSES[1], d),
    };
    if d > classes {
        bail!("the reference cannot give {d} features, at most {classes}")
    }
    let identity = Tensor::eye(d, DType::F32, device)?
        .pad_with_zeros(0, 0, classes - d)?
        .pad_with_zeros(1, 0, width - d)?;
    theirs.insert("head.weight".to_owned(), identity);
    let zeros = Tensor::zeros(classes, DType::F32, device)?;
    theirs.insert("head.bias".to_owned(), zeros);
    if registers > 0
        && let (Some(positions), Some(class)) = (theirs.get("pos_embed"), theirs.get("cls_token"))
    {
        // Their class token has its position in it.
        let tokens = positions.dim(1)?;
        let class = (class + positions.narrow(1, 0, 1)?)?;
        let patches = positions.narrow(1, 1, tokens - 1)?.contiguous()?;
        theirs.insert("cls_token".to_owned(), class);
        theirs.insert("pos_embed".to_owned(), patches);
    }
    Ok(VarBuilder::from_tensors(theirs, DType::F32, device))
}

enum Net {
    Vit(vit::Model),
    Dinov2(Box<dinov2::DinoVisionTransformer>),
    Dinov2Reg4(Box<dinov2reg4::DinoVisionTransformer>),
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Net::Vit(_) => "vit",
            Net::Dinov2(_) => "dinov2",
            Net::Dinov2Reg4(_) => "dinov2reg4",
        })
    }
}

#[derive(Debug)]
struct Reference {
    net: Net,
    embed_dim: usize,
    image_size: usize,
    patch_size: usize,
}

impl Backbone for Reference {
    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    fn forward_group(&self, xs: &Tensor, _mode: &Mode, _group: usize) -> Result<Tensor> {
        let (b, _, height, width) = xs.dims4()?;
        // Checked here, because some of their models panic on another size.
        if (height, width) != (self.image_size, self.image_size) {
            bail!(
                "the reference takes {0}x{0} pixels, not {height}x{width}",
                self.image_size
            )
        }
        match &self.net {
            Net::Vit(net) => net.forward(xs),
            // These take one image at a time.
            Net::Dinov2(net) => self.one_by_one(xs, b, net.as_ref()),
            Net::Dinov2Reg4(net) => self.one_by_one(xs, b, net.as_ref()),
        }
    }

    fn intermediate_layers(&self, _xs: &Tensor, _n: usize) -> Result<Vec<(Tensor, Tensor)>> {
        bail!("the reference gives features, not its layers")
    }

    fn attention_maps(&self, _xs: &Tensor, _block: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// 0: what is in the blocks cannot be looked at.
    fn num_blocks(&self) -> usize {
        0
    }

    fn patch_size(&self) -> usize {
        self.patch_size
    }
}

impl Reference {
    fn one_by_one(&self, xs: &Tensor, b: usize, net: &impl Module) -> Result<Tensor> {
        let features = (0..b).map(|i| {
            let logits = net.forward(&xs.narrow(0, i, 1)?)?;
            logits.narrow(1, 0, self.embed_dim)
        });
        Tensor::cat(&features.collect::<Result<Vec<_>>>()?, 0)
    }
}
