//! Supervised fine-tuning of a pretrained backbone with the notebook's MLP head.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};
use selfsame_checkpoint::Checkpoint;
use selfsame_data::augment::{EvalCrop, StandardCrop};
use selfsame_data::sampler::epoch_order;
use selfsame_data::{Dataset, EvalBatch, EvalLoader, EvalTransform, Ledger};
use selfsame_models::{
    BackboneModel, Draws, Gradients, MlpClassifier, Mode, ModelConfig, ParamStore,
    build_backbone_with,
};
use selfsame_optim::{Decayed, Grads, Optimizer, OptimizerKind};
use serde::{Deserialize, Serialize};

use crate::capture::BadFigure;
use crate::device_batch::upload_eval;
use crate::error::TrainError;

/// Under which names a backbone's parameters stand, and those of [`MlpClassifier`].
const BACKBONE: &str = "backbone.";
const HEAD: &str = "new_head.";

/// Share of an epoch's pictures without which it does not count: a folder that has moved away must
/// not pass for training.
const MOST_LEFT_OUT: f64 = 0.5;

/// Settings of [`Finetuning`]; the defaults are the notebook's.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneConfig {
    /// Passes over the training samples.
    pub epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Learning rate of AdamW, constant.
    pub lr: f64,
    /// Weight decay of AdamW, on all parameters.
    pub weight_decay: f64,
    /// Whether the backbone stays as it is and only the head learns.
    pub freeze: bool,
    /// Seed of head, order, crops and dropout.
    pub seed: u64,
    /// Loader threads.
    pub workers: usize,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            epochs: 5,
            batch_size: 32,
            lr: 1e-4,
            weight_decay: 5e-4,
            freeze: false,
            seed: 42,
            workers: 2,
        }
    }
}

/// A labelled part of a data set.
pub struct LabelledSamples<'a> {
    /// The pictures.
    pub dataset: &'a Arc<dyn Dataset>,
    /// The class of each sample used, by index into the data set.
    pub classes: &'a BTreeMap<usize, usize>,
}

impl std::fmt::Debug for LabelledSamples<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LabelledSamples")
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

/// What is told on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FinetuneEvent {
    /// So many pictures have gone through the network since the first epoch began.
    Pictures(usize),
    /// An epoch, counted from 0, is over.
    Epoch {
        /// Which.
        epoch: usize,
        /// Mean training loss.
        loss: f64,
        /// Training accuracy, 0..=1.
        accuracy: f64,
    },
}

/// Classes of pictures that could be decoded, in the order of the data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predictions {
    /// True class of each.
    pub truth: Vec<usize>,
    /// Predicted class of the same.
    pub predicted: Vec<usize>,
}

/// How far fine-tuning has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Epochs that are over, and batches of the present one.
    epoch: usize,
    batches: usize,
    /// Optimizer steps.
    step: u64,
    /// Pictures that went through the network, and those of the present epoch.
    pictures: usize,
    seen: usize,
    /// Sum of the losses and number of right answers of the present epoch.
    loss_sum: f64,
    right: usize,
    /// Mean training loss and accuracy of each epoch that is over.
    epochs: Vec<(f64, f64)>,
}

impl FinetuneConfig {
    /// Every setting that cannot work.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.epochs == 0 {
            problems.push("epochs: 0, at least one is needed".to_owned());
        }
        if self.batch_size == 0 {
            problems.push("batch_size: 0, at least one image is needed".to_owned());
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            problems.push(format!(
                "lr: {} is not a number above 0, such as 1e-4",
                self.lr
            ));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            let decay = self.weight_decay;
            problems.push(format!("weight_decay: {decay} is not a number from 0 on"));
        }
        problems
    }
}

/// Fine-tuning under way: backbone, head, optimizer, and how far it has come.
///
/// It can be put aside at any batch and go on in another process with the same bits (but for an epoch
/// of which most pictures so far could not be used: it begins again):
/// [`Finetuning::checkpoint`], [`Finetuning::restore`].
pub struct Finetuning {
    model: ModelConfig,
    config: FinetuneConfig,
    num_classes: usize,
    params: ParamStore,
    backbone: BackboneModel,
    head: MlpClassifier,
    head_params: ParamStore,
    /// What is trained, of backbone and head.
    weights: BTreeMap<String, Var>,
    optimizer: Optimizer,
    progress: Progress,
    /// Whether the progress is an earlier process's and not gone on from yet.
    is_restored: bool,
    device: Device,
}

