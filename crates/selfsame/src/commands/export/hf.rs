//! A folder for Hugging Face transformers.

use std::collections::BTreeMap;
use std::path::Path;

use selfsame_models::interop::to_hf;
use selfsame_models::{Arch, MODEL_KEY, MlpKind, ModelConfig, VitDims};
use serde_json::{Value, json};

use super::{create, save, save_json};
use crate::weights::Loaded;

/// Writes what `ViTModel.from_pretrained(DIR, add_pooling_layer=False)`, `ResNetModel`,
/// `Dinov2Model` or `Dinov2WithRegistersModel` loads: weights, config.json and
/// preprocessor_config.json.
pub(super) fn hf(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    create(out)?;
    let tensors = to_hf(&loaded.params.tensors())?;
    save(out, "model.safetensors", &tensors, &metadata(loaded)?)?;
    let model = as_written(&loaded.model);
    let config = match model.vit_dims() {
        Some(dims) => vit_config(&model, dims),
        None => resnet_config(loaded.model.arch),
    };
    save_json(out, "config.json", &config)?;
    save_json(out, "preprocessor_config.json", &preprocessor(loaded))
}

/// What the file says of itself.
///
/// # Errors
/// As [`Loaded::metadata`].
pub(super) fn metadata(loaded: &Loaded) -> anyhow::Result<BTreeMap<String, String>> {
    let mut metadata = loaded.metadata()?;
    let model = serde_json::to_string(&as_written(&loaded.model))?;
    metadata.insert(MODEL_KEY.to_owned(), model);
    Ok(metadata)
}

/// The model with the layer scales of 1 that [`to_hf`] gives a DINOv2 without any.
fn as_written(model: &ModelConfig) -> ModelConfig {
    let mut model = model.clone();
    if model.is_dinov2() && model.layer_scale == 0.0 {
        model.layer_scale = 1.0;
    }
    model
}

fn vit_config(model: &ModelConfig, dims: VitDims) -> Value {
    let d = dims.embed_dim;
    let mut config = json!({
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "hidden_size": d,
        "num_hidden_layers": dims.depth,
        "num_attention_heads": dims.num_heads,
        "intermediate_size": 4 * d,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        // Ours; the class's own default is 1e-12.
        "layer_norm_eps": 1e-6,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "qkv_bias": true,
    });
    if model.is_dinov2() {
        config["model_type"] = json!("dinov2");
        config["architectures"] = json!(["Dinov2Model"]);
        config["mlp_ratio"] = json!(4);
        config["layerscale_value"] = json!(model.layer_scale);
        config["use_swiglu_ffn"] = json!(model.mlp == MlpKind::Swiglu);
    }
    if model.num_registers > 0 {
        config["model_type"] = json!("dinov2_with_registers");
        config["architectures"] = json!(["Dinov2WithRegistersModel"]);
        config["num_register_tokens"] = json!(model.num_registers);
    }
    config
}

fn resnet_config(arch: Arch) -> Value {
    let (kind, depths, widths) = match arch {
        Arch::Resnet18 => ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
        _ => ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    };
    json!({
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": widths,
        "depths": depths,
        "layer_type": kind,
        "hidden_act": "relu",
        "downsample_in_first_stage": false,
        "downsample_in_bottleneck": false,
    })
}

fn preprocessor(loaded: &Loaded) -> Value {
    let input = &loaded.input;
    let side = input.image_size;
    json!({
        // As we evaluate: the shorter side resized, the middle cut out.
        "image_processor_type": "BitImageProcessor",
        "do_resize": true,
        "size": {"shortest_edge": side},
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": true,
        // PIL's bicubic
        "resample": 3,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": input.mean,
        "image_std": input.std,
    })
}
