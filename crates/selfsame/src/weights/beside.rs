//! The JSON files that lie beside weights: timm's, Hugging Face's and a checkpoint's.

use std::path::Path;

use selfsame_checkpoint::Manifest;
use selfsame_models::{Arch, MlpKind, ModelConfig, PosEmbedResample};
use selfsame_train::RunConfig;
use serde_json::Value;

use super::Input;
use crate::config::Merged;

/// What lies beside a weights file.
pub(super) struct Beside {
    /// `config.json`
    config: Option<Value>,
    /// `preprocessor_config.json`, Hugging Face's.
    preprocessor: Option<Value>,
    /// The configuration of the checkpoint that the weights are a file of.
    run: Option<RunConfig>,
}

impl Beside {
    /// Reads what is there; a file that is not JSON counts as not there.
    pub(super) fn read(weights: &Path) -> Self {
        let json = |name: &str| {
            let text = std::fs::read_to_string(weights.with_file_name(name)).ok()?;
            serde_json::from_str(&text).ok()
        };
        Self {
            config: json("config.json"),
            preprocessor: json("preprocessor_config.json"),
            run: run_config(weights),
        }
    }

    /// The architecture, if it is one of ours.
    pub(super) fn model(&self) -> Option<ModelConfig> {
        if let Some(run) = &self.run {
            return Some(run.model.clone());
        }
        let config = self.config.as_ref()?;
        timm_model(config).or_else(|| hf_model(config))
    }

    /// Size and normalisation; `native` is the model's own size.
    pub(super) fn input(&self, native: usize) -> Option<Input> {
        if let Some(run) = &self.run {
            return Some(Input::of(&run.augment));
        }
        let timm = self.config.as_ref().and_then(timm_input);
        timm.or_else(|| hf_input(self.preprocessor.as_ref()?, native))
    }

    /// What the model beside which this lies computes otherwise than ours.
    pub(super) fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        let Some(config) = &self.config else {
            return differences;
        };
        let eps = config.get("layer_norm_eps").and_then(Value::as_f64);
        if let Some(eps) = eps.filter(|eps| (eps - 1e-6).abs() > 1e-9) {
            differences.push(format!(
                "config.json says layer_norm_eps = {eps:e}, our layer norm has 1e-6: features differ slightly"
            ));
        }
        let act = config.get("hidden_act").and_then(Value::as_str);
        if let Some(act) = act.filter(|act| !["gelu", "relu"].contains(act)) {
            differences.push(format!(
                "config.json says hidden_act = {act:?}, ours is the gelu of erf: features differ"
            ));
        }
        differences
    }
}

/// What the manifest of a checkpoint says of the run, if `weights` is a file of it.
fn run_config(weights: &Path) -> Option<RunConfig> {
    let manifest = Manifest::read(weights.parent()?).ok()?;
    let name = weights.file_name()?.to_str()?;
    manifest.files.contains_key(name).then_some(())?;
    Merged::from_text(&manifest.config, "manifest.json")
        .ok()?
        .typed()
        .ok()
}

/// The architecture in timm's `config.json`: a name like `vit_tiny_patch16_224` or `resnet50`, and
/// the arguments that make it another size. `None` for one that is not ours.
fn timm_model(config: &serde_json::Value) -> Option<ModelConfig> {
    let name = config.get("architecture")?.as_str()?;
    let name = name.split('.').next()?;
    let mut model = match name.split_once("_patch") {
        Some((arch, sizes)) => {
            let (patch, size) = sizes.split_once('_')?;
            super::parse_arch(&format!("{arch}/{patch}@{size}"))?
        }
        None => super::parse_arch(name)?,
    };
    let arg = |key: &str, field: &mut usize| {
        let value = config.get("model_args").and_then(|args| args.get(key));
        if let Some(value) = value.and_then(serde_json::Value::as_u64) {
            *field = value as usize;
        }
    };
    arg("img_size", &mut model.image_size);
    arg("patch_size", &mut model.patch_size);
    arg("embed_dim", &mut model.embed_dim);
    arg("depth", &mut model.depth);
    arg("num_heads", &mut model.num_heads);
    Some(model)
}

/// Size and normalisation in timm's `config.json`.
fn timm_input(config: &serde_json::Value) -> Option<Input> {
    let cfg = config.get("pretrained_cfg")?;
    let image_size = cfg.get("input_size")?.get(1)?.as_u64()? as usize;
    let triple = |key: &str| serde_json::from_value(cfg.get(key)?.clone()).ok();
    Some(Input {
        image_size,
        mean: triple("mean")?,
        std: triple("std")?,
    })
}

