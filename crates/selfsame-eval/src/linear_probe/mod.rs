//! A linear classifier trained by SGD on frozen features: the notebook's protocol and the official one.

mod classifier;
mod trainer;

pub use classifier::LinearClassifier;
pub use trainer::{ProbeEpoch, ProbeTrainer};

use crate::error::EvalError;
use crate::features::Features;
use crate::metrics::accuracy;
use serde::{Deserialize, Serialize};

/// How the classifier starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeInit {
    /// PyTorch's `nn.Linear`: weights and biases uniform in ±1/√d.
    #[default]
    Uniform,
    /// eval_linear.py: weights N(0, 0.01²), biases 0.
    Normal,
}

/// Settings of the SGD linear probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// Learning rate of the first epoch; it falls as ½·lr·(1 + cos(π·epoch/epochs)) (CosineAnnealingLR).
    pub lr: f64,
    /// Momentum, PyTorch's form without dampening or Nesterov; at least 0 and below 1.
    pub momentum: f64,
    /// L2 penalty added to the gradient, of weights and biases alike.
    pub weight_decay: f64,
    /// Passes over the features.
    pub epochs: usize,
    /// Rows per update; an incomplete last batch is used too.
    pub batch_size: usize,
    /// How the classifier starts.
    pub init: ProbeInit,
    /// Seed of the initial weights and of the order in each epoch.
    pub seed: u64,
}

impl Default for ProbeConfig {
    /// The notebook's linear probe (section 4.2).
    fn default() -> ProbeConfig {
        ProbeConfig {
            lr: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            epochs: 100,
            batch_size: 32,
            init: ProbeInit::Uniform,
            seed: 42,
        }
    }
}

impl ProbeConfig {
    /// eval_linear.py: lr 0.001·batch/256, no weight decay, weights from N(0, 0.01²).
    pub fn official(batch_size: usize) -> ProbeConfig {
        ProbeConfig {
            lr: 0.001 * batch_size as f64 / 256.0,
            weight_decay: 0.0,
            batch_size,
            init: ProbeInit::Normal,
            ..ProbeConfig::default()
        }
    }

    /// Everything that is wrong with the settings; empty if they can be used.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut at_least_zero = |name: &str, value: f64| {
            if !(value.is_finite() && value >= 0.0) {
                problems.push(format!("probe.{name}: {value} is not 0 or more"));
            }
        };
        at_least_zero("lr", self.lr);
        at_least_zero("weight_decay", self.weight_decay);
        if !(0.0..1.0).contains(&self.momentum) {
            problems.push(format!(
                "probe.momentum: {} is not at least 0 and below 1",
                self.momentum
            ));
        }
        for (name, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            if value == 0 {
                problems.push(format!("probe.{name}: 0 is too few"));
            }
        }
        problems
    }
}

/// The course of [`sgd`].
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeOutcome {
    /// The classifier after the last epoch.
    pub classifier: LinearClassifier,
    /// Its class for each test row.
    pub predictions: Vec<usize>,
    /// Its accuracy on the test rows, in 0..=1: **the figure to report**.
    pub accuracy: f64,
    /// The best test accuracy of any epoch: chosen by looking at the test set, hence too good.
    pub best_accuracy: f64,
    /// The first epoch, from 0, that reached it.
    pub best_epoch: usize,
    /// Every epoch and its test accuracy.
    pub epochs: Vec<(ProbeEpoch, f64)>,
}

