//! Whether a result can be written, asked before it is computed.

use std::fs::{File, remove_file};
use std::path::{Path, PathBuf};

use selfsame_checkpoint::{remove_unfinished, unfinished_name};

use crate::exit::usage;

/// What the name of `--out` ends in, one of `allowed`, if a file can be made there.
///
/// # Errors
/// A usage error that lists them; as [`check_writable`].
pub(crate) fn kind(out: &Path, allowed: &[&'static str]) -> anyhow::Result<&'static str> {
    let kind = out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let Some(kind) = allowed.iter().find(|a| **a == kind) else {
        let allowed = allowed.join(", .");
        return Err(usage(format!(
            "--out {}: the name must end in .{allowed}",
            out.display()
        )));
    };
    check_writable("--out", out)?;
    Ok(kind)
}

/// Refuses a result that could not be written, so that nothing is computed in vain.
///
/// # Errors
/// A usage error that names the flag, and the folder if that takes no file.
pub(crate) fn check_writable(flag: &str, out: &Path) -> anyhow::Result<()> {
    let refusal = |problem| Err(usage(format!("{flag} {}: {problem}", out.display())));
    let name = match out.file_name() {
        Some(name) if !out.is_dir() => name.to_string_lossy(),
        _ => return refusal("that is a folder; name a file in it".to_owned()),
    };
    // A new file would take its place, which nobody wants of a device or a pipe.
    if out.exists() && !out.is_file() {
        return refusal("that is no regular file; name another".to_owned());
    }
    remove_unfinished(out);
    // What is written has this name until it is whole.
    let trial = out.with_file_name(unfinished_name(&name));
    match try_making(&trial) {
        Ok(()) => Ok(()),
        Err(error) => {
            let folder = folder_of(out);
            let what_to_do = match folder.exists() {
                true => "name a file elsewhere",
                false => "make that folder or name another file",
            };
            refusal(format!(
                "no file can be made in {}: {error}; {what_to_do}",
                folder.display()
            ))
        }
    }
}

/// Refuses a folder for results that could not be made, or in which no file can be.
///
/// # Errors
/// A usage error that names the flag, and the folder above that takes none.
pub(crate) fn check_folder(flag: &str, dir: &Path) -> anyhow::Result<()> {
    let refusal = |problem| Err(usage(format!("{flag} {}: {problem}", dir.display())));
    let whole = match std::path::absolute(dir) {
        Ok(whole) => whole,
        Err(error) => return refusal(error.to_string()),
    };
    let Some(existing) = whole.ancestors().find(|above| above.exists()) else {
        return refusal("there is no such place".to_owned());
    };
    if !existing.is_dir() {
        let there = existing.display();
        return refusal(format!("{there} is a file; name a folder"));
    }
    let trial = existing.join(format!(".tmp-{}-trial", std::process::id()));
    match try_making(&trial) {
        Ok(()) => Ok(()),
        Err(error) => refusal(format!(
            "nothing can be made in {}: {error}; name another folder",
            existing.display()
        )),
    }
}

/// Makes an unfinished file, and removes it.
fn try_making(trial: &Path) -> std::io::Result<()> {
    match File::options().write(true).create_new(true).open(trial) {
        Ok(_) => {
            let _ = remove_file(trial);
            Ok(())
        }
        // Left by a killed program whose number this process has, and written over.
        Err(_) if trial.is_file() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether two results are one file, whatever paths lead to it.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| -> Option<PathBuf> {
        let whole = path.canonicalize().ok();
        whole.or_else(|| Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?)))
    };
    one == other || place(one).is_some_and(|place_of_one| place(other) == Some(place_of_one))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_takes_no_file_is_told_by_flag_and_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        for (out, words) in [
            (at("none/f.npy"), "none: "),
            (at("file/f.npy"), "file: "),
            (dir.path().to_owned(), "that is a folder"),
        ] {
            let error = check_writable("--out", &out).unwrap_err();
            let text = error.to_string();
            assert!(error.is::<crate::exit::Usage>(), "{text}");
            assert!(text.starts_with("--out ") && text.contains(words), "{text}");
        }
        for name in ["file", "new.npy"] {
            check_writable("--out", &at(name)).unwrap();
        }
        std::fs::write(at(".tmp-new.npy"), "x").unwrap();
        check_writable("--out", &at("new.npy")).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        for bad in ["file", "file/sub", "file/sub/sub"] {
            let error = check_folder("--out", &at(bad)).unwrap_err();
            let text = error.to_string();
            assert!(error.is::<crate::exit::Usage>(), "{text}");
            assert!(
                text.starts_with("--out ") && text.contains("file is a file"),
                "{text}"
            );
        }
        for good in [".", "new", "new/sub"] {
            check_folder("--out", &at(good)).unwrap();
        }
        #[cfg(target_os = "linux")]
        {
            let error = check_folder("--out", Path::new("/proc/none/x")).unwrap_err();
            assert!(
                error.to_string().contains("nothing can be made in /proc"),
                "{error}"
            );
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn one_file_is_one_by_every_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        assert!(is_same_file(&at("new"), &at("sub/../new")));
        assert!(!is_same_file(&at("new"), &at("sub/new")));
        assert!(!is_same_file(&at("none/a"), &at("none/b")));
        std::fs::write(at("old"), "x").unwrap();
        assert!(is_same_file(&at("old"), &at("sub/../old")));
    }
}
