//! A file beside the one that it becomes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{remove, rename, sync, sync_folder};

/// How names of files begin that are being written, or were when their process was killed.
pub const UNFINISHED: &str = ".tmp-";

/// The name of a file that this process writes, until it is whole: no other process's, or the one
/// that is done first would rename what the other is writing.
pub fn unfinished_name(name: &str) -> String {
    format!("{UNFINISHED}{}-{name}", std::process::id())
}

/// A file that is written beside its place; dropped before [`Beside::put`], it is removed.
#[derive(Debug)]
pub struct Beside {
    path: PathBuf,
    temp: PathBuf,
    /// `None` from when it is given its name on.
    file: Option<File>,
}

impl Beside {
    /// An empty file beside `path`, by the name of [`unfinished_name`].
    ///
    /// # Errors
    /// If `path` ends in no name, or the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let temp = path.with_file_name(unfinished_name(&name.to_string_lossy()));
        let file = File::create(&temp)?;
        // Tells who cleans up that somebody writes it; not every file system can.
        let _ = file.try_lock();
        Ok(Self {
            path: path.to_owned(),
            temp,
            file: Some(file),
        })
    }

    /// What to write to.
    pub fn file(&self) -> &File {
        self.file.as_ref().expect("there until it is put in place")
    }

    /// Brings the file to the disk and gives it its name, in place of what had it.
    ///
    /// # Errors
    /// If that fails; then what was there before stays, unless it is only the folder that cannot be
    /// brought to the disk. A network file system may tell only now that there is no room.
    pub fn put(mut self) -> io::Result<()> {
        sync(self.file())?;
        // Locked until it has its name; but Windows may give none to a file that is open.
        let file = self.file.take().filter(|_| cfg!(not(windows)));
        rename(&self.temp, &self.path).inspect_err(|_| {
            let _ = remove(&self.temp); // the failure itself is what the caller must hear of
        })?;
        drop(file);
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => sync_folder(Path::new(".")),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            drop(file); // Windows removes no open file
            let _ = remove(&self.temp);
        }
    }
}

/// Writes a whole file, which appears at once or not at all.
///
/// # Errors
/// As [`Beside::put`], or if the bytes cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = Beside::create(path)?;
    beside.file().write_all(bytes)?;
    beside.put()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        names
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("list.csv");
        fs::create_dir(&taken).unwrap();
        assert!(write_whole(&taken, b"text").is_err());
        assert_eq!(names(dir.path()), ["list.csv"]);
        fs::remove_dir(&taken).unwrap();
        write_whole(&taken, b"text").unwrap();
        assert_eq!(fs::read(&taken).unwrap(), b"text");
        assert!(write_whole(Path::new("/"), b"text").is_err());
    }

    #[test]
    fn what_is_given_up_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        fs::write(&path, "before").unwrap();
        let beside = Beside::create(&path).unwrap();
        beside.file().write_all(b"half").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(beside);
        assert_eq!(names(dir.path()), ["list.csv"]);
        assert_eq!(fs::read(&path).unwrap(), b"before");
    }

    #[test]
    fn what_another_process_is_writing_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        let others = dir.path().join(".tmp-list.csv");
        fs::write(&others, "half").unwrap();
        write_whole(&path, b"text").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"text");
        assert_eq!(fs::read(&others).unwrap(), b"half");
    }
}
