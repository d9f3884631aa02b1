//! A captured step: state and batches on disk, so that the step can be replayed here or elsewhere.
//!
//! The layout is a contract with other programs: `capture.json` ([`CaptureInfo`]); `config.toml`;
//! `state.safetensors` with `student.*`, `teacher.*`, `center` `[1, K]` and, after the first step, the
//! optimizer's `optim.exp_avg.<name>`, `optim.exp_avg_sq.<name>`, `optim.step.<name>` (AdamW),
//! `optim.momentum_buffer.<name>` (SGD) or `optim.mu.<name>` (LARS); a file `batch-NNNNNN.safetensors`
//! for each batch with `global` `[2, B, 3, G, G]` and `local` `[L, B, 3, S, S]` in f32.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use selfsame_checkpoint::{read_tensor_file, write_bytes, write_tensors};
use serde::{Deserialize, Serialize};

use crate::device_batch::DeviceBatch;
use crate::error::TrainError;
use crate::learner::Learner;
use crate::run_files::CAPTURES;

/// The version of the layout that this program writes and reads.
const FORMAT: u32 = 1;

/// `capture.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureInfo {
    /// Version of the layout.
    pub format: u32,
    /// Index of the step that the first batch belongs to.
    pub step: u64,
    /// Optimizer steps in an epoch, which the schedules need.
    pub steps_per_epoch: u64,
    /// Epochs of the run.
    pub epochs: usize,
    /// Number of `batch-NNNNNN.safetensors` files.
    pub batches: usize,
    /// What was not finite in this step, if that is why it was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_finite: Option<BadFigure>,
}

/// What of a step was NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BadFigure {
    /// The loss.
    Loss,
    /// The norm of the gradient.
    GradientNorm,
    /// One of both, in a step of which a device told after others had been done.
    EarlierStep,
}

impl std::fmt::Display for BadFigure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::GradientNorm => "gradient norm",
            Self::EarlierStep => "loss or gradient norm of a step since the last line",
        })
    }
}

/// The steps of a run that were captured because something in them was not finite.
pub(crate) fn not_finite_steps(run_dir: &Path) -> Vec<CaptureInfo> {
    let captures = std::fs::read_dir(run_dir.join(CAPTURES));
    let found = captures
        .into_iter()
        .flatten()
        .filter_map(|entry| CaptureInfo::read(&entry.ok()?.path()));
    found.filter(|info| info.not_finite.is_some()).collect()
}

impl CaptureInfo {
    /// Describes `batches` micro-batches from `step` on.
    pub fn new(step: u64, steps_per_epoch: u64, epochs: usize, batches: usize) -> Self {
        Self {
            format: FORMAT,
            step,
            steps_per_epoch,
            epochs,
            batches,
            not_finite: None,
        }
    }

    /// What a folder says, if it says something.
    fn read(dir: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(dir.join("capture.json")).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// A capture that was opened: its batches are read one at a time.
#[derive(Debug)]
pub struct Capture {
    /// What `capture.json` says.
    pub info: CaptureInfo,
    /// The text of `config.toml`.
    pub config_text: String,
    dir: PathBuf,
}

/// Writes `learner` (at the start of `info.step`) and the step's micro-batches to `dir`.
///
/// # Errors
/// [`TrainError::Io`] or a checkpoint error naming the file; what was written is removed.
pub fn write_capture(
    dir: &Path,
    info: CaptureInfo,
    config_text: &str,
    learner: &Learner,
    micro_batches: &[DeviceBatch],
) -> Result<(), TrainError> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "cannot be created"))?;
    let written = write_parts(dir, &info, config_text, learner, micro_batches);
    if written.is_err() {
        // A part of a capture is of no use, and a checkpoint may need its room.
        remove_parts(dir, info.batches);
    }
    written
}

fn write_parts(
    dir: &Path,
    info: &CaptureInfo,
    config_text: &str,
    learner: &Learner,
    micro_batches: &[DeviceBatch],
) -> Result<(), TrainError> {
    // It makes a capture of the folder, so it goes first and comes last.
    let description = dir.join("capture.json");
    match std::fs::remove_file(&description) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrainError::io(description, "cannot be replaced")(error));
        }
        _ => (),
    }
    write_bytes(&dir.join("config.toml"), config_text.as_bytes())?;
    write_state(&dir.join("state.safetensors"), learner)?;
    for (index, crops) in micro_batches.iter().enumerate() {
        let b = crops.batch_size();
        let split = |views: &Tensor| {
            let (n, c, h, w) = views.dims4()?;
            views.reshape((n / b, b, c, h, w))
        };
        let mut tensors = BTreeMap::from([("global".to_owned(), split(&crops.global)?)]);
        if let Some(local) = &crops.local {
            tensors.insert("local".to_owned(), split(local)?);
        }
        write_tensors(&batch_path(dir, index), &tensors, &BTreeMap::new())?;
    }
    let text = serde_json::to_string_pretty(info).expect("a capture's description serialises");
    write_bytes(&description, text.as_bytes())?;
    Ok(())
}

/// Writes what tells of a step, and nothing to replay it by; a capture of it that is there already
/// stays one.
pub(crate) fn write_number(dir: &Path, info: CaptureInfo) -> Result<(), TrainError> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "cannot be created"))?;
    let there = CaptureInfo::read(dir).filter(|there| there.step == info.step);
    let batches = there.map_or(0, |there| there.batches);
    let info = CaptureInfo { batches, ..info };
    let text = serde_json::to_string_pretty(&info).expect("a capture's description serialises");
    Ok(write_bytes(&dir.join("capture.json"), text.as_bytes())?)
}

