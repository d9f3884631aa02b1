//! Student, teacher, centre and optimizer, and the one training step that moves them.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use selfsame_models::{Draws, Mode, Network, ParamStore};
use selfsame_objectives::{
    Center, Now, collapse, dino_loss_part, teacher_entropy, teacher_probs, update_teacher,
};
use selfsame_optim::{GradSum, Optimizer};

use crate::config::{Precision, RunConfig};
use crate::device_batch::DeviceBatch;
use crate::error::TrainError;

/// All that training changes, apart from the count of steps done.
pub struct Learner {
    /// Trained by gradient descent.
    pub student: Network,
    /// The student's parameters and buffers.
    pub student_params: ParamStore,
    /// Exponential moving average of the student; records no graph.
    pub teacher: Network,
    /// The teacher's parameters and buffers.
    pub teacher_params: ParamStore,
    /// Moving average of the teacher's outputs.
    pub center: Center,
    /// Moments of the student's parameters.
    pub optimizer: Optimizer,
    config: RunConfig,
    /// Most bytes that a part of a batch keeps for its backward pass.
    part_bytes: usize,
}

/// The usual limit of [`Learner`]'s parts: several chunks for every core, a fraction of a batch.
const PART_BYTES: usize = 960 << 20;

/// Crops that go forward and backward together.
struct StudentPart {
    crops: PartCrops,
    /// Position of their resolution.
    group: usize,
    /// Their first row within it.
    first_row: usize,
    /// Their first row among all of the loss's.
    first_of_all: usize,
}

enum PartCrops {
    /// Some of one resolution.
    Some(Tensor),
    /// All of the batch, by resolution.
    All(Vec<Tensor>),
}

/// Figures of one step, as host numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFigures {
    /// Mean cross-entropy over all pairs of different views.
    pub loss: f64,
    /// Mean entropy of the teacher's distributions: what the loss cannot fall below.
    pub loss_floor: f64,
    /// Norm of all gradients before clipping and freezing.
    pub grad_norm: f64,
    /// Spread of the teacher's L2-normalised features over the batch.
    pub feature_std: f64,
}

impl StepFigures {
    /// What the student can still learn from this teacher: loss minus its floor.
    pub fn kl(&self) -> f64 {
        self.loss - self.loss_floor
    }
}

impl Learner {
    /// A learner at step 0: seeded student, teacher equal to it, centre zero, no moments.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] if the device is out of memory.
    pub fn new(config: &RunConfig, device: &Device) -> Result<Self, TrainError> {
        let (model, head) = (&config.model, &config.head);
        let (student, student_params) = Network::new(model, head, config.seed, device)?;
        let (teacher, teacher_params) = Network::teacher_of(model, head, &student_params)?;
        let precision = match config.train.precision {
            Precision::F32 => selfsame_models::Precision::F32,
            Precision::Bf16 => selfsame_models::Precision::Bf16,
        };
        let (student, teacher) = (
            student.with_precision(precision),
            teacher.with_precision(precision),
        );
        let center = Center::new(head.out_dim, config.objective.center_momentum, device)?;
        let optimizer = Optimizer::new(
            config.optim.name,
            &student_params.trainable(),
            config.optim.decay_bias_and_norm,
        )?;
        let config = config.clone();
        Ok(Self {
            student,
            student_params,
            teacher,
            teacher_params,
            center,
            optimizer,
            config,
            part_bytes: PART_BYTES,
        })
    }

