//! Layers that more than one network uses: names and first values here, mathematics in the kernels.

use candle_core::{DType, Device, Result, Tensor, Var};
use selfsame_kernels::{self as kernels, ConvNorm, Precision};

use crate::batch_stats::{self, Seen};
use crate::init::Init;
use crate::mode::Mode;
use crate::params::ParamBuilder;

/// `y = x Wᵀ + b` over the last dimension.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `weight` and `bias` under `params`, from the given distributions.
    pub(crate) fn new(
        (input, output): (usize, usize),
        (weight, bias): (Init, Init),
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self {
            weight: params.weight("weight", (output, input), weight)?,
            bias: params.weight("bias", output, bias)?,
        })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        kernels::linear(xs, &self.weight, Some(&self.bias))
    }
}

/// Of the layer norms of every published ViT of the DINO family.
pub(crate) const LAYER_NORM_EPS: f64 = 1e-6;

/// Layer norm over the last dimension, eps 1e-6 as in every published ViT of the DINO family.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(crate) fn new(dim: usize, params: &ParamBuilder<'_>) -> Result<Self> {
        Ok(Self {
            weight: params.weight("weight", dim, Init::ONES)?,
            bias: params.weight("bias", dim, Init::ZEROS)?,
        })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(xs, &self.weight, &self.bias, LAYER_NORM_EPS)
    }
}

/// Batch norm over `[B, C]` or `[B, C, H, W]` with PyTorch's defaults: eps 1e-5, momentum 0.1
/// ([`batch_stats`]).
#[derive(Debug)]
pub(crate) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    num_batches_tracked: Var,
}

impl BatchNorm {
    pub(crate) const EPS: f64 = 1e-5;

    /// `weight` starts from `gamma`, everything else from PyTorch's defaults.
    pub(crate) fn new(dim: usize, gamma: Init, params: &ParamBuilder<'_>) -> Result<Self> {
        let buffer = |name, init| params.buffer(name, dim, init, DType::F32);
        Ok(Self {
            weight: params.weight("weight", dim, gamma)?,
            bias: params.weight("bias", dim, Init::ZEROS)?,
            running_mean: buffer("running_mean", Init::ZEROS)?,
            running_var: buffer("running_var", Init::ONES)?,
            num_batches_tracked: params.buffer(
                "num_batches_tracked",
                (),
                Init::ZEROS,
                DType::I64,
            )?,
        })
    }

    pub(crate) fn forward(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        match mode {
            Mode::Eval => {
                let [mean, var] = self.running();
                kernels::batch_norm_eval(xs, &mean, &var, &self.weight, &self.bias, Self::EPS)
            }
            Mode::Train(_) => {
                let (ys, mean, var) =
                    kernels::batch_norm_train(xs, &self.weight, &self.bias, Self::EPS)?;
                batch_stats::track(vec![self.seen(&mean, &var)])?;
                Ok(ys)
            }
        }
    }

    /// The running mean and variance, which get no gradient.
    pub(crate) fn running(&self) -> [Tensor; 2] {
        [&self.running_mean, &self.running_var].map(Var::as_detached_tensor)
    }

    /// A batch of this mean and variance, the latter unbiased as PyTorch keeps it.
    pub(crate) fn seen(&self, mean: &Tensor, var: &Tensor) -> Seen {
        Seen {
            running_mean: self.running_mean.clone(),
            running_var: self.running_var.clone(),
            num_batches_tracked: self.num_batches_tracked.clone(),
            batch: [mean.detach(), var.detach()],
        }
    }
}

/// A square convolution without bias, as ResNets use.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Tensor,
    stride: usize,
    padding: usize,
    precision: Precision,
}

impl Conv2d {
    /// `weight` `[output, input, kernel, kernel]`; padding keeps the size at stride 1.
    pub(crate) fn new(
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let init = Init::kaiming_fan_out(output, kernel);
        let weight = params.weight("weight", (output, input, kernel, kernel), init)?;
        Ok(Self {
            weight,
            stride,
            padding: kernel / 2,
            precision: Precision::F32,
        })
    }

    /// On CUDA devices the factors of products are rounded as this says; elsewhere they are f32.
    pub(crate) fn use_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    pub(crate) fn precision_on(&self, device: &Device) -> Precision {
        match device.is_cuda() {
            true => self.precision,
            false => Precision::F32,
        }
    }

    /// Together with the batch norm behind it.
    pub(crate) fn with_norm<'a>(&'a self, norm: &'a BatchNorm) -> ConvNorm<'a> {
        ConvNorm {
            weight: &self.weight,
            norm: [&norm.weight, &norm.bias],
            stride: self.stride,
            padding: self.padding,
        }
    }

    pub(crate) fn num_outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Height and width after the convolution.
    pub(crate) fn output_size(&self, input: [usize; 2]) -> [usize; 2] {
        let kernel = self.weight.dims()[2];
        input.map(|side| (side + 2 * self.padding).saturating_sub(kernel) / self.stride + 1)
    }
}
