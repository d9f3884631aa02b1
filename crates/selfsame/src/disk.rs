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
    let disk = fs4::statvfs(existing).ok()?;
    // Some file systems answer with zeros.
    (disk.total_space() > 0).then(|| disk.available_space())
}

/// Whether a run finds room on its disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// It may start, and will probably miss some.
    Tight(String),
    /// It has not begun and could not write its first checkpoint.
    None(String),
}

/// Holds what a run writes against `free` bytes, if that is known.
pub(crate) fn room(plan: &Plan, free: Option<u64>, stage: Stage) -> Room {
    let (one, all) = (plan.checkpoint_bytes as u64, plan.disk_bytes as u64);
    match (free, stage) {
        (Some(free), Stage::New) if free < one => Room::None(no_room_for(one, free)),
        (Some(free), Stage::Begun) if free < one => Room::Tight(no_room_for(one, free)),
        // A run that goes on has written most of it.
        (Some(free), Stage::New) if free < all => {
            let (all, free) = (in_words(all), in_words(free));
            Room::Tight(format!(
                "{free} are free there, the checkpoints and snapshots of the run take {all}; make \
                 room, or lower train.keep_checkpoints, or raise train.snapshot_every_epochs"
            ))
        }
        _ => Room::Enough,
    }
}

/// Says that a checkpoint of so many bytes is too large for a disk.
fn no_room_for(checkpoint: u64, free: u64) -> String {
    let (one, free) = (in_words(checkpoint), in_words(free));
    format!(
        "{free} are free there, a checkpoint takes {one}; make room, or name a folder on another disk"
    )
}

/// Refuses a new fine-tuning without room for its only checkpoint, of so many bytes.
///
/// # Errors
/// A usage error with what is free and what is needed.
pub(crate) fn check_finetuning(run: &Path, checkpoint: u64) -> anyhow::Result<()> {
    match free(run) {
        Some(free) if free < checkpoint => Err(usage(format!(
            "--run {}: {}",
            run.display(),
            no_room_for(checkpoint, free)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a new run that has no room for one checkpoint, and warns of what will not fit.
///
/// # Errors
/// A usage error with what is free and what is needed.
pub(crate) fn check(run: &Path, plan: &Plan, stage: Stage) -> anyhow::Result<()> {
    // `resume` has no flag for it.
    let place = match stage {
        Stage::New => format!("--run {}", run.display()),
        Stage::Begun => run.display().to_string(),
    };
    match room(plan, free(run), stage) {
        Room::Enough => {}
        Room::Tight(text) => tell!("warning: {place}: {text}"),
        Room::None(text) => return Err(usage(format!("{place}: {text}"))),
    }
    Ok(())
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
        let room = |free, stage| room(&plan, Some(free), stage);
        assert_eq!(room(u64::MAX, Stage::New), Room::Enough);
        assert_eq!(super::room(&plan, None, Stage::New), Room::Enough);
        let Room::None(text) = room(one - 1, Stage::New) else {
            panic!("one checkpoint does not fit");
        };
        assert!(text.contains(&in_words(one)), "{text}");
        assert_eq!(room(one - 1, Stage::Begun), Room::Tight(text));
        let Room::Tight(text) = room(one, Stage::New) else {
            panic!("one checkpoint is not all");
        };
        assert!(text.contains("train.keep_checkpoints"), "{text}");
        assert_eq!(room(one, Stage::Begun), Room::Enough);
    }

    #[test]
    fn a_fine_tuning_without_room_for_its_checkpoint_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_finetuning(dir.path(), 1).is_ok());
        let refused = check_finetuning(dir.path(), u64::MAX);
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("a checkpoint takes"), "{told}");
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(dir.path()).is_some());
        assert!(free(&dir.path().join("a/b")).is_some());
    }
}