/// The architecture in Hugging Face's `config.json`. `None` for one that is not ours.
fn hf_model(config: &Value) -> Option<ModelConfig> {
    let kind = config.get("model_type")?.as_str()?;
    let number = |key: &str| Some(config.get(key)?.as_u64()? as usize);
    if kind == "resnet" {
        let depths: Vec<usize> = serde_json::from_value(config.get("depths")?.clone()).ok()?;
        let arch = match depths.as_slice() {
            [2, 2, 2, 2] => Arch::Resnet18,
            [3, 4, 6, 3] => Arch::Resnet50,
            _ => return None,
        };
        return Some(ModelConfig {
            arch,
            ..Default::default()
        });
    }
    if !["vit", "dinov2", "dinov2_with_registers"].contains(&kind) {
        return None;
    }
    let width = number("hidden_size")?;
    let same_width = |arch: &Arch| arch.vit_dims().is_some_and(|dims| dims.embed_dim == width);
    let mut model = ModelConfig {
        patch_size: number("patch_size")?,
        image_size: number("image_size")?,
        pos_embed_resample: PosEmbedResample::Hf,
        ..Default::default()
    };
    let (heads, depth) = (number("num_attention_heads")?, number("num_hidden_layers")?);
    match Arch::ALL.into_iter().find(same_width) {
        Some(arch) => model.arch = arch,
        None => model.embed_dim = width,
    }
    let dims = model.vit_dims()?;
    if dims.num_heads != heads {
        model.num_heads = heads;
    }
    if dims.depth != depth {
        model.depth = depth;
    }
    if kind != "vit" {
        model.layer_scale = 1e-5; // dinov2, --layerscale: what training starts from
        if config.get("use_swiglu_ffn").and_then(Value::as_bool) == Some(true) {
            model.mlp = MlpKind::Swiglu;
        }
    }
    if kind == "dinov2_with_registers" {
        model.num_registers = number("num_register_tokens").unwrap_or(4);
        model.pos_embed_resample = PosEmbedResample::Timm;
    }
    Some(model)
}

/// Normalisation in Hugging Face's `preprocessor_config.json`, and the size if it says one.
fn hf_input(config: &Value, native: usize) -> Option<Input> {
    let triple = |key: &str| serde_json::from_value(config.get(key)?.clone()).ok();
    let size = |key: &str| Some(config.get(key)?.get("height")?.as_u64()? as usize);
    Some(Input {
        image_size: size("crop_size").or_else(|| size("size")).unwrap_or(native),
        mean: triple("image_mean")?,
        std: triple("image_std")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn timms_config_tells_heads_that_shapes_do_not() {
        let model = timm_model(&json!({
            "architecture": "vit_tiny_patch16_224.some_tag",
            "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2},
        }));
        let model = model.unwrap();
        assert_eq!((model.image_size, model.patch_size), (32, 8));
        let dims = model.vit_dims().unwrap();
        assert_eq!((dims.embed_dim, dims.depth, dims.num_heads), (32, 12, 2));
        let resnet = timm_model(&json!({"architecture": "resnet18"})).unwrap();
        assert!(!resnet.arch.is_vit());
        assert!(timm_model(&json!({"architecture": "convnext_tiny"})).is_none());
    }

    #[test]
    fn transformers_config_tells_the_model_and_its_differences() {
        let config = json!({
            "model_type": "dinov2_with_registers", "hidden_size": 384, "num_attention_heads": 6,
            "num_hidden_layers": 12, "patch_size": 14, "image_size": 518,
            "num_register_tokens": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        });
        let model = hf_model(&config).unwrap();
        assert_eq!((model.arch, model.num_registers), (Arch::VitSmall, 4));
        assert_eq!((model.depth, model.num_heads), (0, 0));
        assert!(model.is_dinov2());
        let beside = |config| Beside {
            config: Some(config),
            preprocessor: None,
            run: None,
        };
        assert!(beside(config).differences().is_empty());
        let old = json!({"layer_norm_eps": 1e-12, "hidden_act": "gelu_new"});
        assert_eq!(beside(old).differences().len(), 2);
        assert!(hf_model(&json!({"model_type": "clip"})).is_none());
    }

    #[test]
    fn transformers_preprocessor_tells_size_and_normalisation() {
        let config = json!({
            "size": {"height": 64, "width": 64},
            "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
        });
        let input = hf_input(&config, 224).unwrap();
        assert_eq!((input.image_size, input.mean[2]), (64, 0.3));
    }
}
