//! A folder for `timm.create_model('local-dir:DIR', pretrained=True)`.

use std::collections::BTreeMap;
use std::path::Path;

use selfsame_models::{MlpKind, ModelConfig};
use serde_json::json;

use super::{create, save, save_json};
use crate::exit::usage;
use crate::weights::Loaded;

/// Writes what `timm.create_model('local-dir:DIR', pretrained=True)` loads.
pub(in crate::commands) fn timm(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    if loaded.model.mlp == MlpKind::Swiglu {
        return Err(usage(
            "--format timm: timm has SwiGLU blocks in one size only; use --format hf or onnx",
        ));
    }
    create(out)?;
    let mut tensors = BTreeMap::new();
    for (name, mut tensor) in loaded.params.tensors() {
        let Some(name) = name.strip_prefix("backbone.") else {
            continue;
        };
        if name == "pos_embed" && loaded.model.num_registers > 0 {
            // timm gives registers positions; theirs are 0.
            let (_, tokens, d) = tensor.dims3()?;
            let registers = (1, loaded.model.num_registers, d);
            let zeros = candle_core::Tensor::zeros(registers, tensor.dtype(), tensor.device())?;
            let (class, patches) = (tensor.narrow(1, 0, 1)?, tensor.narrow(1, 1, tokens - 1)?);
            tensor = candle_core::Tensor::cat(&[&class, &zeros, &patches], 1)?;
        }
        tensors.insert(name.to_owned(), tensor);
    }
    save(out, "model.safetensors", &tensors, &loaded.metadata()?)?;
    save_json(out, "config.json", &config(loaded))
}

fn config(loaded: &Loaded) -> serde_json::Value {
    let (model, input) = (&loaded.model, &loaded.input);
    let (architecture, global_pool, model_args) = architecture(model);
    let size = if model.arch.is_vit() {
        model.image_size
    } else {
        input.image_size
    };
    json!({
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.feature_dim(),
        "global_pool": global_pool,
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": model.arch.is_vit(),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": input.mean,
            "std": input.std,
            "num_classes": 0,
        },
    })
}

/// timm's architecture name, pooling and the arguments that make it ours.
fn architecture(model: &ModelConfig) -> (String, &'static str, serde_json::Value) {
    let Some(dims) = model.vit_dims() else {
        return (model.arch.to_string(), "avg", json!({}));
    };
    let mut args = json!({
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": dims.embed_dim,
        "depth": dims.depth,
        "num_heads": dims.num_heads,
    });
    if model.layer_scale != 0.0 {
        args["init_values"] = json!(model.layer_scale);
    }
    if model.num_registers > 0 {
        args["reg_tokens"] = json!(model.num_registers);
    }
    (format!("{}_patch16_224", model.arch), "token", args)
}
