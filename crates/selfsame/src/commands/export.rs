//! `selfsame export`

mod hf;
mod onnx;
mod timm;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{Device, Tensor};
use selfsame_checkpoint::{remove_unfinished, write_bytes, write_tensors};
use selfsame_models::interop::Layout;
use selfsame_models::{MODEL_KEY, ModelConfig, read_weights};

pub(super) use timm::timm;

use crate::cli::{Export, Format, Which};
use crate::exit::{Done, usage};
use crate::out::check_folder;
use crate::overwriting::refuse_overwriting;
use crate::stderr::tell;
use crate::weights::{Loaded, Weights, refuse_reference};

/// The weights' file, in all formats but one.
const WEIGHTS: &str = "model.safetensors";

pub(crate) fn run(args: &Export) -> anyhow::Result<Done> {
    refuse_reference("--weights", &args.weights)?;
    for file in files(args.format) {
        let inputs = [("--weights", Path::new(&args.weights))];
        refuse_overwriting(("--out", &args.out.join(file)), &inputs)?;
    }
    check_folder("--out", &args.out)?;
    let mut weights = Weights::open(&args.weights, args.which, None, &Device::Cpu)?;
    fit_to_pictures(&mut weights, args.format)?;
    let loaded = weights.backbone()?;
    let metadata = match args.format {
        Format::Hf => hf::metadata(loaded)?,
        _ => loaded.metadata()?,
    };
    refuse_others(&args.out, args.format, &metadata)?;
    let is_new = !args.out.exists();
    let written = match args.format {
        Format::Timm => timm(loaded, &args.out),
        Format::Hf => hf::hf(loaded, &args.out),
        Format::Dino => dino(loaded, &args.out),
        Format::Onnx => onnx::onnx(loaded, &args.out),
    };
    if written.is_err() && is_new {
        // Only if nothing is in it.
        let _ = std::fs::remove_dir(&args.out);
    }
    written?;
    let classifier = weights.backbone()?.others.keys();
    if classifier
        .into_iter()
        .any(|name| name.starts_with("new_head."))
    {
        tell!(
            "note: the fine-tuned classifier is left out, `selfsame predict` applies it; what is exported \
             makes features"
        );
    }
    tell!("{} written to {}", weights.describe(), args.out.display());
    Ok(Done::Well)
}

/// Resamples the positions to the size at which the weights are evaluated, where a format or those
/// who read it take pictures of one size only.
fn fit_to_pictures(weights: &mut Weights, format: Format) -> anyhow::Result<()> {
    let Loaded { model, input, .. } = weights.backbone()?;
    let any_size = match format {
        Format::Dino => true,
        // Dinov2Model resamples by itself.
        Format::Hf => model.is_dinov2(),
        Format::Timm | Format::Onnx => false,
    };
    let fitted = ModelConfig {
        image_size: input.image_size,
        ..model.clone()
    };
    if any_size || !model.arch.is_vit() || fitted == *model || !fitted.check().is_empty() {
        return Ok(());
    }
    weights.fit_to(&fitted, &Device::Cpu)
}

/// What each format writes, the weights first.
fn files(format: Format) -> &'static [&'static str] {
    match format {
        Format::Timm => &[WEIGHTS, "config.json"],
        Format::Hf => &[WEIGHTS, "config.json", "preprocessor_config.json"],
        Format::Dino => &[WEIGHTS],
        Format::Onnx => &["model.onnx"],
    }
}

/// Refuses a folder with anything in it but an earlier export of the same architecture, in the same
/// format, which this one replaces file by file. What a killed export left of them is removed.
///
/// # Errors
/// A usage error that names what is in the way.
fn refuse_others(
    out: &Path,
    format: Format,
    metadata: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else {
        return Ok(());
    };
    let files = files(format);
    for file in files {
        remove_unfinished(&out.join(file));
    }
    let is_earlier = is_export(&out.join(files[0]), format, metadata)?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("reading {}", out.display()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(is_earlier && files.contains(&&*name)) {
            return Err(usage(format!(
                "--out {}: {name} is in it, which is not from an earlier export of these weights in \
                 this format; name a new folder, or empty this one",
                out.display()
            )));
        }
    }
    Ok(())
}

/// Whether a file of weights is there, written by this program for the same architecture in the
/// same format.
fn is_export(
    path: &Path,
    format: Format,
    metadata: &BTreeMap<String, String>,
) -> anyhow::Result<bool> {
    let Some(model) = metadata.get(MODEL_KEY).filter(|_| path.is_file()) else {
        return Ok(false);
    };
    let layout = match format {
        Format::Timm => Layout::Timm,
        Format::Hf => Layout::HuggingFace,
        Format::Dino => Layout::Selfsame,
        Format::Onnx => {
            let bytes =
                std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let found = |text: &str| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            };
            return Ok(found(MODEL_KEY) && found(model));
        }
    };
    let file = read_weights(path, Which::Teacher.into());
    Ok(file.is_ok_and(|file| file.layout == layout && file.metadata.get(MODEL_KEY) == Some(model)))
}

/// Writes backbone and head under the names of the official DINO code.
fn dino(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    let mut tensors = loaded.params.tensors();
    if loaded.head.contains_key("head.last_layer.weight_v") {
        tensors.extend(loaded.head.clone());
    } else if !loaded.head.is_empty() {
        tell!("note: the notebook's head has no counterpart in the official code; left out");
    }
    if loaded.model.is_dinov2() {
        tell!(
            "note: the official DINO code has neither registers nor layer scale nor SwiGLU; other \
             programs read this file"
        );
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
