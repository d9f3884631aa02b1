//! The run configuration: plain structs whose defaults are the notebook's values.
//!
//! Sections that belong to one crate alone live there ([`AugmentConfig`], [`ModelConfig`],
//! [`HeadConfig`]); the others are here. [`RunConfig::check`] lists every problem of a
//! configuration at once; only checked configurations reach the trainer.

use candle_core::Device;
use selfsame_data::augment::{AugmentConfig, EvalCrop};
use selfsame_data::{Layout, Limits};
use selfsame_models::{HeadConfig, InputConfig, ModelConfig, device_memory};
use selfsame_objectives::ScheduleConfig;
pub use selfsame_objectives::WeightDecayUpdate;
use selfsame_optim::scaled_lr;
pub use selfsame_optim::{ClipMode, LrScaling, OptimizerKind};
use serde::{Deserialize, Serialize};

/// Everything that decides a run, as written to `config.toml` in its directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Seed of every random draw: initial weights, order, crops, drop path.
    pub seed: u64,
    /// Where pictures come from and how they are loaded.
    pub data: DataConfig,
    /// Multi-crop augmentation.
    pub augment: AugmentConfig,
    /// Backbone.
    pub model: ModelConfig,
    /// Projection head.
    pub head: HeadConfig,
    /// Loss, centre, momentum teacher.
    pub objective: ObjectiveConfig,
    /// Optimizer and its schedules.
    pub optim: OptimConfig,
    /// Loop, device, checkpoints, logging.
    pub train: TrainConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            seed: 42,
            data: DataConfig::default(),
            augment: AugmentConfig::default(),
            model: ModelConfig::default(),
            head: HeadConfig::default(),
            objective: ObjectiveConfig::default(),
            optim: OptimConfig::default(),
            train: TrainConfig::default(),
        }
    }
}

/// The `[data]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Data specification of the training pictures.
    pub train: String,
    /// Data specification of the held-out pictures; empty for none.
    pub val: String,
    /// How a folder is read: `auto`, `agedb`, `utkface`, `classes` or `flat`.
    pub layout: Layout,
    /// Folder that the paths of a CSV resolve against; empty: `root.txt` or the CSV's own.
    pub images_root: String,
    /// Whether a CSV may name files outside its root folder.
    pub allow_outside: bool,
    /// Loader threads; 0 decodes and augments on the training thread.
    pub workers: usize,
    /// Batches that may wait ready.
    pub prefetch_batches: usize,
    /// MiB of decoded pixels kept in memory, for the training and for the held-out pictures each;
    /// 0: every picture is decoded each time.
    pub cache_mib: u64,
    /// Share of unusable files above which the run stops.
    pub max_bad_fraction: f64,
    /// Most pixels of a picture that is decoded; a larger one cannot be used.
    pub max_pixels: u64,
    /// Most pixels on a side of a picture that is decoded.
    pub max_side: u32,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: String::new(),
            val: String::new(),
            layout: Layout::Auto,
            images_root: String::new(),
            allow_outside: false,
            workers: 2,
            prefetch_batches: 4,
            cache_mib: 0,
            max_bad_fraction: 0.05,
            max_pixels: Limits::default().max_pixels,
            max_side: Limits::default().max_side,
        }
    }
}

/// The `[objective]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Temperature of the student's softmax.
    pub student_temp: f64,
    /// Teacher temperature at the first epoch.
    pub warmup_teacher_temp: f64,
    /// Teacher temperature after the warm-up.
    pub teacher_temp: f64,
    /// Epochs over which the teacher temperature rises.
    pub warmup_teacher_temp_epochs: usize,
    /// Momentum of the centre (Eq. 4).
    pub center_momentum: f64,
    /// Momentum of the EMA teacher at step 0; rises to 1 by a cosine.
    pub momentum_teacher: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            student_temp: 0.1,
            warmup_teacher_temp: 0.04,
            teacher_temp: 0.07,
            warmup_teacher_temp_epochs: 30,
            center_momentum: 0.9,
            momentum_teacher: 0.996,
        }
    }
}

