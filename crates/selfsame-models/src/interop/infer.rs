//! The architecture from names and shapes.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::grid::{Positions, positions};
use crate::config::{Arch, HeadConfig, HeadKind, MlpKind, ModelConfig, PosEmbedResample};
use crate::error::ModelError;

/// An architecture told from names and shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct InferredModel {
    /// The backbone. Resampling, drop path and first values are not in a file: defaults.
    pub model: ModelConfig,
    /// The projection head, if the file has one. `norm_last_layer` is not in a file: default.
    pub head: Option<HeadConfig>,
}

/// The architecture that tensors under our own names belong to, with its projection head.
///
/// # Errors
/// As [`infer_model`] and [`infer_head`].
pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<InferredModel, ModelError> {
    Ok(InferredModel {
        model: infer_model(tensors)?,
        head: infer_head(tensors)?,
    })
}

/// The backbone that tensors under our own names belong to, whatever head is with them.
///
/// A ViT's heads are taken to be 64 wide; for another width the configuration must come from
/// elsewhere, such as [`super::ImportedWeights::model`].
/// # Errors
/// [`ModelError::Unrecognised`] with what was looked for.
pub fn infer_model(tensors: &BTreeMap<String, Tensor>) -> Result<ModelConfig, ModelError> {
    let shapes = Shapes(tensors);
    if tensors.contains_key("backbone.conv1.weight") {
        shapes.resnet()
    } else {
        shapes.vit()
    }
}

/// The projection head among tensors under our own names, whatever the backbone is.
///
/// # Errors
/// [`ModelError::Unrecognised`] if one of its tensors is missing or has other dimensions.
pub fn infer_head(tensors: &BTreeMap<String, Tensor>) -> Result<Option<HeadConfig>, ModelError> {
    Shapes(tensors).head()
}

struct Shapes<'a>(&'a BTreeMap<String, Tensor>);

