//! Backbone and head together, over crops of several resolutions.

use candle_core::{Device, Result, Tensor};
use selfsame_kernels::Precision;

use crate::backbone::{self, Backbone, BackboneModel};
use crate::config::{HeadConfig, HeadKind, InitForm, ModelConfig};
use crate::dino_head::DinoHead;
use crate::error::ModelError;
use crate::mode::Mode;
use crate::params::{Gradients, ParamBuilder, ParamSpec, ParamStore};

/// A student or a teacher.
#[derive(Debug)]
pub struct Network {
    backbone: BackboneModel,
    head: DinoHead,
}

impl Network {
    /// A student with first values drawn from the seed: the same bits for the same arguments.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem of both tables.
    pub fn new(
        model: &ModelConfig,
        head: &HeadConfig,
        seed: u64,
        device: &Device,
    ) -> std::result::Result<(Self, ParamStore), ModelError> {
        let store = ParamStore::draw(&network_specs(model, head)?, seed, device)?;
        let network = Self::over(model, head, &store, Gradients::Recorded)?;
        Ok((network, store))
    }

    /// The teacher of a student: a deep copy that records no graph and has no drop path.
    ///
    /// Updates of its store, by [`candle_core::Var::set`] or in place, are seen by the network.
    /// # Errors
    /// [`ModelError::Weights`] if `student` was built from other tables.
    pub fn teacher_of(
        model: &ModelConfig,
        head: &HeadConfig,
        student: &ParamStore,
    ) -> std::result::Result<(Self, ParamStore), ModelError> {
        let store = student.copy()?;
        let model = ModelConfig {
            drop_path_rate: 0.0,
            ..model.clone()
        };
        let network = Self::over(&model, head, &store, Gradients::Off)?;
        Ok((network, store))
    }

    /// A network over an existing store, whose storage it shares.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every name that does not fit.
    pub fn over(
        model: &ModelConfig,
        head: &HeadConfig,
        store: &ParamStore,
        gradients: Gradients,
    ) -> std::result::Result<Self, ModelError> {
        let mismatch = store.compare(&network_specs(model, head)?, "");
        if !mismatch.is_empty() {
            return Err(ModelError::Weights(mismatch));
        }
        let params = ParamBuilder::from_store(store, gradients);
        Ok(Self::construct(&resolve_init(model, head), head, &params)?)
    }

    fn construct(
        model: &ModelConfig,
        head: &HeadConfig,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let backbone = backbone::construct(model, &params.pp("backbone"))?;
        let head = DinoHead::new(head, backbone.embed_dim(), &params.pp("head"))?;
        Ok(Self { backbone, head })
    }

    /// The same network with the backbone's large products in `precision`, on a CUDA device the
    /// head's too.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.backbone.use_precision(precision);
        self.head.use_precision(precision);
        self
    }

    /// The shapes of a network without its values, and its parameters: what sizes are told from.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem of both tables.
    pub fn outline(
        model: &ModelConfig,
        head: &HeadConfig,
    ) -> std::result::Result<(Self, Vec<ParamSpec>), ModelError> {
        let mut problems = model.check();
        problems.extend(head.check());
        if !problems.is_empty() {
            return Err(ModelError::Config(problems));
        }
        let model = resolve_init(model, head);
        Ok(ParamBuilder::declare(|params| {
            Self::construct(&model, head, &params)
        })?)
    }

    /// Logits of all crops: one backbone pass per entry, one head pass over all features.
    ///
    /// # Shape
    /// `crops`: one `[n * B, 3, S, S]` per resolution, view-major; crops of equal size that follow
    /// each other belong into one entry. Returns `[(sum of n) * B, K]` in the order of the entries.
    /// # Errors
    /// [`candle_core::Error`] if there are no crops or the patch does not divide a size.
    pub fn forward_all(&self, crops: &[Tensor], mode: &Mode) -> Result<Tensor> {
        self.head.forward(&self.features(crops, mode)?, mode)
    }

    /// As [`Network::forward_all`], with the features `[(sum of n) * B, D]` before the logits.
    ///
    /// # Errors
    /// As [`Network::forward_all`].
    pub fn forward_with_features(&self, crops: &[Tensor], mode: &Mode) -> Result<(Tensor, Tensor)> {
        let features = self.features(crops, mode)?;
        let logits = self.head.forward(&features, mode)?;
        Ok((features, logits))
    }

    /// Logits of some images of resolution group `group`; `mode` says where they start in it.
    ///
    /// # Errors
    /// As [`Network::forward_all`].
    pub fn forward_part(&self, crops: &Tensor, mode: &Mode, group: usize) -> Result<Tensor> {
        let features = self.backbone.forward_group(crops, mode, group)?;
        self.head.forward(&features, mode)
    }

    /// How many images `[3, H, W]` can be run at a time if their forward pass may keep `bytes` for
    /// the backward pass; `None` if all of a batch must be run together.
    pub fn images_within(&self, bytes: usize, height: usize, width: usize) -> Option<usize> {
        let each = self.backbone.bytes_per_image(height, width);
        let images = (bytes / each.max(1)).max(1);
        (self.backbone.is_row_wise() && self.head.is_row_wise()).then_some(images)
    }

    /// About how many bytes the backward pass keeps of each image's forward pass through the
    /// backbone, for images `[3, H, W]`.
    pub fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        self.backbone.bytes_per_image(height, width)
    }

    /// The same on a CUDA device, by the precision in use.
    pub fn bytes_per_image_on_cuda(&self, height: usize, width: usize) -> usize {
        self.backbone.bytes_per_image_on_cuda(height, width)
    }

    /// The backbone.
    pub fn backbone(&self) -> &dyn Backbone {
        self.backbone.as_ref()
    }

    /// The head.
    pub fn head(&self) -> &DinoHead {
        &self.head
    }

    fn features(&self, crops: &[Tensor], mode: &Mode) -> Result<Tensor> {
        let features = crops.iter().enumerate();
        let features = features.map(|(group, xs)| self.backbone.forward_group(xs, mode, group));
        let mut features = features.collect::<Result<Vec<_>>>()?;
        match features.len() {
            1 => Ok(features.remove(0)),
            _ => Tensor::cat(&features, 0),
        }
    }
}

/// The tensors of a network, by name, without allocating them.
///
/// # Errors
/// [`ModelError::Config`] with every problem of both tables.
pub fn network_specs(
    model: &ModelConfig,
    head: &HeadConfig,
) -> std::result::Result<Vec<ParamSpec>, ModelError> {
    Ok(Network::outline(model, head)?.1)
}

/// `init = "auto"` follows the head.
fn resolve_init(model: &ModelConfig, head: &HeadConfig) -> ModelConfig {
    let init = match (model.init, head.kind) {
        (InitForm::Auto, HeadKind::Notebook) => InitForm::Timm,
        (InitForm::Auto, HeadKind::Official) => InitForm::Official,
        (chosen, _) => chosen,
    };
    ModelConfig {
        init,
        ..model.clone()
    }
}
