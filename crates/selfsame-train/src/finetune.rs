//! Supervised fine-tuning of a pretrained backbone with the notebook's MLP head.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, Device, IndexOp, Tensor};
use selfsame_data::augment::{EvalCrop, StandardCrop};
use selfsame_data::sampler::epoch_order;
use selfsame_data::{Dataset, EvalLoader, EvalTransform, Ledger};
use selfsame_models::{
    Draws, Gradients, MlpClassifier, Mode, ModelConfig, ParamStore, build_backbone_with,
};
use selfsame_optim::{Grads, Optimizer, OptimizerKind};

use crate::device_batch::upload_eval;
use crate::error::TrainError;

/// Settings of [`finetune`]; the defaults are the notebook's.
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

/// What is told on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FinetuneEvent {
    /// So many pictures have gone through the network: those of all epochs, then the test's.
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

/// What fine-tuning gave.
pub struct FinetuneResult {
    /// True class of each test sample that could be decoded.
    pub truth: Vec<usize>,
    /// Predicted class of the same samples.
    pub predicted: Vec<usize>,
    /// Mean training loss and accuracy (0..=1) of each epoch.
    pub epochs: Vec<(f64, f64)>,
    /// Backbone and head after the last epoch, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Parameters that were trained.
    pub trainable_parameters: usize,
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

/// Trains head (and backbone, unless frozen) on `train`, then predicts every sample of `test`.
///
/// `params` stay as they are: a copy of them is trained.
/// Training uses random resized crops and flips; testing the deterministic crop. Every usable
/// sample counts, the last incomplete batch too.
///
/// # Errors
/// [`TrainError::Config`] with what [`FinetuneConfig::check`] finds and a class that is not below
/// `num_classes`; [`TrainError::Data`], [`TrainError::Tensor`], and [`TrainError::NonFinite`] for a
/// loss that is not finite.
#[expect(
    clippy::too_many_arguments,
    reason = "one call per program run; each is a subject"
)]
pub fn finetune(
    model: &ModelConfig,
    params: &ParamStore,
    num_classes: usize,
    train: &LabelledSamples<'_>,
    test: &LabelledSamples<'_>,
    crops: (&StandardCrop, &EvalCrop),
    config: &FinetuneConfig,
    device: &Device,
    ledger: &Arc<Ledger>,
    mut tell: impl FnMut(FinetuneEvent),
) -> Result<FinetuneResult, TrainError> {
    let mut problems = config.check();
    let classes = [train, test].map(|set| set.classes.values().max());
    if let Some(highest) = classes.into_iter().flatten().max()
        && *highest >= num_classes
    {
        problems.push(format!("class {highest} is not one of {num_classes}"));
    }
    if !problems.is_empty() {
        return Err(TrainError::Config(problems));
    }
    let own = match config.freeze {
        true => None,
        false => Some(params.copy()?),
    };
    let params = own.as_ref().unwrap_or(params);
    let gradients = if config.freeze {
        Gradients::Off
    } else {
        Gradients::Recorded
    };
    let backbone = build_backbone_with(model, params, gradients)?;
    let (head, head_params) =
        MlpClassifier::new(backbone.embed_dim(), num_classes, config.seed, device)?;

    let mut weights = head_params.trainable();
    if !config.freeze {
        let own = params.trainable();
        weights.extend(
            own.into_iter()
                .filter(|(name, _)| name.starts_with("backbone.")),
        );
    }
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &weights, true)?;
    let loader = |dataset: &Arc<dyn Dataset>, transform| EvalLoader {
        dataset: dataset.clone(),
        transform,
        batch_size: config.batch_size,
        workers: config.workers,
        ledger: ledger.clone(),
    };
    let all: Vec<usize> = train.classes.keys().copied().collect();
    let mut epochs = Vec::new();
    let (mut step, mut pictures) = (0, 0);
    for epoch in 0..config.epochs {
        let order = epoch_order(config.seed, epoch as u64, all.len());
        let samples: Vec<usize> = order.into_iter().map(|i| all[i]).collect();
        let (mut loss_sum, mut right, mut seen) = (0.0, 0, 0);
        let (crop, seed) = (crops.0.clone(), config.seed);
        let transform = EvalTransform::Random {
            crop,
            seed,
            epoch: epoch as u64,
        };
        for batch in loader(train.dataset, transform).batches(samples)? {
            let batch = batch?;
            let mode = Mode::Train(Draws {
                seed: config.seed,
                step,
                micro_batch: 0,
                first_row: 0,
            });
            let backbone_mode = if config.freeze { Mode::Eval } else { mode };
            let truth: Vec<u32> = batch
                .samples
                .iter()
                .map(|i| train.classes[i] as u32)
                .collect();
            let features = backbone.forward(&upload_eval(&batch, device)?, &backbone_mode)?;
            let logits = head.forward(&features, &mode)?;
            let loss = cross_entropy(&logits, &truth)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(TrainError::NonFinite {
                    step,
                    what: "loss",
                    value,
                });
            }
            let grads = Grads::backward(&loss, &weights)?;
            optimizer.step(&weights, &grads, config.lr, config.weight_decay)?;
            loss_sum += value * truth.len() as f64;
            right += count_right(&logits, &truth)?;
            seen += truth.len();
            step += 1;
            pictures += truth.len();
            tell(FinetuneEvent::Pictures(pictures));
        }
        let (mean, accuracy) = (
            loss_sum / seen.max(1) as f64,
            right as f64 / seen.max(1) as f64,
        );
        tell(FinetuneEvent::Epoch {
            epoch,
            loss: mean,
            accuracy,
        });
        epochs.push((mean, accuracy));
    }

    // The same weights, of which nobody asks a gradient.
    let backbone = build_backbone_with(model, params, Gradients::Off)?;
    let samples: Vec<usize> = test.classes.keys().copied().collect();
    let (mut truth, mut predicted) = (Vec::new(), Vec::new());
    let transform = EvalTransform::Center(crops.1.clone());
    for batch in loader(test.dataset, transform).batches(samples)? {
        let batch = batch?;
        let features = backbone.forward(&upload_eval(&batch, device)?, &Mode::Eval)?;
        let logits = head.forward(&features, &Mode::Eval)?;
        predicted.extend(
            logits
                .argmax(D::Minus1)?
                .to_vec1::<u32>()?
                .iter()
                .map(|c| *c as usize),
        );
        truth.extend(batch.samples.iter().map(|i| test.classes[i]));
        tell(FinetuneEvent::Pictures(pictures + truth.len()));
    }
    let mut tensors = head_params.tensors();
    let own = params.tensors();
    tensors.extend(
        own.into_iter()
            .filter(|(name, _)| name.starts_with("backbone.")),
    );
    let trainable_parameters = weights.values().map(|var| var.elem_count()).sum();
    Ok(FinetuneResult {
        truth,
        predicted,
        epochs,
        tensors,
        trainable_parameters,
    })
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
    let predicted = logits.argmax(D::Minus1)?.i(..)?.to_vec1::<u32>()?;
    Ok(predicted.iter().zip(truth).filter(|(p, t)| p == t).count())
}

