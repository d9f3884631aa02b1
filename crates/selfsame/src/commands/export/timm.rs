//! A folder for `timm.create_model('local-dir:DIR', pretrained=True)`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
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
    let tensors = loaded.params.tensors().into_iter();
    let mut tensors: BTreeMap<String, Tensor> = tensors
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor)))
        .collect();
    if loaded.model.num_registers > 0 {
        give_patches_alone_positions(&mut tensors)?;
    }
    save(out, "model.safetensors", &tensors, &loaded.metadata()?)?;
    save_json(out, "config.json", &config(loaded))
}

/// Adds the class token's position to the token, as timm's own models with registers have it: their
/// positions are of patches alone (`no_embed_class`), and would be of the registers too otherwise.
fn give_patches_alone_positions(tensors: &mut BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let (Some(class), Some(positions)) = (tensors.get("cls_token"), tensors.get("pos_embed"))
    else {
        anyhow::bail!("a vision transformer without cls_token or pos_embed");
    };
    let patches = positions.dim(1)? - 1;
    let class = (class + positions.narrow(1, 0, 1)?)?;
    let positions = positions.narrow(1, 1, patches)?.contiguous()?;
    tensors.insert("cls_token".to_owned(), class);
    tensors.insert("pos_embed".to_owned(), positions);
    Ok(())
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
        args["no_embed_class"] = json!(true);
    }
    (format!("{}_patch16_224", model.arch), "token", args)
}