impl Shapes<'_> {
    fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N], ModelError> {
        let Some(tensor) = self.0.get(name) else {
            // Without the prefix that they have here alone.
            let bare = |name: &'_ String| name.trim_start_matches("backbone.").to_owned();
            let first: Vec<String> = self.0.keys().take(3).map(bare).collect();
            let there = match (self.0.len(), first.as_slice()) {
                (0, _) => "there are no weights of a network".to_owned(),
                (1..=3, names) => format!("there is {} alone", names.join(", ")),
                (_, names) => format!("there are {} and so on", names.join(", ")),
            };
            return Err(ModelError::Unrecognised(format!(
                "neither a vision transformer nor a ResNet-18 or ResNet-50: there is no {}; {there}",
                name.trim_start_matches("backbone.")
            )));
        };
        tensor.dims().try_into().map_err(|_| {
            let dims = tensor.dims();
            ModelError::Unrecognised(format!("{name} has shape {dims:?}, not {N} dimensions"))
        })
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn vit(&self) -> Result<ModelConfig, ModelError> {
        let [embed_dim, _, patch_size, _] = self.dims("backbone.patch_embed.proj.weight")?;
        let [_, tokens, _] = self.dims("backbone.pos_embed")?;
        let registers = match self.has("backbone.reg_token") {
            true => self.dims::<3>("backbone.reg_token")?[1],
            false => 0,
        };
        let found = positions(tokens, registers, None);
        let Some(Positions { side, .. }) = found else {
            return Err(ModelError::Unrecognised(format!(
                "backbone.pos_embed has {tokens} tokens, not a class token and a square of patches"
            )));
        };
        let block = |index| format!("backbone.blocks.{index}.norm1.weight");
        let depth = (0..).take_while(|index| self.has(&block(*index))).count();
        if depth == 0 {
            return Err(ModelError::Unrecognised(format!(
                "a vision transformer of width {embed_dim} without blocks: there is no {}",
                block(0)
            )));
        }
        if !embed_dim.is_multiple_of(64) {
            return Err(ModelError::Unrecognised(format!(
                "a vision transformer of width {embed_dim} with {depth} blocks: the number of \
                 heads follows only from a width in multiples of 64"
            )));
        }
        let mut model = ModelConfig {
            patch_size,
            image_size: side * patch_size,
            ..Default::default()
        };
        let same_width = |arch: &Arch| arch.vit_dims().is_some_and(|d| d.embed_dim == embed_dim);
        match Arch::ALL.into_iter().find(same_width) {
            Some(arch) => model.arch = arch,
            None => {
                model.embed_dim = embed_dim;
                model.num_heads = embed_dim / 64;
            }
        }
        if model.vit_dims().is_some_and(|dims| dims.depth != depth) {
            model.depth = depth;
        }
        self.dinov2(&mut model)?;
        Ok(model)
    }

    /// Registers, layer scale and SwiGLU.
    fn dinov2(&self, model: &mut ModelConfig) -> Result<(), ModelError> {
        if self.has("backbone.reg_token") {
            let [_, registers, _] = self.dims("backbone.reg_token")?;
            model.num_registers = registers;
            // The official code resamples so for its models with registers, and only for them.
            model.pos_embed_resample = PosEmbedResample::Timm;
        }
        if self.has("backbone.blocks.0.ls1.gamma") {
            model.layer_scale = 1e-5; // dinov2, --layerscale: what training starts from
        }
        let [fc1, _] = self.dims("backbone.blocks.0.mlp.fc1.weight")?;
        let [_, fc2] = self.dims("backbone.blocks.0.mlp.fc2.weight")?;
        if fc1 == 2 * fc2 {
            model.mlp = MlpKind::Swiglu;
        }
        Ok(())
    }

    fn resnet(&self) -> Result<ModelConfig, ModelError> {
        let depths = [1, 2, 3, 4].map(|stage| {
            let block = |index| format!("backbone.layer{stage}.{index}.conv1.weight");
            (0..).take_while(|index| self.has(&block(*index))).count()
        });
        let bottleneck = self.has("backbone.layer1.0.conv3.weight");
        let arch = match (depths, bottleneck) {
            ([2, 2, 2, 2], false) => Arch::Resnet18,
            ([3, 4, 6, 3], true) => Arch::Resnet50,
            _ => {
                let kind = if bottleneck { "bottleneck" } else { "basic" };
                return Err(ModelError::Unrecognised(format!(
                    "a ResNet with {depths:?} {kind} blocks is neither ResNet-18 nor ResNet-50"
                )));
            }
        };
        Ok(ModelConfig {
            arch,
            ..Default::default()
        })
    }

    fn head(&self) -> Result<Option<HeadConfig>, ModelError> {
        let bn = |position| self.has(&format!("head.mlp.{position}.running_mean"));
        if self.has("head.last_layer.weight_v") {
            let [out_dim, bottleneck_dim] = self.dims("head.last_layer.weight_v")?;
            let [hidden_dim, _] = self.dims("head.mlp.0.weight")?;
            return Ok(Some(HeadConfig {
                kind: HeadKind::Official,
                out_dim,
                hidden_dim,
                bottleneck_dim,
                use_bn: bn(1),
                ..Default::default()
            }));
        }
        if self.has("head.last_layer.weight") {
            let [out_dim, _] = self.dims("head.last_layer.weight")?;
            return Ok(Some(HeadConfig {
                out_dim,
                use_bn: bn(2),
                ..Default::default()
            }));
        }
        match self.0.keys().find(|name| name.starts_with("head.")) {
            Some(name) => Err(ModelError::Unrecognised(format!(
                "{name}, but no head.last_layer"
            ))),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::network::network_specs;

    fn tensors(model: &ModelConfig, head: &HeadConfig) -> BTreeMap<String, Tensor> {
        let specs = network_specs(model, head).unwrap();
        let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        let tensor = |shape| scalar.broadcast_as(shape).unwrap();
        specs
            .into_iter()
            .map(|spec| (spec.name, tensor(spec.shape)))
            .collect()
    }

    #[test]
    fn every_architecture_and_head_is_told_from_its_shapes() {
        let official = HeadConfig {
            kind: HeadKind::Official,
            use_bn: true,
            ..Default::default()
        };
        let models = Arch::ALL
            .map(|arch| ModelConfig {
                arch,
                ..Default::default()
            })
            .into_iter()
            .chain([ModelConfig {
                depth: 5,
                patch_size: 8,
                image_size: 64,
                ..Default::default()
            }])
            .chain([ModelConfig {
                embed_dim: 256,
                num_heads: 4,
                ..Default::default()
            }])
            .chain([ModelConfig {
                depth: 2,
                num_registers: 4,
                layer_scale: 1e-5,
                mlp: MlpKind::Swiglu,
                pos_embed_resample: PosEmbedResample::Timm,
                ..Default::default()
            }]);
        for model in models {
            for head in [HeadConfig::default(), official.clone()] {
                let inferred = infer(&tensors(&model, &head)).unwrap();
                assert_eq!(
                    inferred,
                    InferredModel {
                        model: model.clone(),
                        head: Some(head)
                    }
                );
            }
        }
    }

    #[test]
    fn a_backbone_is_told_whatever_head_is_with_it() {
        let model = ModelConfig::default();
        let mut tensors = tensors(&model, &HeadConfig::default());
        tensors.remove("head.last_layer.weight");
        assert_eq!(infer_model(&tensors).unwrap(), model);
        let text = infer(&tensors).unwrap_err().to_string();
        assert!(text.contains("but no head.last_layer"), "{text}");
    }

    #[test]
    fn what_is_no_known_architecture_is_refused_with_the_reason() {
        let model = ModelConfig {
            embed_dim: 32,
            num_heads: 2,
            ..Default::default()
        };
        let text = infer(&tensors(&model, &HeadConfig::default()))
            .unwrap_err()
            .to_string();
        assert!(text.contains("width 32 with 12 blocks"), "{text}");
        let mut without = tensors(&ModelConfig::default(), &HeadConfig::default());
        without.retain(|name, _| !name.starts_with("backbone.blocks."));
        let text = infer(&without).unwrap_err().to_string();
        assert!(text.contains("width 384 without blocks"), "{text}");
        let text = infer(&BTreeMap::new()).unwrap_err().to_string();
        assert!(
            text.contains("there is no patch_embed.proj.weight"),
            "{text}"
        );
    }
}
