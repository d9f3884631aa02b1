//! The training loop: readable top to bottom, in the order of the paper's pseudo-code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use selfsame_checkpoint::Checkpoint;
use selfsame_data::augment::MultiCrop;
use selfsame_data::{Dataset, Ledger, Loader, LoaderConfig, PixelType};
use serde_json::Value;

use crate::capture::{BadFigure, CaptureInfo, write_capture};
use crate::config::{NonFinite, RunConfig};
use crate::data_record::DataRecord;
use crate::device_batch::{DeviceBatch, Uploader};
use crate::error::TrainError;
use crate::feed::Feed;
use crate::learner::{Learner, Pending};
use crate::metrics::{MetricsFile, MetricsLine, StepLine, UNREADABLE_FILE, read_metrics};
use crate::pace::Pace;
use crate::run_length::RunLength;
use crate::scoring::Scoring;
use crate::snapshot::save_snapshot;
use crate::stop::StopFlag;
use crate::verdict::Watch;

/// Name of the list of unusable pictures in a run directory.
const SKIPPED_FILE: &str = "skipped.csv";
/// The folder of captured steps in a run directory.
const CAPTURES: &str = "captures";
/// Said when a device tells of a step that was not finite after others have been done.
const UNREAD: &str = "the step was not looked at when it was done; go on from the last checkpoint \
                      with --set train.log_every_steps=1 to have it captured";

/// Changes a learner before its first step, for example by loading weights to start from.
pub type Init<'a> = dyn Fn(&mut Learner) -> Result<(), TrainError> + 'a;

/// Everything a run needs from outside.
pub struct Run<'a> {
    /// A checked configuration.
    pub config: &'a RunConfig,
    /// Its text, kept in every checkpoint and capture.
    pub config_text: &'a str,
    /// The run directory; it exists, and the caller holds its lock
    /// ([`selfsame_checkpoint::RunLock`]).
    pub run_dir: &'a Path,
    /// Where tensors live.
    pub device: &'a Device,
    /// Training pictures.
    pub train: Arc<dyn Dataset>,
    /// Held-out pictures for the k-NN monitor.
    pub val: Option<Arc<dyn Dataset>>,
    /// Capture this step (`--capture-step`).
    pub capture_step: Option<u64>,
    /// Called with the learner before step 0, for example to load weights to start from. What it
    /// made is kept as the checkpoint of step 0, so that a run stopped before the next one goes on
    /// from the same weights.
    pub init: Option<&'a Init<'a>>,
    /// Go on although the pictures are not those the run began with (`--accept-data-change`).
    pub accept_data_change: bool,
    /// Set to a signal's number to stop.
    pub stop: &'a StopFlag,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("run_dir", &self.run_dir)
            .field("device", &self.device)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// `train.max_steps` was reached.
    MaxSteps,
    /// Stopped by a signal after a checkpoint.
    Interrupted(i32),
}

/// What a run tells whoever watches it.
pub trait Observer {
    /// The run is about to do its first step.
    fn started(&mut self, facts: &RunFacts);
    /// A step is done.
    fn stepped(&mut self, progress: &Progress);
    /// A metrics line was written.
    fn logged(&mut self, line: &MetricsLine);
    /// Something worth a line of text happened.
    fn note(&mut self, text: &str);
}

/// Facts known before the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFacts {
    /// Images in the training set.
    pub images: usize,
    /// Parameters that are trained.
    pub trainable_parameters: usize,
    /// Optimizer steps in an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps that earlier processes did.
    pub steps_done: u64,
    /// ln K: the loss of a student that knows nothing.
    pub uniform_loss: f64,
}

/// Progress after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done so far, earlier processes included.
    pub steps_done: u64,
    /// Steps until the run or this process ends.
    pub total_steps: u64,
    /// Epoch of the step, from 0.
    pub epoch: usize,
    /// Loss of the step, or of the last one whose loss was looked at; NaN if it was left out.
    pub loss: f64,
    /// Images per second over the last line's span.
    pub images_per_s: f64,
    /// Share of that span spent waiting for data.
    pub data_wait_frac: f64,
    /// How long the step took.
    pub step_time: Duration,
}

