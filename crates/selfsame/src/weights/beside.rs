//! The JSON files that lie beside weights: timm's, Hugging Face's and a checkpoint's.
//!
//! What such a file says and we cannot compute is an error, not a guess: other settings mostly have
//! the same shapes, and other features.

mod hf;
mod timm;

use std::path::Path;

use selfsame_checkpoint::Manifest;
use selfsame_models::{ImportedWeights, ModelConfig};
use selfsame_train::RunConfig;
use serde_json::Value;

use super::Input;
use crate::config::Merged;
use crate::exit::usage;
use crate::stderr::tell;

/// Why what lies beside weights cannot be followed.
type Refusal = String;

/// What lies beside a weights file.
#[derive(Default)]
pub(super) struct Beside {
    /// `config.json`
    config: Option<Value>,
    /// `preprocessor_config.json`, Hugging Face's.
    preprocessor: Option<Value>,
    /// The configuration of the checkpoint that the weights are a file of.
    run: Option<RunConfig>,
}

impl Beside {
    /// Reads what is there.
    ///
    /// # Errors
    /// A file that is not JSON.
    pub(super) fn read(weights: &Path) -> Result<Self, Refusal> {
        let json = |name: &str| match std::fs::read_to_string(weights.with_file_name(name)) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| format!("{name} beside the weights is not JSON: {error}")),
            Err(_) => Ok(None),
        };
        Ok(Self {
            config: json("config.json")?,
            preprocessor: json("preprocessor_config.json")?,
            run: run_config(weights),
        })
    }

    /// The architecture, if there is a file that says one.
    ///
    /// # Errors
    /// What it says and is not ours.
    pub(super) fn model(&self) -> Result<Option<ModelConfig>, Refusal> {
        if let Some(run) = &self.run {
            return Ok(Some(run.model.clone()));
        }
        let Some(config) = &self.config else {
            return Ok(None);
        };
        let model = if config.get("architecture").is_some() {
            timm::model(config)
        } else if ["model_type", "hidden_size", "hidden_sizes"]
            .iter()
            .any(|key| config.get(key).is_some())
        {
            hf::model(config)
        } else {
            // Somebody else's file.
            return Ok(None);
        };
        let says = |what: String| format!("config.json beside the weights: {what}");
        model.map(Some).map_err(says)
    }

    /// Size and normalisation, where they are said.
    pub(super) fn input(&self, model: &ModelConfig) -> Option<Input> {
        if let Some(run) = &self.run {
            return Some(Input::of(&run.augment));
        }
        if let Some(config) = &self.config
            && config.get("architecture").is_some()
            && let Some(input) = timm::input(config, model)
        {
            return Some(input);
        }
        hf::input(self.preprocessor.as_ref()?, native_size(model))
    }

    /// What the model beside which this lies computes a little otherwise than ours.
    pub(super) fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        if let Some(difference) = self.preprocessor.as_ref().and_then(hf::other_cut) {
            differences.push(difference);
        }
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
        if let Some(act) = act.filter(|act| hf::OTHER_GELUS.contains(act)) {
            differences.push(format!(
                "config.json says hidden_act = {act:?}, ours is the gelu of erf: features differ"
            ));
        }
        differences
    }
}

/// What lies beside a file, and the architecture as the file or what lies beside it says.
///
/// # Errors
/// What is said and cannot be followed, unless `arch` says which network it is.
pub(super) fn told(
    path: &Path,
    weights: &ImportedWeights,
    arch: Option<&str>,
) -> anyhow::Result<(Beside, Option<ModelConfig>)> {
    if let Some(model) = weights.stated_model()? {
        return Ok((Beside::read(path).unwrap_or_default(), Some(model)));
    }
    let (beside, model) = match Beside::read(path) {
        Ok(beside) => {
            let model = beside.model();
            (beside, model)
        }
        Err(refusal) => (Beside::default(), Err(refusal)),
    };
    let model = match (model, arch) {
        (Ok(model), _) => model,
        (Err(refusal), None) => {
            return Err(usage(format!(
                "{refusal}; if it is one of ours all the same, say which by --arch, such as \
                 vit_small/16"
            )));
        }
        (Err(refusal), Some(arch)) => {
            tell!("warning: {refusal}; taken as {arch}");
            None
        }
    };
    Ok((beside, model))
}

/// Side of the pictures of a network where nothing says it.
pub(super) fn native_size(model: &ModelConfig) -> usize {
    match model.arch.is_vit() {
        true => model.image_size,
        false => 224,
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

/// A side in pixels: a number, or twice the same.
fn side(key: &str, value: &Value) -> Result<usize, Refusal> {
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    let side = match value.as_array().map(Vec::as_slice) {
        Some([height, width]) if height == width => number(height),
        Some(_) => None,
        None => number(value),
    };
    side.ok_or_else(|| format!("{key} = {value} is not the side of a square"))
}

fn refuse(key: &str, value: &Value) -> Refusal {
    format!("{key} = {value} makes another network than those here")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a `config.json` alone says.
    pub(super) fn beside(config: Value) -> Beside {
        Beside {
            config: Some(config),
            ..Beside::default()
        }
    }
}
