//! Every candidate file below a folder, in the same order on every machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Extensions (in any case) of files that lie beside images but are none.
const PASSED_OVER: [&str; 4] = ["csv", "json", "txt", "md"];
/// Files that Windows and macOS put into folders by themselves, and hide.
const OF_SYSTEMS: [&str; 3] = ["Thumbs.db", "desktop.ini", "Icon\r"];

/// A file below the walked folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its path relative to the folder, parts joined by `/`; bytes that are not UTF-8 as `\xFF`.
    pub name: String,
    /// False if `name` had to replace something.
    pub is_utf8: bool,
}

/// What lies below the walked folder and is no candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PassedOver {
    /// Folders whose names begin with a dot; what is in them is not counted.
    pub hidden_folders: usize,
    /// Files whose names begin with a dot, and those of a system (`Thumbs.db`, `desktop.ini`).
    pub hidden_files: usize,
    /// `.csv`, `.json`, `.txt` and `.md` files.
    pub notes: usize,
    /// Links that lead nowhere, or round in a circle.
    pub dead_links: usize,
    /// Links to folders whose files are listed under another name.
    pub repeated_links: usize,
    /// What is neither file nor folder: pipes, sockets, devices.
    pub special_files: usize,
}

/// "1 hidden folder, 2 links that lead nowhere"; empty if nothing was passed over.
impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = [
            (self.hidden_folders, "hidden folder", "hidden folders"),
            (self.hidden_files, "hidden file", "hidden files"),
            (
                self.notes,
                "file named .csv, .json, .txt or .md",
                "files named .csv, .json, .txt or .md",
            ),
            (
                self.dead_links,
                "link that leads nowhere",
                "links that lead nowhere",
            ),
            (
                self.repeated_links,
                "link to a folder that is read already",
                "links to folders that are read already",
            ),
            (self.special_files, "special file", "special files"),
        ];
        let counts = counts.into_iter().filter(|(count, ..)| *count > 0);
        for (i, (count, one, more)) in counts.enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let what = if count == 1 { one } else { more };
            write!(f, "{comma}{count} {what}")?;
        }
        Ok(())
    }
}

/// Lists every regular file below `folder` in the byte order of relative paths.
///
/// Dot-files, dot-folders and `.csv`, `.json`, `.txt`, `.md` files are passed over; the content
/// is not looked at. Symbolic links are followed, and each real folder is visited once, so a link
/// to a parent ends the walk instead of repeating it.
///
/// # Errors
/// [`DataError::Io`] if a folder cannot be listed.
pub fn candidates(folder: &Path) -> Result<Vec<Found>, DataError> {
    Ok(walk(folder)?.0)
}

/// Counts what [`candidates`] leaves out.
///
/// # Errors
/// As [`candidates`].
pub fn passed_over(folder: &Path) -> Result<PassedOver, DataError> {
    Ok(walk(folder)?.1)
}

fn walk(folder: &Path) -> Result<(Vec<Found>, PassedOver), DataError> {
    let mut walk = Walk::default();
    walk.folders.push((folder.to_path_buf(), Vec::new()));
    let mut visited = BTreeSet::new();
    while let Some((path, prefix)) = walk.next_folder() {
        let real = fs::canonicalize(&path).map_err(|e| DataError::io("listing", &path, e))?;
        if visited.insert(real) {
            walk.list(&path, &prefix)?;
        } else {
            walk.passed.repeated_links += 1;
        }
    }
    let Walk {
        mut found, passed, ..
    } = walk;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let found = found
        .into_iter()
        .map(|(relative, path)| {
            let name = readable(&relative);
            Found {
                path,
                is_utf8: name.as_bytes() == relative,
                name,
            }
        })
        .collect();
    Ok((found, passed))
}

type Relative = Vec<u8>;

/// What is found so far, and the folders still to be listed.
#[derive(Default)]
struct Walk {
    found: Vec<(Relative, PathBuf)>,
    passed: PassedOver,
    folders: Vec<(PathBuf, Relative)>,
    /// Links to folders wait until all real folders are done: a file keeps its real path.
    linked: Vec<(PathBuf, Relative)>,
}

impl Walk {
    fn next_folder(&mut self) -> Option<(PathBuf, Relative)> {
        self.folders.pop().or_else(|| {
            self.linked.sort_by(|a, b| b.1.cmp(&a.1));
            self.linked.pop()
        })
    }

