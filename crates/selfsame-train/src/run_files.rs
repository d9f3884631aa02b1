//! What stands where in a run directory, checkpoints apart.

use std::path::{Path, PathBuf};

/// A JSON line for every so many steps and for every score.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The training pictures: name, size and a hash of how the file begins.
pub const PICTURES_FILE: &str = "pictures.csv";
/// The pictures that could not be used, with the reason.
pub const SKIPPED_FILE: &str = "skipped.csv";
/// The folder of the teacher's backbone as it was after some epochs.
pub const SNAPSHOTS: &str = "snapshots";
/// The folder of captured steps.
pub const CAPTURES: &str = "captures";

/// The folder of a captured step.
pub fn capture_dir(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(CAPTURES).join(format!("step-{step:08}"))
}
