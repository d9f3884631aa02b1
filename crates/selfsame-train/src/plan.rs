//! What a run would be: steps, memory, disk, warnings, and how long it takes by a short trial.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use selfsame_data::augment::MultiCrop;
use selfsame_data::{Dataset, Ledger, Loader, LoaderConfig};
use selfsame_models::{Mode, backbone_specs};
use selfsame_objectives::Schedules;
use serde::Serialize;

use crate::config::{OptimizerKind, RunConfig};
use crate::device_batch::Uploader;
use crate::error::TrainError;
use crate::learner::Learner;
use crate::memory::MemoryEstimate;
use crate::monitor::Monitor;
use crate::run_length::RunLength;
use crate::views::ViewScorer;

/// Images of the larger trial step.
const TRIAL_IMAGES: usize = 8;

/// Timed turns of each trial step; the fastest counts.
const TRIAL_TURNS: usize = 2;

/// What counts as large: so many times the pixels on a side that crops need, where reading takes
/// more than such a share of a step.
const LARGE: (f64, f64) = (1.5, 0.1);

/// Fewer steps than this have not been enough for anything here (docs/results.md).
const FEW_STEPS: u64 = 1_000;

/// What a run would be, told without training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Pictures of the training set.
    pub images: usize,
    /// Pictures of one optimizer step.
    pub images_per_step: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Pictures that no batch of an epoch takes; other ones in every epoch.
    pub left_over: usize,
    /// Optimizer steps until the run ends (`train.max_steps` counts).
    pub steps: u64,
    /// Peak of memory.
    pub memory: MemoryEstimate,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: usize,
    /// Bytes of all checkpoints that are kept, the one being written, and all snapshots.
    pub disk_bytes: usize,
    /// Passes over pictures for the scores while it trains.
    pub evaluations: usize,
    /// Pictures that go through the network each time; those seen in two views count twice.
    pub evaluation_images: usize,
    /// What will probably disappoint, each text naming its key.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Plans a run over these pictures on this device.
    ///
    /// # Errors
    /// [`TrainError::Config`], [`TrainError::TooFewImages`] and [`TrainError::Label`], as
    /// [`crate::train`] would give before its first step.
    pub fn of(
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        val: Option<&Arc<dyn Dataset>>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let images = train.len();
        let length = RunLength::of(config, images)?;
        length.schedules(config)?;
        let epochs = (length.steps / length.steps_per_epoch) as usize;
        let every = |epochs_between: usize| epochs.checked_div(epochs_between).unwrap_or(0);

        let memory = MemoryEstimate::of(config)?;
        let checkpoint_bytes = memory.weights + memory.optimizer;
        let snapshot: usize = backbone_specs(&config.model)?
            .iter()
            .map(|spec| 4 * spec.shape.elem_count())
            .sum();
        let snapshots = every(config.train.snapshot_every_epochs).saturating_mul(snapshot);
        let checkpoints = config.train.keep_checkpoints.saturating_add(1);
        let mut warnings = warnings(config, images, &length, device);
        let for_knn = match Monitor::new(config, train, val)? {
            Ok(monitor) => monitor.num_images(),
            Err(why) => {
                warnings.push(why);
                0
            }
        };
        let views = ViewScorer::of_run(config, train, val)?;
        let evaluation_images = for_knn + 2 * views.map_or(0, |views| views.num_pictures());
        let evaluations = match evaluation_images {
            0 => 0,
            _ => {
                let regular = every(config.train.knn_every_epochs);
                let is_due = epochs.is_multiple_of(config.train.knn_every_epochs);
                let last = length.steps == length.scheduled_steps && !is_due;
                1 + regular + usize::from(last)
            }
        };

        Ok(Self {
            images,
            images_per_step: length.images_per_step,
            steps_per_epoch: length.steps_per_epoch,
            left_over: images % length.images_per_step,
            steps: length.steps,
            memory,
            checkpoint_bytes,
            disk_bytes: checkpoints
                .saturating_mul(checkpoint_bytes)
                .saturating_add(snapshots),
            evaluations,
            evaluation_images,
            warnings,
        })
    }

    /// Wall time of the whole run, if every step takes what the trial's did.
    pub fn duration(&self, trial: &Trial) -> Duration {
        let steps = trial.step.as_secs_f64() * self.steps as f64;
        let passes = self.evaluations as f64 * self.evaluation_images as f64;
        let seconds = steps + trial.evaluated_image.as_secs_f64() * passes;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

fn warnings(config: &RunConfig, images: usize, length: &RunLength, device: &Device) -> Vec<String> {
    let (steps, all_steps) = (length.steps, length.scheduled_steps);
    let mut found = Vec::new();
    let (train, objective, head) = (&config.train, &config.objective, &config.head);
    if steps < all_steps {
        found.push(format!(
            "train.max_steps: the run ends after {steps} of the {all_steps} steps that its \
             schedules span"
        ));
    }
    if all_steps < FEW_STEPS {
        found.push(format!(
            "train.epochs: {all_steps} steps in all are few; a smaller train.batch_size or more \
             epochs give more"
        ));
    }
    let averaged = (1.0 / (1.0 - objective.momentum_teacher).max(1e-12)).round();
    if averaged * 10.0 > all_steps as f64 {
        found.push(format!(
            "objective.momentum_teacher: the teacher averages over about {averaged} steps, and the \
             whole run has {all_steps}; lower it"
        ));
    }
    if head.out_dim > images {
        found.push(format!(
            "head.out_dim: {} prototypes are more than {images} pictures",
            head.out_dim
        ));
    }
    if objective.teacher_temp >= config.objective.student_temp {
        found.push(format!(
            "objective.teacher_temp: {} is not below objective.student_temp {}; nothing sharpens \
             the teacher",
            objective.teacher_temp, objective.student_temp
        ));
    }
    for (key, epochs) in [
        ("optim.warmup_epochs", config.optim.warmup_epochs),
        (
            "objective.warmup_teacher_temp_epochs",
            objective.warmup_teacher_temp_epochs,
        ),
    ] {
        if 2 * epochs > train.epochs {
            found.push(format!(
                "{key}: {epochs} epochs are more than half of the run's {}",
                train.epochs
            ));
        }
    }
    let augment = &config.augment;
    if augment.local_crops > 0 && augment.local_size > augment.global_size {
        found.push(format!(
            "augment.local_size: local crops of {} pixels are larger than the global ones of {}",
            augment.local_size, augment.global_size
        ));
    }
    let batch_norm = !config.model.arch.is_vit() || head.use_bn;
    if batch_norm && train.batch_size < 16 {
        found.push(format!(
            "train.batch_size: batch norm over {} pictures is noisy; 16 or more are usual",
            train.batch_size
        ));
    }
    let lr = config.schedule().lr;
    if config.optim.name == OptimizerKind::AdamW && lr > 5e-3 {
        found.push(format!(
            "optim.lr: {lr:.1e} after scaling is high for AdamW; 5e-4 for 256 pictures is usual"
        ));
    }
    if train.checkpoint_every_epochs == 0 && train.checkpoint_every_minutes == 0 {
        found.push(
            "train.checkpoint_every_epochs: without checkpoints on the way a machine that dies \
             takes the whole run with it"
                .to_owned(),
        );
    }
    found.extend(config.vain_precision(device.is_cpu()));
    found
}

/// What a short trial measured on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Images of the larger of the two steps that were timed.
    pub images: usize,
    /// One optimizer step of the run, pictures included.
    pub step: Duration,
    /// The network's part of it.
    pub compute: Duration,
    /// Decoding and cropping one picture on one core, on average over an epoch but the first: some may
    /// be kept decoded.
    pub picture: Duration,
    /// One picture of a k-NN score.
    pub evaluated_image: Duration,
    /// The median of the trial pictures' shorter sides, in pixels; 0 if none could be decoded.
    pub shorter_side: u32,
}

