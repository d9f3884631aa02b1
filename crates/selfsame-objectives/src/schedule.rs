//! How learning rate, weight decay, teacher momentum and teacher temperature move.
//!
//! Every schedule is a function of the step: no counter, nothing to save, and a resumed run cannot
//! drift. All is f64, with numpy's rounding, so that written values can be compared with the
//! reference's (`utils.py`, `cosine_scheduler`).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Half a cosine after an optional linear warm-up from 0, over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineSchedule {
    /// The value at the end of the warm-up, or of step 0 if there is none.
    pub base: f64,
    /// The value that the cosine approaches; the last step stays just short of it.
    pub end: f64,
    /// Length of the warm-up, in steps; 0 for none.
    pub warmup_steps: u64,
    /// Length of the whole schedule with its warm-up, in steps.
    pub total_steps: u64,
}

impl CosineSchedule {
    /// The value at a step, counted from 0; `end` for a step after the last.
    ///
    /// The warm-up is numpy's `linspace(0, base, warmup_steps)`, both ends included: the first
    /// step has value 0, the last of the warm-up `base`. A warm-up of one step is that first 0.
    pub fn value_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return linspace(0.0, self.base, self.warmup_steps, step);
        }
        if step >= self.total_steps {
            return self.end;
        }
        let done = (step - self.warmup_steps) as f64;
        let length = (self.total_steps - self.warmup_steps) as f64;
        self.end + 0.5 * (self.base - self.end) * (1.0 + (PI * done / length).cos())
    }
}

/// A straight line over the first epochs, then its end value for good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearThenConstant {
    /// The value of the first warm-up epoch.
    pub start: f64,
    /// The value of the last warm-up epoch and of all after it.
    pub end: f64,
    /// Length of the line, in epochs; 0 for a constant. A line of one epoch is `start`.
    pub warmup_epochs: u64,
}

impl LinearThenConstant {
    /// The value of an epoch, counted from 0.
    pub fn value_at(&self, epoch: u64) -> f64 {
        if epoch < self.warmup_epochs {
            linspace(self.start, self.end, self.warmup_epochs, epoch)
        } else {
            self.end
        }
    }
}

/// Entry `index` of numpy's `linspace(start, stop, num)`, rounded as numpy rounds it.
fn linspace(start: f64, stop: f64, num: u64, index: u64) -> f64 {
    if num == 1 {
        return start;
    }
    if index == num - 1 {
        return stop;
    }
    start + index as f64 * ((stop - start) / (num - 1) as f64)
}

/// How often weight decay moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDecayUpdate {
    /// An epoch keeps the value of its first step (the notebook).
    #[default]
    Epoch,
    /// Every step has its own (the official code).
    Step,
}

/// The numbers from which the schedules of a run follow; defaults are the notebook's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Length of the run, in epochs.
    pub epochs: u64,
    /// Learning rate at its peak, after scaling by the batch size. The default is 5e-4 unscaled.
    pub lr: f64,
    /// What the learning rate falls to, never scaled.
    pub min_lr: f64,
    /// Linear warm-up of the learning rate, in epochs.
    pub warmup_epochs: u64,
    /// Weight decay of the first step.
    pub weight_decay: f64,
    /// Weight decay that the run ends with.
    pub weight_decay_end: f64,
    /// How often weight decay moves.
    pub weight_decay_update: WeightDecayUpdate,
    /// Momentum of the teacher at the first step; it ends at 1.
    pub momentum_teacher: f64,
    /// Teacher temperature of the first epoch.
    pub warmup_teacher_temp: f64,
    /// Teacher temperature after its warm-up.
    pub teacher_temp: f64,
    /// Linear warm-up of the teacher temperature, in epochs.
    pub warmup_teacher_temp_epochs: u64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            lr: 5e-4,
            min_lr: 0.0,
            warmup_epochs: 10,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            weight_decay_update: WeightDecayUpdate::Epoch,
            momentum_teacher: 0.996,
            warmup_teacher_temp: 0.04,
            teacher_temp: 0.07,
            warmup_teacher_temp_epochs: 30,
        }
    }
}