    /// One optimizer step of DINO, in the paper's order.
    ///
    /// `micro_batches` are `train.accumulate` batches of equal size; the centre is fixed while
    /// they run. Nothing is applied when the loss or the gradient is not finite.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] before any update; [`TrainError::Tensor`] from the maths.
    pub fn step(
        &mut self,
        micro_batches: &[DeviceBatch],
        now: &Now,
        epoch: usize,
        step: u64,
    ) -> Result<StepFigures, TrainError> {
        let share = 1.0 / micro_batches.len() as f64;
        let trainable = self.student_params.trainable();
        let mut grads = GradSum::default();
        let mut batch_mean: Option<Tensor> = None;
        let mut figures = StepFigures {
            loss: 0.0,
            loss_floor: 0.0,
            grad_norm: 0.0,
            feature_std: 0.0,
        };

        for (micro_batch, crops) in (0..).zip(micro_batches) {
            let draws = Draws {
                seed: self.config.seed,
                step,
                micro_batch,
                first_row: 0,
            };
            let (teacher_features, teacher_logits) = self.teacher_forward(crops, draws)?; // [2B,D], [2B,K], no graph
            let targets = teacher_probs(&teacher_logits, self.center.tensor(), now.teacher_temp)?; // Eq. 1

            for part in self.student_parts(crops)? {
                let mode = Mode::Train(Draws {
                    first_row: part.first_row,
                    ..draws
                });
                let logits = match &part.crops {
                    PartCrops::Some(crops) => {
                        self.student.forward_part(crops, &mode, part.group)?
                    }
                    PartCrops::All(crops) => self.student.forward_all(crops, &mode)?,
                };
                let loss = dino_loss_part(
                    &logits,
                    &targets,
                    crops.num_crops(),
                    part.first_of_all,
                    self.config.objective.student_temp,
                )?; // Eq. 2 and 3, the share of these rows
                figures.loss += share * scalar(&loss)?;
                if !figures.loss.is_finite() {
                    return Err(TrainError::NonFinite {
                        step,
                        what: "loss",
                        value: figures.loss,
                    });
                }
                let loss = if share < 1.0 { (loss * share)? } else { loss };
                grads.backward(&loss, &trainable)?;
            }

            figures.loss_floor += share * scalar(&teacher_entropy(&targets)?)?;
            figures.feature_std += share * collapse::feature_std(&teacher_features)?;
            let mean = (teacher_logits.mean_keepdim(0)? * share)?;
            batch_mean = Some(match batch_mean {
                None => mean,
                Some(sum) => (sum + mean)?,
            });
        }

        let mut grads = grads.finish(&trainable)?;
        figures.grad_norm = grads.clip(self.config.optim.clip_grad, self.config.optim.clip_mode)?;
        if !figures.grad_norm.is_finite() {
            let value = figures.grad_norm;
            return Err(TrainError::NonFinite {
                step,
                what: "gradient norm",
                value,
            });
        }
        if epoch < self.config.optim.freeze_last_layer_epochs {
            grads.drop_prefix("head.last_layer");
        }
        self.optimizer
            .step(&trainable, &grads, now.lr, now.weight_decay)?;
        update_teacher(
            self.teacher_params.weights(),
            self.student_params.weights(),
            now.momentum,
        )?; // EMA
        if let Some(mean) = batch_mean {
            self.center.update(&mean)?; // Eq. 4
        }
        Ok(figures)
    }

    /// Features and logits of the global crops, without a graph.
    fn teacher_forward(
        &self,
        crops: &DeviceBatch,
        draws: Draws,
    ) -> Result<(Tensor, Tensor), TrainError> {
        let mode = Mode::Train(draws);
        let global = std::slice::from_ref(&crops.global);
        Ok(self.teacher.forward_with_features(global, &mode)?)
    }

    /// What is run forward and backward at a time, one after the other, so that neither the batch
    /// nor the number of crops decides how much memory a step needs: for a fixed teacher the loss
    /// is a sum over the student's rows. With batch norm all rows are one part.
    fn student_parts(&self, crops: &DeviceBatch) -> Result<Vec<StudentPart>, TrainError> {
        let mut parts = Vec::new();
        let mut first_of_all = 0;
        for part in crops.parts() {
            let (rows, _, height, width) = part.crops.dims4()?;
            let Some(most) = self.student.images_within(self.part_bytes, height, width) else {
                return Ok(vec![StudentPart {
                    crops: PartCrops::All(crops.by_resolution()?),
                    group: 0,
                    first_row: 0,
                    first_of_all: 0,
                }]);
            };
            // Round numbers are shared evenly among threads.
            let size = rows.div_ceil(rows.div_ceil(most));
            let size = if size > 16 {
                size.next_multiple_of(16)
            } else {
                size
            };
            for start in (0..rows).step_by(size) {
                parts.push(StudentPart {
                    crops: PartCrops::Some(part.crops.narrow(0, start, size.min(rows - start))?),
                    group: part.group,
                    first_row: part.first_row + start,
                    first_of_all: first_of_all + start,
                });
            }
            first_of_all += rows;
        }
        Ok(parts)
    }

    /// The state by name, in the files of a checkpoint: student, teacher, optimizer, state.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] if the device is out of memory.
    pub fn tensors(&self) -> Result<BTreeMap<String, BTreeMap<String, Tensor>>, TrainError> {
        let center = BTreeMap::from([("center".to_owned(), self.center.tensor().clone())]);
        Ok(BTreeMap::from([
            ("student".to_owned(), self.student_params.tensors()),
            ("teacher".to_owned(), self.teacher_params.tensors()),
            ("optimizer".to_owned(), self.optimizer.state()?),
            ("state".to_owned(), center),
        ]))
    }

