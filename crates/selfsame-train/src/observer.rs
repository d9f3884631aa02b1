//! What a run tells whoever watches it.

use std::time::Duration;

use crate::metrics::MetricsLine;

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