/// The `[optim]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// `adamw`, `sgd` or `lars`.
    pub name: OptimizerKind,
    /// Peak learning rate, for 256 images when `lr_scaling` is linear.
    pub lr: f64,
    /// `linear`: × effective batch / 256; `none`.
    pub lr_scaling: LrScaling,
    /// Learning rate at the end of the cosine; not scaled.
    pub min_lr: f64,
    /// Epochs of linear warm-up from 0.
    pub warmup_epochs: usize,
    /// Weight decay at step 0.
    pub weight_decay: f64,
    /// Weight decay at the end of the cosine.
    pub weight_decay_end: f64,
    /// `epoch`: the value of the epoch's first step is used throughout it; `step`.
    pub weight_decay_update: WeightDecayUpdate,
    /// Whether biases and other 1-D parameters decay too.
    pub decay_bias_and_norm: bool,
    /// Largest gradient norm; 0 turns clipping off.
    pub clip_grad: f64,
    /// `global` or `per_parameter`.
    pub clip_mode: ClipMode,
    /// Epochs during which the head's last layer gets no update.
    pub freeze_last_layer_epochs: usize,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            name: OptimizerKind::AdamW,
            lr: 5e-4,
            lr_scaling: LrScaling::Linear,
            min_lr: 0.0,
            warmup_epochs: 10,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            weight_decay_update: WeightDecayUpdate::Epoch,
            decay_bias_and_norm: true,
            clip_grad: 3.0,
            clip_mode: ClipMode::Global,
            freeze_last_layer_epochs: 0,
        }
    }
}

/// The `[train]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub accumulate: usize,
    /// Passes over the data; the schedules span them.
    pub epochs: usize,
    /// Stop after so many steps, schedules unchanged; 0: run all epochs.
    pub max_steps: u64,
    /// Weights to start from, as the front end opens them for [`crate::Run::init`]; empty: drawn.
    pub init: String,
    /// What to do about a step whose loss or gradient is not finite: `stop` or `skip`.
    pub non_finite: NonFinite,
    /// `f32` or `bf16`.
    pub precision: Precision,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Compute threads; 0: all.
    pub threads: usize,
    /// MiB of activations that are kept for the backward pass at a time, counted in f32; a batch that
    /// needs more goes forward and backward in parts. Less is slower. With batch norm a batch is one
    /// part. 0: 960 on a CPU, a quarter of the memory of a CUDA device.
    pub part_mib: u64,
    /// MiB of memory that the run may need by its plan; 0: what the machine has.
    pub max_memory_mib: u64,
    /// A checkpoint after so many epochs; 0: only at the end.
    pub checkpoint_every_epochs: usize,
    /// A checkpoint after so many minutes; 0: off.
    pub checkpoint_every_minutes: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// A teacher-backbone snapshot after so many epochs; 0: never.
    pub snapshot_every_epochs: usize,
    /// A metrics line after so many steps.
    pub log_every_steps: u64,
    /// k-NN on the teacher after so many epochs; 0: never.
    pub knn_every_epochs: usize,
    /// Label for that k-NN; empty: gender, else class, else the only label.
    pub knn_label: String,
}

/// From which cost on a precision is called slow; less may be noise.
const SLOWER: f64 = 1.15;

/// Learning rate and weight decay at most: what f32, in which weights are moved, holds.
const MOST_RATE: f64 = f32::MAX as f64;

/// More epochs than anybody trains, few enough to calculate with.
const MOST_EPOCHS: usize = 1_000_000_000;

/// MiB of a part on a CPU: with half of it the rows of a product are too few.
const PART_MIB: u64 = 960;

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 32,
            accumulate: 1,
            epochs: 100,
            max_steps: 0,
            init: String::new(),
            non_finite: NonFinite::Stop,
            precision: Precision::F32,
            device: "auto".to_owned(),
            threads: 0,
            part_mib: 0,
            max_memory_mib: 0,
            checkpoint_every_epochs: 20,
            checkpoint_every_minutes: 15,
            keep_checkpoints: 3,
            snapshot_every_epochs: 10,
            log_every_steps: 10,
            knn_every_epochs: 5,
            knn_label: String::new(),
        }
    }
}

/// What to do about a step whose loss or gradient is not finite; it is never applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// End the run.
    Stop,
    /// Leave the step out, up to three in a row.
    Skip,
}

/// Number format of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// bfloat16 products over f32 weights; those of ResNets on CUDA devices alone.
    Bf16,
    /// f32 whose products a CUDA device may take in TF32: ten bits of each factor.
    Tf32,
}

impl Precision {
    /// Of what goes into products; TF32 is a setting of the process, made where a device is opened.
    pub(crate) fn of_products(self) -> selfsame_models::Precision {
        match self {
            Precision::F32 | Precision::Tf32 => selfsame_models::Precision::F32,
            Precision::Bf16 => selfsame_models::Precision::Bf16,
        }
    }
}

impl RunConfig {
    /// Images per optimizer step.
    pub fn effective_batch(&self) -> usize {
        self.train.batch_size.saturating_mul(self.train.accumulate)
    }

