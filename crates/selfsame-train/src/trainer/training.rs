//! A run while it trains: what the loop holds besides its batches, and what it does with it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use selfsame_checkpoint::Checkpoint;
use selfsame_data::{Dataset, Ledger};
use selfsame_objectives::Now;

use super::{Outcome, Run, due, due_by_time, make_dir, skipped};
use crate::capture::{BadFigure, CaptureInfo, not_finite_steps, write_capture, write_number};
use crate::data_record::DataRecord;
use crate::device_batch::DeviceBatch;
use crate::error::TrainError;
use crate::feed::Feed;
use crate::learner::{Learner, Pending, StepFigures};
use crate::metrics::{
    MetricsFile, MetricsLine, StepLine, UNREADABLE_FILE, read_metrics, set_log_aside,
};
use crate::observer::{Observer, Progress, RunFacts};
use crate::pace::Pace;
use crate::run_files::{CAPTURES, SKIPPED_FILE, capture_dir};
use crate::run_length::RunLength;
use crate::scoring::Scoring;
use crate::skips::SkipsInARow;
use crate::snapshot::{save_snapshot, snapshot_path};
use crate::verdict::Watch;

/// Said when a device tells of a step that was not finite after others have been done.
const UNREAD: &str = "the step was not looked at when it was done; go on from the last checkpoint \
                      with --set train.log_every_steps=1 to have it captured";

/// How many steps that were not finite a run keeps: a capture is as large as a checkpoint.
const MOST_CAPTURED: usize = 3;

/// A run between two steps.
pub(super) struct Training<'a> {
    run: &'a Run<'a>,
    length: RunLength,
    ledger: &'a Arc<Ledger>,
    observer: &'a mut dyn Observer,
    learner: Learner,
    /// Steps done.
    step: u64,
    skips: SkipsInARow,
    data: DataRecord,
    metrics: MetricsFile,
    scoring: Scoring<'a>,
    watch: Watch,
    pace: Pace,
    told_skipped: bool,
    /// The newest step, if a device may still be working on it.
    unread: Option<Pending>,
    /// Loss of the newest step that was looked at; NaN if it was left out.
    last_loss: f64,
    /// Steps that the newest checkpoint has done, and when it was written.
    saved: (Option<u64>, Instant),
}

impl<'a> Training<'a> {
    /// The run as its newest checkpoint left it, or a new one.
    ///
    /// # Errors
    /// Those of its checkpoint, log and pictures; [`TrainError::Config`] for a step to capture
    /// that is done.
    pub(super) fn begin(
        run: &'a Run<'a>,
        length: RunLength,
        ledger: &'a Arc<Ledger>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let mut learner = Learner::new(run.config, run.device)?;
        let mut data = DataRecord::of(run.train.as_ref());
        let restored = restore(run, length, &mut learner, &mut data, observer)?;
        // What an attempt without a checkpoint met may have been mended since.
        if restored.is_some() {
            // It only tells; the run itself is in its checkpoint.
            if let Err(error) = ledger.read_csv(&run.run_dir.join(SKIPPED_FILE)) {
                observer.note(&format!(
                    "warning: what could not be used before is forgotten: {error}"
                ));
            }
            let sets: Vec<&dyn Dataset> = [Some(&run.train), run.val.as_ref()]
                .into_iter()
                .flatten()
                .map(|set| set.as_ref())
                .collect();
            ledger.forget_returned(&sets);
        }
        if restored.is_none() {
            // The first checkpoint tries again.
            if let Err(error) = data.write_list(run.train.as_ref(), run.run_dir) {
                observer.note(&format!("warning: {error}"));
            }
            if let Some(init) = run.init {
                init(&mut learner)?;
            }
        }
        let saved = restored.as_ref().map(|(step, _)| *step);
        let (step, skips) = restored.unwrap_or_default();
        if let Some(wanted) = run.capture_step.filter(|wanted| *wanted < step) {
            return Err(TrainError::Config(vec![format!(
                "step {wanted} cannot be captured: {step} steps are done"
            )]));
        }
        if saved.is_none()
            && let Some((steps, kept_as)) = set_log_aside(run.run_dir)?
        {
            observer.note(&format!(
                "there is no checkpoint, so the run begins anew; the log of its {steps} steps is \
                 kept as {kept_as}"
            ));
        }
        let metrics = MetricsFile::open(run.run_dir, step)?;
        let logged = read_metrics(run.run_dir)?;
        let scoring = Scoring::new(run, length, ledger, &logged)?;
        let logged = logged.into_iter().filter_map(MetricsLine::into_step);
        let mut training = Self {
            run,
            length,
            ledger,
            observer,
            learner,
            step,
            skips,
            data,
            metrics,
            scoring,
            watch: Watch::new(logged.collect(), run.config),
            pace: Pace::start(),
            told_skipped: !ledger.is_empty(),
            unread: None,
            last_loss: f64::NAN,
            saved: (saved, Instant::now()),
        };
        if saved.is_none() && run.init.is_some() {
            training.save()?;
        }
        training.introduce();
        // One that could not be written.
        if saved.is_some()
            && let Some(epochs) = training.snapshot_is_due()
            && !snapshot_path(run.run_dir, epochs).exists()
        {
            save_snapshot(run.run_dir, run.config, &training.learner, epochs)?;
        }
        // Before the first step, and where a stop came between a step and its score.
        training.score()?;
        training.pace = Pace::start();
        training.saved.1 = Instant::now();
        Ok(training)
    }