/// Trains on fixed features and tests after every epoch, as the notebook's linear probe does.
///
/// `on_epoch` is told how many epochs are done.
///
/// # Errors
/// As [`ProbeTrainer::new`] and [`ProbeTrainer::train_epoch`]; a test label that is no class counts as wrong.
pub fn sgd(
    train: (&Features, &[usize]),
    test: (&Features, &[usize]),
    num_classes: usize,
    config: &ProbeConfig,
    on_epoch: &mut dyn FnMut(usize),
) -> Result<ProbeOutcome, EvalError> {
    let mut trainer = ProbeTrainer::new(config.clone(), train.0.d, num_classes)?;
    let mut epochs = Vec::with_capacity(config.epochs);
    let mut predictions = Vec::new();
    let (mut last, mut best_accuracy, mut best_epoch) = (0.0, -1.0, 0);
    while !trainer.is_done() {
        let epoch = trainer.train_epoch(train.0, train.1)?;
        predictions = trainer.classifier().predict(test.0)?;
        last = accuracy(test.1, &predictions)?;
        if last > best_accuracy {
            (best_accuracy, best_epoch) = (last, epoch.epoch);
        }
        epochs.push((epoch, last));
        on_epoch(epochs.len());
    }
    let classifier = trainer.into_classifier();
    Ok(ProbeOutcome {
        classifier,
        predictions,
        accuracy: last,
        best_accuracy,
        best_epoch,
        epochs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    /// Rows around (3, 0) and (0, 3), labelled 0 and 1.
    fn two_blobs(n: usize, seed: u64) -> (Features, Vec<usize>) {
        let mut stream = Stream::new(seed, Purpose::Bootstrap, 5);
        let labels: Vec<usize> = (0..n).map(|i| i % 2).collect();
        let data = labels.iter().flat_map(|&label| {
            let (x, y) = (stream.normal() as f32, stream.normal() as f32);
            if label == 0 {
                [3.0 + x, y]
            } else {
                [x, 3.0 + y]
            }
        });
        (Features::new(n, 2, data.collect()).unwrap(), labels)
    }

    #[test]
    fn separable_blobs_are_separated_and_the_last_epoch_is_reported() {
        let (train, train_labels) = two_blobs(200, 1);
        let (test, test_labels) = two_blobs(100, 2);
        let config = ProbeConfig {
            epochs: 10,
            ..ProbeConfig::default()
        };
        let mut told = Vec::new();
        let outcome = sgd(
            (&train, &train_labels),
            (&test, &test_labels),
            2,
            &config,
            &mut |done| told.push(done),
        )
        .unwrap();
        assert_eq!(told, (1..=10).collect::<Vec<_>>());
        assert!(outcome.accuracy > 0.93, "{}", outcome.accuracy);
        assert_eq!(outcome.accuracy, outcome.epochs[9].1);
        assert!(outcome.best_accuracy >= outcome.accuracy);
        assert!(outcome.epochs[9].0.loss < outcome.epochs[0].0.loss);
    }

    #[test]
    fn training_that_diverges_is_an_error_with_the_rate_to_lower() {
        let (train, labels) = two_blobs(40, 1);
        // At 1e30 the loss is not finite; the one batch of the second leaves only its weights so.
        for (lr, batch_size) in [(1e30, 8), (1e39, 40)] {
            let config = ProbeConfig {
                lr,
                epochs: 5,
                batch_size,
                ..ProbeConfig::default()
            };
            let blobs = (&train, labels.as_slice());
            let error = sgd(blobs, blobs, 2, &config, &mut |_| ()).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, EvalError::Diverged { epoch: 0, .. }),
                "{text}"
            );
            assert!(text.contains("lower the learning rate (it is 1"), "{text}");
        }
    }

    #[test]
    fn a_momentum_of_one_or_more_does_not_pass() {
        for momentum in [5.0, 1.0, -0.1, f64::NAN] {
            let config = ProbeConfig {
                momentum,
                ..ProbeConfig::default()
            };
            assert_eq!(
                config.check(),
                [format!(
                    "probe.momentum: {momentum} is not at least 0 and below 1"
                )]
            );
        }
        for momentum in [0.0, 0.999] {
            let config = ProbeConfig {
                momentum,
                ..ProbeConfig::default()
            };
            assert!(config.check().is_empty());
        }
    }

    #[test]
    fn learning_rate_is_a_cosine_of_the_epoch_that_ends_at_zero() {
        let config = ProbeConfig {
            epochs: 4,
            ..ProbeConfig::default()
        };
        let (train, labels) = two_blobs(8, 1);
        let mut trainer = ProbeTrainer::new(config, 2, 2).unwrap();
        let mut rates = Vec::new();
        for _ in 0..4 {
            rates.push(trainer.train_epoch(&train, &labels).unwrap().lr);
        }
        for (rate, expected) in rates.iter().zip([0.01, 0.0085355339, 0.005, 0.0014644661]) {
            assert!((rate - expected).abs() < 1e-9, "{rates:?}");
        }
        assert!(trainer.is_done() && trainer.lr() == 0.0);
    }

    #[test]
    fn the_seed_decides_the_result() {
        let (train, labels) = two_blobs(50, 1);
        let weights = |seed| {
            let config = ProbeConfig {
                epochs: 2,
                seed,
                ..ProbeConfig::default()
            };
            let outcome = sgd(
                (&train, &labels),
                (&train, &labels),
                2,
                &config,
                &mut |_| (),
            )
            .unwrap();
            outcome.classifier.weight
        };
        assert_eq!(weights(1), weights(1));
        assert_ne!(weights(1), weights(2));
    }

    #[test]
    fn one_thread_and_many_train_the_same_bits() {
        // 64 x 512 x 16 multiplications: above the parallel threshold.
        let mut stream = Stream::new(3, Purpose::Bootstrap, 6);
        let data = (0..64 * 512).map(|_| stream.normal() as f32).collect();
        let features = Features::new(64, 512, data).unwrap();
        let labels: Vec<usize> = (0..64).map(|i| i % 16).collect();
        let train = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let config = ProbeConfig {
                    epochs: 3,
                    ..ProbeConfig::official(64)
                };
                let mut trainer = ProbeTrainer::new(config, 512, 16).unwrap();
                while !trainer.is_done() {
                    trainer.train_epoch(&features, &labels).unwrap();
                }
                trainer.classifier().weight.clone()
            })
        };
        assert_eq!(train(1), train(5));
    }

    #[test]
    fn a_label_that_is_no_class_is_an_error() {
        let (train, _) = two_blobs(2, 1);
        let mut trainer = ProbeTrainer::new(ProbeConfig::default(), 2, 2).unwrap();
        let error = trainer.train_epoch(&train, &[0, 2]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "labels: class 2 in row 1, but there are 2 classes"
        );
    }
}