/// Trains until the epochs are done, `max_steps` is reached or a stop is requested; continues from
/// the newest good checkpoint of the run directory if there is one.
///
/// # Errors
/// [`TrainError`]; on a non-finite loss or gradient nothing is updated and the step is captured.
/// What could not be used until then stands in `skipped.csv` in any case.
pub fn train(run: &Run<'_>, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    let ledger = Arc::new(Ledger::default());
    let outcome = run_epochs(run, &ledger, observer);
    if !ledger.is_empty() {
        observer.note(&skipped(ledger.len()));
    }
    if outcome.is_err() && !ledger.is_empty() {
        // The failure itself is what the caller must hear of.
        let _ = ledger.write_csv(&run.run_dir.join(SKIPPED_FILE));
    }
    outcome
}

fn run_epochs(
    run: &Run<'_>,
    ledger: &Arc<Ledger>,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError> {
    let config = run.config;
    let images = run.train.len();
    let length = RunLength::of(config, images)?;
    let schedules = length.schedules(config)?;
    let accumulate = config.train.accumulate;
    let (steps_per_epoch, total_steps) = (length.steps_per_epoch, length.scheduled_steps);
    let last_step = length.steps;

    ledger.read_csv(&run.run_dir.join(SKIPPED_FILE))?;
    let loader = loader(run, ledger)?;
    let mut learner = Learner::new(config, run.device)?;
    let mut data = DataRecord::of(run.train.as_ref());
    let (mut step, mut skips) = match restore(run, length, &mut learner, &mut data, observer)? {
        Some(restored) => restored,
        None => {
            data.write_list(run.train.as_ref(), run.run_dir)?;
            let skips = SkipsInARow::default();
            if let Some(init) = run.init {
                init(&mut learner)?;
                save(run, &learner, 0, 0, &mut data, &skips, ledger)?;
            }
            (0, skips)
        }
    };
    if let Some(wanted) = run.capture_step.filter(|wanted| *wanted < step) {
        return Err(TrainError::Config(vec![format!(
            "step {wanted} cannot be captured: {step} steps are done"
        )]));
    }
    let mut metrics = MetricsFile::open(run.run_dir, step)?;
    let logged = read_metrics(run.run_dir)?;
    let mut scoring = Scoring::new(run, length, ledger, &logged)?;
    let logged = logged.into_iter().filter_map(MetricsLine::into_step);
    let mut watch = Watch::new(logged.collect(), config);
    observer.started(&RunFacts {
        images,
        trainable_parameters: learner.student_params.num_trainable(),
        steps_per_epoch,
        total_steps: last_step,
        steps_done: step,
        uniform_loss: (config.head.out_dim as f64).ln(),
    });
    if let Some(why) = scoring.off() {
        observer.note(why);
    }
    if metrics.set_aside() > 0 {
        let lines = metrics.set_aside();
        observer.note(&format!(
            "{lines} lines of metrics.jsonl could not be read; they are in {UNREADABLE_FILE} now"
        ));
    }
    if run.device.is_cpu()
        && let Some(slow) = config.slow_precision()
    {
        observer.note(&format!("warning: {slow}"));
    }
    // Before the first step, and where a stop came between a step and its score.
    scoring.take(&learner, step, &mut metrics, observer)?;

    let mut saved_at = Instant::now();
    let mut pace = Pace::start();
    let mut told_skipped = !ledger.is_empty();
    let (mut unread, mut last_loss) = (None::<Pending>, f64::NAN);
    let number_of = |step: u64| step as usize * accumulate;
    let per_epoch = number_of(steps_per_epoch);
    let batches = loader.batches(per_epoch, number_of(step)..number_of(last_step));
    let uploader = Uploader::new(run.device, &config.augment)?;
    let mut feed = Feed::new(batches, uploader, accumulate);
    'run: while step < last_step {
        let epoch = (step / steps_per_epoch) as usize;
        let steps_into_epoch = (step % steps_per_epoch) as usize;
        for step_in_epoch in steps_into_epoch as u64..steps_per_epoch {
            if step == last_step || run.stop.requested().is_some() {
                break 'run;
            }
            let now = schedules.at(step); // lr, weight decay, momentum, teacher temperature
            let began = Instant::now();
            let (micro_batches, waited) = feed.take()?;
            pace.waited(waited);
            if run.capture_step == Some(step) {
                capture(
                    run,
                    step,
                    steps_per_epoch,
                    &learner,
                    &micro_batches,
                    None,
                    observer,
                )?;
            }

            let is_last = step + 1 == last_step;
            let due_line = step.is_multiple_of(config.train.log_every_steps) || is_last;
            let result = learner.step_unless(run.stop, &micro_batches, &now, epoch, step);
            let result = match result.transpose() {
                None => break 'run,
                Some(result) => result,
            };
            let result = match result {
                // The device works on while the next step is prepared.
                Ok(pending) if pending.waits() && !due_line => {
                    unread = Some(pending);
                    Ok(None)
                }
                Ok(pending) => {
                    if pending.waits() && !is_last {
                        // The device is busy until then, and is to find work afterwards.
                        feed.prepare();
                    }
                    pending.read().map(Some)
                }
                Err(error) => Err(error),
            };
            let figures = match result {
                Ok(Some(figures)) => {
                    skips.end();
                    unread = None;
                    last_loss = figures.loss;
                    Some(figures)
                }
                Ok(None) => None,
                Err(error @ TrainError::NonFinite { what, .. }) => {
                    last_loss = f64::NAN;
                    // If steps before it were not looked at, it need not be the first.
                    if unread.is_some() {
                        observer.note(UNREAD);
                    } else if skips.are_none() {
                        capture(
                            run,
                            step,
                            steps_per_epoch,
                            &learner,
                            &micro_batches,
                            Some(what),
                            observer,
                        )?;
                    }
                    if !skips.allow_another(config.train.non_finite) {
                        return Err(error);
                    }
                    observer.note(&format!("skipped: {error}"));
                    None
                }
                Err(error) => return Err(error),
            };

            pace.stepped(length.images_per_step);
            let (images_per_s, data_wait_frac) = (pace.images_per_s(), pace.data_wait_frac());
            if let (Some(figures), true) = (figures, due_line) {
                let figures = StepLine {
                    step,
                    epoch,
                    loss: figures.loss,
                    loss_floor: figures.loss_floor,
                    kl: figures.kl(),
                    lr: now.lr,
                    weight_decay: now.weight_decay,
                    momentum: now.momentum,
                    teacher_temp: now.teacher_temp,
                    grad_norm: figures.grad_norm,
                    feature_std: figures.feature_std,
                    images_per_s,
                    data_wait_frac,
                };
                if let Some(judgement) = watch.line(&figures, config) {
                    observer.note(&judgement.to_string());
                }
                if !told_skipped && !ledger.is_empty() {
                    told_skipped = true;
                    observer.note(&skipped(ledger.len()));
                }
                let line = MetricsLine::Step(figures);
                metrics.write(&line)?;
                observer.logged(&line);
                pace = Pace::start();
            }
            step += 1;
            observer.stepped(&Progress {
                steps_done: step,
                total_steps: last_step,
                epoch,
                loss: last_loss,
                images_per_s,
                data_wait_frac,
                step_time: began.elapsed(),
            });

            let epoch_done = step_in_epoch + 1 == steps_per_epoch;
            let epochs_done = epoch + usize::from(epoch_done);
            if epoch_done && due(epochs_done, config.train.snapshot_every_epochs) {
                save_snapshot(run.run_dir, config, &learner, epochs_done)?;
            }
            let minutes = config.train.checkpoint_every_minutes;
            let pause = Duration::from_secs(minutes.saturating_mul(60));
            let by_time = minutes > 0 && saved_at.elapsed() >= pause;
            let by_epoch = epoch_done && due(epochs_done, config.train.checkpoint_every_epochs);
            let stop = run.stop.requested();
            if by_time || by_epoch || is_last || stop.is_some() {
                if let Some(pending) = unread.take() {
                    pending.read().inspect_err(|_| observer.note(UNREAD))?;
                }
                save(run, &learner, step, epochs_done, &mut data, &skips, ledger)?;
                saved_at = Instant::now();
            }
            // After the checkpoint, which does not hang on it.
            if stop.is_none() {
                scoring.take(&learner, step, &mut metrics, observer)?;
            }
            if let Some(signal) = run.stop.requested()
                && (stop.is_some() || is_last)
                && (!is_last || scoring.is_open(step))
            {
                return Ok(stopped(signal, step, observer));
            }
        }
    }
    if let Some(signal) = run.stop.requested().filter(|_| step < last_step) {
        // Before a step or within it; it is left for the next time.
        if let Some(pending) = unread.take() {
            pending.read().inspect_err(|_| observer.note(UNREAD))?;
        }
        let epochs_done = (step / steps_per_epoch) as usize;
        save(run, &learner, step, epochs_done, &mut data, &skips, ledger)?;
        return Ok(stopped(signal, step, observer));
    }
    Ok(if last_step == total_steps {
        Outcome::Finished
    } else {
        Outcome::MaxSteps
    })
}