impl Trial {
    /// Runs a few steps over a handful of pictures, on a network that is thrown away.
    ///
    /// Time grows with the images of a step by a straight line, which two sizes of steps give.
    /// On the CPU, loader threads and the network share `cores`; on another device they work side
    /// by side, and the slower one counts.
    /// # Errors
    /// [`TrainError::Data`] if too many pictures cannot be used; [`TrainError::Tensor`].
    pub fn run(
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        device: &Device,
        cores: usize,
    ) -> Result<Self, TrainError> {
        let batch = config.train.batch_size;
        let many = batch.min(TRIAL_IMAGES);
        let few = many.div_ceil(2);
        let each = |began: Instant| began.elapsed() / many as u32;
        // The first time they come from the disk and are decoded; later too, but for those that are
        // kept (`data.cache_mib`).
        let began = Instant::now();
        crops(config, train, many)?;
        let first = each(began);
        let began = Instant::now();
        let pictures = crops(config, train, many)?;
        let again = each(began);
        let began = Instant::now();
        // One that cannot be decoded costs its time too.
        let sizes: Vec<(u32, u32)> = (0..many)
            .filter_map(|sample| Some(train.decode(sample).ok()?.dimensions()))
            .collect();
        let decoded = each(began);
        let kept = share_kept(config, &sizes, train.len());
        let picture = match config.data.cache_mib {
            0 => again,
            _ => again.mul_f64(kept) + first.mul_f64(1.0 - kept),
        };
        let mut sides: Vec<u32> = sizes
            .iter()
            .map(|(width, height)| *width.min(height))
            .collect();
        sides.sort_unstable();

        let mut learner = Learner::new(config, device)?;
        let schedules = Schedules::new(&config.schedule(), 1)?;
        let now = schedules.at(0);
        let mut uploader = Uploader::new(device, &config.augment)?;
        let mut timed = |images: usize| -> Result<f64, TrainError> {
            let part = [uploader.upload(&crops(config, train, images)?)?];
            let mut fastest = f64::INFINITY;
            for _ in 0..=TRIAL_TURNS {
                let began = Instant::now();
                learner.step(&part, &now, 0, 0)?.read()?;
                fastest = fastest.min(began.elapsed().as_secs_f64());
            }
            Ok(fastest)
        };
        let (long, short) = (timed(many)?, timed(few)?);
        let each = match many - few {
            0 => long,
            more => ((long - short) / more as f64).max(0.0),
        };
        let compute = (long + each * (batch - many) as f64) * config.train.accumulate as f64;
        let loading = picture.as_secs_f64() * config.effective_batch() as f64;
        let cores = cores.max(1);
        let workers = config.data.workers.clamp(1, cores);
        // Of the network and of reading pictures on one core.
        let together = |compute: f64, reading: f64| match device.is_cpu() {
            true => compute + reading / cores as f64,
            false => compute.max(reading / workers as f64),
        };
        let step = together(compute, loading);

        let global = uploader.upload(&pictures)?.global;
        let began = Instant::now();
        learner.teacher.backbone().forward(&global, &Mode::Eval)?;
        let forward = began.elapsed() / (2 * many) as u32;
        let reading = decoded + picture / config.num_crops() as u32;
        let evaluated = together(forward.as_secs_f64(), reading.as_secs_f64());
        Ok(Self {
            images: many,
            step: Duration::from_secs_f64(step),
            compute: Duration::from_secs_f64(compute),
            picture,
            evaluated_image: Duration::from_secs_f64(evaluated),
            shorter_side: sides.get(sides.len() / 2).copied().unwrap_or(0),
        })
    }

