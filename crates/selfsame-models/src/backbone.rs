//! What every backbone can do, and building one from a configuration.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use selfsame_kernels::Precision;

use crate::config::ModelConfig;
use crate::dinov2::Dinov2;
use crate::error::ModelError;
use crate::mode::Mode;
use crate::params::{Gradients, ParamBuilder, ParamSpec, ParamStore, check_shapes};
use crate::resnet::ResNet;
use crate::vit::VisionTransformer;

/// Pixels to features.
pub trait Backbone: std::fmt::Debug + Send + Sync {
    /// Number of features D per image.
    fn embed_dim(&self) -> usize;

    /// Features of a batch of images of one size, as resolution group `group` of a larger pass.
    ///
    /// The group matters to drop path only: equal rows of two groups get different masks.
    /// # Shape
    /// `xs`: `[B, 3, H, W]`, normalised. Returns `[B, D]`: the class token after the final norm
    /// (ViT), or the average over positions (ResNet).
    /// # Errors
    /// [`candle_core::Error`] if `xs` is none such, or the patch does not divide the size.
    fn forward_group(&self, xs: &Tensor, mode: &Mode, group: usize) -> Result<Tensor>;

    /// [`Backbone::forward_group`] for a pass of one resolution.
    ///
    /// # Errors
    /// As [`Backbone::forward_group`].
    fn forward(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        self.forward_group(xs, mode, 0)
    }

    /// The last `n` layers' outputs in evaluation mode, earliest first, each after the final norm
    /// (the official `get_intermediate_layers`): class token `[B, D]`, patch tokens `[B, N, D]`.
    ///
    /// A ResNet has one such layer: its pooled features and its last feature map, row by row.
    /// # Errors
    /// [`candle_core::Error`] if the backbone has fewer than `n` layers.
    fn intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<(Tensor, Tensor)>>;

    /// Attention weights of block `block` (from 0) in evaluation mode: `[B, heads, T, T]`, token 0
    /// is the class token. `None` if there is no attention.
    ///
    /// A row sums to 1, or where there are registers, which are left out, to 1 less what they get.
    /// # Errors
    /// [`candle_core::Error`] if there is no such block.
    fn attention_maps(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>>;

    /// The class token's row of [`Backbone::attention_maps`], `[B, heads, T]`, with the same sum,
    /// without the others in memory: they grow with the square of the number of tokens.
    ///
    /// # Errors
    /// [`candle_core::Error`] if there is no such block.
    fn class_attention(&self, xs: &Tensor, block: usize) -> Result<Option<Tensor>> {
        let maps = self.attention_maps(xs, block)?;
        maps.map(|maps| maps.narrow(2, 0, 1)?.squeeze(2))
            .transpose()
    }

    /// Computes the products of the transformer blocks, or on CUDA devices of the convolutions, in
    /// `precision` from now on; everything else stays f32, and so does a backbone with neither.
    fn use_precision(&mut self, _precision: Precision) {}

    /// About how many bytes the backward pass needs of each image's forward pass, for images
    /// `[3, H, W]`.
    fn bytes_per_image(&self, height: usize, width: usize) -> usize;

    /// The same on a CUDA device, by the precision in use.
    fn bytes_per_image_on_cuda(&self, height: usize, width: usize) -> usize {
        self.bytes_per_image(height, width)
    }

    /// About how many bytes the evaluation of so many images `[3, H, W]` needs at its peak on a CPU
    /// with so many threads, the images themselves left out.
    fn bytes_to_evaluate(&self, images: usize, size: [usize; 2], threads: usize) -> usize;

    /// Whether the images of a batch do not depend on one another, so that they may be run part by
    /// part; with batch norm they do.
    fn is_row_wise(&self) -> bool {
        true
    }

    /// Number of transformer blocks; 0 without attention.
    fn num_blocks(&self) -> usize;

    /// Side of a patch in pixels; 0 without patches.
    fn patch_size(&self) -> usize;
}

/// A backbone of any architecture.
pub type BackboneModel = Box<dyn Backbone>;

/// The backbone of `store` (names `backbone.…`) for evaluation: detached, without drop path.
///
/// A head in the store is left alone.
/// # Errors
/// [`ModelError::Config`] or, if the store's backbone is another one, [`ModelError::Weights`].
pub fn build_backbone(
    config: &ModelConfig,
    store: &ParamStore,
) -> std::result::Result<BackboneModel, ModelError> {
    let config = ModelConfig {
        drop_path_rate: 0.0,
        ..config.clone()
    };
    build_backbone_with(&config, store, Gradients::Off)
}

/// As [`build_backbone`], with a choice of gradients and with the configured drop path.
///
/// # Errors
/// As [`build_backbone`].
pub fn build_backbone_with(
    config: &ModelConfig,
    store: &ParamStore,
    gradients: Gradients,
) -> std::result::Result<BackboneModel, ModelError> {
    let mismatch = store.compare(&backbone_specs(config)?, "backbone.");
    if !mismatch.is_empty() {
        return Err(ModelError::Weights(mismatch));
    }
    Ok(construct(
        config,
        &ParamBuilder::from_store(store, gradients).pp("backbone"),
    )?)
}

/// The tensors of a backbone, by name, without allocating them.
///
/// # Errors
/// [`ModelError::Config`] with every problem.
pub fn backbone_specs(config: &ModelConfig) -> std::result::Result<Vec<ParamSpec>, ModelError> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(ModelError::Config(problems));
    }
    let (_, specs) = ParamBuilder::declare(|params| construct(config, &params.pp("backbone")))?;
    Ok(specs)
}

