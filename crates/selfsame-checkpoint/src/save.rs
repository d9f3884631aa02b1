use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use selfsame_files::{UNFINISHED, remove, rename, sync, sync_folder};

use crate::error::OnPath;
use crate::load::verify;
use crate::manifest::{FileEntry, MANIFEST, Manifest};
use crate::retention::keep_newest;
use crate::run_dir::{OLD_PREFIX, checkpoint_dir, checkpoints_dir, sibling};
use crate::tensors::Plan;
use crate::{CheckpointError, Result};

/// A whole training state: what `load` gives is what `save` was given, bit for bit.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Count of optimizer steps done.
    pub step: u64,
    /// Epoch in which training goes on.
    pub epoch: u64,
    /// The run's resolved configuration, as TOML text.
    pub config: String,
    /// Whatever else the run needs to go on exactly.
    pub extra: serde_json::Value,
    /// File name without extension (`student`, `teacher`, `optimizer`, `state`) to its tensors.
    pub files: BTreeMap<String, BTreeMap<String, Tensor>>,
}

/// Writes `run_dir/checkpoints/step-NNNNNNNN`, then removes all but the newest `keep` checkpoints
/// (0 keeps all), and gives the folder's path.
///
/// The files are written into a temporary sibling, each is synced, the sibling is renamed and the
/// folder above synced: a checkpoint is there whole or not at all. A checkpoint of the same step is
/// replaced, unless it is good and equal. One that cannot be removed is left for the next save to
/// try. The caller holds the [`crate::RunLock`], which made the run directory.
///
/// # Errors
/// [`CheckpointError::Io`] if the run directory is gone.
/// Whatever happens, earlier checkpoints stay untouched and nothing temporary stays behind.
/// [`CheckpointError::NotFinite`] if a tensor holds NaN or infinity, [`CheckpointError::DiskFull`]
/// with the bytes of the whole checkpoint, [`CheckpointError::BadName`] for a file name that is not
/// made of letters, digits, `_` and `-`.
pub fn save(run_dir: &Path, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
    let parent = checkpoints_dir(run_dir);
    if make_dir(&parent).on("create", &parent)? {
        sync_folder(run_dir).on("sync", run_dir)?;
    }
    let temp = sibling(run_dir, UNFINISHED, checkpoint.step);
    let target = checkpoint_dir(run_dir, checkpoint.step);
    let done = remove(&temp)
        .on("remove", &temp)
        .and_then(|()| write_all(&temp, checkpoint))
        .and_then(|()| publish(run_dir, checkpoint.step, &temp, &target));
    let replaced = match done {
        Ok(replaced) => replaced,
        Err(error) => {
            // The failure itself is what the caller must hear of.
            let _ = remove(&temp);
            return Err(error);
        }
    };
    sync_folder(&parent).on("sync", &parent)?;
    if let Some(replaced) = replaced {
        // Left behind, it is cleared when the run is next locked.
        let _ = remove(&replaced);
    }
    keep_newest(run_dir, checkpoint.step, keep);
    Ok(target)
}

/// Makes a folder of a run directory; true if it was not there yet.
///
/// Not with those above it: a run directory that is gone was moved, and what is written where it was
/// would be half of a run.
///
/// # Errors
/// [`io::Error`] if it is not there afterwards.
pub fn make_dir(dir: &Path) -> io::Result<bool> {
    match fs::create_dir(dir) {
        Err(_) if dir.is_dir() => Ok(false),
        made => made.map(|()| true),
    }
}

fn write_all(dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    fs::create_dir(dir).on("create", dir)?;
    let mut plans = Vec::new();
    for (name, tensors) in &checkpoint.files {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(CheckpointError::BadName {
                name: name.clone(),
                what: "file",
            });
        }
        refuse_non_finite(name, tensors)?;
        let file_name = format!("{name}.safetensors");
        let path = dir.join(&file_name);
        let plan = Plan::new(&path, tensors, &BTreeMap::new())?;
        plans.push((file_name, path, plan));
    }

    let needed = plans.iter().map(|(_, _, plan)| plan.len()).sum();
    let mut entries: BTreeMap<String, FileEntry> = BTreeMap::new();
    for (file_name, path, plan) in plans {
        let file = File::create(&path).on("create", &path)?;
        let entry = plan.write(&file, &path, needed)?;
        sync(&file).on_write(&path, needed)?;
        entries.insert(file_name, entry);
    }

    let path = dir.join(MANIFEST);
    let Checkpoint {
        step,
        epoch,
        config,
        extra,
        ..
    } = checkpoint;
    let manifest = Manifest::new(*step, *epoch, config.clone(), extra.clone(), entries);
    let bytes = manifest
        .to_bytes()
        .map_err(|source| CheckpointError::Json {
            path: path.clone(),
            source,
        })?;
    let mut file = File::create(&path).on("create", &path)?;
    file.write_all(&bytes)
        .on_write(&path, needed + bytes.len() as u64)?;
    sync(&file).on_write(&path, needed + bytes.len() as u64)?;
    sync_folder(dir).on("sync", dir)
}

/// Gives the finished folder its name; tells where the one is now that had it before.
fn publish(run_dir: &Path, step: u64, temp: &Path, target: &Path) -> Result<Option<PathBuf>> {
    if !target.exists() {
        rename(temp, target).on("create", target)?;
        return Ok(None);
    }
    // The manifest holds the hash of everything else, so equal manifests mean equal checkpoints.
    let manifest = |dir: &Path| fs::read(dir.join(MANIFEST)).ok();
    if manifest(temp) == manifest(target) && verify(target).is_ok() {
        remove(temp).on("remove", temp)?;
        return Ok(None);
    }
    // A folder cannot be replaced in one operation. Killed between the two renames, `clean_stale`
    // does the second one.
    let old = sibling(run_dir, OLD_PREFIX, step);
    remove(&old).on("remove", &old)?;
    rename(target, &old).on("move aside", target)?;
    if let Err(error) = rename(temp, target) {
        rename(&old, target).on("put back", target)?;
        return Err(error).on("create", target);
    }
    Ok(Some(old))
}

/// Refuses tensors of which one is not finite in every value, as [`save`] does.
///
/// # Errors
/// [`CheckpointError::NotFinite`] naming `file` and the tensor.
pub fn refuse_non_finite(file: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, tensor) in tensors {
        if !matches!(
            tensor.dtype(),
            DType::F32 | DType::F64 | DType::BF16 | DType::F16
        ) {
            continue;
        }
        let finite = is_finite(tensor).map_err(|source| CheckpointError::Tensor {
            path: PathBuf::from(file),
            name: name.clone(),
            source: Box::new(source),
        })?;
        if !finite {
            return Err(CheckpointError::NotFinite {
                file: file.into(),
                tensor: name.clone(),
            });
        }
    }
    Ok(())
}

/// x - x is 0 for a finite x and NaN for any other, and a sum with a NaN in it is NaN.
fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    let xs = tensor.detach();
    let sum = xs
        .sub(&xs)?
        .to_dtype(DType::F64)?
        .sum_all()?
        .to_scalar::<f64>()?;
    Ok(sum == 0.0)
}
