//! Everything that can end a run early.

use std::path::PathBuf;

use crate::capture::BadFigure;
use selfsame_checkpoint::CheckpointError;
use selfsame_data::{DataError, Dataset, Ledger};
use selfsame_eval::EvalError;
use selfsame_models::ModelError;
use selfsame_objectives::ScheduleError;
use selfsame_optim::StateError;

/// Why training, evaluation or replay stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration cannot run; every problem is listed.
    #[error("{}", list("the configuration has", .0))]
    Config(Vec<String>),
    /// Fewer images than one step needs.
    #[error(
        "{images} usable images are fewer than the {needed} of one step (train.batch_size × \
         train.accumulate); lower train.batch_size or add pictures"
    )]
    TooFewImages {
        /// Images in the data set.
        images: usize,
        /// Effective batch size.
        needed: usize,
    },
    /// Loss or gradient is NaN or infinite; no update was applied in that step.
    #[error("step {step}: {}", not_finite(*.what, *.value))]
    NonFinite {
        /// Index of the step.
        step: u64,
        /// What it is.
        what: BadFigure,
        /// The value met.
        value: f64,
    },
    /// Too many of the pictures asked for cannot be decoded.
    #[error("{usable} of {of} {what} could be used; the first that could not: {first}")]
    Unusable {
        /// Of what.
        what: String,
        /// How many were used.
        usable: usize,
        /// How many were asked for.
        of: usize,
        /// File and reason of the first one.
        first: String,
    },
    /// The pictures are not those that the run began with.
    #[error(
        "the pictures have changed since the checkpoint was written; put them back, or go on with \
         --accept-data-change:{}", crate::data_record::summary(.0)
    )]
    DataChanged(
        /// A line for each picture.
        Vec<String>,
    ),
    /// A saved state does not fit this configuration.
    #[error("the saved state does not fit: {0}")]
    State(String),
    /// The label asked for does not exist or cannot be used.
    #[error("{0}")]
    Label(String),
    /// A capture cannot be read.
    #[error("{}: {what}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of the run directory cannot be read or written.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Weights.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Optimizer state.
    #[error(transparent)]
    Optimizer(#[from] StateError),
    /// Evaluation.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Tensor maths.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<ScheduleError> for TrainError {
    fn from(error: ScheduleError) -> Self {
        Self::Config(error.0.into_iter().map(by_key).collect())
    }
}

/// A problem of the schedules, which begins with their field, by its key of the configuration.
pub(crate) fn by_key(problem: String) -> String {
    let table = match problem.split(':').next() {
        Some("epochs") => "train",
        Some("lr" | "min_lr" | "warmup_epochs" | "weight_decay" | "weight_decay_end") => "optim",
        Some(
            "momentum_teacher"
            | "warmup_teacher_temp"
            | "teacher_temp"
            | "warmup_teacher_temp_epochs",
        ) => "objective",
        _ => return problem,
    };
    format!("{table}.{problem}").replace("(epochs)", "(train.epochs)")
}

impl TrainError {
    /// Whether the user's configuration or data specification is at fault (exit code 2).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::TooFewImages { .. } | Self::Label(_) | Self::DataChanged(_)
        ) || matches!(self, Self::Data(error) if error.is_usage())
    }

    /// Of `what` only `usable` of these samples could be used, the others are in the ledger.
    pub(crate) fn unusable(
        what: impl Into<String>,
        usable: usize,
        dataset: &dyn Dataset,
        samples: &[usize],
        ledger: &Ledger,
    ) -> Self {
        let bad = samples.iter().find(|i| ledger.has(dataset, **i));
        let first = bad.map(|i| {
            let name = dataset.name(*i);
            let file = dataset
                .path(*i)
                .map_or_else(|| name.to_owned(), |path| path.display().to_string());
            let entries = ledger.entries().into_iter();
            let mut reason = entries
                .filter(|entry| entry.file == name)
                .map(|entry| entry.reason);
            format!("{file}: {}", reason.next_back().unwrap_or_default())
        });
        Self::Unusable {
            what: what.into(),
            usable,
            of: samples.len(),
            first: first.unwrap_or_else(|| "it is not known".to_owned()),
        }
    }

    pub(crate) fn io(
        path: impl Into<PathBuf>,
        what: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what, source }
    }
}

/// "the configuration has 2 problems:" and a line for each.
fn list(subject: &str, problems: &[String]) -> String {
    let noun = if problems.len() == 1 {
        "problem"
    } else {
        "problems"
    };
    let mut text = format!("{subject} {} {noun}:", problems.len());
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    text
}

/// What the drivers of NVIDIA's libraries say where memory is lacking.
const EXHAUSTED: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];

/// Whether an error's text, with all of its causes, tells that a device refused memory.
pub fn lacks_device_memory(text: &str) -> bool {
    EXHAUSTED.iter().any(|refusal| text.contains(refusal))
}

/// The text of [`TrainError::NonFinite`] behind its step.
fn not_finite(what: BadFigure, value: f64) -> String {
    match what {
        BadFigure::EarlierStep => {
            format!("the {what} was NaN or infinite; nothing since the last checkpoint is kept")
        }
        _ => format!("the {what} is {value}; nothing was updated"),
    }
}

#[cfg(test)]
mod tests {
    use selfsame_objectives::{ScheduleConfig, Schedules};

    use super::*;

    #[test]
    fn problems_of_schedules_are_named_by_their_keys() {
        let wrong = ScheduleConfig {
            epochs: 0,
            lr: -1.0,
            min_lr: -1.0,
            weight_decay: -1.0,
            weight_decay_end: -1.0,
            momentum_teacher: 2.0,
            warmup_teacher_temp: 0.0,
            teacher_temp: 0.0,
            ..ScheduleConfig::default()
        };
        let error = TrainError::from(Schedules::new(&wrong, 0).unwrap_err());
        let TrainError::Config(problems) = error else {
            panic!("{error}");
        };
        let keys = problems.iter().map(|problem| problem.split(':').next());
        let keys: Vec<&str> = keys.map(Option::unwrap).collect();
        let expected = [
            "train.epochs",
            "optim.warmup_epochs",
            "objective.warmup_teacher_temp_epochs",
            "optim.lr",
            "optim.min_lr",
            "optim.weight_decay",
            "optim.weight_decay_end",
            "objective.momentum_teacher",
            "objective.warmup_teacher_temp",
            "objective.teacher_temp",
            "steps_per_epoch",
        ];
        assert_eq!(keys, expected);
        assert!(
            problems[1].ends_with("the run of 0 (train.epochs)"),
            "{problems:?}"
        );
    }
}
