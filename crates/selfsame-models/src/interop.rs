//! Weights files under our own and timm's names: reading, renaming, telling the architecture.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::config::{Arch, HeadConfig, HeadKind, ModelConfig};
use crate::error::ModelError;

/// Tensors under our own names.
#[derive(Debug, Clone)]
pub struct ImportedWeights {
    /// Tensors named `backbone.…` and `head.…`, on the CPU, as stored.
    pub tensors: BTreeMap<String, Tensor>,
    /// Names in the file that belong to a supervised classifier, which no model here has.
    pub left_out: Vec<String>,
    /// The text metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

/// An architecture told from names and shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct InferredModel {
    /// The backbone. Resampling, drop path and first values are not in a file: defaults.
    pub model: ModelConfig,
    /// The projection head, if the file has one. `norm_last_layer` is not in a file: default.
    pub head: Option<HeadConfig>,
}

/// Reads a safetensors file with our own or timm's names.
///
/// # Errors
/// [`ModelError::Read`] if the file is not readable, [`ModelError::Unrecognised`] if two of its
/// names are one of ours.
pub fn read_weights(path: &Path) -> Result<ImportedWeights, ModelError> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| ModelError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::read(path).map_err(|error| fail(error.into()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| fail(error.into()))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| fail(error.into()))?;
    let mut weights = to_own_names(tensors)?;
    weights.metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    Ok(weights)
}

/// Renames tensors to ours: `module.` is dropped, a bare timm name gets the prefix `backbone.`.
///
/// Nothing is lost in silence: what belongs to a classifier is listed in
/// [`ImportedWeights::left_out`].
/// # Errors
/// [`ModelError::Unrecognised`] if two names become one.
pub fn to_own_names(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<ImportedWeights, ModelError> {
    let mut weights = ImportedWeights {
        tensors: BTreeMap::new(),
        left_out: Vec::new(),
        metadata: BTreeMap::new(),
    };
    for (name, tensor) in tensors {
        let stripped = name.strip_prefix("module.").unwrap_or(&name);
        let bare = stripped.strip_prefix("backbone.").unwrap_or(stripped);
        let supervised = matches!(bare, "head.weight" | "head.bias" | "fc.weight" | "fc.bias");
        if supervised || bare.starts_with("new_head.") {
            weights.left_out.push(name);
            continue;
        }
        let is_head = bare.starts_with("head.mlp.") || bare.starts_with("head.last_layer.");
        let own = if is_head {
            bare.to_owned()
        } else {
            format!("backbone.{bare}")
        };
        if weights.tensors.insert(own.clone(), tensor).is_some() {
            return Err(ModelError::Unrecognised(format!(
                "{name} and another one are both {own}"
            )));
        }
    }
    weights.left_out.sort();
    Ok(weights)
}

/// The architecture that tensors under our own names belong to.
///
/// A ViT's heads are taken to be 64 wide; for another width the configuration must come from
/// elsewhere.
/// # Errors
/// [`ModelError::Unrecognised`] with what was looked for.
pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<InferredModel, ModelError> {
    let shapes = Shapes(tensors);
    let model = if tensors.contains_key("backbone.conv1.weight") {
        shapes.resnet()?
    } else {
        shapes.vit()?
    };
    Ok(InferredModel {
        model,
        head: shapes.head()?,
    })
}

struct Shapes<'a>(&'a BTreeMap<String, Tensor>);

impl Shapes<'_> {
    fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N], ModelError> {
        let Some(tensor) = self.0.get(name) else {
            return Err(ModelError::Unrecognised(format!("there is no {name}")));
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
        let side = tokens.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != tokens {
            return Err(ModelError::Unrecognised(format!(
                "backbone.pos_embed has {tokens} tokens, not a class token and a square of patches"
            )));
        }
        let block = |index| format!("backbone.blocks.{index}.norm1.weight");
        let depth = (0..).take_while(|index| self.has(&block(*index))).count();
        if depth == 0 || !embed_dim.is_multiple_of(64) {
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
        Ok(model)
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
    use candle_core::DType;

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
    fn timm_and_distributed_names_become_ours_and_classifiers_are_listed() {
        let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        let rename = |names: &[&str]| {
            to_own_names(
                names
                    .iter()
                    .map(|name| ((*name).to_owned(), scalar.clone())),
            )
        };
        let weights = rename(&[
            "cls_token",
            "module.backbone.norm.bias",
            "module.head.mlp.0.weight",
            "head.last_layer.weight_v",
            "head.weight",
            "fc.bias",
            "new_head.0.weight",
        ])
        .unwrap();
        let names: Vec<_> = weights.tensors.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "backbone.cls_token",
                "backbone.norm.bias",
                "head.last_layer.weight_v",
                "head.mlp.0.weight"
            ]
        );
        assert_eq!(
            weights.left_out,
            ["fc.bias", "head.weight", "new_head.0.weight"]
        );
        assert!(rename(&["cls_token", "backbone.cls_token"]).is_err());
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
        let text = infer(&BTreeMap::new()).unwrap_err().to_string();
        assert!(
            text.contains("there is no backbone.patch_embed.proj.weight"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let text = read_weights(Path::new("no/such.safetensors"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("no/such.safetensors"), "{text}");
    }
}
