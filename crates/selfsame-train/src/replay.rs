//! Runs captured steps again, to check this trainer against another program or itself.

use candle_core::Device;
use selfsame_objectives::Schedules;
use serde::{Deserialize, Serialize};

use crate::capture::Capture;
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::learner::Learner;

/// The figures of one replayed step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayLine {
    /// Index of the step.
    pub step: u64,
    /// Mean cross-entropy over pairs of views.
    pub loss: f64,
    /// Norm over all parameters that require a gradient, before clipping and freezing.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// EMA momentum of the teacher.
    pub momentum: f64,
    /// Teacher temperature.
    pub teacher_temp: f64,
}

/// Replays `steps` steps of `capture` (0: as many as it has batches for) and hands each line to
/// `on_step`; the learner after the last step is returned.
///
/// # Errors
/// [`TrainError::Config`] if the configuration cannot run or the steps go past the schedules;
/// [`TrainError::Capture`] for unreadable files; [`TrainError::NonFinite`].
pub fn replay(
    capture: &Capture,
    config: &RunConfig,
    steps: u64,
    device: &Device,
    mut on_step: impl FnMut(&ReplayLine) -> Result<(), TrainError>,
) -> Result<Learner, TrainError> {
    let mut config = config.clone();
    config.train.epochs = capture.info.epochs;
    let problems = config.check();
    if !problems.is_empty() {
        return Err(TrainError::Config(problems));
    }
    let schedules = Schedules::new(&config.schedule(), capture.info.steps_per_epoch)?;
    let accumulate = config.train.accumulate;
    let steps = if steps == 0 {
        (capture.info.batches / accumulate).max(1) as u64
    } else {
        steps
    };
    let first = capture.info.step;
    let epochs = capture.info.epochs as u64;
    let total = capture.info.steps_per_epoch.saturating_mul(epochs);
    let end = first.saturating_add(steps);
    if end > total {
        return Err(TrainError::Config(vec![format!(
            "--steps: steps {first} to {end} go past the schedules' {total}"
        )]));
    }

    let mut learner = Learner::new(&config, device)?;
    capture.load_state(&mut learner)?;
    for done in 0..steps {
        let step = first + done;
        let batches = (0..accumulate)
            .map(|i| capture.batch(done as usize * accumulate + i, device))
            .collect::<Result<Vec<_>, _>>()?;
        let now = schedules.at(step);
        let epoch = (step / capture.info.steps_per_epoch) as usize;
        let figures = learner.step(&batches, &now, epoch, step)?.read()?;
        on_step(&ReplayLine {
            step,
            loss: figures.loss,
            grad_norm: figures.grad_norm,
            lr: now.lr,
            weight_decay: now.weight_decay,
            momentum: now.momentum,
            teacher_temp: now.teacher_temp,
        })?;
    }
    Ok(learner)
}
