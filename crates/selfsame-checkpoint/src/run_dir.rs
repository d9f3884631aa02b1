use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use selfsame_files::{UNFINISHED, remove, rename};

use crate::Result;
use crate::error::OnPath;
use crate::load::verify;
use crate::lock::LOCK;

/// A checkpoint that is being replaced by one of the same step.
pub(crate) const OLD_PREFIX: &str = ".old-";

/// The folder of all checkpoints in a run directory.
pub const CHECKPOINTS: &str = "checkpoints";

/// The folder of all checkpoints of a run.
pub(crate) fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(CHECKPOINTS)
}

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Where the checkpoint of `step` lies: `run_dir/checkpoints/step-NNNNNNNN`.
pub fn checkpoint_dir(run_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir(run_dir).join(step_name(step))
}

/// A sibling of the checkpoint of `step`, marked by `prefix` as not to be read.
pub(crate) fn sibling(run_dir: &Path, prefix: &str, step: u64) -> PathBuf {
    checkpoints_dir(run_dir).join(format!("{prefix}{}", step_name(step)))
}

/// The step in a name like `step-00000120`.
pub(crate) fn parse_step(name: &str) -> Option<u64> {
    let step: u64 = name.strip_prefix("step-")?.parse().ok()?;
    // Only the name that saving would give, so that no two folders stand for one step.
    (step_name(step) == name).then_some(step)
}

/// All checkpoints of a run by step, oldest first; unverified.
///
/// # Errors
/// If the folder is there and cannot be listed, or a checkpoint in it not looked at; also if one of
/// them is a link to what is not there. A run without checkpoints has none.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let dir = checkpoints_dir(run_dir);
    let mut found = Vec::new();
    for name in names_in(&dir).on("list", &dir)? {
        let path = dir.join(&name);
        let Some(step) = parse_step(&name) else {
            continue;
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.push((step, path)),
            Ok(_) => {}
            // Removed meanwhile.
            Err(error) if is_absent(&path, &error) => {}
            // Passed over, it would let a run begin anew in silence.
            Err(error) => return Err(error).on("look at", &path),
        }
    }
    found.sort();
    Ok(found)
}

