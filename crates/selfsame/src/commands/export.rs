//! `selfsame export`

mod hf;
mod onnx;
mod timm;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{Device, Tensor};
use selfsame_checkpoint::{write_bytes, write_tensors};

pub(super) use timm::timm;

use crate::cli::{Export, Format};
use crate::exit::Done;
use crate::stderr::tell;
use crate::weights::{Loaded, Weights, refuse_reference};

pub(crate) fn run(args: &Export) -> anyhow::Result<Done> {
    refuse_reference("--weights", &args.weights)?;
    let weights = Weights::open(&args.weights, args.which, None, &Device::Cpu)?;
    let loaded = weights.backbone()?;
    match args.format {
        Format::Timm => timm(loaded, &args.out)?,
        Format::Hf => hf::hf(loaded, &args.out)?,
        Format::Dino => dino(loaded, &args.out)?,
        Format::Onnx => onnx::onnx(loaded, &args.out)?,
    }
    tell!("{} written to {}", weights.describe(), args.out.display());
    Ok(Done::Well)
}

/// Writes backbone and head under the names of the official DINO code.
fn dino(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    let mut tensors = loaded.params.tensors();
    if loaded.head.contains_key("head.last_layer.weight_v") {
        tensors.extend(loaded.head.clone());
    } else if !loaded.head.is_empty() {
        tell!("note: the notebook's head has no counterpart in the official code; left out");
    }
    create(out)?;
    save(out, "model.safetensors", &tensors, &loaded.metadata()?)
}

fn create(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))
}

/// Writes tensors as files that PyTorch programs read.
fn save(
    out: &Path,
    name: &str,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    Ok(write_tensors(&out.join(name), tensors, &metadata)?)
}

fn save_json(out: &Path, name: &str, value: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(write_bytes(&out.join(name), text.as_bytes())?)
}