impl std::fmt::Debug for Finetuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finetuning")
            .field("model", &self.model)
            .field("config", &self.config)
            .field("num_classes", &self.num_classes)
            .finish_non_exhaustive()
    }
}

impl Finetuning {
    /// At the beginning. `params` stay as they are: a copy of them is trained.
    ///
    /// # Errors
    /// [`TrainError::Config`] with what [`FinetuneConfig::check`] finds, [`TrainError::Model`] for
    /// parameters that are not the model's, [`TrainError::Tensor`] if the device is out of memory.
    pub fn new(
        model: &ModelConfig,
        params: &ParamStore,
        num_classes: usize,
        config: &FinetuneConfig,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(TrainError::Config(problems));
        }
        let params = params.copy()?;
        let gradients = match config.freeze {
            true => Gradients::Off,
            false => Gradients::Recorded,
        };
        let backbone = build_backbone_with(model, &params, gradients)?;
        let (head, head_params) =
            MlpClassifier::new(backbone.embed_dim(), num_classes, config.seed, device)?;
        let mut weights = head_params.trainable();
        if !config.freeze {
            let own = params.trainable().into_iter();
            weights.extend(own.filter(|(name, _)| is_of_backbone(name)));
        }
        let optimizer = Optimizer::new(OptimizerKind::AdamW, &weights, Decayed::All)?;
        Ok(Self {
            model: model.clone(),
            config: config.clone(),
            num_classes,
            params,
            backbone,
            head,
            head_params,
            weights,
            optimizer,
            progress: Progress::default(),
            is_restored: false,
            device: device.clone(),
        })
    }

    /// Whether all epochs are over.
    pub fn is_done(&self) -> bool {
        self.progress.epoch >= self.config.epochs
    }

    /// Pictures that went through the network since the first epoch began.
    pub fn pictures(&self) -> usize {
        self.progress.pictures
    }

    /// Mean training loss and accuracy (0..=1) of each epoch that is over.
    pub fn epochs(&self) -> &[(f64, f64)] {
        &self.progress.epochs
    }

    /// Number of values that are trained.
    pub fn trainable_parameters(&self) -> usize {
        self.weights.values().map(|var| var.elem_count()).sum()
    }

    /// Backbone and head as they are now, by name; they share storage with what is trained.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = self.head_params.tensors();
        let own = self.params.tensors().into_iter();
        tensors.extend(own.filter(|(name, _)| is_of_backbone(name)));
        tensors
    }

    /// All that is needed to go on later; `config` is kept with it and not looked at.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] if the device is out of memory.
    pub fn checkpoint(&self, config: String) -> Result<Checkpoint, TrainError> {
        let progress = serde_json::to_value(&self.progress);
        let extra = progress.map_err(|error| TrainError::State(error.to_string()))?;
        let files = [
            ("weights", self.tensors()),
            ("optimizer", self.optimizer.state()?),
        ];
        Ok(Checkpoint {
            step: self.progress.step,
            epoch: self.progress.epoch as u64,
            config,
            extra,
            files: files.map(|(name, of)| (name.to_owned(), of)).into(),
        })
    }

    /// Bytes of the tensors of a checkpoint after a step; before the first one has no moments.
    pub fn checkpoint_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let weights: usize = self.tensors().values().map(bytes).sum();
        weights + 2 * self.trainable_parameters() * size_of::<f32>()
    }

    /// Goes back to what [`Finetuning::checkpoint`] gave.
    ///
    /// # Errors
    /// [`TrainError::State`], [`TrainError::Model`] or [`TrainError::Optimizer`] with what does not
    /// fit this model, these classes or these settings; some of it may have been taken over then.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let misfit = |what: String| TrainError::State(format!("{what} of the checkpoint"));
        let file = |name: &str| {
            let file = checkpoint.files.get(name);
            file.ok_or_else(|| misfit(format!("there is no file {name:?}")))
        };
        let (weights, optimizer) = (file("weights")?, file("optimizer")?);
        let progress: Progress = serde_json::from_value(checkpoint.extra.clone())
            .map_err(|error| misfit(format!("{error} in the progress")))?;
        self.params.load_part(weights, BACKBONE)?;
        self.head_params.load_part(weights, HEAD)?;
        self.optimizer.load_state(optimizer)?;
        (self.progress, self.is_restored) = (progress, true);
        Ok(())
    }

    /// Trains head (and backbone, unless frozen) until all epochs are over or `tell` breaks; it is
    /// asked after every batch and every epoch.
    ///
    /// Random resized crops and flips; every usable sample counts, the last incomplete batch too,
    /// unless it is a single image for batch norms, which would learn from it alone.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a class that is not below the number of classes;
    /// [`TrainError::Unusable`] if more than half of an epoch's pictures cannot be decoded;
    /// [`TrainError::Data`], [`TrainError::Tensor`], and [`TrainError::NonFinite`] for a loss that is
    /// not finite.
    pub fn train(
        &mut self,
        set: &LabelledSamples<'_>,
        crop: &StandardCrop,
        ledger: &Arc<Ledger>,
        mut tell: impl FnMut(FinetuneEvent) -> ControlFlow<()>,
    ) -> Result<(), TrainError> {
        self.check_classes(set)?;
        let all: Vec<usize> = set.classes.keys().copied().collect();
        if std::mem::take(&mut self.is_restored) {
            self.begin_again_what_lacked_pictures(all.len());
        }
        while !self.is_done() {
            let epoch = self.progress.epoch;
            let order = epoch_order(self.config.seed, epoch as u64, all.len());
            let samples: Vec<usize> = order.into_iter().map(|i| all[i]).collect();
            let transform = EvalTransform::Random {
                crop: crop.clone(),
                seed: self.config.seed,
                epoch: epoch as u64,
            };
            let mut done = samples
                .len()
                .min(self.progress.batches * self.config.batch_size);
            let loader = self.loader(set.dataset, transform, ledger);
            for batch in loader.batches(samples[done..].to_vec())? {
                let batch = batch?;
                if !self.is_too_small(&batch) {
                    self.batch(&batch, set)?;
                }
                // Batches without a usable picture never come.
                let last = batch.samples.last();
                done += samples[done..]
                    .iter()
                    .position(|s| Some(s) == last)
                    .unwrap_or(0)
                    + 1;
                self.progress.batches = done.div_ceil(self.config.batch_size);
                if tell(FinetuneEvent::Pictures(self.progress.pictures)).is_break() {
                    return Ok(());
                }
            }
            let usable = self.progress.seen;
            if is_too_few(usable, samples.len()) {
                let what = format!("pictures of epoch {}", epoch + 1);
                let dataset = set.dataset.as_ref();
                return Err(TrainError::unusable(
                    what, usable, dataset, &samples, ledger,
                ));
            }
            if self.end_epoch(&mut tell).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Forgets the part of an epoch in which most pictures could not be used, so that they have another
    /// chance: whoever goes on in another process may have brought them back.
    fn begin_again_what_lacked_pictures(&mut self, of_epoch: usize) {
        let progress = &mut self.progress;
        let passed = of_epoch.min(progress.batches * self.config.batch_size);
        if is_too_few(progress.seen, passed) {
            (progress.batches, progress.seen) = (0, 0);
            (progress.loss_sum, progress.right) = (0.0, 0);
        }
    }

    /// Whether it is what is left over of an epoch, and one image where rows look at each other.
    fn is_too_small(&self, batch: &EvalBatch) -> bool {
        let mixes_rows = !self.config.freeze && !self.backbone.is_row_wise();
        let is_left_over = self.config.batch_size > 1 && self.progress.seen > 0;
        mixes_rows && is_left_over && batch.samples.len() == 1
    }

    /// One optimizer step.
    fn batch(&mut self, batch: &EvalBatch, set: &LabelledSamples<'_>) -> Result<(), TrainError> {
        let progress = &mut self.progress;
        let mode = Mode::Train(Draws {
            seed: self.config.seed,
            step: progress.step,
            micro_batch: 0,
            first_row: 0,
        });
        let backbone_mode = if self.config.freeze { Mode::Eval } else { mode };
        let truth = batch.samples.iter().map(|i| set.classes[i] as u32);
        let truth: Vec<u32> = truth.collect();
        let images = upload_eval(batch, &self.device)?;
        let features = self.backbone.forward(&images, &backbone_mode)?;
        let logits = self.head.forward(&features, &mode)?;
        let loss = cross_entropy(&logits, &truth)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(TrainError::NonFinite {
                step: progress.step,
                what: BadFigure::Loss,
                value,
            });
        }
        let grads = Grads::backward(&loss, &self.weights)?;
        let norm = grads.global_norm()?;
        if !norm.is_finite() {
            return Err(TrainError::NonFinite {
                step: progress.step,
                what: BadFigure::GradientNorm,
                value: norm,
            });
        }
        let FinetuneConfig {
            lr, weight_decay, ..
        } = self.config;
        self.optimizer
            .step(&self.weights, &grads, lr, weight_decay)?;
        progress.loss_sum += value * truth.len() as f64;
        progress.right += count_right(&logits, &truth)?;
        progress.seen += truth.len();
        progress.step += 1;
        progress.pictures += truth.len();
        Ok(())
    }

    fn end_epoch(
        &mut self,
        tell: &mut impl FnMut(FinetuneEvent) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let now = std::mem::take(&mut self.progress);
        let seen = now.seen.max(1) as f64;
        let (loss, accuracy) = (now.loss_sum / seen, now.right as f64 / seen);
        self.progress = Progress {
            epoch: now.epoch + 1,
            step: now.step,
            pictures: now.pictures,
            epochs: now.epochs,
            ..Progress::default()
        };
        self.progress.epochs.push((loss, accuracy));
        tell(FinetuneEvent::Epoch {
            epoch: now.epoch,
            loss,
            accuracy,
        })
    }

    /// The class of every sample by the network as it is now, on deterministic crops; `None` if
    /// `tell`, which hears after every batch how many are done, breaks.
    ///
    /// # Errors
    /// As [`Finetuning::train`]; [`TrainError::Unusable`] if no picture can be decoded.
    pub fn predict(
        &self,
        set: &LabelledSamples<'_>,
        crop: &EvalCrop,
        ledger: &Arc<Ledger>,
        mut tell: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Predictions>, TrainError> {
        self.check_classes(set)?;
        // The same weights, of which nobody asks a gradient.
        let backbone = build_backbone_with(&self.model, &self.params, Gradients::Off)?;
        let samples: Vec<usize> = set.classes.keys().copied().collect();
        let mut found = Predictions::default();
        let transform = EvalTransform::Center(crop.clone());
        for batch in self
            .loader(set.dataset, transform, ledger)
            .batches(samples)?
        {
            let batch = batch?;
            let features = backbone.forward(&upload_eval(&batch, &self.device)?, &Mode::Eval)?;
            let logits = self.head.forward(&features, &Mode::Eval)?;
            let classes = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            found.predicted.extend(classes.iter().map(|c| *c as usize));
            found
                .truth
                .extend(batch.samples.iter().map(|i| set.classes[i]));
            if tell(found.truth.len()).is_break() {
                return Ok(None);
            }
        }
        if found.truth.is_empty() && !set.classes.is_empty() {
            let samples: Vec<usize> = set.classes.keys().copied().collect();
            let (what, dataset) = ("pictures to test on", set.dataset.as_ref());
            return Err(TrainError::unusable(what, 0, dataset, &samples, ledger));
        }
        Ok(Some(found))
    }

    fn check_classes(&self, set: &LabelledSamples<'_>) -> Result<(), TrainError> {
        match set.classes.values().max() {
            Some(highest) if *highest >= self.num_classes => {
                let classes = self.num_classes;
                let problem = format!("class {highest} is not one of {classes}");
                Err(TrainError::Config(vec![problem]))
            }
            _ => Ok(()),
        }
    }

    fn loader(
        &self,
        dataset: &Arc<dyn Dataset>,
        transform: EvalTransform,
        ledger: &Arc<Ledger>,
    ) -> EvalLoader {
        EvalLoader {
            dataset: dataset.clone(),
            transform,
            batch_size: self.config.batch_size,
            workers: self.config.workers,
            ledger: ledger.clone(),
        }
    }
}

/// Whether more of these pictures could not be used than [`MOST_LEFT_OUT`]; a single one that is left
/// over of an epoch is no such picture.
fn is_too_few(usable: usize, of: usize) -> bool {
    let least = (1.0 - MOST_LEFT_OUT) * of as f64;
    of > 0 && (usable == 0 || ((usable + 1) as f64) < least)
}

fn is_of_backbone(name: &str) -> bool {
    name.starts_with(BACKBONE)
}

/// Mean over rows of -log softmax at the true class, with a gradient.
fn cross_entropy(logits: &Tensor, truth: &[u32]) -> candle_core::Result<Tensor> {
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_probs = shifted.broadcast_sub(&log_sum)?;
    let index = Tensor::from_slice(truth, (truth.len(), 1), logits.device())?;
    log_probs.gather(&index, 1)?.mean_all()?.neg()
}

fn count_right(logits: &Tensor, truth: &[u32]) -> candle_core::Result<usize> {
    let predicted = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(predicted.iter().zip(truth).filter(|(p, t)| p == t).count())
}

#[cfg(test)]
mod tests;
