//! The official linear protocol, which augments the images anew in every epoch.

use std::collections::BTreeMap;

use selfsame_data::augment::StandardCrop;
use selfsame_data::{Dataset, EvalTransform};
use selfsame_eval::linear_probe::{ProbeConfig, ProbeTrainer};
use selfsame_eval::metrics::accuracy;

use crate::embed::Embedder;
use crate::error::TrainError;
use crate::finetune::LabelledSamples;

/// Accuracies of a linear probe on the test samples.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearScores {
    /// After the last epoch, in 0..=1: the figure to report.
    pub accuracy: f64,
    /// The best of any epoch, chosen by looking at the test set.
    pub best_accuracy: f64,
    /// The epoch, from 0, that reached it.
    pub best_epoch: usize,
    /// Class of each test row after the last epoch.
    pub predicted: Vec<usize>,
    /// The five likeliest classes of each test row after the last epoch, the likeliest first.
    pub ranked: Vec<Vec<usize>>,
    /// True class of the same rows.
    pub truth: Vec<usize>,
}

/// Trains a linear classifier as eval_linear.py does: random resized crop and flip in every epoch,
/// SGD with lr .001 · batch / 256, cosine to 0.
///
/// `embedder`'s transform is that of the test pictures, `crop` that of the training pictures.
///
/// # Errors
/// [`TrainError::Data`], [`TrainError::Tensor`], [`TrainError::Eval`].
pub fn official_linear(
    embedder: &Embedder<'_>,
    train: &LabelledSamples<'_>,
    test: &LabelledSamples<'_>,
    num_classes: usize,
    crop: &StandardCrop,
    config: &ProbeConfig,
    mut on_epoch: impl FnMut(usize, f64),
) -> Result<LinearScores, TrainError> {
    let run = |set: &LabelledSamples<'_>, embedder: &Embedder<'_>| {
        let samples: Vec<usize> = set.classes.keys().copied().collect();
        let done = embedder.embed(set.dataset, &samples, |_| ())?;
        let classes: Vec<usize> = done.samples.iter().map(|i| set.classes[i]).collect();
        Ok::<_, TrainError>((done.features, classes))
    };
    let (test_features, truth) = run(test, embedder)?;
    let mut trainer = ProbeTrainer::new(config.clone(), test_features.d, num_classes)?;
    let mut scores = LinearScores {
        accuracy: 0.0,
        best_accuracy: -1.0,
        best_epoch: 0,
        predicted: Vec::new(),
        ranked: Vec::new(),
        truth,
    };
    while !trainer.is_done() {
        let epoch = trainer.epochs_done();
        let mut anew = embedder.clone();
        anew.options.transform = EvalTransform::Random {
            crop: crop.clone(),
            seed: config.seed,
            epoch: epoch as u64,
        };
        let (features, classes) = run(train, &anew)?;
        trainer.train_epoch(&features, &classes)?;
        scores.predicted = trainer.classifier().predict(&test_features)?;
        scores.accuracy = accuracy(&scores.truth, &scores.predicted)?;
        if scores.accuracy > scores.best_accuracy {
            (scores.best_accuracy, scores.best_epoch) = (scores.accuracy, epoch);
        }
        on_epoch(epoch, scores.accuracy);
    }
    scores.ranked = trainer.classifier().predict_ranked(&test_features, 5)?;
    Ok(scores)
}

/// The class of every sample that has the label, by index; the classes are `encode`'s.
pub fn classes_of(
    dataset: &dyn Dataset,
    label: &str,
    encode: impl Fn(&str) -> Option<usize>,
) -> BTreeMap<usize, usize> {
    (0..dataset.len())
        .filter_map(|i| Some((i, encode(&dataset.label(i, label)?)?)))
        .collect()
}
