//! The training loop: readable top to bottom, in the order of the paper's pseudo-code.

mod training;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use selfsame_data::augment::MultiCrop;
use selfsame_data::{Dataset, Ledger, Loader, LoaderConfig, PixelType};

use crate::config::RunConfig;
use crate::device_batch::Uploader;
use crate::error::TrainError;
use crate::feed::Feed;
use crate::learner::Learner;
use crate::observer::Observer;
use crate::run_files::SKIPPED_FILE;
use crate::run_length::RunLength;
use crate::stop::StopFlag;
use training::Training;

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

/// Trains until the epochs are done, `max_steps` is reached or a stop is requested; continues from
/// the newest good checkpoint of the run directory if there is one.
///
/// # Errors
/// [`TrainError`]; on a non-finite loss or gradient nothing is updated and the step is captured.
/// What could not be used until then stands in `skipped.csv`, or it is noted that it could not be
/// written.
pub fn train(run: &Run<'_>, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    let ledger = Arc::new(Ledger::default());
    let outcome = run_epochs(run, &ledger, observer);
    if !ledger.is_empty() {
        observer.note(&skipped(ledger.len()));
        // The score after the last checkpoint may have found more.
        if let Err(error) = ledger.write_csv(&run.run_dir.join(SKIPPED_FILE)) {
            // How the run itself ended is what the caller must hear of.
            observer.note(&format!("warning: they are not all listed: {error}"));
        }
    }
    if let Err(TrainError::NonFinite { .. }) = outcome {
        observer.note(
            "begin another run with a lower optim.lr or more optim.warmup_epochs (--init takes \
             weights along), and look at the captured step if there is one",
        );
    }
    outcome
}

fn run_epochs(
    run: &Run<'_>,
    ledger: &Arc<Ledger>,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError> {
    let length = RunLength::of(run.config, run.train.len())?;
    let schedules = length.schedules(run.config)?;
    let mut training = Training::begin(run, length, ledger, observer)?;
    let mut feed = feed(run, length, training.step(), ledger)?;
    while training.goes_on() {
        let began = Instant::now();
        let now = schedules.at(training.step()); // lr, weight decay, momentum, teacher temperature
        let batches = training.next_batches(&mut feed)?; // views by the augmentation, on the device
        let learned = training.learn(&batches, &now, &mut feed)?; // Learner::step, Algorithm 1
        let ControlFlow::Continue(figures) = learned else {
            break;
        };
        training.count(figures, &now, began); // metrics.jsonl, progress, verdict
        training.keep()?; // snapshot, checkpoint, k-NN score
    }
    training.end()
}

/// Says how many pictures could not be used.
fn skipped(pictures: usize) -> String {
    let (noun, verb) = match pictures {
        1 => ("picture", "it is"),
        _ => ("pictures", "they are"),
    };
    format!("{pictures} {noun} could not be used; {verb} listed in {SKIPPED_FILE}")
}

/// Makes a folder in the run directory, which must be there.
pub(crate) fn make_dir(dir: &Path) -> Result<(), TrainError> {
    let made = selfsame_checkpoint::make_dir(dir);
    made.map_err(TrainError::io(dir, "cannot be created"))?;
    Ok(())
}

/// Whether something that happens every so many epochs (0: never) happens now.
pub(crate) fn due(epochs_done: usize, every: usize) -> bool {
    every > 0 && epochs_done.is_multiple_of(every)
}

/// Whether something that happens every so many minutes (0: never) happens after so long.
pub(crate) fn due_by_time(minutes: u64, elapsed: Duration) -> bool {
    minutes > 0 && elapsed >= Duration::from_secs(minutes.saturating_mul(60))
}

/// Batches of the steps that are left.
fn feed(
    run: &Run<'_>,
    length: RunLength,
    steps_done: u64,
    ledger: &Arc<Ledger>,
) -> Result<Feed, TrainError> {
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
    let loader = Loader::new(run.train.clone(), augment, settings, ledger.clone())?;
    let accumulate = config.train.accumulate;
    let number_of = |steps: u64| steps as usize * accumulate;
    let batches = loader.batches(
        number_of(length.steps_per_epoch),
        number_of(steps_done)..number_of(length.steps),
    );
    let uploader = Uploader::new(run.device, &config.augment)?;
    Ok(Feed::new(batches, uploader, accumulate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_an_hour_is_over_when_it_is() {
        let seconds = Duration::from_secs;
        assert!(!due_by_time(15, seconds(899)) && due_by_time(15, seconds(900)));
        assert!(!due_by_time(0, seconds(1 << 40)), "never");
        assert!(!due_by_time(u64::MAX, seconds(1 << 40)));
        assert!(due(4, 2) && !due(5, 2) && !due(4, 0));
    }
}
