//! A linear classifier trained by SGD on frozen features: the notebook's protocol and the official one.

use crate::error::{EvalError, known_classes, same_length};
use crate::features::Features;
use crate::metrics::accuracy;
use crate::random::{Purpose, Stream};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

// Below so many multiplications a batch is faster on one thread.
const PARALLEL_FROM: usize = 1 << 18;

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
    /// Momentum, PyTorch's form without dampening or Nesterov.
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
        at_least_zero("momentum", self.momentum);
        at_least_zero("weight_decay", self.weight_decay);
        for (name, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            if value == 0 {
                problems.push(format!("probe.{name}: 0 is too few"));
            }
        }
        problems
    }
}

/// Logits W·x + b.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearClassifier {
    /// Columns of the features.
    pub d: usize,
    /// Number of classes.
    pub num_classes: usize,
    /// Weights, row-major `[num_classes, d]`.
    pub weight: Vec<f32>,
    /// Biases, `[num_classes]`.
    pub bias: Vec<f32>,
}

impl LinearClassifier {
    /// A classifier drawn from a seed.
    pub fn init(d: usize, num_classes: usize, init: ProbeInit, seed: u64) -> LinearClassifier {
        let mut stream = Stream::new(seed, Purpose::ProbeInit, 0);
        let bound = 1.0 / (d as f64).sqrt();
        let mut draw = |count: usize, of_bias: bool| -> Vec<f32> {
            (0..count)
                .map(|_| match init {
                    ProbeInit::Uniform => (bound * (2.0 * stream.uniform() - 1.0)) as f32,
                    ProbeInit::Normal if of_bias => 0.0,
                    ProbeInit::Normal => (0.01 * stream.normal()) as f32,
                })
                .collect()
        };
        let (weight, bias) = (draw(num_classes * d, false), draw(num_classes, true));
        LinearClassifier {
            d,
            num_classes,
            weight,
            bias,
        }
    }

    /// The class of each row: that of the largest logit, the first of equal ones.
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width.
    pub fn predict(&self, features: &Features) -> Result<Vec<usize>, EvalError> {
        features.check_width(self.d)?;
        Ok((0..features.n)
            .into_par_iter()
            .map(|i| {
                let (mut best, mut best_logit) = (0, f32::NEG_INFINITY);
                for class in 0..self.num_classes {
                    let logit = self.logit(class, features.row(i));
                    if logit > best_logit {
                        (best, best_logit) = (class, logit);
                    }
                }
                best
            })
            .collect())
    }

    fn logit(&self, class: usize, row: &[f32]) -> f32 {
        dot(&self.weight[class * self.d..(class + 1) * self.d], row) + self.bias[class]
    }
}

/// What an epoch did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeEpoch {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its learning rate.
    pub lr: f64,
    /// Mean cross-entropy of the rows, each before the update that used it.
    pub loss: f64,
}

/// Trains a [`LinearClassifier`], one epoch per call.
///
/// The features may differ from epoch to epoch: the official protocol augments the images anew and extracts again.
/// ```
/// use selfsame_eval::{Features, linear_probe::{ProbeConfig, ProbeTrainer}};
/// # fn main() -> Result<(), selfsame_eval::EvalError> {
/// let config = ProbeConfig { epochs: 3, ..ProbeConfig::official(256) };
/// let mut trainer = ProbeTrainer::new(config, 2, 2)?;
/// while !trainer.is_done() {
///     let features = Features::new(2, 2, vec![1.0, 0.0, 0.0, 1.0])?; // of newly augmented images
///     println!("{:?}", trainer.train_epoch(&features, &[0, 1])?);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ProbeTrainer {
    config: ProbeConfig,
    classifier: LinearClassifier,
    weight_momentum: Vec<f32>,
    bias_momentum: Vec<f32>,
    epoch: usize,
}

impl ProbeTrainer {
    /// A trainer that starts from weights drawn from `config.seed`.
    ///
    /// # Errors
    /// [`EvalError`] for settings out of range, no column, or fewer than two classes.
    pub fn new(config: ProbeConfig, d: usize, num_classes: usize) -> Result<Self, EvalError> {
        let classifier = LinearClassifier::init(d.max(1), num_classes, config.init, config.seed);
        ProbeTrainer::from_classifier(config, LinearClassifier { d, ..classifier })
    }

