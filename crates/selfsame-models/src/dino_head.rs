//! The projection head: features to prototype logits, in the notebook's and the official form.

use candle_core::{DType, Device, Result, Tensor};
use selfsame_kernels::{self as kernels, Precision};

use crate::config::{HeadConfig, HeadKind};
use crate::error::ModelError;
use crate::init::Init;
use crate::layers::{BatchNorm, Linear};
use crate::mode::Mode;
use crate::params::{Gradients, ParamBuilder, ParamStore};

/// torch.nn.functional.normalize
const NORMALIZE_EPS: f64 = 1e-12;

/// An MLP and a last layer of K prototypes.
#[derive(Debug)]
pub struct DinoHead {
    mlp: Vec<Layer>,
    last_layer: LastLayer,
    out_dim: usize,
    precision: Precision,
}

#[derive(Debug)]
enum Layer {
    Linear(Linear),
    BatchNorm(BatchNorm),
    Gelu,
}

#[derive(Debug)]
enum LastLayer {
    /// `x Wᵀ`.
    Plain { weight: Tensor },
    /// `x Vᵀ`, V = rows of W divided by their length: the notebook's normalised layer.
    NormalizedRows { weight: Tensor },
    /// `x/|x| (g v/|v|)ᵀ`: the official weight-normalised layer on an L2-normalised bottleneck.
    WeightNorm { g: Tensor, v: Tensor },
}

impl DinoHead {
    /// A head for features of `in_dim` numbers, with first values drawn from the seed, and its
    /// parameters under `head.`; [`crate::Network`] joins one with a backbone.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem of the configuration; [`ModelError::Tensor`] if the
    /// device is out of memory.
    pub fn draw(
        config: &HeadConfig,
        in_dim: usize,
        seed: u64,
        device: &Device,
    ) -> std::result::Result<(Self, ParamStore), ModelError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(ModelError::Config(problems));
        }
        let build = |params: ParamBuilder<'_>| Self::new(config, in_dim, &params.pp("head"));
        let (_, specs) = ParamBuilder::declare(build)?;
        let store = ParamStore::draw(&specs, seed, device)?;
        let head = build(ParamBuilder::from_store(&store, Gradients::Recorded))?;
        Ok((head, store))
    }

    pub(crate) fn new(
        config: &HeadConfig,
        in_dim: usize,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        match config.kind {
            HeadKind::Notebook => Self::notebook(config, in_dim, params),
            HeadKind::Official => Self::official(config, in_dim, params),
        }
    }

    /// Sequential of Linear, GELU, BatchNorm1d or Identity, twice: Linear at 0 and 3, BN at 2, 5.
    fn notebook(config: &HeadConfig, d: usize, params: &ParamBuilder<'_>) -> Result<Self> {
        let mlp_params = params.pp("mlp");
        let default = Init::pytorch_default(d);
        let mut mlp = Vec::new();
        for position in [0, 3] {
            let linear = Linear::new((d, d), (default, default), &mlp_params.pp(position))?;
            mlp.extend([Layer::Linear(linear), Layer::Gelu]);
            if config.use_bn {
                let bn = BatchNorm::new(d, Init::ONES, &mlp_params.pp(position + 2))?;
                mlp.push(Layer::BatchNorm(bn));
            }
        }
        let weight = params
            .pp("last_layer")
            .weight("weight", (config.out_dim, d), default)?;
        let last_layer = match config.norm_last_layer {
            true => LastLayer::NormalizedRows { weight },
            false => LastLayer::Plain { weight },
        };
        Ok(Self {
            mlp,
            last_layer,
            out_dim: config.out_dim,
            precision: Precision::F32,
        })
    }

    /// vision_transformer.py:257-291: three linear layers, BN (if any) before each GELU.
    fn official(config: &HeadConfig, d: usize, params: &ParamBuilder<'_>) -> Result<Self> {
        let (hidden, bottleneck) = (config.hidden_dim, config.bottleneck_dim);
        let mlp_params = params.pp("mlp");
        let stride = if config.use_bn { 3 } else { 2 };
        let mut mlp = Vec::new();
        for (index, dims) in [(d, hidden), (hidden, hidden), (hidden, bottleneck)]
            .iter()
            .enumerate()
        {
            let position = index * stride;
            let init = (Init::TruncNormal { std: 0.02 }, Init::ZEROS);
            mlp.push(Layer::Linear(Linear::new(
                *dims,
                init,
                &mlp_params.pp(position),
            )?));
            if index < 2 {
                if config.use_bn {
                    let bn = BatchNorm::new(hidden, Init::ONES, &mlp_params.pp(position + 1))?;
                    mlp.push(Layer::BatchNorm(bn));
                }
                mlp.push(Layer::Gelu);
            }
        }
        let params = params.pp("last_layer");
        let (k, init) = (config.out_dim, Init::pytorch_default(bottleneck));
        let g = match config.norm_last_layer {
            true => params.frozen("weight_g", (k, 1), Init::ONES)?,
            false => params.weight("weight_g", (k, 1), Init::ONES)?,
        };
        let v = params.weight("weight_v", (k, bottleneck), init)?;
        Ok(Self {
            mlp,
            last_layer: LastLayer::WeightNorm { g, v },
            out_dim: k,
            precision: Precision::F32,
        })
    }

    /// Number of prototypes K.
    pub fn out_dim(&self) -> usize {
        self.out_dim
    }

    /// Whether rows do not depend on one another, so that they may be run part by part.
    pub fn is_row_wise(&self) -> bool {
        !self
            .mlp
            .iter()
            .any(|layer| matches!(layer, Layer::BatchNorm(_)))
    }

    /// Computes the products in `precision` on CUDA devices from now on, unless there is batch norm
    /// between them.
    pub(crate) fn use_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Features `[N, D]` to logits `[N, K]`, f32, not yet divided by a temperature.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the width is not the backbone's.
    pub fn forward(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        let rounds = self.precision == Precision::Bf16 && xs.device().is_cuda();
        let xs = match rounds && self.is_row_wise() {
            true => xs.to_dtype(DType::BF16)?,
            false => xs.clone(),
        };
        let xs = self.mlp.iter().try_fold(xs, |xs, layer| match layer {
            Layer::Linear(linear) => linear.forward(&xs),
            Layer::BatchNorm(bn) => bn.forward(&xs, mode),
            Layer::Gelu => kernels::gelu(&xs),
        })?;
        let logits = match &self.last_layer {
            LastLayer::Plain { weight } => kernels::linear(&xs, weight, None),
            LastLayer::NormalizedRows { weight } => {
                kernels::normalized_linear(&xs, weight, None, NORMALIZE_EPS)
            }
            LastLayer::WeightNorm { g, v } => {
                let xs = kernels::l2_normalize_last_dim(&xs, NORMALIZE_EPS)?;
                if g.track_op() {
                    let direction = kernels::l2_normalize_last_dim(v, NORMALIZE_EPS)?;
                    kernels::linear(&xs, &direction.broadcast_mul(g)?, None)
                } else {
                    kernels::normalized_linear(&xs, v, Some(g), NORMALIZE_EPS)
                }
            }
        };
        logits?.to_dtype(DType::F32)
    }
}