    /// How pictures are seen for scores: as large as global crops, normalised as they are.
    pub fn eval_crop(&self) -> EvalCrop {
        EvalCrop {
            image_size: self.augment.global_size,
            mean: self.augment.mean,
            std: self.augment.std,
            ..EvalCrop::default()
        }
    }

    /// Size and normalisation of the pictures that the network is trained on: its global crops.
    pub fn input(&self) -> InputConfig {
        InputConfig {
            image_size: self.augment.global_size,
            mean: self.augment.mean,
            std: self.augment.std,
        }
    }

    /// What these settings ask for that only CUDA devices have.
    pub fn problem_on_cpu(&self) -> Option<&'static str> {
        match self.train.precision {
            Precision::Tf32 => Some("train.precision: tf32 is for CUDA devices; use f32"),
            Precision::Bf16 if !self.model.arch.is_vit() => {
                Some("train.precision: bf16 of ResNets is for CUDA devices; use f32")
            }
            Precision::F32 | Precision::Bf16 => None,
        }
    }

    /// Says if the network takes no notice of the chosen precision, or if this processor, where it is
    /// to run on one, computes in it slowly.
    pub(crate) fn vain_precision(&self, on_cpu: bool) -> Option<String> {
        let bf16 = selfsame_models::Precision::Bf16;
        if self.train.precision != Precision::Bf16 {
            return None;
        }
        if self.model.is_dinov2() {
            return Some(
                "train.precision: blocks with registers, layer scale or SwiGLU have no products in \
                 bf16; they are computed in f32"
                    .to_owned(),
            );
        }
        if !on_cpu {
            return None;
        }
        if !bf16.is_native() {
            return Some(
                "train.precision: this processor has no AVX512-BF16; bf16 is computed by rounding, \
                 slower than f32"
                    .to_owned(),
            );
        }
        let cost = bf16.cost();
        (cost > SLOWER).then(|| {
            format!(
                "train.precision: on this processor a product in bf16 takes {cost:.1} times as long \
                 as in f32; f32 is faster"
            )
        })
    }

    /// Most bytes that a part of a batch keeps for its backward pass on a CPU.
    pub fn part_bytes(&self) -> usize {
        let mib = match self.train.part_mib {
            0 => PART_MIB,
            mib => mib,
        };
        usize::try_from(mib.saturating_mul(1 << 20)).unwrap_or(usize::MAX)
    }

    /// The same on this device.
    ///
    /// # Errors
    /// [`candle_core::Error`] of the driver.
    pub fn part_bytes_on(&self, device: &Device) -> candle_core::Result<usize> {
        match (self.train.part_mib, device_memory(device)?) {
            (0, Some(total)) => Ok(usize::try_from(total / 4).unwrap_or(usize::MAX)),
            _ => Ok(self.part_bytes()),
        }
    }

    /// Number of views of an image that the student sees: two global and the local ones.
    pub fn num_crops(&self) -> usize {
        2 + self.augment.local_crops
    }

    /// The schedules' settings, with the learning rate scaled by the effective batch.
    pub fn schedule(&self) -> ScheduleConfig {
        ScheduleConfig {
            epochs: self.train.epochs as u64,
            lr: scaled_lr(self.optim.lr, self.optim.lr_scaling, self.effective_batch()),
            min_lr: self.optim.min_lr,
            warmup_epochs: self.optim.warmup_epochs as u64,
            weight_decay: self.optim.weight_decay,
            weight_decay_end: self.optim.weight_decay_end,
            weight_decay_update: self.optim.weight_decay_update,
            momentum_teacher: self.objective.momentum_teacher,
            warmup_teacher_temp: self.objective.warmup_teacher_temp,
            teacher_temp: self.objective.teacher_temp,
            warmup_teacher_temp_epochs: self.objective.warmup_teacher_temp_epochs as u64,
        }
    }

    /// Every problem of this configuration, each text naming its key. Empty: it can run.
    pub fn check(&self) -> Vec<String> {
        let mut problems = self.augment.check();
        problems.extend(self.model.check());
        problems.extend(self.head.check());
        self.check_crop_sizes(&mut problems);
        let (lr, mut schedule) = (self.optim.lr, self.schedule());
        if !(lr >= 0.0 && lr.is_finite()) {
            // As it was typed, not as it is scaled.
            problems.push(format!("optim.lr: {lr} is negative or not a number"));
            schedule.lr = 0.0;
        } else if schedule.lr > MOST_RATE {
            problems.push(format!("optim.lr: {lr} is more than f32 holds"));
        }
        for (key, value) in [
            ("optim.min_lr", self.optim.min_lr),
            ("optim.weight_decay", self.optim.weight_decay),
            ("optim.weight_decay_end", self.optim.weight_decay_end),
        ] {
            if value.is_finite() && value > MOST_RATE {
                problems.push(format!("{key}: {value} is more than f32 holds"));
            }
        }
        problems.extend(schedule.check().into_iter().map(crate::error::by_key));
        self.check_objective(&mut problems);
        self.check_train(&mut problems);
        problems
    }

    fn check_crop_sizes(&self, problems: &mut Vec<String>) {
        if !self.model.arch.is_vit() {
            return;
        }
        let patch = self.model.patch_size;
        let mut sizes = vec![("augment.global_size", self.augment.global_size)];
        if self.augment.local_crops > 0 {
            sizes.push(("augment.local_size", self.augment.local_size));
        }
        for (key, size) in sizes {
            if patch > 0 && size % patch != 0 {
                problems.push(format!(
                    "{key}: {size} is not a multiple of model.patch_size {patch}; nearest are {} and {}",
                    size / patch * patch,
                    size.div_ceil(patch) * patch
                ));
            }
        }
    }

    fn check_objective(&self, problems: &mut Vec<String>) {
        let student_temp = self.objective.student_temp;
        if !(student_temp > 0.0 && student_temp.is_finite()) {
            problems.push(format!(
                "objective.student_temp: {student_temp} is not above 0"
            ));
        }
        let momentum = self.objective.center_momentum;
        if !(0.0..=1.0).contains(&momentum) {
            problems.push(format!(
                "objective.center_momentum: {momentum} is not between 0 and 1"
            ));
        }
        let clip = self.optim.clip_grad;
        if !(clip >= 0.0 && clip.is_finite()) {
            problems.push(format!(
                "optim.clip_grad: {clip} is negative or not a number"
            ));
        }
    }

    /// The last maps of a ResNet have a 32nd of a crop's pixels on a side, rounded up; batch norm
    /// needs more than one of them.
    fn check_last_map(&self, problems: &mut Vec<String>) {
        let (augment, images) = (&self.augment, self.train.batch_size);
        let is_one = images == 1 && augment.local_crops == 1 && augment.local_size <= 32;
        let is_alone = augment.local_size != augment.global_size;
        if !self.model.arch.is_vit() && is_one && is_alone {
            problems.push(format!(
                "train.batch_size: one local crop of {} pixels leaves batch norm one value a \
                 channel, which has no variance; take more pictures or augment.local_crops",
                augment.local_size
            ));
        }
    }

    fn check_train(&self, problems: &mut Vec<String>) {
        let t = &self.train;
        for (key, value) in [
            ("batch_size", t.batch_size),
            ("accumulate", t.accumulate),
            ("keep_checkpoints", t.keep_checkpoints),
            ("log_every_steps", t.log_every_steps as usize),
        ] {
            if value == 0 {
                problems.push(format!("train.{key}: must be at least 1"));
            }
        }
        if t.epochs > MOST_EPOCHS {
            problems.push(format!(
                "train.epochs: {} is more than {MOST_EPOCHS}",
                t.epochs
            ));
        }
        self.check_last_map(problems);
        if t.accumulate > 1 && (!self.model.arch.is_vit() || self.head.use_bn) {
            problems.push(format!(
                "train.accumulate: {} micro-batches would each have batch-norm statistics of their \
                 own; with batch norm set train.accumulate = 1",
                t.accumulate
            ));
        }
        if t.device == "cpu" {
            problems.extend(self.problem_on_cpu().map(str::to_owned));
        }
        if !(t.device == "auto" || t.device == "cpu" || is_cuda(&t.device)) {
            problems.push(format!(
                "train.device: {:?} is not one of auto, cpu, cuda, cuda:N",
                t.device
            ));
        }
        let most = [
            ("data.max_pixels", self.data.max_pixels),
            ("data.max_side", u64::from(self.data.max_side)),
        ];
        for (key, _) in most.into_iter().filter(|(_, value)| *value == 0) {
            problems.push(format!("{key}: no picture has 0 pixels"));
        }
        if self.data.prefetch_batches == 0 {
            problems.push("data.prefetch_batches: must be at least 1".to_owned());
        }
        if !(0.0..=1.0).contains(&self.data.max_bad_fraction) {
            problems.push(format!(
                "data.max_bad_fraction: {} is not between 0 and 1",
                self.data.max_bad_fraction
            ));
        }
    }
}

fn is_cuda(device: &str) -> bool {
    device == "cuda"
        || device
            .strip_prefix("cuda:")
            .is_some_and(|index| index.parse::<usize>().is_ok())
}

#[cfg(test)]
mod tests;
