//! Whether a run has room on its disk.

use std::path::Path;

use selfsame_train::Plan;

use crate::exit::usage;
use crate::memory::{Stage, in_words};
use crate::stderr::tell;

/// Bytes that may still be written where `dir` is or will be; `None` if that is not known.
pub(crate) fn free(dir: &Path) -> Option<u64> {
    let dir = std::path::absolute(dir).ok()?;
    let existing = dir.ancestors().find(|folder| folder.exists())?;
    free_at(existing)
}

#[cfg(unix)]
fn free_at(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    // Some file systems answer with zeros.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_at(_: &Path) -> Option<u64> {
    None
}

/// What a disk with so many bytes free is too small for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The first checkpoint.
    Checkpoint(String),
    /// All that a run keeps in the end.
    End(String),
}

/// Holds what a run writes against `free` bytes.
pub(crate) fn shortage(plan: &Plan, free: u64) -> Option<Shortage> {
    let (one, all) = (plan.checkpoint_bytes as u64, plan.disk_bytes as u64);
    let there_are = format!("{} are free there", in_words(free));
    if free < one {
        let one = in_words(one);
        return Some(Shortage::Checkpoint(format!(
            "{there_are}, a checkpoint takes {one}; make room, or name a folder on another disk"
        )));
    }
    (free < all).then(|| {
        let all = in_words(all);
        Shortage::End(format!(
            "{there_are}, the checkpoints and snapshots of the run take {all}; make room, or lower \
             train.keep_checkpoints, or raise train.snapshot_every_epochs"
        ))
    })
}

/// Refuses a new run that has no room for one checkpoint, and warns of what will not fit.
///
/// # Errors
/// A usage error with what is free and what is needed.
pub(crate) fn check(run: &Path, plan: &Plan, stage: Stage) -> anyhow::Result<()> {
    let told = |text: String| format!("--run {}: {text}", run.display());
    match (free(run).and_then(|free| shortage(plan, free)), stage) {
        (Some(Shortage::Checkpoint(text)), Stage::New) => Err(usage(told(text))),
        (Some(Shortage::Checkpoint(text)), Stage::Begun) => {
            tell!("warning: {}: {text}", run.display());
            Ok(())
        }
        // A run that goes on has written most of it.
        (Some(Shortage::End(text)), Stage::New) => {
            tell!("warning: {}", told(text));
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selfsame_train::{Plan, RunConfig};

    #[test]
    fn what_does_not_fit_is_told_with_both_sizes() {
        let data = "synthetic:portraits?count=64";
        let train = crate::data::of_run(data, &RunConfig::default().data).unwrap();
        let plan = Plan::of(
            &RunConfig::default(),
            &train,
            None,
            &candle_core::Device::Cpu,
        )
        .unwrap();
        let one = plan.checkpoint_bytes as u64;
        assert_eq!(shortage(&plan, u64::MAX), None);
        let Some(Shortage::Checkpoint(text)) = shortage(&plan, one - 1) else {
            panic!("one checkpoint does not fit");
        };
        assert!(text.contains(&in_words(one)), "{text}");
        let Some(Shortage::End(text)) = shortage(&plan, one) else {
            panic!("one checkpoint is not all");
        };
        assert!(text.contains("train.keep_checkpoints"), "{text}");
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let there = free(dir.path());
        assert_eq!(there.is_some(), cfg!(unix));
        assert_eq!(free(&dir.path().join("a/b")).is_some(), cfg!(unix));
    }
}
