//! How many steps a configuration makes of a number of pictures.

use selfsame_objectives::Schedules;

use crate::config::RunConfig;
use crate::error::TrainError;

/// Steps of a run, for its plan and for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLength {
    /// Images of one optimizer step.
    pub images_per_step: usize,
    /// Optimizer steps of an epoch; the last incomplete one is dropped.
    pub steps_per_epoch: u64,
    /// Steps that the schedules span.
    pub scheduled_steps: u64,
    /// Steps until the run ends: all, or `train.max_steps`.
    pub steps: u64,
}

impl RunLength {
    /// The steps over `images` pictures.
    ///
    /// # Errors
    /// [`TrainError::Config`] with every problem of the configuration;
    /// [`TrainError::TooFewImages`] if they do not make one step.
    pub fn of(config: &RunConfig, images: usize) -> Result<Self, TrainError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(TrainError::Config(problems));
        }
        let images_per_step = config.effective_batch();
        if images < images_per_step {
            return Err(TrainError::TooFewImages {
                images,
                needed: images_per_step,
            });
        }
        let steps_per_epoch = (images / images_per_step) as u64;
        // The loader counts micro-batches.
        let counted = steps_per_epoch
            .checked_mul(config.train.epochs as u64)
            .filter(|steps| steps.checked_mul(config.train.accumulate as u64).is_some());
        let Some(scheduled_steps) = counted else {
            return Err(TrainError::Config(vec![format!(
                "train.epochs: no number holds the steps of {} epochs",
                config.train.epochs
            )]));
        };
        Ok(Self {
            images_per_step,
            steps_per_epoch,
            scheduled_steps,
            steps: match config.train.max_steps {
                0 => scheduled_steps,
                max => max.min(scheduled_steps),
            },
        })
    }

    /// The schedules over these steps.
    pub(crate) fn schedules(&self, config: &RunConfig) -> Result<Schedules, TrainError> {
        Ok(Schedules::new(&config.schedule(), self.steps_per_epoch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_that_make_more_steps_than_a_number_holds_are_refused() {
        let mut config = RunConfig::default();
        config.train.epochs = usize::MAX;
        let error = RunLength::of(&config, 1000).unwrap_err().to_string();
        assert!(error.contains("train.epochs"), "{error}");
    }
}
