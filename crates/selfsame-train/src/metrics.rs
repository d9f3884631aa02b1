//! `metrics.jsonl`: one JSON object per logged step or evaluation.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::observer::Observer;
use crate::run_files::METRICS_FILE;
use crate::tensorboard::EventFile;

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

/// A score without labels during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ViewsLine {
    /// Index of the last step done; absent before the first.
    pub step: Option<u64>,
    /// Epochs done.
    pub epoch: usize,
    /// How often, in per cent, a picture's other view was nearer than another picture's; 50 is chance.
    pub view_auc: f64,
    /// Effective rank of the first views' features.
    pub effective_rank: f64,
    /// Pictures.
    pub pictures: usize,
    /// Whether they were held out; else they are among those trained on.
    pub held_out: bool,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetricsLine {
    /// A training step.
    Step(StepLine),
    /// An evaluation.
    Eval(EvalLine),
    /// One without labels.
    Views(ViewsLine),
}

impl MetricsLine {
    /// The figures of a training step, if it is one.
    pub fn into_step(self) -> Option<StepLine> {
        match self {
            Self::Step(line) => Some(line),
            Self::Eval(_) | Self::Views(_) => None,
        }
    }

    pub(crate) fn steps_done(&self) -> u64 {
        match self {
            Self::Step(line) => line.step + 1,
            Self::Eval(EvalLine { step, .. }) | Self::Views(ViewsLine { step, .. }) => {
                step.map_or(0, |step| step + 1)
            }
        }
    }
}

/// Appends lines to `metrics.jsonl`, and the same numbers to TensorBoard's event file beside it.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    /// Lines, or the end of one, that could not be written yet.
    waiting: Vec<u8>,
    told_waiting: bool,
    /// Until it cannot be written, which is told then.
    events: Result<EventFile, Option<TrainError>>,
    set_aside: usize,
}

impl MetricsFile {
    /// Opens the file of a run that has done `steps_done` steps.
    ///
    /// Lines of later steps, left by a run that died after its last checkpoint, are removed:
    /// those steps are about to be done again. At step 0 that is every line, the evaluation
    /// before the first step too. Lines that cannot be read, except an unfinished last one, are set
    /// aside in `metrics-unreadable.txt`.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path.
    pub fn open(run_dir: &Path, steps_done: u64) -> Result<Self, TrainError> {
        let path = run_dir.join(METRICS_FILE);
        let mut set_aside = 0;
        if path.exists() {
            let Raw { lines, unreadable } = read_raw(&path)?;
            set_aside = unreadable.len();
            if set_aside > 0 {
                append(&run_dir.join(UNREADABLE_FILE), &unreadable.concat())?;
            }
            let text: String = lines
                .into_iter()
                .filter(|(_, line)| steps_done > 0 && line.steps_done() <= steps_done)
                .map(|(text, _)| text)
                .collect();
            selfsame_checkpoint::write_bytes(&path, text.as_bytes())?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "cannot be opened for writing"))?;
        Ok(Self {
            path,
            file,
            waiting: Vec::new(),
            told_waiting: false,
            events: EventFile::create(run_dir, steps_done).map_err(Some),
            set_aside,
        })
    }

    /// How many lines could not be read when the file was opened.
    pub fn set_aside(&self) -> usize {
        self.set_aside
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path, for example on a full disk: the line is kept then, and
    /// written before the next one or by [`Self::flush`].
    pub fn write(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        let mut text = serde_json::to_string(line).expect("figures always serialise");
        text.push('\n');
        self.waiting.extend(text.as_bytes());
        if let Ok(events) = &mut self.events
            && let Err(error) = events.write(line)
        {
            self.events = Err(Some(error));
        }
        self.flush()
    }

    /// [`Self::write`] for a run that can go on without: trouble with the file, or with TensorBoard's
    /// beside it, is told once.
    pub(crate) fn write_or_tell(&mut self, line: &MetricsLine, observer: &mut dyn Observer) {
        match self.write(line) {
            Ok(()) => self.told_waiting = false,
            Err(error) if !self.told_waiting => {
                self.told_waiting = true;
                observer.note(&format!(
                    "warning: {error}; lines are kept until they can be"
                ));
            }
            Err(_) => {}
        }
        if let Err(lost) = &mut self.events
            && let Some(error) = lost.take()
        {
            observer.note(&format!(
                "warning: no more is written for TensorBoard: {error}"
            ));
        }
    }

    /// Writes what could not be written before.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path; what is left is kept.
    pub fn flush(&mut self) -> Result<(), TrainError> {
        while !self.waiting.is_empty() {
            // A disk may have room for a part of it.
            match self.file.write(&self.waiting) {
                Ok(0) => {
                    let full = std::io::ErrorKind::WriteZero.into();
                    return Err(TrainError::io(&self.path, "cannot be written")(full));
                }
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TrainError::io(&self.path, "cannot be written")(error)),
            }
        }
        Ok(())
    }
}

/// Where lines go that could not be read.
pub(crate) const UNREADABLE_FILE: &str = "metrics-unreadable.txt";

/// Reads the lines of a run's `metrics.jsonl`; what cannot be read, such as an unfinished last line,
/// is left out.
///
/// # Errors
/// [`TrainError::Io`] with the path.
pub fn read_metrics(run_dir: &Path) -> Result<Vec<MetricsLine>, TrainError> {
    Ok(read_raw(&run_dir.join(METRICS_FILE))?
        .lines
        .into_iter()
        .map(|(_, line)| line)
        .collect())
}

