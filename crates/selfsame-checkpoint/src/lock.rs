use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::OnPath;
use crate::run_dir::clean_stale;
use crate::{CheckpointError, Result};

pub(crate) const LOCK: &str = "LOCK";

/// The right to write into a run directory, held until dropped.
///
/// It is the operating system's lock on the file `LOCK`, so a killed process frees it, and a file
/// left behind means nothing. The holder's process number stands inside, for the refusal only.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    run_dir: PathBuf,
}

impl RunLock {
    /// Takes the lock, creating `run_dir` if needed, and clears what a killed process left
    /// unfinished ([`clean_stale`]).
    ///
    /// # Errors
    /// [`CheckpointError::Locked`] with the holder's process number, if another holds it.
    pub fn acquire(run_dir: &Path) -> Result<Self> {
        fs::create_dir_all(run_dir).on("create", run_dir)?;
        let path = run_dir.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .on("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Windows keeps others from reading a locked file: then there is no number.
                let mut text = String::new();
                let pid = file
                    .take(32) // a number is shorter, and /dev/full has no end
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(CheckpointError::Locked {
                    run_dir: run_dir.to_path_buf(),
                    pid,
                });
            }
            Err(TryLockError::Error(error)) => return Err(error).on("lock", &path),
        }
        // The number is a courtesy: on a full disk there is no room for it before `clean_stale`.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        clean_stale(run_dir)?;
        Ok(Self {
            file,
            run_dir: run_dir.to_path_buf(),
        })
    }

    /// The directory that is locked.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // The number is a courtesy, and closing the file frees the lock whatever happens here.
        // The file stays: removing it would let two processes lock two files of one name.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    #[cfg(target_os = "linux")]
    use std::time::{Duration, Instant};

    #[test]
    fn a_second_locker_is_refused_with_the_holders_number() {
        let dir = tempfile::tempdir().unwrap();
        let held = RunLock::acquire(dir.path()).unwrap();
        for _ in 0..100 {
            let error = RunLock::acquire(dir.path()).unwrap_err();
            assert!(matches!(error, CheckpointError::Locked { .. }));
            if cfg!(unix) {
                let number = format!("process {}", std::process::id());
                assert!(error.to_string().contains(&number), "{error}");
            }
        }
        drop(held);
        RunLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn unfinished_folders_are_cleared_when_the_lock_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("checkpoints/.tmp-step-00000009");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("student.safetensors"), "half").unwrap();
        let _lock = RunLock::acquire(dir.path()).unwrap();
        assert!(!left.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_does_not_keep_the_unfinished_from_being_cleared() {
        let dir = tempfile::tempdir().unwrap();
        // A file on which no byte can be written.
        std::os::unix::fs::symlink("/dev/full", dir.path().join(LOCK)).unwrap();
        let left = dir.path().join(".tmp-1-report.html");
        fs::write(&left, "half").unwrap();
        // A machine has one, which another run of the tests may hold for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        let _lock = loop {
            match RunLock::acquire(dir.path()) {
                Err(CheckpointError::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                taken => break taken.unwrap(),
            }
        };
        assert!(!left.exists());
    }

    const HOLD: &str = "SELFSAME_TEST_HOLD_LOCK";

    /// Not a test by itself: the process that `a_killed_process_frees_the_lock` starts and kills.
    #[test]
    fn holder() {
        let Some(dir) = std::env::var_os(HOLD) else {
            return;
        };
        let _lock = RunLock::acquire(Path::new(&dir)).unwrap();
        std::io::stdout().write_all(b"\nlocked\n").unwrap();
        let mut end = String::new();
        std::io::stdin().read_line(&mut end).unwrap();
    }

    #[test]
    fn a_killed_process_frees_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lock::tests::holder", "--nocapture"])
            .env(HOLD, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap() == "locked"),
            "the child ended without the lock"
        );

        let error = RunLock::acquire(dir.path()).unwrap_err();
        if cfg!(unix) {
            assert!(
                error.to_string().contains(&child.id().to_string()),
                "{error}"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        RunLock::acquire(dir.path()).unwrap();
    }
}