/// True if a run may begin in `run_dir`: it is missing, or holds only the lock, unfinished files
/// and a `checkpoints` folder of which the same is true.
///
/// # Errors
/// If it is not a directory or cannot be listed.
pub fn is_empty_run_dir(run_dir: &Path) -> Result<bool> {
    for name in names_in(run_dir).on("list", run_dir)? {
        let path = run_dir.join(&name);
        if name == LOCK || is_unfinished_file(&path, &name) {
            continue;
        }
        let unfinished_only = name == CHECKPOINTS
            && path.is_dir()
            && names_in(&path)
                .on("list", &path)?
                .iter()
                .all(|name| is_unfinished_checkpoint(name));
        if !unfinished_only {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes what a killed process left unfinished in the run directory and its checkpoints folder,
/// and gives a checkpoint that was being replaced when it died its name: the new one if it is whole,
/// else the old one. What another process is writing stays, and so does what cannot be removed,
/// which harms nothing.
///
/// [`crate::RunLock::acquire`] calls it; without the lock it would destroy another's work.
///
/// # Errors
/// If a folder cannot be listed or a checkpoint not given its name.
pub fn clean_stale(run_dir: &Path) -> Result<()> {
    for name in names_in(run_dir).on("list", run_dir)? {
        let path = run_dir.join(&name);
        if is_unfinished_file(&path, &name) && is_left(&path) {
            let _ = remove(&path);
        }
    }
    let dir = checkpoints_dir(run_dir);
    for name in names_in(&dir).on("list", &dir)? {
        let path = dir.join(&name);
        if is_unfinished_checkpoint(&name) {
            let _ = remove(&path);
        } else if let Some(step) = name.strip_prefix(OLD_PREFIX).and_then(parse_step) {
            let original = checkpoint_dir(run_dir, step);
            // The names are sorted, so what was to replace it is still there.
            let new = sibling(run_dir, UNFINISHED, step);
            if !original.exists() && verify(&new).is_ok() {
                rename(&new, &original).on("create", &original)?;
            }
            if original.exists() {
                let _ = remove(&path);
            } else {
                rename(&path, &original).on("put back", &original)?;
            }
        }
    }
    Ok(())
}

/// Whether it is a file that was being written; a folder of such a name is somebody else's.
fn is_unfinished_file(path: &Path, name: &str) -> bool {
    name.starts_with(UNFINISHED) && fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether nobody is writing the file: who does so holds its lock.
pub(crate) fn is_left(path: &Path) -> bool {
    // A network file system locks for writing alone what is open for it.
    let file = fs::OpenOptions::new().write(true).open(path);
    file.is_ok_and(|file| file.try_lock().is_ok())
}

/// Whether it is the name of a checkpoint that was being written or removed.
fn is_unfinished_checkpoint(name: &str) -> bool {
    let step = name.strip_prefix(UNFINISHED).and_then(parse_step);
    step.is_some()
}

/// Whether an error says that nothing of this name is there. A link to a disk that is not mounted is
/// there: taken for nothing, it would let a run begin anew in silence.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    // Not whether anything is there now: a folder may have been made meanwhile.
    let is_link = || fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    error.kind() == io::ErrorKind::NotFound && !is_link()
}

/// Names in a folder, sorted; none if there is no folder. Names that are not UTF-8 are not ours.
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if is_absent(dir, &error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_that_saving_gives_is_a_step() {
        assert_eq!(parse_step("step-00000120"), Some(120));
        assert_eq!(parse_step("step-123456789"), Some(123_456_789));
        for name in [
            "step-120",
            "step-+0000120",
            "step-",
            "epoch-00000120",
            ".tmp-step-00000120",
        ] {
            assert_eq!(parse_step(name), None, "{name}");
        }
    }

    #[test]
    fn lock_and_unfinished_files_leave_a_run_directory_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_empty_run_dir(&dir.path().join("missing")).unwrap());
        fs::write(dir.path().join(LOCK), "1").unwrap();
        fs::write(dir.path().join(".tmp-config.toml"), "").unwrap();
        fs::create_dir_all(dir.path().join("checkpoints/.tmp-step-00000001")).unwrap();
        assert!(is_empty_run_dir(dir.path()).unwrap());
        for other in [".tmp-labels", "checkpoints/.tmp-mine"] {
            let other = dir.path().join(other);
            fs::create_dir(&other).unwrap();
            assert!(!is_empty_run_dir(dir.path()).unwrap());
            clean_stale(dir.path()).unwrap();
            assert!(other.exists(), "{}", other.display());
            fs::remove_dir(other).unwrap();
        }
        assert!(!dir.path().join(".tmp-config.toml").exists());
        assert!(is_empty_run_dir(dir.path()).unwrap());

        fs::create_dir(dir.path().join("checkpoints/step-00000001")).unwrap();
        assert!(!is_empty_run_dir(dir.path()).unwrap());
        fs::remove_dir_all(dir.path().join("checkpoints")).unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert!(!is_empty_run_dir(dir.path()).unwrap());
        assert!(
            is_empty_run_dir(&dir.path().join("notes.txt")).is_err(),
            "a file is no directory"
        );
    }

    #[test]
    fn a_file_that_is_being_written_is_not_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".tmp-1-report.html");
        let file = fs::File::create(&path).unwrap();
        file.lock().unwrap();
        clean_stale(dir.path()).unwrap();
        assert!(path.exists());
        drop(file);
        clean_stale(dir.path()).unwrap();
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_checkpoint_that_cannot_be_looked_at_is_not_taken_for_none() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint_dir(dir.path(), 7);
        fs::create_dir(checkpoints_dir(dir.path())).unwrap();
        fs::write(&path, "a file").unwrap();
        assert_eq!(list(dir.path()).unwrap(), []);
        // An older one is not taken in its place. A circle is an error for every user, as a folder
        // without permission is not for root.
        fs::create_dir(checkpoint_dir(dir.path(), 6)).unwrap();
        for target in [Path::new("nowhere"), &path] {
            fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            let error = list(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains("look at") && error.contains("step-00000007"),
                "{error}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_checkpoints_folder_on_a_disk_that_is_not_mounted_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", checkpoints_dir(dir.path())).unwrap();
        let listed = list(dir.path()).map(|_| ());
        for refused in [listed, clean_stale(dir.path())] {
            let error = refused.unwrap_err().to_string();
            assert!(
                error.contains("list") && error.contains(CHECKPOINTS),
                "{error}"
            );
        }
        assert!(!is_empty_run_dir(dir.path()).unwrap());
        // The disk is there again, with one that was removed between being listed and looked at.
        fs::create_dir_all(dir.path().join("nowhere/step-00000007")).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        let removed = checkpoint_dir(dir.path(), 8);
        assert!(is_absent(&removed, &fs::metadata(&removed).unwrap_err()));
    }

    #[test]
    fn a_checkpoint_that_was_being_replaced_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let old = |step| sibling(dir.path(), OLD_PREFIX, step);
        fs::create_dir_all(old(1)).unwrap();
        fs::create_dir_all(old(2)).unwrap();
        fs::create_dir_all(checkpoint_dir(dir.path(), 2)).unwrap();
        clean_stale(dir.path()).unwrap();
        let steps: Vec<u64> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [1, 2]);
        assert!(!old(1).exists() && !old(2).exists());
    }
}