/// Says how many pictures could not be used.
fn skipped(pictures: usize) -> String {
    let (noun, verb) = match pictures {
        1 => ("picture", "it is"),
        _ => ("pictures", "they are"),
    };
    format!("{pictures} {noun} could not be used; {verb} listed in {SKIPPED_FILE}")
}

/// Says that a run was stopped, after a checkpoint.
fn stopped(signal: i32, steps_done: u64, observer: &mut dyn Observer) -> Outcome {
    observer.note(&format!(
        "stopped after {steps_done} steps; a checkpoint was written"
    ));
    Outcome::Interrupted(signal)
}

/// The folder of a captured step.
pub fn capture_dir(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(CAPTURES).join(format!("step-{step:08}"))
}

/// Makes a folder in the run directory, which must be there: one that is gone was moved.
pub(crate) fn make_dir(dir: &Path) -> Result<(), TrainError> {
    match std::fs::create_dir(dir) {
        Err(_) if dir.is_dir() => Ok(()),
        made => made.map_err(TrainError::io(dir, "cannot be created")),
    }
}

/// Steps that were left out one after the other because something in them was not finite.
#[derive(Debug, Default)]
struct SkipsInARow(u64);

impl SkipsInARow {
    /// A network that gives nothing finite any more will not recover.
    const MOST: u64 = 3;
    /// Where a checkpoint keeps the count, if there is something to count.
    const KEY: &str = "skipped_in_a_row";