    fn list(&mut self, folder: &Path, prefix: &[u8]) -> Result<(), DataError> {
        for entry in fs::read_dir(folder).map_err(|e| DataError::io("listing", folder, e))? {
            let entry = entry.map_err(|e| DataError::io("listing", folder, e))?;
            let file_name = entry.file_name();
            let path = entry.path();
            if is_hidden(&file_name) {
                match path.is_dir() {
                    true => self.passed.hidden_folders += 1,
                    false => self.passed.hidden_files += 1,
                }
                continue;
            }
            let kind = entry
                .file_type()
                .map_err(|e| DataError::io("reading", &path, e))?;
            // What a link leads to; a link that leads nowhere, or round in a circle, is no file.
            let Ok(target) = fs::metadata(&path) else {
                self.passed.dead_links += 1;
                continue;
            };
            let mut relative = prefix.to_vec();
            relative.extend_from_slice(file_name.as_encoded_bytes());
            if target.is_dir() {
                relative.push(b'/');
                if kind.is_symlink() {
                    self.linked.push((path, relative))
                } else {
                    self.folders.push((path, relative))
                }
            } else if !target.is_file() {
                self.passed.special_files += 1;
            } else if is_passed_over(&path) {
                self.passed.notes += 1;
            } else {
                self.found.push((relative, path));
            }
        }
        Ok(())
    }
}

/// Text as it is; other bytes so that the name can be found again.
fn readable(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

fn is_hidden(name: &OsStr) -> bool {
    let is_it = |of_system: &&str| name.eq_ignore_ascii_case(of_system);
    name.as_encoded_bytes().starts_with(b".") || OF_SYSTEMS.iter().any(is_it)
}

fn is_passed_over(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    PASSED_OVER
        .iter()
        .any(|passed| extension.eq_ignore_ascii_case(passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        candidates(folder)
            .unwrap()
            .into_iter()
            .map(|found| found.name)
            .collect()
    }

    #[test]
    fn order_is_that_of_the_bytes_of_relative_paths() {
        let folder = folder_with(&["b/x", "a.jpg", "a/z.jpg", "B.jpg", "a-1.jpg", "ä.jpg", "c"]);
        assert_eq!(
            names(folder.path()),
            ["B.jpg", "a-1.jpg", "a.jpg", "a/z.jpg", "b/x", "c", "ä.jpg"]
        );
    }

    #[test]
    fn notes_and_dot_files_are_passed_over() {
        let folder = folder_with(&[
            "a.csv",
            "a.JSON",
            "thumbs.db",
            "b/Desktop.ini",
            "a.txt",
            "README.md",
            ".hidden",
            ".thumbs/a.jpg",
            "a.jpg",
            "noext",
            "a.txt.jpg",
            "b.gz",
        ]);
        assert_eq!(
            names(folder.path()),
            ["a.jpg", "a.txt.jpg", "b.gz", "noext"]
        );
        let passed = passed_over(folder.path()).unwrap();
        assert_eq!(
            passed.to_string(),
            "1 hidden folder, 3 hidden files, 4 files named .csv, .json, .txt or .md"
        );
        assert_eq!(PassedOver::default().to_string(), "");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_parent_does_not_loop_and_a_dead_link_is_no_file() {
        use std::os::unix::fs::symlink;
        let folder = folder_with(&["deep/er/a.jpg"]);
        symlink(folder.path(), folder.path().join("deep/er/up")).unwrap();
        symlink("nowhere", folder.path().join("dead.jpg")).unwrap();
        symlink("round.jpg", folder.path().join("round.jpg")).unwrap();
        symlink("deep", folder.path().join("alias")).unwrap();
        assert_eq!(names(folder.path()), ["deep/er/a.jpg"]);
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("pipe")).unwrap();
        assert_eq!(
            passed_over(folder.path()).unwrap().to_string(),
            "2 links that lead nowhere, 2 links to folders that are read already, 1 special file"
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_to_files_and_to_folders_elsewhere_are_followed() {
        use std::os::unix::fs::symlink;
        let elsewhere = folder_with(&["x/one.jpg", "x/two.jpg"]);
        let folder = folder_with(&["m.jpg"]);
        symlink(elsewhere.path().join("x"), folder.path().join("link")).unwrap();
        symlink(
            elsewhere.path().join("x/two.jpg"),
            folder.path().join("z.jpg"),
        )
        .unwrap();
        assert_eq!(
            names(folder.path()),
            ["link/one.jpg", "link/two.jpg", "m.jpg", "z.jpg"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_not_utf8_is_found_and_marked() {
        use std::os::unix::ffi::OsStrExt;
        let folder = folder_with(&["a.jpg"]);
        for name in [b"b\xff.jpg", b"b\xfe.jpg"] {
            fs::write(folder.path().join(OsStr::from_bytes(name)), "").unwrap();
        }
        let found = candidates(folder.path()).unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["a.jpg", "b\\xFE.jpg", "b\\xFF.jpg"]);
        assert!(found[0].is_utf8 && !found[1].is_utf8 && !found[2].is_utf8);
        assert!(found[1].path.exists());
    }

    #[test]
    fn a_missing_folder_is_an_error_with_its_path() {
        let problem = candidates(Path::new("/no/such/folder"))
            .unwrap_err()
            .to_string();
        assert!(problem.contains("/no/such/folder"));
    }
}
