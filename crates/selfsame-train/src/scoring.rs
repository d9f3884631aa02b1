//! When the k-NN score is due while a run trains, and its lines in the log.

use std::sync::Arc;

use selfsame_data::Ledger;

use crate::error::TrainError;
use crate::learner::Learner;
use crate::metrics::{EvalLine, MetricsFile, MetricsLine};
use crate::monitor::Monitor;
use crate::run_length::RunLength;
use crate::trainer::{Observer, Run, due};

/// The scores of a run.
pub(crate) struct Scoring<'a> {
    run: &'a Run<'a>,
    length: RunLength,
    ledger: &'a Arc<Ledger>,
    monitor: Result<Monitor, String>,
    /// Steps done when the newest score was taken.
    newest: Option<u64>,
}

impl<'a> Scoring<'a> {
    /// Of a run whose log has these lines.
    ///
    /// # Errors
    /// As [`Monitor::new`].
    pub(crate) fn new(
        run: &'a Run<'a>,
        length: RunLength,
        ledger: &'a Arc<Ledger>,
        logged: &[MetricsLine],
    ) -> Result<Self, TrainError> {
        let newest = logged.iter().rev().find_map(|line| match line {
            MetricsLine::Eval(line) => Some(line.step.map_or(0, |step| step + 1)),
            MetricsLine::Step(_) => None,
        });
        Ok(Self {
            run,
            length,
            ledger,
            monitor: Monitor::new(run.config, &run.train, run.val.as_ref())?,
            newest,
        })
    }

    /// Why there are no scores, if there are none.
    pub(crate) fn off(&self) -> Option<&str> {
        self.monitor.as_ref().err().map(String::as_str)
    }

    /// Whether a score belongs after so many steps and was not taken yet.
    pub(crate) fn is_open(&self, steps_done: u64) -> bool {
        let per_epoch = self.length.steps_per_epoch;
        let every = self.run.config.train.knn_every_epochs;
        let is_due = steps_done == self.length.scheduled_steps
            || steps_done.is_multiple_of(per_epoch)
                && due((steps_done / per_epoch) as usize, every);
        is_due && self.monitor.is_ok() && self.newest != Some(steps_done)
    }

    /// Takes the score if it is open; a stop meanwhile leaves it open. One that cannot be taken, for
    /// want of pictures, does not end the training that it looks at.
    ///
    /// # Errors
    /// Those of the network.
    pub(crate) fn take(
        &mut self,
        learner: &Learner,
        steps_done: u64,
        metrics: &mut MetricsFile,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let (true, Ok(monitor)) = (self.is_open(steps_done), &self.monitor) else {
            return Ok(());
        };
        let Run { device, stop, .. } = self.run;
        let backbone = learner.teacher.backbone();
        let knn = match monitor.evaluate(backbone, device, self.ledger, stop) {
            Ok(Some(knn)) => knn,
            Ok(None) => return Ok(()),
            Err(
                error @ (TrainError::Data(_) | TrainError::Eval(_) | TrainError::Unusable { .. }),
            ) => {
                observer.note(&format!(
                    "warning: after {steps_done} steps the k-NN score could not be taken: {error}"
                ));
                self.newest = Some(steps_done);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let line = MetricsLine::Eval(EvalLine {
            step: steps_done.checked_sub(1),
            epoch: (steps_done / self.length.steps_per_epoch) as usize,
            knn,
            label: monitor.label().to_owned(),
        });
        metrics.write_or_tell(&line, observer);
        observer.logged(&line);
        self.newest = Some(steps_done);
        Ok(())
    }
}