#[cfg(test)]
mod tests {
    use selfsame_models::{Arch, draw_backbone};

    use super::*;

    #[test]
    fn cross_entropy_of_even_logits_is_ln_of_the_class_count() {
        let logits = Tensor::zeros((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &[0, 1, 3])
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!((loss - 4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_weights_given_stay_as_they_are_and_bad_settings_are_told_together() {
        let model = ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 16,
            embed_dim: 32,
            depth: 1,
            num_heads: 1,
            ..ModelConfig::default()
        };
        let device = &Device::Cpu;
        let params = draw_backbone(&model, 0, device).unwrap();
        let values = |tensors: BTreeMap<String, Tensor>| -> Vec<Vec<f32>> {
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1().unwrap();
            tensors.values().map(flat).collect()
        };
        let before = values(params.tensors());
        let spec = "synthetic:portraits?count=8&seed=0";
        let dataset = selfsame_data::open(spec, &Default::default()).unwrap();
        let classes: BTreeMap<usize, usize> = (0..8).map(|i| (i, i % 2)).collect();
        let set = || LabelledSamples {
            dataset: &dataset,
            classes: &classes,
        };
        let crop = StandardCrop {
            image_size: 16,
            ..StandardCrop::default()
        };
        let eval_crop = EvalCrop {
            image_size: 16,
            ..EvalCrop::default()
        };
        let run = |num_classes, config: &FinetuneConfig| {
            finetune(
                &model,
                &params,
                num_classes,
                &set(),
                &set(),
                (&crop, &eval_crop),
                config,
                device,
                &Arc::default(),
                |_| {},
            )
        };
        let config = FinetuneConfig {
            epochs: 1,
            lr: 1e-2,
            ..FinetuneConfig::default()
        };
        let done = run(2, &config).unwrap();
        assert_eq!(done.predicted.len(), 8);
        assert_eq!(values(params.tensors()), before);
        let of_backbone = |(name, _): &(String, Tensor)| name.starts_with("backbone.");
        let trained = done.tensors.into_iter().filter(of_backbone).collect();
        assert_ne!(values(trained), before);

        let bad = FinetuneConfig {
            epochs: 0,
            lr: f64::NAN,
            ..config
        };
        let Err(TrainError::Config(problems)) = run(1, &bad) else {
            panic!("it ran");
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