/// Removes what a capture is made of, and the folder if nothing else is in it.
fn remove_parts(dir: &Path, batches: usize) {
    let names = ["capture.json", "config.toml", "state.safetensors"];
    let named = names.map(|name| dir.join(name));
    for path in named
        .into_iter()
        .chain((0..batches).map(|index| batch_path(dir, index)))
    {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir(dir);
}

/// Writes a learner's state under the names of a capture: `student.*`, `teacher.*`, `center`,
/// `optim.*`.
///
/// # Errors
/// A checkpoint error naming the file.
pub fn write_state(path: &Path, learner: &Learner) -> Result<(), TrainError> {
    let mut tensors = BTreeMap::new();
    for (file, content) in learner.tensors()? {
        let prefix = match file.as_str() {
            "optimizer" => "optim.",
            "state" => "",
            "student" => "student.",
            _ => "teacher.",
        };
        for (name, tensor) in content {
            tensors.insert(format!("{prefix}{name}"), tensor);
        }
    }
    write_tensors(path, &tensors, &BTreeMap::new())?;
    Ok(())
}

impl Capture {
    /// Opens the capture in `dir`.
    ///
    /// # Errors
    /// [`TrainError::Capture`] naming the file that is missing or malformed.
    pub fn open(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join("capture.json");
        let text = read_text(&path)?;
        let info: CaptureInfo = serde_json::from_str(&text)
            .map_err(|error| capture_error(&path, format!("is not a capture: {error}")))?;
        if info.format != FORMAT {
            return Err(capture_error(
                &path,
                format!(
                    "has format {}; this program reads format {FORMAT}",
                    info.format
                ),
            ));
        }
        if let (0, Some(what)) = (info.batches, info.not_finite) {
            return Err(capture_error(
                &path,
                format!(
                    "only tells that the {what} of step {} was not finite; its batches were not \
                     kept",
                    info.step
                ),
            ));
        }
        if info.batches == 0 || info.steps_per_epoch == 0 {
            return Err(capture_error(
                &path,
                "needs batches and steps_per_epoch above 0".to_owned(),
            ));
        }
        let config_text = read_text(&dir.join("config.toml"))?;
        Ok(Self {
            info,
            config_text,
            dir: dir.to_owned(),
        })
    }

    /// Loads the captured state into `learner`.
    ///
    /// # Errors
    /// [`TrainError::Capture`] for a tensor of unknown purpose; the models' and the optimizer's
    /// own lists of missing, surplus and misshapen names.
    pub fn load_state(&self, learner: &mut Learner) -> Result<(), TrainError> {
        let path = self.dir.join("state.safetensors");
        let mut files: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for file in ["student", "teacher", "optimizer", "state"] {
            files.insert(file.to_owned(), BTreeMap::new());
        }
        for (name, tensor) in read_tensor_file(&path, &learner.student_params.device())?.tensors {
            let (file, rest) = if name == "center" {
                ("state", name.as_str())
            } else if let Some(rest) = name.strip_prefix("student.") {
                ("student", rest)
            } else if let Some(rest) = name.strip_prefix("teacher.") {
                ("teacher", rest)
            } else if let Some(rest) = name.strip_prefix("optim.") {
                ("optimizer", rest)
            } else {
                return Err(capture_error(
                    &path,
                    format!("tensor {name:?} is none of student.*, teacher.*, optim.*, center"),
                ));
            };
            files
                .entry(file.to_owned())
                .or_default()
                .insert(rest.to_owned(), tensor);
        }
        learner.load_tensors(&files)
    }

    /// Reads micro-batch `index`; the captured ones are taken in turn, again from the first after
    /// the last.
    ///
    /// # Errors
    /// [`TrainError::Capture`] naming the file if a tensor is missing or misshapen.
    pub fn batch(&self, index: usize, device: &Device) -> Result<DeviceBatch, TrainError> {
        let path = batch_path(&self.dir, index % self.info.batches);
        let mut tensors = read_tensor_file(&path, device)?.tensors;
        let global = tensors
            .remove("global")
            .ok_or_else(|| capture_error(&path, "has no tensor named global".to_owned()))?;
        let images = match *global.dims() {
            [2, images, ..] if images > 0 => images,
            ref other => {
                let what = format!("global has shape {other:?}, not [2, images, 3, G, G]");
                return Err(capture_error(&path, what));
            }
        };
        let flat = |tensor: Tensor, name: &str| match *tensor.dims() {
            [views, b, 3, h, w] if b == images => Ok(tensor.reshape((views * b, 3, h, w))?),
            ref other => Err(capture_error(
                &path,
                format!("{name} has shape {other:?}, not [views, {images}, 3, S, S]"),
            )),
        };
        let local = match tensors.remove("local") {
            // No local crops are none, however they were written.
            Some(local) if local.dims().first() != Some(&0) => Some(flat(local, "local")?),
            _ => None,
        };
        Ok(DeviceBatch {
            global: flat(global, "global")?,
            local,
        })
    }
}

fn batch_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("batch-{index:06}.safetensors"))
}

fn read_text(path: &Path) -> Result<String, TrainError> {
    std::fs::read_to_string(path)
        .map_err(|error| capture_error(path, format!("cannot be read: {error}")))
}

fn capture_error(path: &Path, what: String) -> TrainError {
    TrainError::Capture {
        path: path.to_owned(),
        what,
    }
}
