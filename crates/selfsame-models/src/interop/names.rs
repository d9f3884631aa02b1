//! Whose names tensors have, and their names here.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};

use super::file::ImportedWeights;
use super::{dinov2, hf};
use crate::error::ModelError;

/// Whose names the tensors of a file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// `backbone.…` and `head.…`: ours, and the official DINO code's.
    Selfsame,
    /// timm's, which the official DINO code's backbone and torchvision's ResNets share.
    Timm,
    /// Hugging Face transformers', in either spelling of attention and layers.
    HuggingFace,
    /// The official DINOv2 code's.
    Dinov2,
}

impl Layout {
    /// A word for it, as `selfsame export --format` and `inspect` have it.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Selfsame => "selfsame",
            Layout::Timm => "timm",
            Layout::HuggingFace => "hf",
            Layout::Dinov2 => "dinov2",
        }
    }
}

/// What becomes of a tensor on its way in. Names are without `backbone.`.
#[derive(Debug, PartialEq)]
pub(super) enum Renamed {
    /// It has this name.
    Whole(String),
    /// It is this part of this tensor's first dimension, which has so many parts.
    Part(String, usize, usize),
    /// No model here has such a part: a classifier, a pooler, a mask token.
    Unused,
}

/// Renames tensors to ours: prefixes of wrappers are dropped, Hugging Face's and DINOv2's names
/// become timm's, a bare name gets the prefix `backbone.`.
///
/// Nothing is lost in silence: what belongs to a part that no model here has is listed in
/// [`ImportedWeights::left_out`], and an unknown name is kept, to be refused when it is loaded.
/// # Errors
/// [`ModelError::SameName`] if two names become one.
pub fn to_own_names(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<ImportedWeights, ModelError> {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let layout = layout(tensors.keys());
    let mut weights = ImportedWeights {
        tensors: BTreeMap::new(),
        left_out: BTreeMap::new(),
        metadata: BTreeMap::new(),
        layout,
    };
    let mut packed: BTreeMap<String, Vec<Option<(String, Tensor)>>> = BTreeMap::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new(); // in the file, by ours
    for (name, tensor) in tensors {
        match own_name(&name, layout) {
            Renamed::Unused => {
                weights.left_out.insert(name, tensor.dims().to_vec());
            }
            Renamed::Whole(own) => {
                once(&mut names, &own, name)?;
                weights.tensors.insert(own, tensor);
            }
            Renamed::Part(own, index, of) => {
                let parts = packed.entry(own.clone()).or_insert_with(|| vec![None; of]);
                if let Some((other, _)) = parts[index].replace((name.clone(), tensor)) {
                    return Err(same_name(other, name, &own));
                }
            }
        }
    }
    for (own, parts) in packed {
        let count = parts.len();
        let parts: Vec<(String, Tensor)> = parts.into_iter().flatten().collect();
        let shapes: BTreeSet<&[usize]> = parts.iter().map(|(_, part)| part.dims()).collect();
        if parts.len() == count && shapes.len() == 1 {
            let joined = joined(parts.iter().map(|(_, part)| part).collect())?;
            once(&mut names, &own, parts[0].0.clone())?;
            weights.tensors.insert(own, joined);
            continue;
        }
        // Under their own names, so that loading lists them and what they leave missing.
        let kept = parts.into_iter();
        weights
            .tensors
            .extend(kept.map(|(name, tensor)| (format!("backbone.{name}"), tensor)));
    }
    dinov2::give_class_token_a_position(&mut weights.tensors)?;
    Ok(weights)
}

/// Tensors one below the other, in f32 where they are of several types.
fn joined(parts: Vec<&Tensor>) -> candle_core::Result<Tensor> {
    if parts
        .windows(2)
        .all(|pair| pair[0].dtype() == pair[1].dtype())
    {
        return Tensor::cat(&parts, 0);
    }
    let parts = parts.iter().map(|part| part.to_dtype(DType::F32));
    Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// The name here, with `backbone.` or `head.` before it.
fn own_name(name: &str, layout: Layout) -> Renamed {
    let bare = without(name, &["module.", "_orig_mod.", "backbone."]);
    // A classifier, iBOT's mask token; below heads of the notebook's, DINOv2's and iBOT's training.
    let unused = [
        "head.weight",
        "head.bias",
        "fc.weight",
        "fc.bias",
        "masked_embed",
    ];
    let heads = [
        "new_head.",
        "dino_head.",
        "ibot_head.",
        "head.mlp2.",
        "head.last_layer2.",
    ];
    if unused.contains(&bare) || heads.iter().any(|head| bare.starts_with(head)) {
        return Renamed::Unused;
    }
    // torch's newer weight norm names its two parts by number.
    match bare {
        "head.last_layer.parametrizations.weight.original0" => {
            return Renamed::Whole("head.last_layer.weight_g".to_owned());
        }
        "head.last_layer.parametrizations.weight.original1" => {
            return Renamed::Whole("head.last_layer.weight_v".to_owned());
        }
        _ => {}
    }
    if bare.starts_with("head.mlp.") || bare.starts_with("head.last_layer.") {
        return Renamed::Whole(bare.to_owned());
    }
    let renamed = match layout {
        Layout::HuggingFace => hf::own_name(bare),
        _ => dinov2::own_name(bare),
    };
    let ours = |name: String| format!("backbone.{name}");
    match renamed {
        Renamed::Whole(name) => Renamed::Whole(ours(name)),
        Renamed::Part(name, index, of) => Renamed::Part(ours(name), index, of),
        Renamed::Unused => Renamed::Unused,
    }
}

/// The name without any of these before it, in whatever order they stand.
fn without<'a>(name: &'a str, prefixes: &[&str]) -> &'a str {
    let mut name = name;
    while let Some(inner) = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = inner;
    }
    name
}