    /// What to do about pictures that are much larger than their crops, if reading them is felt.
    pub fn large_pictures(&self, config: &RunConfig) -> Option<String> {
        let needed = config.augment.sharp_side();
        let (larger, felt) = LARGE;
        let share = 1.0 - self.compute.as_secs_f64() / self.step.as_secs_f64().max(1e-9);
        let is_large = f64::from(self.shorter_side) > larger * needed as f64;
        (is_large && share > felt).then(|| {
            format!(
                "data.train: reading pictures is {:.0} % of a step. {}",
                100.0 * share,
                shrink_them(config, self.shorter_side)
            )
        })
    }
}

/// The share of so many pictures that find room in `data.cache_mib`, if all are like those of these
/// sizes.
fn share_kept(config: &RunConfig, sizes: &[(u32, u32)], pictures: usize) -> f64 {
    let bytes = |&(width, height): &(u32, u32)| 3.0 * f64::from(width) * f64::from(height);
    let mean = sizes.iter().map(bytes).sum::<f64>() / sizes.len().max(1) as f64;
    let room = config.data.cache_mib as f64 * f64::from(1 << 20);
    (room / (mean * pictures as f64).max(1.0)).min(1.0)
}

/// What to do about pictures with so many pixels on their shorter side.
pub fn shrink_them(config: &RunConfig, shorter_side: u32) -> String {
    let needed = config.augment.sharp_side();
    format!(
        "pictures have {shorter_side} pixels on their shorter side and crops need {needed}; smaller \
         copies, made once, are read faster: selfsame shrink PICTURES --side {} --out DIR",
        needed.next_multiple_of(32)
    )
}