    /// A trainer that starts from a given classifier.
    ///
    /// # Errors
    /// As [`ProbeTrainer::new`], and [`EvalError::Length`] if the classifier's sizes disagree.
    pub fn from_classifier(
        config: ProbeConfig,
        classifier: LinearClassifier,
    ) -> Result<Self, EvalError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(EvalError::Setting(problems.join("; ")));
        }
        let LinearClassifier {
            d,
            num_classes,
            ref weight,
            ref bias,
        } = classifier;
        if d == 0 {
            return Err(EvalError::Empty {
                what: "feature columns",
            });
        }
        if num_classes < 2 {
            return Err(EvalError::Setting(format!(
                "linear probe: {num_classes} classes given, at least 2 are needed"
            )));
        }
        same_length("classifier weights", num_classes * d, weight.len())?;
        same_length("classifier biases", num_classes, bias.len())?;
        Ok(ProbeTrainer {
            weight_momentum: vec![0.0; num_classes * d],
            bias_momentum: vec![0.0; num_classes],
            epoch: 0,
            config,
            classifier,
        })
    }

    /// The classifier as it is now.
    pub fn classifier(&self) -> &LinearClassifier {
        &self.classifier
    }

    /// How many epochs are done.
    pub fn epochs_done(&self) -> usize {
        self.epoch
    }

    /// Whether all epochs are done.
    pub fn is_done(&self) -> bool {
        self.epoch >= self.config.epochs
    }

    /// The learning rate of the coming epoch; 0 after the last.
    pub fn lr(&self) -> f64 {
        let progress = (self.epoch as f64 / self.config.epochs as f64).min(1.0);
        0.5 * self.config.lr * (1.0 + (std::f64::consts::PI * progress).cos())
    }

    /// One pass over the rows, in an order drawn from (seed, epoch).
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width, or a label is not a class.
    pub fn train_epoch(
        &mut self,
        features: &Features,
        labels: &[usize],
    ) -> Result<ProbeEpoch, EvalError> {
        let mut order: Vec<usize> = (0..features.n).collect();
        Stream::new(self.config.seed, Purpose::ProbeOrder, self.epoch as u64).shuffle(&mut order);
        self.train_epoch_in_order(features, labels, &order)
    }

    /// One pass over the rows named by `order`, in that order.
    ///
    /// # Errors
    /// As [`ProbeTrainer::train_epoch`], and [`EvalError::Setting`] if `order` names a row that is not there.
    pub fn train_epoch_in_order(
        &mut self,
        features: &Features,
        labels: &[usize],
        order: &[usize],
    ) -> Result<ProbeEpoch, EvalError> {
        features.check_width(self.classifier.d)?;
        same_length("labels", features.n, labels.len())?;
        known_classes(labels, self.classifier.num_classes)?;
        if let Some(row) = order.iter().find(|&&row| row >= features.n) {
            return Err(EvalError::Setting(format!(
                "linear probe: row {row} asked for, but there are {} rows",
                features.n
            )));
        }
        let lr = self.lr();
        let mut loss = 0.0;
        for batch in order.chunks(self.config.batch_size) {
            let rows: Vec<&[f32]> = batch.iter().map(|&i| features.row(i)).collect();
            let targets: Vec<usize> = batch.iter().map(|&i| labels[i]).collect();
            loss += self.step(&rows, &targets, lr as f32);
        }
        let done = ProbeEpoch {
            epoch: self.epoch,
            lr,
            loss: loss / order.len().max(1) as f64,
        };
        self.epoch += 1;
        Ok(done)
    }

    /// One update; returns the sum of the rows' cross-entropies. A class belongs to one thread throughout, so the
    /// order of summation does not depend on their number.
    fn step(&mut self, rows: &[&[f32]], targets: &[usize], lr: f32) -> f64 {
        let LinearClassifier { d, num_classes, .. } = self.classifier;
        let (b, parallel) = (rows.len(), rows.len() * d * num_classes >= PARALLEL_FROM);

        // Logits, class-major [classes, batch].
        let mut logits = vec![0.0f32; num_classes * b];
        let classifier = &self.classifier;
        let forward = |(class, logits): (usize, &mut [f32])| {
            for (logit, row) in logits.iter_mut().zip(rows) {
                *logit = classifier.logit(class, row);
            }
        };
        if parallel {
            logits.par_chunks_mut(b).enumerate().for_each(forward);
        } else {
            logits.chunks_mut(b).enumerate().for_each(forward);
        }

        // Softmax minus one-hot, over the batch size: the gradient of the mean cross-entropy.
        let mut loss = 0.0;
        for (i, &target) in targets.iter().enumerate() {
            let of_row = || (i..num_classes * b).step_by(b);
            let largest = of_row()
                .map(|at| logits[at])
                .fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = of_row().map(|at| (logits[at] - largest).exp()).sum();
            loss += f64::from(sum.ln() - (logits[target * b + i] - largest));
            for at in of_row() {
                logits[at] = (logits[at] - largest).exp() / sum / b as f32;
            }
            logits[target * b + i] -= 1.0 / b as f32;
        }

        // Per class: gradient with L2 penalty, momentum, update (torch.optim.SGD).
        let (momentum, decay) = (self.config.momentum as f32, self.config.weight_decay as f32);
        let update = |(grads, weight, buffer, bias, bias_buffer): ClassState| {
            let mut grad = vec![0.0f32; d];
            for (&scale, row) in grads.iter().zip(rows) {
                for (g, &x) in grad.iter_mut().zip(*row) {
                    *g += scale * x;
                }
            }
            for ((w, m), g) in weight.iter_mut().zip(buffer).zip(grad) {
                *m = momentum * *m + (g + decay * *w);
                *w -= lr * *m;
            }
            let g = grads.iter().sum::<f32>() + decay * *bias;
            *bias_buffer = momentum * *bias_buffer + g;
            *bias -= lr * *bias_buffer;
        };
        let mut states: Vec<ClassState> = logits
            .chunks(b)
            .zip(self.classifier.weight.chunks_mut(d))
            .zip(self.weight_momentum.chunks_mut(d))
            .zip(&mut self.classifier.bias)
            .zip(&mut self.bias_momentum)
            .map(|((((grads, weight), buffer), bias), bias_buffer)| {
                (grads, weight, buffer, bias, bias_buffer)
            })
            .collect();
        if parallel {
            states.par_drain(..).for_each(update);
        } else {
            states.drain(..).for_each(update);
        }
        loss
    }
}