    /// Tells the observer what is about to happen.
    fn introduce(&mut self) {
        let Self { run, length, .. } = *self;
        self.observer.started(&RunFacts {
            images: run.train.len(),
            trainable_parameters: self.learner.student_params.num_trainable(),
            steps_per_epoch: length.steps_per_epoch,
            total_steps: length.steps,
            steps_done: self.step,
            uniform_loss: (run.config.head.out_dim as f64).ln(),
        });
        if let Some(why) = self.scoring.off() {
            self.observer.note(why);
        }
        let set_aside = self.metrics.set_aside();
        if set_aside > 0 {
            self.observer.note(&format!(
                "{set_aside} lines of metrics.jsonl could not be read; they are in \
                 {UNREADABLE_FILE} now"
            ));
        }
        if let Some(vain) = run.config.vain_precision(run.device.is_cpu()) {
            self.observer.note(&format!("warning: {vain}"));
        }
    }

    /// Steps done.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// Whether there is another step to do.
    pub(super) fn goes_on(&self) -> bool {
        self.step < self.length.steps && self.run.stop.requested().is_none()
    }

    fn epochs_done(&self) -> usize {
        (self.step / self.length.steps_per_epoch) as usize
    }

    fn is_last(&self) -> bool {
        self.step + 1 == self.length.steps
    }

    /// Whether the coming step has a line in the log.
    fn line_is_due(&self) -> bool {
        let every = self.run.config.train.log_every_steps;
        self.step.is_multiple_of(every) || self.is_last()
    }

    /// Batches of the coming step.
    pub(super) fn next_batches(&mut self, feed: &mut Feed) -> Result<Vec<DeviceBatch>, TrainError> {
        let (batches, waited) = feed.take().or_else(|error| self.rescue(error))?;
        self.pace.waited(waited);
        if self.run.capture_step == Some(self.step) {
            self.capture(&batches, None)
                .or_else(|error| self.rescue(error))?;
        }
        Ok(batches)
    }

    /// Learns from the batches of a step, unless a stop comes before the weights have moved.
    /// Figures are there unless the step was left out or a device still works on it.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`], once the step is captured, unless the configuration has it left
    /// out.
    pub(super) fn learn(
        &mut self,
        batches: &[DeviceBatch],
        now: &Now,
        feed: &mut Feed,
    ) -> Result<ControlFlow<(), Option<StepFigures>>, TrainError> {
        let (epoch, step) = (self.epochs_done(), self.step);
        let result = self
            .learner
            .step_unless(self.run.stop, batches, now, epoch, step);
        let figures = match result.transpose() {
            None => return Ok(ControlFlow::Break(())),
            // The device works on while the next step is prepared.
            Some(Ok(pending)) if pending.waits() && !self.line_is_due() => {
                self.unread = Some(pending);
                return Ok(ControlFlow::Continue(None));
            }
            Some(Ok(pending)) => {
                if pending.waits() && !self.is_last() {
                    // The device is busy until then, and is to find work afterwards.
                    self.pace.waited(feed.prepare());
                }
                pending.read()
            }
            Some(Err(error)) => Err(error),
        };
        match figures {
            Ok(figures) => {
                self.skips.end();
                self.unread = None;
                self.last_loss = figures.loss;
                Ok(ControlFlow::Continue(Some(figures)))
            }
            Err(error @ TrainError::NonFinite { what, value, .. }) => {
                self.last_loss = f64::NAN;
                // If steps before it were not looked at, it need not be the first, nor left out.
                if self.unread.is_some() {
                    self.observer.note(UNREAD);
                } else {
                    self.learner.take_back_step();
                    if self.skips.are_none() {
                        self.capture_not_finite(batches, what);
                    }
                }
                if !self.skips.allow_another(self.run.config.train.non_finite) {
                    return Err(error);
                }
                self.observer
                    .note(&format!("skipped: step {step}, whose {what} is {value}"));
                Ok(ControlFlow::Continue(None))
            }
            Err(error) => Err(error),
        }
    }

