//! The names of Hugging Face transformers: ViT, DINOv2 with and without registers, ResNet.
//!
//! Their files keep the older spelling (`encoder.layer.0.attention.attention.query`); a model in
//! memory of transformers 5 has a newer one (`layers.0.attention.q_proj`). Both are read, the older
//! is written, which both generations load.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::names::Renamed;

/// Prefixes of models with a task's head around the backbone.
const WRAPPERS: [&str; 4] = ["vit.", "dinov2.", "dinov2_with_registers.", "resnet."];

/// (theirs, ours) inside a block; the first of several is written.
const BLOCK: [(&str, &str); 14] = [
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.weights_in", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("mlp.fc2", "mlp.fc2"),
    ("mlp.weights_out", "mlp.fc2"),
    ("mlp.down_proj", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("norm1", "norm1"),
    ("layernorm_after", "norm2"),
    ("norm2", "norm2"),
    ("attention.qkv", "attn.qkv"),
];

/// (theirs, ours, which part, of how many) of what is packed here.
const PARTS: [(&str, &str, usize, usize); 8] = [
    ("attention.attention.query", "attn.qkv", 0, 3),
    ("attention.attention.key", "attn.qkv", 1, 3),
    ("attention.attention.value", "attn.qkv", 2, 3),
    ("attention.q_proj", "attn.qkv", 0, 3),
    ("attention.k_proj", "attn.qkv", 1, 3),
    ("attention.v_proj", "attn.qkv", 2, 3),
    ("mlp.gate_proj", "mlp.fc1", 0, 2),
    ("mlp.up_proj", "mlp.fc1", 1, 2),
];

/// A name that only transformers gives.
pub(super) fn is_telling(name: &str) -> bool {
    let bare = bare(name);
    bare.starts_with("embeddings.") || bare.starts_with("embedder.embedder.")
}

fn bare(name: &str) -> &str {
    let inner = WRAPPERS.iter().find_map(|w| name.strip_prefix(w));
    inner.unwrap_or(name)
}

/// timm's name; an unknown one is kept.
pub(super) fn own_name(name: &str) -> Renamed {
    let name = bare(name);
    if name == "embeddings.mask_token"
        || ["pooler.", "classifier."]
            .iter()
            .any(|s| name.starts_with(s))
    {
        return Renamed::Unused;
    }
    let known = vit_name(name).or_else(|| resnet_name(name).map(Renamed::Whole));
    known.unwrap_or_else(|| Renamed::Whole(name.to_owned()))
}

fn vit_name(name: &str) -> Option<Renamed> {
    let whole = |name: String| Some(Renamed::Whole(name));
    match name {
        "embeddings.cls_token" => return whole("cls_token".to_owned()),
        "embeddings.position_embeddings" => return whole("pos_embed".to_owned()),
        "embeddings.register_tokens" => return whole("reg_token".to_owned()),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("embeddings.patch_embeddings.projection.") {
        return whole(format!("patch_embed.proj.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("layernorm.") {
        return whole(format!("norm.{rest}"));
    }
    let rest = name.strip_prefix("encoder.layer.");
    let rest = rest.or_else(|| name.strip_prefix("layers."))?;
    let (index, rest) = rest.split_once('.')?;
    if let Some(rest) = rest.strip_prefix("layer_scale") {
        let which = rest.strip_suffix(".lambda1")?;
        return whole(format!("blocks.{index}.ls{which}.gamma"));
    }
    let (layer, field) = rest.rsplit_once('.')?;
    if let Some((_, ours, part, of)) = PARTS.iter().find(|(theirs, ..)| *theirs == layer) {
        let ours = format!("blocks.{index}.{ours}.{field}");
        return Some(Renamed::Part(ours, *part, *of));
    }
    let (_, ours) = BLOCK.iter().find(|(theirs, _)| *theirs == layer)?;
    whole(format!("blocks.{index}.{ours}.{field}"))
}

fn resnet_name(name: &str) -> Option<String> {
    let (path, field) = name.rsplit_once('.')?;
    if let Some(part) = path.strip_prefix("embedder.embedder.") {
        let ours = match part {
            "convolution" => "conv1",
            "normalization" => "bn1",
            _ => return None,
        };
        return Some(format!("{ours}.{field}"));
    }
    let mut parts = path.strip_prefix("encoder.stages.")?.split('.');
    let stage: usize = parts.next()?.parse().ok()?;
    let block = match (parts.next()?, parts.next()?) {
        ("layers", index) => format!("layer{}.{index}", stage.checked_add(1)?),
        _ => return None,
    };
    let rest: Vec<&str> = parts.collect();
    let ours = match rest.as_slice() {
        ["shortcut", "convolution"] => "downsample.0".to_owned(),
        ["shortcut", "normalization"] => "downsample.1".to_owned(),
        ["layer", index, kind] => {
            let number = index.parse::<usize>().ok()?.checked_add(1)?;
            match *kind {
                "convolution" => format!("conv{number}"),
                "normalization" => format!("bn{number}"),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(format!("{block}.{ours}.{field}"))
}

/// Backbone tensors under the names in which transformers stores `ViTModel`, `Dinov2Model`,
/// `Dinov2WithRegistersModel` and `ResNetModel`.
///
/// `tensors` have our names, with `backbone.` before them; a head is left out. A network with
/// registers, layer scale or SwiGLU becomes a DINOv2: with a mask token of zeros, which their classes
/// have and no evaluation uses, and with layer scales of 1 where it has none.
/// # Errors
/// [`candle_core::Error`] if a packed projection is not three times as high as wide, or the bias of
/// one has no three parts.
pub fn to_hf(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let ours: BTreeMap<&str, &Tensor> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?, tensor)))
        .collect();
    let is_scaled = ours
        .keys()
        .any(|name| name.ends_with(".gamma") && name.contains(".ls"));
    let is_dinov2 = is_scaled || ours.contains_key("reg_token") || is_swiglu(&ours);
    let mut theirs = BTreeMap::new();
    for (name, tensor) in &ours {
        if let Some((block, field)) = name.split_once(".attn.qkv.") {
            let index = block.trim_start_matches("blocks.");
            let height = match *tensor.dims() {
                [height] if height.is_multiple_of(3) => height / 3,
                [height, width] if height == 3 * width => width,
                ref dims => candle_core::bail!(
                    "backbone.{name} has shape {dims:?}, not that of query, key and value one below \
                     the other"
                ),
            };
            for (third, part) in ["query", "key", "value"].into_iter().enumerate() {
                let name = format!("encoder.layer.{index}.attention.attention.{part}.{field}");
                let rows = tensor.narrow(0, third * height, height)?.contiguous()?;
                theirs.insert(name, rows);
            }
            continue;
        }
        theirs.insert(hf_name(name, is_dinov2), (*tensor).clone());
    }
    if is_dinov2 && let Some(token) = ours.get("cls_token") {
        let mask = Tensor::zeros((1, token.dim(2)?), DType::F32, token.device())?;
        theirs.insert("embeddings.mask_token".to_owned(), mask);
        let blocks = ours.keys().filter_map(|name| {
            let block = name.strip_prefix("blocks.")?;
            block.strip_suffix(".norm1.weight")
        });
        for block in blocks.filter(|_| !is_scaled) {
            for scale in 1..=2 {
                let name = format!("encoder.layer.{block}.layer_scale{scale}.lambda1");
                let ones = Tensor::ones(token.dim(2)?, DType::F32, token.device())?;
                theirs.insert(name, ones);
            }
        }
        let swiglu: Vec<String> = theirs
            .keys()
            .filter(|name| name.contains(".mlp.fc"))
            .cloned()
            .collect();
        if is_swiglu(&ours) {
            for name in swiglu {
                let new = name
                    .replace(".mlp.fc1.", ".mlp.weights_in.")
                    .replace(".mlp.fc2.", ".mlp.weights_out.");
                if let Some(tensor) = theirs.remove(&name) {
                    theirs.insert(new, tensor);
                }
            }
        }
    }
    Ok(theirs)
}

/// SwiGLU packs two matrices into `fc1`, so it is higher than `fc2` is wide.
fn is_swiglu(ours: &BTreeMap<&str, &Tensor>) -> bool {
    let side = |name, dim| ours.get(name).and_then(|tensor| tensor.dim(dim).ok());
    side("blocks.0.mlp.fc1.weight", 0) != side("blocks.0.mlp.fc2.weight", 1)
}

fn hf_name(name: &str, is_dinov2: bool) -> String {
    let fixed = match name {
        "cls_token" => Some("embeddings.cls_token"),
        "pos_embed" => Some("embeddings.position_embeddings"),
        "reg_token" => Some("embeddings.register_tokens"),
        "patch_embed.proj.weight" => Some("embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias" => Some("embeddings.patch_embeddings.projection.bias"),
        "norm.weight" => Some("layernorm.weight"),
        "norm.bias" => Some("layernorm.bias"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return fixed.to_owned();
    }
    let vit = || {
        let (index, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        if let Some(rest) = rest.strip_prefix("ls") {
            let which = rest.strip_suffix(".gamma")?;
            return Some(format!("encoder.layer.{index}.layer_scale{which}.lambda1"));
        }
        let (layer, field) = rest.rsplit_once('.')?;
        // DINOv2's blocks keep timm's names but for attention.
        let theirs = match layer {
            "norm1" | "norm2" | "mlp.fc1" | "mlp.fc2" if is_dinov2 => layer,
            _ => BLOCK.iter().find(|(_, ours)| *ours == layer)?.0,
        };
        Some(format!("encoder.layer.{index}.{theirs}.{field}"))
    };
    vit()
        .or_else(|| hf_resnet_name(name))
        .unwrap_or_else(|| name.to_owned())
}

fn hf_resnet_name(name: &str) -> Option<String> {
    let (path, field) = name.rsplit_once('.')?;
    let kind = |layer: &str| {
        let number = |prefix| layer.strip_prefix(prefix)?.parse::<usize>().ok();
        number("conv")
            .map(|n| (n, "convolution"))
            .or_else(|| number("bn").map(|n| (n, "normalization")))
    };
    let Some(rest) = path.strip_prefix("layer") else {
        let (_, kind) = kind(path)?;
        return Some(format!("embedder.embedder.{kind}.{field}"));
    };
    let (stage, rest) = rest.split_once('.')?;
    let (index, layer) = rest.split_once('.')?;
    let stage = stage.parse::<usize>().ok()?.checked_sub(1)?;
    let block = format!("encoder.stages.{stage}.layers.{index}");
    Some(match layer {
        "downsample.0" => format!("{block}.shortcut.convolution.{field}"),
        "downsample.1" => format!("{block}.shortcut.normalization.{field}"),
        _ => {
            let (number, kind) = kind(layer)?;
            format!("{block}.layer.{}.{kind}.{field}", number.checked_sub(1)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_block_are_one() {
        for (old, new) in [
            ("attention.attention.key.bias", "attention.k_proj.bias"),
            ("attention.output.dense.weight", "attention.o_proj.weight"),
            ("intermediate.dense.weight", "mlp.fc1.weight"),
            ("output.dense.bias", "mlp.fc2.bias"),
            ("layernorm_before.weight", "layernorm_before.weight"),
        ] {
            let names = [
                format!("vit.encoder.layer.3.{old}"),
                format!("layers.3.{new}"),
            ];
            let [old, new] = names.map(|name| own_name(&name));
            assert_eq!(old, new);
            assert!(format!("{old:?}").contains("blocks.3."), "{old:?}");
        }
        assert_eq!(
            own_name("encoder.layer.0.attention.attention.value.weight"),
            Renamed::Part("blocks.0.attn.qkv.weight".to_owned(), 2, 3)
        );
        assert_eq!(own_name("pooler.dense.weight"), Renamed::Unused);
        assert_eq!(
            own_name("encoder.layer.0.surprise"),
            Renamed::Whole("encoder.layer.0.surprise".to_owned())
        );
    }

    #[test]
    fn a_packed_projection_of_another_height_is_refused() {
        let packed = |field: &str, dims: &[usize]| {
            let name = format!("backbone.blocks.0.attn.qkv.{field}");
            let tensor = Tensor::zeros(dims, DType::F32, &candle_core::Device::Cpu).unwrap();
            to_hf(&BTreeMap::from([(name, tensor)]))
        };
        assert_eq!(packed("weight", &[6, 2]).unwrap().len(), 3);
        assert_eq!(packed("bias", &[6]).unwrap().len(), 3);
        for (field, dims) in [("weight", &[7, 2][..]), ("weight", &[9, 2]), ("bias", &[7])] {
            let error = packed(field, dims).unwrap_err().to_string();
            assert!(error.contains(&format!("{dims:?}")), "{error}");
        }
    }

    #[test]
    fn a_resnets_names_come_back() {
        for name in [
            "conv1.weight",
            "bn1.running_mean",
            "layer1.0.conv3.weight",
            "layer4.2.bn2.num_batches_tracked",
            "layer2.0.downsample.0.weight",
            "layer2.0.downsample.1.running_var",
        ] {
            let theirs = hf_name(name, false);
            assert_ne!(theirs, name);
            assert_eq!(own_name(&theirs), Renamed::Whole(name.to_owned()));
        }
        assert_eq!(
            hf_name("layer4.2.bn2.bias", false),
            "encoder.stages.3.layers.2.layer.1.normalization.bias"
        );
    }
}
