//! The JSON files that lie beside published weights: timm's and Hugging Face's.
//!
//! What such a file says and we cannot compute is an error, not a guess: other settings mostly have
//! the same shapes, and other features.

mod hf;
mod timm;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

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
    config: Option<Json>,
    preprocessor: Option<Json>,
}

/// A file, and what is in it.
#[derive(Debug, Clone)]
struct Json {
    path: PathBuf,
    value: Value,
}

impl Beside {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`ModelError::BesideUnread`] for a file that cannot be read or is not JSON.
    pub fn read(weights: &Path) -> Result<Self, ModelError> {
        let json = |name: &str| {
            let path = weights.with_file_name(name);
            let read = match std::fs::read_to_string(&path) {
                Ok(text) => serde_json::from_str(&text).map_err(Into::into),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => Err(error.into()),
            };
            match read {
                Ok(value) => Ok(Some(Json { path, value })),
                Err(source) => Err(ModelError::BesideUnread { path, source }),
            }
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
        let Some(Json {
            path,
            value: config,
        }) = &self.config
        else {
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
        model.map(Some).map_err(|why| ModelError::Beside {
            path: path.clone(),
            why,
        })
    }

    /// Size and normalisation of pictures for `model`, where they are said.
    ///
    /// # Errors
    /// [`ModelError::Input`] if what is said is no size or normalisation.
    pub fn input(&self, model: &ModelConfig) -> Result<Option<InputConfig>, ModelError> {
        let checked = |path: &Path, said: Result<Option<InputConfig>, Refusal>| {
            let said = said.and_then(|input| {
                let problems = input.iter().flat_map(InputConfig::check);
                match problems.collect::<Vec<_>>().as_slice() {
                    [] => Ok(input),
                    problems => Err(problems.join("; ")),
                }
            });
            said.map_err(|why| ModelError::Input {
                place: path.display().to_string(),
                why,
            })
        };
        if let Some(Json { path, value }) = &self.config
            && value.get("architecture").is_some()
            && let Some(input) = checked(path, timm::input(value, model))?
        {
            return Ok(Some(input));
        }
        match &self.preprocessor {
            Some(Json { path, value }) => checked(path, hf::input(value, model.native_size())),
            None => Ok(None),
        }
    }

    /// What the published model computes a little otherwise than ours.
    pub fn differences(&self) -> Vec<Difference> {
        let preprocessor = self.preprocessor.as_ref();
        let cut = preprocessor.and_then(|json| hf::other_cut(&json.value));
        let config = self.config.as_ref().map(|json| &json.value);
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

/// What is said under a key; `null` says nothing.
fn said<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|value| !value.is_null())
}

/// A number for each channel, if something is said under the key.
fn channels(config: &Value, key: &str) -> Result<Option<[f64; 3]>, Refusal> {
    let read = |value: &Value| {
        serde_json::from_value(value.clone())
            .map_err(|_| format!("{key} = {value} are not three numbers"))
    };
    said(config, key).map(read).transpose()
}

/// Mean and standard deviation, if they are said.
fn normalisation(config: &Value, keys: [&str; 2]) -> Result<Option<[[f64; 3]; 2]>, Refusal> {
    match (channels(config, keys[0])?, channels(config, keys[1])?) {
        (Some(mean), Some(std)) => Ok(Some([mean, std])),
        (None, None) => Ok(None),
        _ => Err(format!("there is only one of {} and {}", keys[0], keys[1])),
    }
}

fn refuse(key: &str, value: &Value) -> Refusal {
    format!("{key} = {value} makes another network than those here")
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// What a `config.json` alone says.
    pub(super) fn beside(config: Value) -> Beside {
        Beside {
            config: Some(json("config.json", config)),
            preprocessor: None,
        }
    }

    fn json(name: &str, value: Value) -> Json {
        let path = Path::new("net").join(name);
        Json { path, value }
    }

    #[test]
    fn a_file_that_is_no_json_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("model.safetensors");
        assert!(Beside::read(&weights).unwrap().model().unwrap().is_none());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = Beside::read(&weights).unwrap_err();
        assert!(matches!(error, ModelError::BesideUnread { .. }));
        let path = dir.path().join("config.json").display().to_string();
        assert!(error.to_string().starts_with(&path), "{error}");
        let source = error.source().unwrap();
        assert!(source.is::<serde_json::Error>(), "{source}");
    }

    #[test]
    fn a_file_that_is_there_and_cannot_be_read_is_named() {
        for name in ["config.json", "preprocessor_config.json"] {
            let dir = tempfile::tempdir().unwrap();
            let weights = dir.path().join("model.safetensors");
            let file = dir.path().join(name);
            std::fs::write(&file, b"{\"model_type\": \"r\xe9sn\xe9t\"}").unwrap();
            let refused = || {
                let error = Beside::read(&weights).unwrap_err();
                let path = file.display().to_string();
                assert!(error.to_string().starts_with(&path), "{error}");
                assert!(error.source().unwrap().is::<std::io::Error>());
            };
            refused();
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
            refused();
        }
    }

    #[test]
    fn an_input_that_cannot_be_followed_names_its_file() {
        let model = ModelConfig::default();
        let timm = serde_json::json!({
            "architecture": "resnet18",
            "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.0, 0.2]},
        });
        let error = beside(timm).input(&model).unwrap_err().to_string();
        let of = |name: &str| Path::new("net").join(name).display().to_string();
        let told = [&of("config.json"), "std: "];
        assert!(told.iter().all(|part| error.contains(part)), "{error}");
        let hf = Beside {
            config: None,
            preprocessor: Some(json(
                "preprocessor_config.json",
                serde_json::json!({"image_mean": [0.5], "image_std": [0.5]}),
            )),
        };
        let error = hf.input(&model).unwrap_err().to_string();
        let told = of("preprocessor_config.json") + ": image_mean";
        assert!(error.contains(&told), "{error}");
    }
}