    /// As a checkpoint kept it.
    fn of(extra: &Value) -> Self {
        Self(extra[Self::KEY].as_u64().unwrap_or(0))
    }

    fn keep_in(&self, extra: &mut Value) {
        if !self.are_none() {
            extra[Self::KEY] = self.0.into();
        }
    }

    fn are_none(&self) -> bool {
        self.0 == 0
    }

    fn end(&mut self) {
        self.0 = 0;
    }

    /// Counts one more, if the policy lets it be left out.
    fn allow_another(&mut self, policy: NonFinite) -> bool {
        let allowed = policy == NonFinite::Skip && self.0 < Self::MOST;
        self.0 += u64::from(allowed);
        allowed
    }
}

/// Whether something that happens every so many epochs (0: never) happens now.
pub(crate) fn due(epochs_done: usize, every: usize) -> bool {
    every > 0 && epochs_done.is_multiple_of(every)
}

fn loader(run: &Run<'_>, ledger: &Arc<Ledger>) -> Result<Loader, TrainError> {
    let config = run.config;
    let augment = MultiCrop::new(config.augment.clone())
        .map_err(|error| TrainError::Config(vec![error.to_string()]))?;
    let settings = LoaderConfig {
        seed: config.seed,
        batch_size: config.train.batch_size,
        workers: config.data.workers,
        prefetch_batches: config.data.prefetch_batches,
        max_bad_fraction: config.data.max_bad_fraction,
        // A quarter of the bytes to carry there.
        pixels: match run.device.is_cpu() {
            true => PixelType::Normalized,
            false => PixelType::Bytes,
        },
        ..LoaderConfig::default()
    };
    Ok(Loader::new(
        run.train.clone(),
        augment,
        settings,
        ledger.clone(),
    )?)
}

