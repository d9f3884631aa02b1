//! Teacher backbones kept for good, to look back at how features grew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use selfsame_checkpoint::{refuse_non_finite, write_tensors};
use selfsame_models::{INPUT_KEY, MODEL_KEY};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::learner::Learner;
use crate::run_files::SNAPSHOTS;
use crate::trainer::make_dir;

/// Describes a backbone's weights: what other programs need to use them.
pub fn weights_metadata(config: &RunConfig) -> BTreeMap<String, String> {
    let model = serde_json::to_string(&config.model).expect("a model configuration serialises");
    let input = serde_json::to_string(&config.input()).expect("numbers serialise");
    BTreeMap::from([(MODEL_KEY.to_owned(), model), (INPUT_KEY.to_owned(), input)])
}

/// Where the snapshot after so many epochs lies.
pub(crate) fn snapshot_path(run_dir: &Path, epochs_done: usize) -> PathBuf {
    let name = format!("epoch-{epochs_done:04}.safetensors");
    run_dir.join(SNAPSHOTS).join(name)
}

/// Writes `snapshots/epoch-NNNN.safetensors`: the teacher's backbone under timm names.
pub(crate) fn save_snapshot(
    run_dir: &Path,
    config: &RunConfig,
    learner: &Learner,
    epochs_done: usize,
) -> Result<(), TrainError> {
    make_dir(&run_dir.join(SNAPSHOTS))?;
    let tensors = backbone_tensors(learner);
    refuse_non_finite(&format!("epoch-{epochs_done:04}"), &tensors)?;
    let path = snapshot_path(run_dir, epochs_done);
    write_tensors(&path, &tensors, &weights_metadata(config))?;
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

#[cfg(test)]
mod tests {
    use selfsame_models::InputConfig;

    use super::*;

    #[test]
    fn weights_say_the_pictures_they_were_trained_on() {
        let mut config = RunConfig::default();
        config.model.image_size = 128;
        config.augment.global_size = 128;
        let metadata = weights_metadata(&config);
        let input: InputConfig = serde_json::from_str(&metadata[INPUT_KEY]).unwrap();
        // ImageNet's mean and deviation stand in two crates.
        assert_eq!(input, InputConfig::imagenet(&config.model));
        config.augment.mean = [0.1, 0.2, 0.3];
        config.augment.global_size = 96;
        let metadata = weights_metadata(&config);
        let input: InputConfig = serde_json::from_str(&metadata[INPUT_KEY]).unwrap();
        assert_eq!((input.mean, input.image_size), ([0.1, 0.2, 0.3], 96));
    }
}
