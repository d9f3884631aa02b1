//! Renames and removals that wait for whoever looks into what was just written.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long others are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first pause; the next ones are longer.
const FIRST: Duration = Duration::from_millis(10);

/// [`fs::rename`]; on Windows, where nothing can be renamed while another program has it or a file
/// in it open, tried again for some seconds.
///
/// # Errors
/// As [`fs::rename`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    patiently(PATIENCE, is_passing, || fs::rename(from, to))
}

/// Removes a file, or a folder with all that is in it; that it is not there is no error. On Windows
/// others are waited for, as in [`rename`].
///
/// # Errors
/// If it cannot be removed; of a folder, some of it may be gone.
pub fn remove(path: &Path) -> io::Result<()> {
    let done = patiently(PATIENCE, is_passing, || match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    });
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether an error can be that of a moment: on Windows access denied, a sharing violation, a lock.
/// The first is that of a missing right as well.
fn is_passing(error: &io::Error) -> bool {
    cfg!(windows) && matches!(error.raw_os_error(), Some(5 | 32 | 33))
}

fn patiently(
    patience: Duration,
    is_passing: impl Fn(&io::Error) -> bool,
    act: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let (mut pause, mut waited) = (FIRST, Duration::ZERO);
    loop {
        match act() {
            Err(error) if is_passing(&error) && waited < patience => {
                thread::sleep(pause);
                waited += pause;
                pause *= 2;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_passes_is_waited_for_and_nothing_else() {
        let tries = Cell::new(0);
        let fails = |times: u32, kind: io::ErrorKind| {
            tries.set(0);
            patiently(
                Duration::from_millis(20),
                |error| error.kind() == io::ErrorKind::PermissionDenied,
                || {
                    tries.set(tries.get() + 1);
                    match tries.get() > times {
                        true => Ok(()),
                        false => Err(kind.into()),
                    }
                },
            )
        };
        assert!(fails(2, io::ErrorKind::PermissionDenied).is_ok());
        assert_eq!(tries.get(), 3);
        // For good: after 10 and 20 ms it has waited long enough.
        assert!(fails(9, io::ErrorKind::PermissionDenied).is_err());
        assert_eq!(tries.get(), 3);
        assert!(fails(1, io::ErrorKind::NotFound).is_err());
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn files_and_folders_are_removed_and_absent_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        fs::write(&file, "text").unwrap();
        fs::create_dir_all(folder.join("in")).unwrap();
        for path in [&file, &folder] {
            remove(path).unwrap();
            assert!(!path.exists());
            remove(path).unwrap();
        }
    }

    /// What a virus scanner does to a checkpoint.
    #[cfg(windows)]
    #[test]
    fn a_folder_is_renamed_as_soon_as_its_file_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("file"), "text").unwrap();
        let open = fs::File::open(from.join("file")).unwrap();
        let reader = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            drop(open);
        });
        rename(&from, &to).unwrap();
        assert!(to.join("file").exists());
        reader.join().unwrap();
    }
}