/// Loads the newest good checkpoint; the number of steps it has done and how many of the last ones
/// were left out.
fn restore(
    run: &Run<'_>,
    length: RunLength,
    learner: &mut Learner,
    data: &mut DataRecord,
    observer: &mut dyn Observer,
) -> Result<Option<(u64, SkipsInARow)>, TrainError> {
    let Some((checkpoint, warnings)) = selfsame_checkpoint::load_newest(run.run_dir, run.device)?
    else {
        return Ok(None);
    };
    for warning in warnings {
        let kept_as = warning.set_aside().map_or(String::new(), |aside| {
            format!("; it is kept as {}", aside.display())
        });
        observer.note(&format!("{warning}{kept_as}"));
    }
    let accepted = data.go_on(
        &checkpoint.extra,
        checkpoint.step,
        run.train.as_ref(),
        run.run_dir,
        run.accept_data_change,
    )?;
    if let Some(change) = accepted {
        observer.note(&change);
        let (images, step) = (run.train.len(), checkpoint.step);
        let scheduled_steps = length.scheduled_steps;
        if step >= scheduled_steps {
            return Err(TrainError::State(format!(
                "with the {images} pictures that there are now the run has {scheduled_steps} steps, \
                 and {step} are done; begin another run from its weights"
            )));
        }
        observer.note(&format!(
            "{step} of now {scheduled_steps} steps are done; learning rate and all else that follows \
             schedules goes on from there"
        ));
    }
    learner.load_tensors(&checkpoint.files)?;
    observer.note(&format!("continuing after {} steps", checkpoint.step));
    let skips = SkipsInARow::of(&checkpoint.extra);
    Ok(Some((checkpoint.step, skips)))
}

fn save(
    run: &Run<'_>,
    learner: &Learner,
    step: u64,
    epochs_done: usize,
    data: &mut DataRecord,
    skips: &SkipsInARow,
    ledger: &Ledger,
) -> Result<(), TrainError> {
    data.write_list(run.train.as_ref(), run.run_dir)?;
    let mut extra = data.to_json();
    skips.keep_in(&mut extra);
    let checkpoint = Checkpoint {
        step,
        epoch: epochs_done as u64,
        config: run.config_text.to_owned(),
        extra,
        files: learner.tensors()?,
    };
    selfsame_checkpoint::save(run.run_dir, &checkpoint, run.config.train.keep_checkpoints)?;
    ledger.write_csv(&run.run_dir.join(SKIPPED_FILE))?;
    Ok(())
}

fn capture(
    run: &Run<'_>,
    step: u64,
    steps_per_epoch: u64,
    learner: &Learner,
    micro_batches: &[DeviceBatch],
    not_finite: Option<BadFigure>,
    observer: &mut dyn Observer,
) -> Result<(), TrainError> {
    make_dir(&run.run_dir.join(CAPTURES))?;
    let dir = capture_dir(run.run_dir, step);
    let epochs = run.config.train.epochs;
    let info = CaptureInfo {
        not_finite,
        ..CaptureInfo::new(step, steps_per_epoch, epochs, micro_batches.len())
    };
    write_capture(&dir, info, run.config_text, learner, micro_batches)?;
    observer.note(&format!("step {step} was captured in {}", dir.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_in_a_row_may_be_left_out_and_only_if_asked_for() {
        let mut skips = SkipsInARow::default();
        assert!(!skips.allow_another(NonFinite::Stop) && skips.are_none());
        for round in 0..2 {
            for _ in 0..3 {
                assert!(skips.allow_another(NonFinite::Skip), "round {round}");
            }
            assert!(!skips.allow_another(NonFinite::Skip), "round {round}");
            skips.end();
        }
    }
}
