//! `selfsame export`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use selfsame_checkpoint::{write_bytes, write_tensors};
use selfsame_models::ModelConfig;
use serde_json::json;

use crate::cli::{Export, Format};
use crate::exit::Done;
use crate::weights::{Loaded, Weights};

pub(crate) fn run(args: &Export) -> anyhow::Result<Done> {
    let weights = Weights::open(&args.weights, args.which, None, &Device::Cpu)?;
    let loaded = weights.backbone()?;
    match args.format {
        Format::Timm => timm(loaded, &args.out)?,
    }
    eprintln!("{} written to {}", weights.describe(), args.out.display());
    Ok(Done::Well)
}

/// Writes what `timm.create_model('local-dir:DIR', pretrained=True)` loads.
pub(super) fn timm(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let tensors: BTreeMap<_, _> = loaded
        .params
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor)))
        .collect();
    let mut metadata = loaded.metadata()?;
    metadata.insert("format".to_owned(), "pt".to_owned());
    write_tensors(&out.join("model.safetensors"), &tensors, &metadata)?;
    let config = serde_json::to_string_pretty(&timm_config(loaded))?;
    write_bytes(&out.join("config.json"), config.as_bytes())?;
    Ok(())
}

fn timm_config(loaded: &Loaded) -> serde_json::Value {
    let (model, input) = (&loaded.model, &loaded.input);
    let (architecture, global_pool, model_args) = timm_architecture(model);
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
fn timm_architecture(model: &ModelConfig) -> (String, &'static str, serde_json::Value) {
    match model.vit_dims() {
        Some(dims) => (
            format!("{}_patch16_224", model.arch),
            "token",
            json!({
                "img_size": model.image_size,
                "patch_size": model.patch_size,
                "embed_dim": dims.embed_dim,
                "depth": dims.depth,
                "num_heads": dims.num_heads,
            }),
        ),
        None => (model.arch.to_string(), "avg", json!({})),
    }
}