/// Renames the log of a run that begins anew, if steps are in it: how many had been done, and the new
/// name.
///
/// # Errors
/// [`TrainError::Io`] with the path.
pub(crate) fn set_log_aside(run_dir: &Path) -> Result<Option<(u64, String)>, TrainError> {
    let path = run_dir.join(METRICS_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let lines = read_metrics(run_dir)?;
    let Some(steps) = lines
        .iter()
        .map(MetricsLine::steps_done)
        .max()
        .filter(|n| *n > 0)
    else {
        return Ok(None);
    };
    let name = |n: usize| match n {
        1 => "metrics-before.jsonl".to_owned(),
        n => format!("metrics-before-{n}.jsonl"),
    };
    let free = (1..).map(name).find(|name| !run_dir.join(name).exists());
    let name = free.expect("a folder has room for another name");
    std::fs::rename(&path, run_dir.join(&name))
        .map_err(TrainError::io(&path, "cannot be renamed"))?;
    Ok(Some((steps, name)))
}

/// The finished lines of a file, with their line ends.
struct Raw {
    lines: Vec<(String, MetricsLine)>,
    unreadable: Vec<Vec<u8>>,
}

fn read_raw(path: &Path) -> Result<Raw, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path, "cannot be read"))?;
    let (mut lines, mut unreadable) = (Vec::new(), Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        match serde_json::from_str(&text) {
            Ok(parsed) => lines.push((format!("{}\n", text.trim_end()), parsed)),
            Err(_) if line.ends_with(b"\n") => unreadable.push(line.to_owned()),
            // Its writer died, and that step is done again.
            Err(_) => {}
        }
    }
    Ok(Raw { lines, unreadable })
}

fn append(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(TrainError::io(path, "cannot be written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an observer was told.
    #[cfg(target_os = "linux")]
    #[derive(Default)]
    struct Told(Vec<String>);

    #[cfg(target_os = "linux")]
    impl Observer for Told {
        fn started(&mut self, _: &crate::observer::RunFacts) {}
        fn stepped(&mut self, _: &crate::observer::Progress) {}
        fn logged(&mut self, _: &MetricsLine) {}
        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }

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
    fn lines_that_cannot_be_read_are_set_aside_and_an_unfinished_one_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.write(&step_line(0)).unwrap();
        assert_eq!(file.set_aside(), 0);
        append(&file.path, b"\0\0\xff\n{}\n").unwrap();
        file.write(&step_line(1)).unwrap();
        append(&file.path, b"{\"step\":2").unwrap();
        drop(file);
        let lines = [step_line(0), step_line(1)];
        assert_eq!(read_metrics(dir.path()).unwrap(), lines);

        let mut file = MetricsFile::open(dir.path(), 2).unwrap();
        assert_eq!(file.set_aside(), 2);
        let aside = std::fs::read(dir.path().join(UNREADABLE_FILE)).unwrap();
        assert_eq!(aside, b"\0\0\xff\n{}\n");
        file.write(&step_line(2)).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(MetricsFile::open(dir.path(), 3).unwrap().set_aside(), 0);
        assert_eq!(read_metrics(dir.path()).unwrap().len(), 3);
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
    fn the_log_of_a_run_that_begins_anew_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(set_log_aside(dir.path()).unwrap(), None);
        for (steps, kept_as) in [(3, "metrics-before.jsonl"), (2, "metrics-before-2.jsonl")] {
            let mut file = MetricsFile::open(dir.path(), 0).unwrap();
            assert_eq!(set_log_aside(dir.path()).unwrap(), None, "no step is lost");
            (0..steps).for_each(|step| file.write(&step_line(step)).unwrap());
            let kept = set_log_aside(dir.path()).unwrap();
            assert_eq!(kept, Some((steps, kept_as.to_owned())));
            assert!(!file.path.exists());
            let text = std::fs::read_to_string(dir.path().join(kept_as)).unwrap();
            assert_eq!(text.lines().count() as u64, steps);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn without_room_for_tensorboard_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        file.events.as_mut().unwrap().fill_up();
        let mut told = Told::default();
        for step in 0..3 {
            file.write_or_tell(&step_line(step), &mut told);
        }
        let [text] = told.0.as_slice() else {
            panic!("{:?}", told.0);
        };
        assert!(text.contains("TensorBoard: /dev/full"), "{text}");
        assert_eq!(read_metrics(dir.path()).unwrap().len(), 3);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lines_without_room_are_written_when_there_is_some() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        let mut told = Told::default();
        file.write_or_tell(&step_line(0), &mut told);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let real = std::mem::replace(&mut file.file, full);
        (1..4).for_each(|step| file.write_or_tell(&step_line(step), &mut told));
        assert!(
            file.flush()
                .unwrap_err()
                .to_string()
                .contains("metrics.jsonl")
        );
        let [text] = told.0.as_slice() else {
            panic!("{:?}", told.0);
        };
        assert!(text.contains("metrics.jsonl: cannot be written"), "{text}");
        assert_eq!(read_metrics(dir.path()).unwrap().len(), 1);

        file.file = real;
        file.write_or_tell(&step_line(4), &mut told);
        file.flush().unwrap();
        let lines = read_metrics(dir.path()).unwrap();
        assert_eq!(lines, (0..5).map(step_line).collect::<Vec<_>>());
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