    /// Takes over a state that [`Learner::tensors`] gave; nothing may be missing or left over.
    ///
    /// # Errors
    /// [`TrainError::State`] naming the file; the models' and optimizer's own lists of names.
    pub fn load_tensors(
        &mut self,
        files: &BTreeMap<String, BTreeMap<String, Tensor>>,
    ) -> Result<(), TrainError> {
        let file = |name: &'static str| {
            files
                .get(name)
                .ok_or_else(|| TrainError::State(format!("{name}.safetensors is missing")))
        };
        self.student_params.load(file("student")?)?;
        self.teacher_params.load(file("teacher")?)?;
        self.optimizer.load_state(file("optimizer")?)?;
        let center = file("state")?.get("center").ok_or_else(|| {
            TrainError::State("state.safetensors has no tensor center".to_owned())
        })?;
        self.center.load(center)?;
        Ok(())
    }
}

fn scalar(tensor: &Tensor) -> candle_core::Result<f64> {
    tensor.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use selfsame_models::{Arch, HeadConfig, ModelConfig};
    use selfsame_objectives::Schedules;

    use super::*;

    fn config() -> RunConfig {
        let mut config = RunConfig {
            model: ModelConfig {
                arch: Arch::VitTiny,
                patch_size: 8,
                image_size: 32,
                embed_dim: 48,
                depth: 3,
                num_heads: 3,
                drop_path_rate: 0.3,
                ..ModelConfig::default()
            },
            head: HeadConfig {
                out_dim: 40,
                ..HeadConfig::default()
            },
            ..RunConfig::default()
        };
        config.optim.lr = 0.1;
        config.optim.warmup_epochs = 0;
        config.train.epochs = 40;
        config
    }

    /// Crops that are a function of their position alone.
    fn crops(rows: usize, size: usize) -> Tensor {
        let values = (0..rows * 3 * size * size).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0);
        let values: Vec<f32> = values.collect();
        Tensor::from_vec(values, (rows, 3, size, size), &Device::Cpu).unwrap()
    }

    /// Figures of three steps and the weights after them.
    fn three_steps(part_bytes: usize, local_size: usize) -> (Vec<StepFigures>, Vec<f32>) {
        let config = config();
        let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
        learner.part_bytes = part_bytes;
        let batch = DeviceBatch {
            global: crops(8, 32),
            local: Some(crops(12, local_size)),
        };
        let schedules = Schedules::new(&config.schedule(), 5).unwrap();
        let step = |step| {
            let now = schedules.at(step);
            learner
                .step(std::slice::from_ref(&batch), &now, 0, step)
                .unwrap()
        };
        let figures = (0..3).map(step).collect();
        let weights = learner.student_params.tensors();
        let values = |tensor: &Tensor| -> Vec<f32> {
            let tensor = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            tensor.to_vec1().unwrap()
        };
        (figures, weights.values().flat_map(values).collect())
    }

    #[test]
    fn a_batch_in_parts_equals_the_whole_batch_up_to_rounding() {
        for local_size in [32, 16] {
            let (whole, whole_weights) = three_steps(usize::MAX, local_size);
            let (parts, part_weights) = three_steps(1, local_size);
            for (a, b) in whole.iter().zip(&parts) {
                assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{a:?} {b:?}");
                assert!(
                    (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4,
                    "{a:?} {b:?}"
                );
            }
            assert!(
                (whole[0].loss - whole[2].loss).abs() > 1e-3,
                "the steps move something: {whole:?}"
            );
            let norm = |xs: &[f32]| xs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let gap: Vec<f32> = whole_weights
                .iter()
                .zip(&part_weights)
                .map(|(a, b)| a - b)
                .collect();
            assert!(norm(&gap) < 1e-3 * norm(&whole_weights), "{}", norm(&gap));
        }
    }

    #[test]
    fn batch_norm_keeps_a_batch_in_one_part() {
        let mut config = config();
        config.head.use_bn = true;
        let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
        learner.part_bytes = 1;
        let batch = DeviceBatch {
            global: crops(4, 32),
            local: None,
        };
        assert_eq!(learner.student_parts(&batch).unwrap().len(), 1);
    }
}
