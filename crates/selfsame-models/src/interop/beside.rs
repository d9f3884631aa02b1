//! The JSON files that lie beside published weights: timm's and Hugging Face's.
//!
//! What such a file says and we cannot compute is an error, not a guess: other settings mostly have
//! the same shapes, and other features.

mod hf;
mod timm;

use std::path::Path;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::input::InputConfig;

/// Why what lies beside weights cannot be followed.
type Refusal = String;

/// What lies beside a weights file: timm's or transformers' `config.json`, and transformers'
/// `preprocessor_config.json`.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    config: Option<Value>,
    preprocessor: Option<Value>,
}

impl Beside {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`ModelError::Beside`] for a file that is not JSON.
    pub fn read(weights: &Path) -> Result<Self, ModelError> {
        let json = |name: &str| match std::fs::read_to_string(weights.with_file_name(name)) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| {
                ModelError::Beside(format!("{name} beside the weights is not JSON: {error}"))
            }),
            Err(_) => Ok(None),
        };
        Ok(Self {
            config: json("config.json")?,
            preprocessor: json("preprocessor_config.json")?,
        })
    }

    /// The architecture, if there is a file that says one.
    ///
    /// # Errors
    /// [`ModelError::Beside`] for a network that is none of those here.
    pub fn model(&self) -> Result<Option<ModelConfig>, ModelError> {
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
        model
            .map(Some)
            .map_err(|what| ModelError::Beside(format!("config.json beside the weights: {what}")))
    }

    /// Size and normalisation of pictures for `model`, where they are said.
    pub fn input(&self, model: &ModelConfig) -> Option<InputConfig> {
        if let Some(config) = &self.config
            && config.get("architecture").is_some()
            && let Some(input) = timm::input(config, model)
        {
            return Some(input);
        }
        hf::input(self.preprocessor.as_ref()?, model.native_size())
    }

    /// What the published model computes a little otherwise than ours.
    pub fn differences(&self) -> Vec<Difference> {
        let cut = self.preprocessor.as_ref().and_then(hf::other_cut);
        let config = self.config.as_ref();
        let eps = config.and_then(|config| config.get("layer_norm_eps")?.as_f64());
        let eps = eps.filter(|eps| (eps - 1e-6).abs() > 1e-9);
        let act = config.and_then(|config| config.get("hidden_act")?.as_str());
        let act = act.filter(|act| hf::OTHER_GELUS.contains(act));
        [
            cut,
            eps.map(Difference::LayerNormEps),
            act.map(|act| Difference::Activation(act.to_owned())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What a published model computes otherwise than ours does with its weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Difference {
    /// The epsilon of its layer norms; ours have 1e-6.
    LayerNormEps(f64),
    /// An approximation of the GELU, by transformers' name; ours is that of erf.
    Activation(String),
    /// Its preprocessor resizes the shorter side to `edge` pixels and cuts out `side`.
    Cut {
        /// Shorter side after the resize, in pixels.
        edge: f64,
        /// Side of what is cut out, in pixels.
        side: f64,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LayerNormEps(eps) => write!(
                f,
                "config.json says layer_norm_eps = {eps:e}, our layer norm has 1e-6: features \
                 differ slightly"
            ),
            Self::Activation(act) => write!(
                f,
                "config.json says hidden_act = {act:?}, ours is the gelu of erf: features differ"
            ),
            Self::Cut { edge, side } => write!(
                f,
                "preprocessor_config.json resizes the shorter side to {edge} and cuts out {side}"
            ),
        }
    }
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
            preprocessor: None,
        }
    }

    #[test]
    fn a_file_that_is_no_json_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("model.safetensors");
        assert!(Beside::read(&weights).unwrap().model().unwrap().is_none());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = Beside::read(&weights).unwrap_err();
        assert!(matches!(error, ModelError::Beside(_)));
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
