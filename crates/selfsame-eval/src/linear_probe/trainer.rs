//! Training by SGD, one epoch per call.

use super::{LinearClassifier, ProbeConfig};
use crate::error::{EvalError, known_classes, same_length};
use crate::features::Features;
use crate::random::{Purpose, Stream};
use rayon::prelude::*;

// Below so many multiplications a batch is faster on one thread.
const PARALLEL_FROM: usize = 1 << 18;

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
    /// [`EvalError`] for settings out of range, no column, fewer than two classes, or weights that do not fit into
    /// memory.
    pub fn new(config: ProbeConfig, d: usize, num_classes: usize) -> Result<Self, EvalError> {
        let classifier = LinearClassifier::init(d, num_classes, config.init, config.seed)?;
        ProbeTrainer::from_classifier(config, classifier)
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
        classifier.check()?;
        Ok(ProbeTrainer {
            weight_momentum: vec![0.0; classifier.weight.len()],
            bias_momentum: vec![0.0; classifier.bias.len()],
            epoch: 0,
            config,
            classifier,
        })
    }

    /// The classifier as it is now.
    pub fn classifier(&self) -> &LinearClassifier {
        &self.classifier
    }

    /// The classifier, when training is over.
    pub fn into_classifier(self) -> LinearClassifier {
        self.classifier
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
    /// [`EvalError`] if the features are bad or of another width, or a label is not a class;
    /// [`EvalError::Diverged`] if the loss or a weight is not a finite number at the end of the epoch, after which
    /// the trainer is of no use.
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
        if !(done.loss.is_finite() && self.classifier.is_finite()) {
            let ProbeEpoch { epoch, lr, loss } = done;
            return Err(EvalError::Diverged { epoch, loss, lr });
        }
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