/// The first images of epoch 0, decoded on this thread.
fn crops(
    config: &RunConfig,
    train: &Arc<dyn Dataset>,
    images: usize,
) -> Result<selfsame_data::HostBatch, TrainError> {
    let multi_crop = MultiCrop::new(config.augment.clone())
        .map_err(|error| TrainError::Config(vec![error.to_string()]))?;
    let settings = LoaderConfig {
        seed: config.seed,
        batch_size: images,
        workers: 0,
        max_bad_fraction: config.data.max_bad_fraction,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(
        train.clone(),
        multi_crop,
        settings,
        Arc::new(Ledger::default()),
    )?;
    let first = loader.epoch(0, 0).next();
    Ok(first.ok_or(TrainError::TooFewImages {
        images: train.len(),
        needed: images,
    })??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_are_told_of_where_reading_them_is_felt() {
        let mut config = RunConfig::default();
        config.augment.local_crops = 0;
        config.augment.global_size = 224;
        let trial = |shorter_side, step: f64| Trial {
            images: 8,
            step: Duration::from_secs_f64(step),
            compute: Duration::from_secs(1),
            picture: Duration::from_millis(300),
            evaluated_image: Duration::from_millis(300),
            shorter_side,
        };
        let told = trial(3000, 4.0).large_pictures(&config).unwrap();
        for words in [
            "3000 pixels",
            "need 355",
            "75 %",
            "selfsame shrink PICTURES --side 384",
        ] {
            assert!(told.contains(words), "{words} is not in {told}");
        }
        assert_eq!(trial(3000, 1.05).large_pictures(&config), None, "not felt");
        assert_eq!(trial(500, 4.0).large_pictures(&config), None, "not large");
        assert_eq!(trial(0, 4.0).large_pictures(&config), None, "none decoded");
    }

    #[test]
    fn pictures_that_find_no_room_are_decoded_in_every_epoch() {
        let mut config = RunConfig::default();
        config.data.cache_mib = 3;
        let share = |sizes: &[(u32, u32)], pictures| share_kept(&config, sizes, pictures);
        assert_eq!(share(&[(1024, 1024)], 1), 1.0);
        assert_eq!(share(&[(1024, 1024)], 4), 0.25);
        assert_eq!(share(&[(1024, 1024), (1024, 3072)], 2), 0.25);
        assert_eq!(share(&[], 4), 1.0);
    }
}
