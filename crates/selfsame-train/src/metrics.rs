//! `metrics.jsonl`: one JSON object per logged step or evaluation.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::tensorboard::EventFile;

/// Name of the file in a run directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The figures of one logged step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Index of the step just done, from 0.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: usize,
    /// Mean cross-entropy over pairs of views.
    pub loss: f64,
    /// Mean entropy of the teacher's distributions.
    pub loss_floor: f64,
    /// `loss - loss_floor`.
    pub kl: f64,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// EMA momentum of the teacher.
    pub momentum: f64,
    /// Teacher temperature.
    pub teacher_temp: f64,
    /// Norm of all gradients before clipping and freezing.
    pub grad_norm: f64,
    /// Spread of the teacher's features over the batch.
    pub feature_std: f64,
    /// Source images per second since the previous line, data wait included.
    pub images_per_s: f64,
    /// Share of that time spent waiting for data.
    pub data_wait_frac: f64,
}

/// An evaluation during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// Index of the last step done; absent before the first.
    pub step: Option<u64>,
    /// Epochs done.
    pub epoch: usize,
    /// k-NN accuracy in percent, by k.
    pub knn: BTreeMap<String, f64>,
    /// The label that was predicted.
    pub label: String,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetricsLine {
    /// A training step.
    Step(StepLine),
    /// An evaluation.
    Eval(EvalLine),
}

impl MetricsLine {
    /// The figures of a training step, if it is one.
    pub fn into_step(self) -> Option<StepLine> {
        match self {
            Self::Step(line) => Some(line),
            Self::Eval(_) => None,
        }
    }

    fn steps_done(&self) -> u64 {
        match self {
            Self::Step(line) => line.step + 1,
            Self::Eval(line) => line.step.map_or(0, |step| step + 1),
        }
    }
}

/// Appends lines to `metrics.jsonl`, and the same numbers to TensorBoard's event file beside it.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl MetricsFile {
    /// Opens the file of a run that has done `steps_done` steps.
    ///
    /// Lines of later steps, left by a run that died after its last checkpoint, are removed:
    /// those steps are about to be done again. At step 0 that is every line, the evaluation
    /// before the first step too.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path.
    pub fn open(run_dir: &Path, steps_done: u64) -> Result<Self, TrainError> {
        let path = run_dir.join(METRICS_FILE);
        if path.exists() {
            let kept: Vec<String> = read_raw(&path)?
                .into_iter()
                .filter(|(_, line)| steps_done > 0 && line.steps_done() <= steps_done)
                .map(|(text, _)| text)
                .collect();
            let beside = run_dir.join(".metrics.jsonl.tmp");
            let mut text = kept.join("\n");
            if !text.is_empty() {
                text.push('\n');
            }
            std::fs::write(&beside, text).map_err(TrainError::io(&beside, "cannot be written"))?;
            std::fs::rename(&beside, &path).map_err(TrainError::io(&path, "cannot be replaced"))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "cannot be opened for writing"))?;
        let events = EventFile::create(run_dir)?;
        Ok(Self { path, file, events })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path, for example on a full disk.
    pub fn write(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        let mut text = serde_json::to_string(line).expect("figures always serialise");
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(TrainError::io(&self.path, "cannot be written"))?;
        self.events.write(line)
    }
}

/// Reads the lines of a run's `metrics.jsonl`; an unfinished last line is left out.
///
/// # Errors
/// [`TrainError::Io`] with the path.
pub fn read_metrics(run_dir: &Path) -> Result<Vec<MetricsLine>, TrainError> {
    Ok(read_raw(&run_dir.join(METRICS_FILE))?
        .into_iter()
        .map(|(_, line)| line)
        .collect())
}

fn read_raw(path: &Path) -> Result<Vec<(String, MetricsLine)>, TrainError> {
    let file = File::open(path).map_err(TrainError::io(path, "cannot be opened"))?;
    let mut lines = Vec::new();
    for text in BufReader::new(file).lines() {
        let text = text.map_err(TrainError::io(path, "cannot be read"))?;
        if let Ok(line) = serde_json::from_str(&text) {
            lines.push((text, line));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_line(step: u64) -> MetricsLine {
        MetricsLine::Step(StepLine {
            step,
            epoch: 0,
            loss: 1.5,
            loss_floor: 1.0,
            kl: 0.5,
            lr: 1e-3,
            weight_decay: 0.04,
            momentum: 0.996,
            teacher_temp: 0.04,
            grad_norm: 2.0,
            feature_std: 0.7,
            images_per_s: 10.0,
            data_wait_frac: 0.0,
        })
    }

    #[test]
    fn lines_after_the_last_checkpoint_are_removed_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        for step in 0..5 {
            file.write(&step_line(step)).unwrap();
        }
        drop(file);
        let mut file = MetricsFile::open(dir.path(), 3).unwrap();
        file.write(&step_line(3)).unwrap();
        let lines = read_metrics(dir.path()).unwrap();
        assert_eq!(lines, (0..4).map(step_line).collect::<Vec<_>>());
    }

    #[test]
    fn a_run_that_begins_again_begins_its_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let before_the_first_step = MetricsLine::Eval(EvalLine {
            step: None,
            epoch: 0,
            knn: BTreeMap::new(),
            label: "gender".to_owned(),
        });
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.write(&before_the_first_step).unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.write(&before_the_first_step).unwrap();
        assert_eq!(read_metrics(dir.path()).unwrap(), [before_the_first_step]);
    }

    #[test]
    fn an_evaluation_line_is_told_from_a_step_line() {
        let line = MetricsLine::Eval(EvalLine {
            step: Some(9),
            epoch: 1,
            knn: BTreeMap::from([("20".to_owned(), 71.5)]),
            label: "gender".to_owned(),
        });
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<MetricsLine>(&text).unwrap(), line);
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.write(&step_line(0)).unwrap();
        file.file.write_all(b"{\"step\": 1, \"ep").unwrap();
        assert_eq!(read_metrics(dir.path()).unwrap().len(), 1);
    }
}
