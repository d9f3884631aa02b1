//! What was written reaches the disk, as far as a file system can tell.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Brings a file to the disk; [`File::sync_all`], and on Apple's systems, where that fails on many
/// disks of a network, what other systems do.
///
/// # Errors
/// If it cannot be brought there.
pub fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        #[cfg(target_vendor = "apple")]
        Err(error) if has_no_such_call(&error) => Ok(rustix::fs::fsync(file)?),
        done => done,
    }
}

/// Makes what was renamed or created in a folder survive a loss of power. Some shared and network
/// file systems have no such call for folders, which is no error.
///
/// # Errors
/// If the folder cannot be opened or brought to the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Windows opens no folder as a file, and its rename needs no such call.
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| sync(&folder)) {
        Err(error) if has_no_such_call(&error) => Ok(()),
        done => done,
    }
}

fn has_no_such_call(error: &io::Error) -> bool {
    // ENOTSUP and ENOTTY of Apple's systems, whose kinds say nothing.
    let is_of_apple = || matches!(error.raw_os_error(), Some(45 | 25));
    matches!(
        error.kind(),
        ErrorKind::InvalidInput | ErrorKind::Unsupported
    ) || cfg!(target_vendor = "apple") && is_of_apple()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_sync_folders_is_told_from_one_that_fails() {
        for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported] {
            assert!(has_no_such_call(&kind.into()), "{kind}");
        }
        if cfg!(unix) {
            let of = io::Error::from_raw_os_error;
            // EINVAL, and EIO.
            assert!(has_no_such_call(&of(22)));
            assert!(!has_no_such_call(&of(5)));
            assert_eq!(has_no_such_call(&of(45)), cfg!(target_vendor = "apple"));
        }
    }

    #[test]
    fn files_and_folders_are_synced() {
        let dir = tempfile::tempdir().unwrap();
        sync(&File::create(dir.path().join("file")).unwrap()).unwrap();
        sync_folder(dir.path()).unwrap();
        if cfg!(unix) {
            assert!(sync_folder(&dir.path().join("absent")).is_err());
        }
    }
}