    /// Counts the step that began then as done and tells of it, in the log too if its line is due.
    pub(super) fn count(&mut self, figures: Option<StepFigures>, now: &Now, began: Instant) {
        self.pace.stepped(self.length.images_per_step);
        let (images_per_s, data_wait_frac) = (self.pace.images_per_s(), self.pace.data_wait_frac());
        let (step, epoch) = (self.step, self.epochs_done());
        if let (Some(figures), true) = (figures, self.line_is_due()) {
            let line = StepLine {
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
            if let Some(judgement) = self.watch.line(&line, self.run.config) {
                self.observer.note(&judgement.to_string());
            }
            if !self.told_skipped && !self.ledger.is_empty() {
                self.told_skipped = true;
                self.observer.note(&skipped(self.ledger.len()));
            }
            let line = MetricsLine::Step(line);
            self.metrics.write_or_tell(&line, self.observer);
            self.observer.logged(&line);
            self.pace = Pace::start();
        }
        self.step += 1;
        self.observer.stepped(&Progress {
            steps_done: self.step,
            total_steps: self.length.steps,
            epoch,
            loss: self.last_loss,
            images_per_s,
            data_wait_frac,
            step_time: began.elapsed(),
        });
    }

    /// Keeps the steps done in a checkpoint where the run has to end for want of pictures, of a
    /// score or of room for something else, and gives back why it ends.
    fn rescue<T>(&mut self, error: TrainError) -> Result<T, TrainError> {
        if self.step > 0 && self.saved.0 != Some(self.step) {
            let note = match self.save() {
                Ok(()) => format!("the {} steps done are kept in a checkpoint", self.step),
                Err(error) => format!("the steps since the last checkpoint are lost: {error}"),
            };
            self.observer.note(&note);
        }
        Err(error)
    }

    /// Writes what is due after a step: a snapshot, a checkpoint, and after that, for it does not
    /// hang on it, the score.
    ///
    /// # Errors
    /// Those of the files; of the network.
    pub(super) fn keep(&mut self) -> Result<(), TrainError> {
        let config = &self.run.config.train;
        if let Some(epochs) = self.snapshot_is_due() {
            self.settle()?;
            let (run, learner) = (self.run, &self.learner);
            save_snapshot(run.run_dir, run.config, learner, epochs)
                .or_else(|error| self.rescue(error))?;
        }
        let epochs_done = self.epochs_done();
        let epoch_is_done = self.step.is_multiple_of(self.length.steps_per_epoch);
        let by_time = due_by_time(config.checkpoint_every_minutes, self.saved.1.elapsed());
        let by_epoch = epoch_is_done && due(epochs_done, config.checkpoint_every_epochs);
        if by_time || by_epoch || self.step == self.length.steps {
            self.save()?;
        }
        self.score().or_else(|error| self.rescue(error))
    }

    /// The epochs done, if a snapshot is due after them.
    fn snapshot_is_due(&self) -> Option<usize> {
        let every = self.run.config.train.snapshot_every_epochs;
        let (epochs, is_done) = (
            self.epochs_done(),
            self.step.is_multiple_of(self.length.steps_per_epoch),
        );
        (self.step > 0 && is_done && due(epochs, every)).then_some(epochs)
    }

    /// Takes the scores that are due, unless the run is to stop.
    fn score(&mut self) -> Result<(), TrainError> {
        if self.run.stop.requested().is_some() {
            return Ok(());
        }
        let (metrics, observer) = (&mut self.metrics, &mut *self.observer);
        self.scoring
            .take(&self.learner, self.step, metrics, observer)
    }

    /// Ends a loop that went through or was stopped; a stop leaves a checkpoint.
    ///
    /// # Errors
    /// Those of the checkpoint and of the log.
    pub(super) fn end(mut self) -> Result<Outcome, TrainError> {
        let RunLength {
            steps,
            scheduled_steps,
            ..
        } = self.length;
        if let Some(signal) = self.run.stop.requested()
            && (self.step < steps || self.scoring.is_open(self.step))
        {
            if self.saved.0 != Some(self.step) {
                self.save()?;
            }
            self.observer.note(&format!(
                "stopped after {} steps; a checkpoint was written",
                self.step
            ));
            return Ok(Outcome::Interrupted(signal));
        }
        self.metrics.flush()?;
        Ok(match steps == scheduled_steps {
            true => Outcome::Finished,
            false => Outcome::MaxSteps,
        })
    }

    /// Waits for the newest step, where a device may still be working on it.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] of a step since figures were last read.
    fn settle(&mut self) -> Result<(), TrainError> {
        if let Some(pending) = self.unread.take() {
            pending.read().inspect_err(|_| self.observer.note(UNREAD))?;
        }
        Ok(())
    }

    /// Writes a checkpoint, once the device is known to have done every step and the log has them.
    fn save(&mut self) -> Result<(), TrainError> {
        let Self { run, step, .. } = *self;
        self.settle()?;
        self.metrics.flush()?;
        let listed = self.data.write_list(run.train.as_ref(), run.run_dir);
        let mut extra = self.data.to_json();
        self.skips.keep_in(&mut extra);
        let checkpoint = Checkpoint {
            step,
            epoch: self.epochs_done() as u64,
            config: run.config_text.to_owned(),
            extra,
            files: self.learner.tensors()?,
        };
        selfsame_checkpoint::save(run.run_dir, &checkpoint, run.config.train.keep_checkpoints)?;
        self.saved = (Some(step), Instant::now());
        // Both only tell, and the next checkpoint tries again.
        let skipped = self.ledger.write_csv(&run.run_dir.join(SKIPPED_FILE));
        let failed = [listed.err(), skipped.err().map(TrainError::from)];
        for error in failed.into_iter().flatten() {
            self.observer.note(&format!("warning: {error}"));
        }
        Ok(())
    }

    /// Keeps a step that was not finite, or its number where that cannot be or enough of them are.
    fn capture_not_finite(&mut self, batches: &[DeviceBatch], what: BadFigure) {
        let mut others = not_finite_steps(self.run.run_dir);
        others.retain(|info| info.step != self.step);
        let captured = if self.run.capture_step == Some(self.step) {
            // It is there already, and another needs room beside it.
            self.keep_number(what)
        } else if others.len() < MOST_CAPTURED {
            self.capture(batches, Some(what))
        } else {
            self.observer.note(&format!(
                "only the number of the step is kept: {} that were not finite are in {CAPTURES}",
                others.len()
            ));
            self.keep_number(what)
        };
        let Err(error) = captured else { return };
        // What is wrong with the step is worse than that it cannot be kept.
        self.observer
            .note(&format!("the step could not be captured: {error}"));
        // A few bytes may find room, and tell `judge_run`.
        let _ = self.keep_number(what);
    }

    /// Writes that the coming step was not finite.
    fn keep_number(&self, what: BadFigure) -> Result<(), TrainError> {
        let dir = capture_dir(self.run.run_dir, self.step);
        write_number(&dir, self.capture_info(0, Some(what)))
    }

    /// Writes the batches of the coming step and the state before it.
    fn capture(
        &mut self,
        batches: &[DeviceBatch],
        not_finite: Option<BadFigure>,
    ) -> Result<(), TrainError> {
        let Self { run, step, .. } = *self;
        make_dir(&run.run_dir.join(CAPTURES))?;
        let dir = capture_dir(run.run_dir, step);
        let info = self.capture_info(batches.len(), not_finite);
        write_capture(&dir, info, run.config_text, &self.learner, batches)?;
        let note = format!("step {step} was captured in {}", dir.display());
        self.observer.note(&note);
        Ok(())
    }

    fn capture_info(&self, batches: usize, not_finite: Option<BadFigure>) -> CaptureInfo {
        let (epochs, per_epoch) = (self.run.config.train.epochs, self.length.steps_per_epoch);
        CaptureInfo {
            not_finite,
            ..CaptureInfo::new(self.step, per_epoch, epochs, batches)
        }
    }
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