impl ScheduleConfig {
    /// Every problem in words, each text naming its field; empty if there is none.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.epochs == 0 {
            problems.push("epochs: 0 epochs are no run".to_owned());
        }
        for (key, warmup) in [
            ("warmup_epochs", self.warmup_epochs),
            (
                "warmup_teacher_temp_epochs",
                self.warmup_teacher_temp_epochs,
            ),
        ] {
            if warmup > self.epochs {
                problems.push(format!(
                    "{key}: a warm-up of {warmup} epochs is longer than the run of {} \
                     (epochs)",
                    self.epochs
                ));
            }
        }
        for (key, value) in [
            ("lr", self.lr),
            ("min_lr", self.min_lr),
            ("weight_decay", self.weight_decay),
            ("weight_decay_end", self.weight_decay_end),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                problems.push(format!("{key}: {value} is negative or not a number"));
            }
        }
        if !(0.0..=1.0).contains(&self.momentum_teacher) {
            problems.push(format!(
                "momentum_teacher: {} is not between 0 and 1",
                self.momentum_teacher
            ));
        }
        for (key, value) in [
            ("warmup_teacher_temp", self.warmup_teacher_temp),
            ("teacher_temp", self.teacher_temp),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                problems.push(format!("{key}: {value} is not positive"));
            }
        }
        problems
    }
}

/// The values that hold at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of the parameters that are decayed.
    pub weight_decay: f64,
    /// Share of the teacher that survives the step's moving average.
    pub momentum: f64,
    /// Temperature of the teacher's softmax.
    pub teacher_temp: f64,
}

/// All schedules of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedules {
    /// Learning rate, per step.
    pub lr: CosineSchedule,
    /// Weight decay, per step; see [`WeightDecayUpdate`] for which step counts.
    pub weight_decay: CosineSchedule,
    /// Teacher momentum, per step.
    pub momentum: CosineSchedule,
    /// Teacher temperature, per epoch.
    pub teacher_temp: LinearThenConstant,
    weight_decay_update: WeightDecayUpdate,
    steps_per_epoch: u64,
}

/// Every problem of a schedule's configuration, each naming its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
#[non_exhaustive]
pub struct ScheduleError(pub Vec<String>);

impl Schedules {
    /// The schedules of a run of `config.epochs` × `steps_per_epoch` steps.
    ///
    /// # Errors
    /// Every problem of [`ScheduleConfig::check`], and an epoch without a step.
    pub fn new(config: &ScheduleConfig, steps_per_epoch: u64) -> Result<Self, ScheduleError> {
        let mut problems = config.check();
        let total_steps = config.epochs.checked_mul(steps_per_epoch);
        if steps_per_epoch == 0 {
            problems.push("steps_per_epoch: 0, there are fewer images than a batch".to_owned());
        }
        if total_steps.is_none() {
            problems.push(format!(
                "epochs: {} epochs of {steps_per_epoch} steps are more than can be counted",
                config.epochs
            ));
        }
        let (true, Some(total_steps)) = (problems.is_empty(), total_steps) else {
            return Err(ScheduleError(problems));
        };
        let without_warmup = |base, end| CosineSchedule {
            base,
            end,
            warmup_steps: 0,
            total_steps,
        };
        Ok(Self {
            lr: CosineSchedule {
                base: config.lr,
                end: config.min_lr,
                warmup_steps: config.warmup_epochs * steps_per_epoch,
                total_steps,
            },
            weight_decay: without_warmup(config.weight_decay, config.weight_decay_end),
            momentum: without_warmup(config.momentum_teacher, 1.0),
            teacher_temp: LinearThenConstant {
                start: config.warmup_teacher_temp,
                end: config.teacher_temp,
                warmup_epochs: config.warmup_teacher_temp_epochs,
            },
            weight_decay_update: config.weight_decay_update,
            steps_per_epoch,
        })
    }

