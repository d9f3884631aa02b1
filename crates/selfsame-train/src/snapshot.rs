//! Teacher backbones kept for good, to look back at how features grew.

use std::collections::BTreeMap;
use std::path::Path;

use selfsame_checkpoint::write_tensors;
use selfsame_models::{INPUT_KEY, MODEL_KEY};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::learner::Learner;

/// Describes a backbone's weights: what other programs need to use them.
pub fn weights_metadata(config: &RunConfig) -> BTreeMap<String, String> {
    let input = serde_json::json!({
        "image_size": config.augment.global_size,
        "mean": config.augment.mean,
        "std": config.augment.std,
    });
    let model = serde_json::to_string(&config.model).expect("a model configuration serialises");
    BTreeMap::from([
        (MODEL_KEY.to_owned(), model),
        (INPUT_KEY.to_owned(), input.to_string()),
    ])
}

/// Writes `snapshots/epoch-NNNN.safetensors`: the teacher's backbone under timm names.
pub(crate) fn save_snapshot(
    run_dir: &Path,
    config: &RunConfig,
    learner: &Learner,
    epochs_done: usize,
) -> Result<(), TrainError> {
    let dir = run_dir.join("snapshots");
    std::fs::create_dir_all(&dir).map_err(TrainError::io(&dir, "cannot be created"))?;
    let path = dir.join(format!("epoch-{epochs_done:04}.safetensors"));
    write_tensors(&path, &backbone_tensors(learner), &weights_metadata(config))?;
    Ok(())
}

/// The teacher's backbone under timm names, without the `backbone.` prefix.
pub fn backbone_tensors(learner: &Learner) -> BTreeMap<String, candle_core::Tensor> {
    learner
        .teacher_params
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.")?.to_owned(), tensor)))
        .collect()
}