/// Refuses tensors (names `backbone.…`) that are not those of the backbone, before any memory is
/// taken for it. Only `num_batches_tracked` may be missing.
///
/// # Errors
/// [`ModelError::Config`] with every problem, [`ModelError::Weights`] with every name that does not
/// fit.
pub fn check_backbone(
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
) -> std::result::Result<(), ModelError> {
    let specs = backbone_specs(config)?;
    let shapes = specs.iter();
    let shapes = shapes.map(|spec| (spec.name.as_str(), spec.shape.dims()));
    check_shapes(&shapes.collect(), tensors, "backbone.")
}

/// A new backbone's parameters, drawn from the seed.
///
/// # Errors
/// [`ModelError::Config`] with every problem.
pub fn draw_backbone(
    config: &ModelConfig,
    seed: u64,
    device: &candle_core::Device,
) -> std::result::Result<ParamStore, ModelError> {
    Ok(ParamStore::draw(&backbone_specs(config)?, seed, device)?)
}

/// The sizes `[B, 3, H, W]` of images that a backbone can take.
pub(crate) fn image_dims(xs: &Tensor) -> Result<(usize, usize, usize, usize)> {
    match *xs.dims() {
        [b, 3, height, width] if b > 0 && matches!(xs.dtype(), DType::F32 | DType::BF16) => {
            Ok((b, 3, height, width))
        }
        _ => {
            let (dims, dtype) = (xs.dims(), xs.dtype().as_str());
            candle_core::bail!(
                "the images are {dtype} {dims:?} instead of f32 or bf16 [B, 3, H, W], B > 0"
            )
        }
    }
}

/// The one place that knows which architecture is which type.
pub(crate) fn construct(config: &ModelConfig, params: &ParamBuilder<'_>) -> Result<BackboneModel> {
    match config.vit_dims() {
        Some(dims) if config.is_dinov2() => Ok(Box::new(Dinov2::new(config, dims, params)?)),
        Some(dims) => Ok(Box::new(VisionTransformer::new(config, dims, params)?)),
        None => Ok(Box::new(ResNet::new(config, params)?)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn tensors_of_a_smaller_network_are_refused_without_the_memory_of_the_larger() {
        let claimed = ModelConfig {
            embed_dim: 65_536,
            num_heads: 1_024,
            depth: 1_024,
            ..ModelConfig::default()
        };
        let norm = Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("backbone.norm.weight".to_owned(), norm)]);
        let error = check_backbone(&claimed, &tensors).unwrap_err().to_string();
        let told = "backbone.norm.weight: the model has shape [65536], the weights [64]";
        assert!(error.contains(told), "{error}");
    }

    #[test]
    fn a_refusal_of_images_names_both_types_that_are_taken() {
        let images = |dtype| Tensor::zeros((1, 3, 8, 8), dtype, &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            assert!(image_dims(&images(dtype)).is_ok());
        }
        let error = image_dims(&images(DType::F64)).unwrap_err().to_string();
        assert!(
            error.contains("f64") && error.contains("f32 or bf16"),
            "{error}"
        );
    }
}
