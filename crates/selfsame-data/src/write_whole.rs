//! Small files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::DataError;

/// Writes beside, then renames; both survive a loss of power. What a kill leaves begins with
/// `.tmp-`, which a run directory is cleaned of and data sets pass over.
///
/// `write_beside` in `selfsame-checkpoint` does the same; neither crate knows the other.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let failed = |error| DataError::io("writing", path, error);
    let Some(name) = path.file_name() else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    // No other process's: the one that is done first would rename what the other is writing.
    let (process, name) = (std::process::id(), name.to_string_lossy());
    let beside = path.with_file_name(format!(".tmp-{process}-{name}"));
    let written = File::create(&beside).and_then(|mut file| {
        // Tells who cleans a run directory that somebody writes it; not every file system can.
        let _ = file.try_lock();
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&beside, path));
    if let Err(error) = done {
        // The failure itself is what the caller must hear of.
        let _ = fs::remove_file(&beside);
        return Err(failed(error));
    }
    // Windows opens no folder as a file, and its rename needs no such call.
    if cfg!(not(unix)) {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    without_such_a_call(synced).map_err(failed)
}

/// Some shared and network file systems have no call that brings folders to the disk.
fn without_such_a_call(synced: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    match synced {
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("list.csv");
        fs::create_dir(&taken).unwrap();
        assert!(write_whole(&taken, b"text").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_dir(&taken).unwrap();
        write_whole(&taken, b"text").unwrap();
        assert_eq!(fs::read(&taken).unwrap(), b"text");
        assert!(write_whole(Path::new("/"), b"text").is_err());
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

    #[test]
    fn a_file_system_that_cannot_sync_folders_takes_files_all_the_same() {
        for kind in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported] {
            assert!(without_such_a_call(Err(kind.into())).is_ok(), "{kind}");
        }
        if cfg!(unix) {
            // EINVAL, and EIO.
            assert!(without_such_a_call(Err(io::Error::from_raw_os_error(22))).is_ok());
            assert!(without_such_a_call(Err(io::Error::from_raw_os_error(5))).is_err());
        }
    }
}
