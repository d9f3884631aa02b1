//! When a run is scored while it trains, by k-NN and by views, and its lines in the log.

use std::sync::Arc;

use selfsame_data::Ledger;

use crate::embed::Extractor;
use crate::error::{TrainError, lacks_device_memory};
use crate::learner::Learner;
use crate::metrics::{EvalLine, MetricsFile, MetricsLine, ViewsLine};
use crate::monitor::Monitor;
use crate::observer::Observer;
use crate::run_length::RunLength;
use crate::trainer::{Run, due};
use crate::views::ViewScorer;

/// The scores of a run.
pub(crate) struct Scoring<'a> {
    run: &'a Run<'a>,
    length: RunLength,
    ledger: &'a Arc<Ledger>,
    monitor: Result<Monitor, String>,
    views: Option<ViewScorer>,
    /// Steps done when the newest score of each kind was taken.
    newest: Newest,
}

#[derive(Default)]
struct Newest {
    knn: Option<u64>,
    views: Option<u64>,
}

impl<'a> Scoring<'a> {
    /// Of a run whose log has these lines.
    ///
    /// # Errors
    /// As [`Monitor::new`] and [`ViewScorer::new`].
    pub(crate) fn new(
        run: &'a Run<'a>,
        length: RunLength,
        ledger: &'a Arc<Ledger>,
        logged: &[MetricsLine],
    ) -> Result<Self, TrainError> {
        let mut newest = Newest::default();
        for line in logged {
            match line {
                MetricsLine::Step(_) => {}
                MetricsLine::Eval(_) => newest.knn = Some(line.steps_done()),
                MetricsLine::Views(_) => newest.views = Some(line.steps_done()),
            }
        }
        Ok(Self {
            run,
            length,
            ledger,
            monitor: Monitor::new(run.config, &run.train, run.val.as_ref())?,
            views: ViewScorer::of_run(run.config, &run.train, run.val.as_ref())?,
            newest,
        })
    }

    /// Why there is no k-NN score, if there is none.
    pub(crate) fn off(&self) -> Option<&str> {
        self.monitor.as_ref().err().map(String::as_str)
    }

    /// Whether a score belongs after so many steps and was not taken yet.
    pub(crate) fn is_open(&self, steps_done: u64) -> bool {
        self.knn_is_open(steps_done) || self.views_are_open(steps_done)
    }

    fn knn_is_open(&self, steps_done: u64) -> bool {
        self.is_due(steps_done) && self.monitor.is_ok() && self.newest.knn != Some(steps_done)
    }

    fn views_are_open(&self, steps_done: u64) -> bool {
        self.is_due(steps_done) && self.views.is_some() && self.newest.views != Some(steps_done)
    }

    fn is_due(&self, steps_done: u64) -> bool {
        let per_epoch = self.length.steps_per_epoch;
        let every = self.run.config.train.knn_every_epochs;
        steps_done == self.length.scheduled_steps
            || steps_done.is_multiple_of(per_epoch) && due((steps_done / per_epoch) as usize, every)
    }

    /// Takes the scores that are open; a stop meanwhile leaves them open. One that cannot be taken, for
    /// want of pictures or of a device's memory, does not end the training that it looks at.
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
        let mut failures = Vec::new();
        let taken = self.take_open(learner, steps_done, metrics, observer, &mut failures);
        for why in failures {
            observer.note(&format!("warning: after {steps_done} steps {why}"));
        }
        taken
    }

    /// The same, with what could not be taken in `failures`.
    fn take_open(
        &mut self,
        learner: &Learner,
        steps_done: u64,
        metrics: &mut MetricsFile,
        observer: &mut dyn Observer,
        failures: &mut Vec<String>,
    ) -> Result<(), TrainError> {
        let Run { device, stop, .. } = self.run;
        let backbone = learner.teacher.backbone();
        let step = steps_done.checked_sub(1);
        let epoch = (steps_done / self.length.steps_per_epoch) as usize;
        let mut log = |line: MetricsLine| {
            metrics.write_or_tell(&line, observer);
            observer.logged(&line);
        };
        if let (true, Ok(monitor)) = (self.knn_is_open(steps_done), &self.monitor) {
            let taken = monitor.evaluate(backbone, device, self.ledger, stop);
            match sorted_out(taken, "k-NN score", failures)? {
                Taken::Stopped => return Ok(()),
                Taken::Score(knn) => log(MetricsLine::Eval(EvalLine {
                    step,
                    epoch,
                    knn,
                    label: monitor.label().to_owned(),
                })),
                Taken::Failed => {}
            }
            self.newest.knn = Some(steps_done);
        }
        if let (true, Some(views)) = (self.views_are_open(steps_done), &self.views) {
            let taken = views.score(
                Extractor::Backbone(backbone),
                device,
                self.ledger,
                stop,
                |_| (),
            );
            match sorted_out(taken, "score of views", failures)? {
                Taken::Stopped => return Ok(()),
                Taken::Score(score) => log(MetricsLine::Views(ViewsLine {
                    step,
                    epoch,
                    view_auc: score.percent(),
                    effective_rank: score.effective_rank,
                    pictures: score.auc.len(),
                    held_out: views.is_held_out(),
                })),
                Taken::Failed => {}
            }
            self.newest.views = Some(steps_done);
        }
        Ok(())
    }
}

/// What came of a score.
enum Taken<T> {
    Score(T),
    /// A stop was requested.
    Stopped,
    /// It could not be taken, for want of pictures, of features that are numbers or of memory.
    Failed,
}

/// Sorts out what came of a score; why it failed goes to `failures`.
fn sorted_out<T>(
    taken: Result<Option<T>, TrainError>,
    what: &str,
    failures: &mut Vec<String>,
) -> Result<Taken<T>, TrainError> {
    match taken {
        Ok(Some(score)) => Ok(Taken::Score(score)),
        Ok(None) => Ok(Taken::Stopped),
        Err(error @ (TrainError::Data(_) | TrainError::Eval(_) | TrainError::Unusable { .. })) => {
            failures.push(format!("the {what} could not be taken: {error}"));
            Ok(Taken::Failed)
        }
        // Training itself has room on the device.
        Err(error) if lacks_device_memory(&with_causes(&error)) => {
            failures.push(format!(
                "the {what} could not be taken, as the device has no memory left for it: {error}"
            ));
            Ok(Taken::Failed)
        }
        Err(error) => Err(error),
    }
}

fn with_causes(error: &TrainError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_for_a_score_does_not_end_the_training() {
        let taken = |text: &str, failures: &mut Vec<String>| {
            let error = candle_core::Error::Msg(text.to_owned()).bt();
            sorted_out::<f64>(Err(TrainError::Tensor(error)), "k-NN score", failures)
        };
        let mut failures = Vec::new();
        let refusal = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let left_out = taken(refusal, &mut failures).unwrap();
        assert!(matches!(left_out, Taken::Failed));
        let [told] = &failures[..] else {
            panic!("{failures:?}");
        };
        assert!(told.starts_with("the k-NN score could not be taken") && told.contains(refusal));
        assert!(taken("no such shape", &mut failures).is_err());
        assert_eq!(failures.len(), 1);
    }
}
