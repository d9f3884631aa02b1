//! Student, teacher, centre and optimizer, and the one training step that moves them.

mod figures;
mod parts;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use selfsame_models::{BatchStats, Draws, Mode, Network, ParamStore};
use selfsame_objectives::{
    Center, Now, collapse, dino_loss_part, teacher_entropy, teacher_probs, update_teacher,
};
use selfsame_optim::{Decayed, GradSum, Grads, Optimizer, WholeStep};

use crate::capture::BadFigure;
use crate::config::{NonFinite, RunConfig};
use crate::device_batch::DeviceBatch;
use crate::error::TrainError;
use crate::stop::StopFlag;

pub use figures::{Pending, StepFigures};
use figures::{Sum, Sums};
pub(crate) use parts::images_a_part;

/// Weights that stay as they are for `optim.freeze_last_layer_epochs`.
const LAST_LAYER: &str = "head.last_layer";

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
    /// Whether steps are handed to the device without waiting for any of their numbers.
    defers: bool,
    /// `[1]`: 1 while every deferred step was done.
    all_done: Option<Tensor>,
}

impl std::fmt::Debug for Learner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

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

/// What the forward and backward passes of a step leave for its end.
struct Passed {
    grads: Grads,
    /// Of the teacher's logits, `[1, K]`.
    batch_mean: Tensor,
    batch_stats: BatchStats,
    sums: Sums,
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
        let precision = config.train.precision.of_products();
        let (student, teacher) = (
            student.with_precision(precision),
            teacher.with_precision(precision),
        );
        let center = Center::new(head.out_dim, config.objective.center_momentum, device)?;
        let decayed = match config.optim.decay_bias_and_norm {
            true => Decayed::All,
            false => Decayed::WeightsOnly,
        };
        let optimizer = Optimizer::new(config.optim.name, &student_params.trainable(), decayed)?;
        // Steps may only be left out by somebody who sees them.
        let defers = device.is_cuda() && config.train.non_finite == NonFinite::Stop;
        let config = config.clone();
        let part_bytes = config.part_bytes_on(device)?;
        Ok(Self {
            student,
            student_params,
            teacher,
            teacher_params,
            center,
            optimizer,
            config,
            part_bytes,
            defers,
            all_done: None,
        })
    }

    /// One optimizer step of DINO, in the paper's order.
    ///
    /// `micro_batches` are `train.accumulate` batches of equal size; the centre is fixed while
    /// they run. Nothing is applied when the loss or the gradient is not finite: on a CPU that is an
    /// error of this call; a CUDA device finds it out by itself and leaves the step out, and
    /// [`Pending::read`] tells.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] before any update; [`TrainError::State`] for no micro-batch or
    /// those of different sizes; [`TrainError::Tensor`] from the maths.
    pub fn step(
        &mut self,
        micro_batches: &[DeviceBatch],
        now: &Now,
        epoch: usize,
        step: u64,
    ) -> Result<Pending, TrainError> {
        let done = self.step_unless(&StopFlag::default(), micro_batches, now, epoch, step)?;
        Ok(done.expect("nobody asks it to stop"))
    }

    /// [`Self::step`], given up as soon as a stop is requested: `None`, and nothing has changed.
    ///
    /// The request is looked at before each part of the student's work; the shorter ones at the end
    /// of a step, which change things, are always done together.
    pub(crate) fn step_unless(
        &mut self,
        stop: &StopFlag,
        micro_batches: &[DeviceBatch],
        now: &Now,
        epoch: usize,
        step: u64,
    ) -> Result<Option<Pending>, TrainError> {
        let images = micro_batches.first().map(DeviceBatch::batch_size);
        let is_none = images.is_none_or(|images| images == 0);
        if is_none || micro_batches.iter().any(|b| Some(b.batch_size()) != images) {
            return Err(TrainError::State(
                "a step is made of micro-batches of one size, of one image at least".to_owned(),
            ));
        }
        let share = 1.0 / micro_batches.len() as f64;
        let trainable = self.student_params.trainable();
        let mut grads = GradSum::default();
        let mut batch_mean: Option<Tensor> = None;
        let mut features = Vec::with_capacity(micro_batches.len());
        let mut sums = Sums::new(self.defers);
        let mut batch_stats = BatchStats::default();

        for (micro_batch, crops) in (0..).zip(micro_batches) {
            let draws = Draws {
                seed: self.config.seed,
                step,
                micro_batch,
                first_row: 0,
            };
            let (teacher_features, teacher_logits) =
                batch_stats.recording(|| self.teacher_forward(crops, draws))?; // [2B,D], [2B,K], no graph
            let targets = teacher_probs(&teacher_logits, self.center.tensor(), now.teacher_temp)?; // Eq. 1

            for part in self.student_parts(crops)? {
                if stop.requested().is_some() {
                    return Ok(None);
                }
                let mode = Mode::Train(Draws {
                    first_row: part.first_row,
                    ..draws
                });
                let forward = || match &part.crops {
                    PartCrops::Some(crops) => self.student.forward_part(crops, &mode, part.group),
                    PartCrops::All(crops) => self.student.forward_all(crops, &mode),
                };
                let logits = batch_stats.recording(|| GradSum::recording(forward))?;
                let loss = dino_loss_part(
                    &logits,
                    &targets,
                    crops.num_crops(),
                    part.first_of_all,
                    self.config.objective.student_temp,
                )?; // Eq. 2 and 3, the share of these rows
                sums.add(Sum::Loss, &loss, share)?;
                if let Some(value) = sums.known(Sum::Loss)
                    && !value.is_finite()
                {
                    let what = BadFigure::Loss;
                    return Err(TrainError::NonFinite { step, what, value });
                }
                let loss = if share < 1.0 { (loss * share)? } else { loss };
                grads.backward(&loss, &trainable)?;
            }

            sums.add(Sum::Floor, &teacher_entropy(&targets)?, share)?;
            features.push(teacher_features);
            let mean = (teacher_logits.mean_keepdim(0)? * share)?;
            batch_mean = Some(match batch_mean {
                None => mean,
                Some(sum) => (sum + mean)?,
            });
        }

        // Over all micro-batches at once: one of a single picture has hardly any spread.
        let spread = collapse::feature_spread(&Tensor::cat(&features, 0)?)?;
        sums.add(Sum::Spread, &spread, 1.0)?;
        let passed = Passed {
            grads: grads.finish(&trainable)?,
            batch_mean: batch_mean.expect("a step has a micro-batch"),
            batch_stats,
            sums,
        };
        let pending = match self.defers {
            true => self.hand_over(passed, now, epoch, step)?,
            false => self.apply(passed, now, epoch, step)?,
        };
        Ok(Some(pending))
    }

    /// Clips, updates weights, teacher, running statistics and centre, looking at the norm in
    /// between.
    fn apply(
        &mut self,
        passed: Passed,
        now: &Now,
        epoch: usize,
        step: u64,
    ) -> Result<Pending, TrainError> {
        let Passed {
            mut grads,
            batch_mean,
            batch_stats,
            sums,
        } = passed;
        let grad_norm = grads.clip(self.config.optim.clip_grad, self.config.optim.clip_mode)?;
        if !grad_norm.is_finite() {
            return Err(TrainError::NonFinite {
                step,
                what: BadFigure::GradientNorm,
                value: grad_norm,
            });
        }
        if epoch < self.config.optim.freeze_last_layer_epochs {
            grads.drop_prefix(LAST_LAYER);
        }
        let trainable = self.student_params.trainable();
        self.optimizer
            .step(&trainable, &grads, now.lr, now.weight_decay)?;
        update_teacher(
            self.teacher_params.weights(),
            self.student_params.weights(),
            now.momentum,
        )?; // EMA
        batch_stats.apply(None)?;
        self.center.update(&batch_mean)?; // Eq. 4
        let known = |sum| sums.known(sum).unwrap_or(f64::NAN);
        let figures = StepFigures {
            loss: known(Sum::Loss),
            loss_floor: known(Sum::Floor),
            grad_norm,
            feature_std: known(Sum::Spread),
        };
        Ok(Pending::known(step, figures))
    }

    /// The same without waiting for a number: the device leaves out what is not finite.
    fn hand_over(
        &mut self,
        passed: Passed,
        now: &Now,
        epoch: usize,
        step: u64,
    ) -> Result<Pending, TrainError> {
        let Passed {
            grads,
            batch_mean,
            batch_stats,
            sums,
        } = passed;
        let freezes = epoch < self.config.optim.freeze_last_layer_epochs;
        let has_finite_loss = sums.has_finite_loss()?;
        let whole = WholeStep {
            lr: now.lr,
            weight_decay: now.weight_decay,
            max_norm: self.config.optim.clip_grad,
            clip_mode: self.config.optim.clip_mode,
            frozen: freezes.then_some(LAST_LAYER),
            teacher: self.teacher_params.weights(),
            momentum: now.momentum,
            // A loss can be infinite with gradients that are not.
            allowed: has_finite_loss.as_ref(),
        };
        let weights = self.student_params.weights();
        let figures = self.optimizer.whole_step(weights, &grads, &whole)?; // EMA too
        let (norm, done) = (figures.narrow(0, 0, 1)?, figures.narrow(0, 1, 1)?);
        batch_stats.apply(Some(&done))?;
        self.center.update_if(&done, &batch_mean)?; // Eq. 4
        let all_done = match self.all_done.take() {
            None => done,
            Some(before) => (before * done)?,
        };
        self.all_done = Some(all_done.clone());
        Ok(Pending::on_device(step, sums, &norm, &all_done)?)
    }

    /// Takes back the counts of the newest step, of which [`Pending::read`] told that the device
    /// left it out.
    pub(crate) fn take_back_step(&mut self) {
        self.optimizer.take_back_step();
    }

    /// Features and logits of the global crops, without a graph. On a CPU the blocks hold no more of
    /// them than their threads work on; on a device they go through in parts, as the student's do.
    fn teacher_forward(
        &self,
        crops: &DeviceBatch,
        draws: Draws,
    ) -> Result<(Tensor, Tensor), TrainError> {
        let (rows, _, height, width) = crops.global.dims4()?;
        let size = match crops.global.device().is_cpu() {
            true => None,
            false => images_a_part(&self.teacher, self.part_bytes, rows, [height, width]),
        };
        self.teacher_in_parts(&crops.global, size.unwrap_or(rows), draws)
    }

    fn teacher_in_parts(
        &self,
        global: &Tensor,
        size: usize,
        draws: Draws,
    ) -> Result<(Tensor, Tensor), TrainError> {
        let (mode, rows) = (Mode::Train(draws), global.dim(0)?);
        if size >= rows {
            let global = std::slice::from_ref(global);
            return Ok(self.teacher.forward_with_features(global, &mode)?);
        }
        let (mut features, mut logits) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(size) {
            let part = global.narrow(0, start, size.min(rows - start))?;
            let (of_part, logits_of_part) = self.teacher.forward_with_features(&[part], &mode)?;
            features.push(of_part);
            logits.push(logits_of_part);
        }
        Ok((Tensor::cat(&features, 0)?, Tensor::cat(&logits, 0)?))
    }

    /// What is run forward and backward at a time, one after the other, so that neither the batch
    /// nor the number of crops decides how much memory a step needs: for a fixed teacher the loss
    /// is a sum over the student's rows. With batch norm all rows are one part.
    fn student_parts(&self, crops: &DeviceBatch) -> Result<Vec<StudentPart>, TrainError> {
        let mut parts = Vec::new();
        let mut first_of_all = 0;
        for part in crops.parts() {
            let (rows, _, height, width) = part.crops.dims4()?;
            let Some(size) = images_a_part(&self.student, self.part_bytes, rows, [height, width])
            else {
                return Ok(vec![StudentPart {
                    crops: PartCrops::All(crops.by_resolution()?),
                    group: 0,
                    first_row: 0,
                    first_of_all: 0,
                }]);
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
        self.all_done = None;
        Ok(())
    }
}

#[cfg(test)]
mod parts_tests;

#[cfg(test)]
mod tests;
