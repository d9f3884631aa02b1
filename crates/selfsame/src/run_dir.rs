//! A run directory from the program's side: claimed, described, drawn.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use selfsame_checkpoint::{Manifest, RunLock, is_empty_run_dir, list, write_bytes};
use selfsame_report::{LossPoint, curves, render_png};
use selfsame_train::{MetricsLine, RunConfig, SNAPSHOTS, read_metrics};

use crate::config::{Merged, refuse_edits};
use crate::exit::{pasteable, usage};

/// Name of the resolved configuration in a run directory.
pub(crate) const CONFIG_FILE: &str = "config.toml";

/// Name of what tells of a checkpoint, in its folder.
const MANIFEST_FILE: &str = "manifest.json";

/// Refuses a run directory that is a file.
///
/// # Errors
/// A usage error that says so.
pub(crate) fn refuse_file(dir: &Path) -> anyhow::Result<()> {
    match dir.is_file() {
        false => Ok(()),
        true => Err(usage(format!(
            "--run {}: that is a file; name a folder",
            dir.display()
        ))),
    }
}

/// Claims a new or empty directory for a run.
///
/// # Errors
/// A usage error if something else is in it or another process runs there.
pub(crate) fn claim_new(dir: &Path) -> anyhow::Result<RunLock> {
    refuse_used(dir)?;
    claim(dir)
}

/// Refuses a directory that a new run cannot have.
///
/// # Errors
/// A usage error if something else is in it.
pub(crate) fn refuse_used(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() && !is_empty_run_dir(dir)? {
        let or_continue = match dir.join(CONFIG_FILE).exists() {
            true => format!(
                ", or continue the run in it with `selfsame resume {}`",
                pasteable(dir)
            ),
            false => String::new(),
        };
        return Err(usage(format!(
            "--run {}: the directory is not empty; name another{or_continue}",
            dir.display(),
        )));
    }
    Ok(())
}

/// Claims a directory for writing.
///
/// # Errors
/// A usage error if another process runs there.
pub(crate) fn claim(dir: &Path) -> anyhow::Result<RunLock> {
    RunLock::acquire(dir).map_err(|error| match error {
        locked @ selfsame_checkpoint::CheckpointError::Locked { .. } => usage(locked.to_string()),
        other => other.into(),
    })
}

/// Reads the configuration of a run.
///
/// # Errors
/// A usage error if the directory holds none.
pub(crate) fn read_config(dir: &Path) -> anyhow::Result<Merged> {
    let path = dir.join(CONFIG_FILE);
    let lost = |how: &str| {
        usage(format!(
            "{} {how}; what stood in it is the value of \"config\" in {MANIFEST_FILE} of every \
             checkpoint of {}",
            path.display(),
            dir.display()
        ))
    };
    let text = std::fs::read_to_string(&path).map_err(|error| match list(dir) {
        Ok(checkpoints) if error.kind() == ErrorKind::NotFound && !checkpoints.is_empty() => {
            match checkpoints.iter().any(|(_, of)| is_of_finetuning(of)) {
                true => usage(format!(
                    "{} is a fine-tuning that was stopped; the same `finetune` command with \
                     --resume goes on",
                    dir.display()
                )),
                false => lost("is not there"),
            }
        }
        _ => usage(format!(
            "{} is not a run: {}: {error}",
            dir.display(),
            path.display()
        )),
    })?;
    if text.trim().is_empty() {
        return Err(lost("is empty"));
    }
    Merged::from_text(&text, &path.display().to_string())
}

/// Whether a checkpoint is of fine-tuning, whose settings are JSON.
fn is_of_finetuning(checkpoint: &Path) -> bool {
    let manifest = selfsame_checkpoint::Manifest::read(checkpoint);
    manifest.is_ok_and(|manifest| {
        let settings = serde_json::from_str::<serde_json::Value>(&manifest.config);
        settings.is_ok_and(|settings| settings.is_object())
    })
}