    /// The values at a step, counted from 0; end values for a step after the last.
    pub fn at(&self, step: u64) -> Now {
        let epoch = step / self.steps_per_epoch;
        let weight_decay_step = match self.weight_decay_update {
            WeightDecayUpdate::Epoch => epoch * self.steps_per_epoch,
            WeightDecayUpdate::Step => step,
        };
        Now {
            lr: self.lr.value_at(step),
            weight_decay: self.weight_decay.value_at(weight_decay_step),
            momentum: self.momentum.value_at(step),
            teacher_temp: self.teacher_temp.value_at(epoch),
        }
    }

    /// Length of the run, in steps.
    pub fn total_steps(&self) -> u64 {
        self.lr.total_steps
    }

    /// Length of an epoch, in steps.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_starts_at_zero_and_ends_at_the_base() {
        let lr = CosineSchedule {
            base: 0.3,
            end: 0.0,
            warmup_steps: 4,
            total_steps: 8,
        };
        assert_eq!([0, 3, 4].map(|step| lr.value_at(step)), [0.0, 0.3, 0.3]);
    }

    #[test]
    fn a_warmup_of_one_step_is_zero() {
        let lr = CosineSchedule {
            base: 0.3,
            end: 0.1,
            warmup_steps: 1,
            total_steps: 3,
        };
        assert_eq!(
            [0, 1, 2, 3].map(|step| lr.value_at(step)),
            [0.0, 0.3, 0.2, 0.1]
        );
    }

    #[test]
    fn a_run_that_is_all_warmup_never_divides_by_zero() {
        let config = ScheduleConfig {
            epochs: 2,
            warmup_epochs: 2,
            warmup_teacher_temp_epochs: 2,
            ..Default::default()
        };
        let schedules = Schedules::new(&config, 3).unwrap();
        assert_eq!(schedules.at(5).lr, 5e-4);
        assert_eq!(schedules.at(6).lr, 0.0);
    }

    #[test]
    fn weight_decay_per_epoch_waits_for_the_next_epoch() {
        let per_epoch = Schedules::new(&ScheduleConfig::default(), 7).unwrap();
        let config = ScheduleConfig {
            weight_decay_update: WeightDecayUpdate::Step,
            ..Default::default()
        };
        let per_step = Schedules::new(&config, 7).unwrap();
        assert_eq!(per_epoch.at(13).weight_decay, per_step.at(7).weight_decay);
        assert_eq!(per_epoch.at(14).weight_decay, per_step.at(14).weight_decay);
        assert!(per_step.at(13).weight_decay > per_step.at(7).weight_decay);
    }

    #[test]
    fn values_after_the_last_step_are_the_end_values() {
        let schedules = Schedules::new(&ScheduleConfig::default(), 5).unwrap();
        let end = Now {
            lr: 0.0,
            weight_decay: 0.4,
            momentum: 1.0,
            teacher_temp: 0.07,
        };
        assert_eq!(schedules.at(500), end);
        assert_eq!(schedules.at(u64::MAX), end);
    }

    #[test]
    fn a_warmup_longer_than_the_run_is_refused_with_both_numbers() {
        let config = ScheduleConfig {
            epochs: 5,
            ..Default::default()
        };
        let ScheduleError(problems) = Schedules::new(&config, 10).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("warmup_epochs: "), "{problems:?}");
        assert!(problems[0].contains("10 epochs") && problems[0].contains("run of 5"));
        assert!(problems[1].contains("30 epochs") && problems[1].contains("run of 5"));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let config = ScheduleConfig {
            epochs: 0,
            lr: -1.0,
            weight_decay: f64::NAN,
            momentum_teacher: 1.5,
            teacher_temp: 0.0,
            warmup_epochs: 0,
            warmup_teacher_temp_epochs: 0,
            ..Default::default()
        };
        let ScheduleError(problems) = Schedules::new(&config, 0).unwrap_err();
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