/// One class: its logit gradients `[batch]`, weights `[d]`, their momentum, its bias, its momentum.
type ClassState<'a> = (
    &'a [f32],
    &'a mut [f32],
    &'a mut [f32],
    &'a mut f32,
    &'a mut f32,
);

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
/// # Errors
/// As [`ProbeTrainer::new`] and [`ProbeTrainer::train_epoch`]; a test label that is no class counts as wrong.
pub fn sgd(
    train: (&Features, &[usize]),
    test: (&Features, &[usize]),
    num_classes: usize,
    config: &ProbeConfig,
) -> Result<ProbeOutcome, EvalError> {
    let mut trainer = ProbeTrainer::new(config.clone(), train.0.d, num_classes)?;
    let mut epochs = Vec::with_capacity(config.epochs);
    let mut predictions = Vec::new();
    let (mut last, mut best_accuracy, mut best_epoch) = (0.0, -1.0, 0);
    while !trainer.is_done() {
        let epoch = trainer.train_epoch(train.0, train.1)?;
        predictions = trainer.classifier.predict(test.0)?;
        last = accuracy(test.1, &predictions)?;
        if last > best_accuracy {
            (best_accuracy, best_epoch) = (last, epoch.epoch);
        }
        epochs.push((epoch, last));
    }
    let classifier = trainer.classifier;
    Ok(ProbeOutcome {
        classifier,
        predictions,
        accuracy: last,
        best_accuracy,
        best_epoch,
        epochs,
    })
}

/// Dot product in sixteen fixed lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let outcome = sgd((&train, &train_labels), (&test, &test_labels), 2, &config).unwrap();
        assert!(outcome.accuracy > 0.93, "{}", outcome.accuracy);
        assert_eq!(outcome.accuracy, outcome.epochs[9].1);
        assert!(outcome.best_accuracy >= outcome.accuracy);
        assert!(outcome.epochs[9].0.loss < outcome.epochs[0].0.loss);
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
            let outcome = sgd((&train, &labels), (&train, &labels), 2, &config).unwrap();
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
                trainer.classifier.weight
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