/// Reads the configuration of a run that is to go on, which must be that of its checkpoints.
///
/// # Errors
/// As [`read_config`]; a usage error with what was edited and may not change.
pub(crate) fn read_config_to_go_on(dir: &Path) -> anyhow::Result<Merged> {
    let merged = read_config(dir)?;
    if let Some((_, manifest, checkpoint)) = newest(dir)? {
        let name = format!("\"config\" in {}", checkpoint.join(MANIFEST_FILE).display());
        let began = Merged::from_text(&manifest.config, &name)?.typed()?;
        refuse_edits(&began, &merged.typed()?, &dir.join(CONFIG_FILE))?;
    }
    Ok(merged)
}

/// Steps, manifest and place of the newest checkpoint.
fn newest(dir: &Path) -> anyhow::Result<Option<(u64, Manifest, PathBuf)>> {
    let checkpoints = list(dir)?.into_iter().rev();
    // A damaged one is passed over when the state is loaded too.
    let mut manifests =
        checkpoints.filter_map(|(steps, dir)| Some((steps, Manifest::read(&dir).ok()?, dir)));
    Ok(manifests.next())
}

/// Refuses an end of a run that has gone on beyond it.
///
/// # Errors
/// A usage error with both numbers of steps.
pub(crate) fn refuse_earlier_end(dir: &Path, config: &RunConfig) -> anyhow::Result<()> {
    let end = config.train.max_steps;
    match newest(dir)? {
        Some((done, ..)) if end != 0 && end < done => Err(usage(format!(
            "train.max_steps = {end} is below the {done} steps that are done; take more, or 0 for \
             all epochs"
        ))),
        _ => Ok(()),
    }
}

/// The snapshots of a run with the epochs they were taken after, evenly thinned to `max`.
///
/// # Errors
/// If the folder cannot be read; a run without one has none.
pub(crate) fn snapshots(dir: &Path, max: usize) -> anyhow::Result<Vec<(usize, PathBuf)>> {
    let dir = dir.join(SNAPSHOTS);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let epoch = name.strip_prefix("epoch-");
        let epoch = epoch.and_then(|rest| rest.strip_suffix(".safetensors")?.parse().ok());
        if let Some(epoch) = epoch {
            found.push((epoch, path));
        }
    }
    found.sort();
    let (n, max) = (found.len(), max.max(1));
    if n <= max {
        return Ok(found);
    }
    // The last one always; the others at even distances before it.
    let kept = (1..=max).map(|i| found[(i * n).div_ceil(max) - 1].clone());
    Ok(kept.collect())
}

/// Writes `config.toml` whole or not at all.
///
/// # Errors
/// The path and the system's answer.
pub(crate) fn write_config(dir: &Path, text: &str) -> anyhow::Result<()> {
    Ok(write_bytes(&dir.join(CONFIG_FILE), text.as_bytes())?)
}

/// Draws `curves.png`, the notebook's two plots, from `metrics.jsonl`.
///
/// # Errors
/// If the metrics cannot be read or the picture not be written.
pub(crate) fn draw_curves(
    dir: &Path,
    config: &RunConfig,
    steps_per_epoch: f64,
) -> anyhow::Result<PathBuf> {
    let points: Vec<LossPoint> = read_metrics(dir)?
        .into_iter()
        .filter_map(|line| match line {
            MetricsLine::Step(line) => Some(LossPoint {
                epoch: (line.step + 1) as f64 / steps_per_epoch,
                loss: line.loss,
                loss_floor: line.loss_floor,
                lr: line.lr,
            }),
            MetricsLine::Eval(_) | MetricsLine::Views(_) => None,
        })
        .collect();
    let svg = curves(&points, config.head.out_dim);
    let path = dir.join("curves.png");
    write_bytes(&path, &render_png(&svg, 2.0)?)?;
    Ok(path)
}
