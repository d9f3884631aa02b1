//! What is said of a weights file: in it, by the checkpoint that it is a file of, or beside it.

use std::path::Path;

use selfsame_checkpoint::Manifest;
use selfsame_models::{Beside, ImportedWeights, InputConfig, ModelConfig, ModelError};
use selfsame_train::RunConfig;

use crate::config::Merged;
use crate::exit::usage;
use crate::stderr::tell;

/// What is said of a weights file.
#[derive(Default)]
pub(super) struct Told {
    /// The architecture.
    pub(super) model: Option<ModelConfig>,
    /// Size and normalisation, as the checkpoint's run has them.
    pub(super) input: Option<InputConfig>,
    /// What lies beside it.
    pub(super) beside: Beside,
}

/// Gathers what is said of the weights in `path`.
///
/// # Errors
/// What is said and cannot be followed, unless `arch` says which network it is.
pub(super) fn told(
    path: &Path,
    weights: &ImportedWeights,
    arch: Option<&str>,
) -> anyhow::Result<Told> {
    if let Some(model) = weights.stated_model()? {
        return Ok(Told {
            model: Some(model),
            beside: Beside::read(path).unwrap_or_default(),
            ..Told::default()
        });
    }
    if let Some(run) = run_config(path) {
        return Ok(Told {
            input: Some(run.input()),
            model: Some(run.model),
            ..Told::default()
        });
    }
    let said = Beside::read(path).and_then(|beside| {
        Ok(Told {
            model: beside.model()?,
            beside,
            ..Told::default()
        })
    });
    let said = said.map_err(|refusal: ModelError| format!("{:#}", anyhow::Error::new(refusal)));
    said.or_else(|refusal| match arch {
        None => Err(usage(format!(
            "{refusal}; if it is one of ours all the same, say which by --arch, such as \
             vit_small/16"
        ))),
        Some(arch) => {
            tell!("warning: {refusal}; taken as {arch}");
            Ok(Told::default())
        }
    })
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