fn layout<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Layout {
    // Of data-parallel and of compiled models.
    let names = names.map(|name| without(name, &["module.", "_orig_mod."]));
    let ours = |name: &str| {
        let starts = ["backbone.", "head.mlp.", "head.last_layer.", "new_head."];
        starts.iter().any(|start| name.starts_with(start))
    };
    if names.clone().any(hf::is_telling) {
        Layout::HuggingFace
    } else if names.clone().any(dinov2::is_telling) {
        Layout::Dinov2
    } else if names.clone().count() > 0 && names.clone().all(ours) {
        Layout::Selfsame
    } else {
        Layout::Timm
    }
}

/// Notes that `name` is `own` here, which no other may be.
fn once(names: &mut BTreeMap<String, String>, own: &str, name: String) -> Result<(), ModelError> {
    match names.get(own) {
        Some(other) => Err(same_name(other.clone(), name, own)),
        None => {
            names.insert(own.to_owned(), name);
            Ok(())
        }
    }
}

fn same_name(first: String, second: String, own: &str) -> ModelError {
    ModelError::SameName {
        first,
        second,
        own: own.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rename(names: &[&str]) -> Result<ImportedWeights, ModelError> {
        let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        to_own_names(
            names
                .iter()
                .map(|name| ((*name).to_owned(), scalar.clone())),
        )
    }

    fn keys(weights: &ImportedWeights) -> Vec<&str> {
        weights.tensors.keys().map(String::as_str).collect()
    }

    #[test]
    fn timm_and_distributed_names_become_ours_and_classifiers_are_listed() {
        let weights = rename(&[
            "cls_token",
            "module.backbone.norm.bias",
            "module.head.mlp.0.weight",
            "head.last_layer.weight_v",
            "head.weight",
            "fc.bias",
            "new_head.0.weight",
            "_orig_mod.module.backbone.module.norm.weight",
            "ibot_head.mlp.0.weight",
            "masked_embed",
        ])
        .unwrap();
        assert_eq!(
            keys(&weights),
            [
                "backbone.cls_token",
                "backbone.norm.bias",
                "backbone.norm.weight",
                "head.last_layer.weight_v",
                "head.mlp.0.weight"
            ]
        );
        assert_eq!(
            weights.left_out.keys().collect::<Vec<_>>(),
            [
                "fc.bias",
                "head.weight",
                "ibot_head.mlp.0.weight",
                "masked_embed",
                "new_head.0.weight"
            ]
        );
        assert_eq!(weights.layout, Layout::Timm);
        let error = rename(&["cls_token", "backbone.cls_token"]).unwrap_err();
        let told = "the tensors backbone.cls_token and cls_token are both backbone.cls_token";
        assert_eq!(error.to_string(), told);
        assert_eq!(
            rename(&["module.backbone.norm.bias", "module.head.mlp.0.bias"])
                .unwrap()
                .layout,
            Layout::Selfsame
        );
    }

    #[test]
    fn the_parts_of_the_newer_weight_norm_have_the_names_of_the_older() {
        let last = |part| format!("module.head.last_layer.parametrizations.weight.original{part}");
        let weights = rename(&["backbone.cls_token", &last(0), &last(1)]).unwrap();
        assert_eq!(
            keys(&weights),
            [
                "backbone.cls_token",
                "head.last_layer.weight_g",
                "head.last_layer.weight_v"
            ]
        );
        assert_eq!(weights.layout, Layout::Selfsame);
    }

    #[test]
    fn a_query_without_key_and_value_keeps_its_name() {
        let query = "encoder.layer.0.attention.attention.query.weight";
        let weights = rename(&["embeddings.cls_token", query]).unwrap();
        assert_eq!(weights.layout, Layout::HuggingFace);
        assert_eq!(
            keys(&weights),
            ["backbone.cls_token", &format!("backbone.{query}")]
        );
    }

    #[test]
    fn parts_of_several_types_are_one_of_f32() {
        let part = |name: &str, dtype| {
            let name = format!("encoder.layer.0.attention.attention.{name}.bias");
            (name, Tensor::ones(2, dtype, &Device::Cpu).unwrap())
        };
        let [query, key, value] = ["query", "key", "value"];
        for (second, whole) in [(DType::F16, DType::F16), (DType::BF16, DType::F32)] {
            let parts = [
                part(query, DType::F16),
                part(key, second),
                part(value, DType::F16),
            ];
            let class = Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu).unwrap();
            let class = ("embeddings.cls_token".to_owned(), class);
            let weights = to_own_names(parts.into_iter().chain([class])).unwrap();
            let joined = &weights.tensors["backbone.blocks.0.attn.qkv.bias"];
            assert_eq!((joined.dtype(), joined.dims()), (whole, &[6][..]));
        }
    }
}
