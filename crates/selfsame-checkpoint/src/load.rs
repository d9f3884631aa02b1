use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use selfsame_files::rename;

use crate::error::OnPath;
use crate::manifest::{FileEntry, Manifest};
use crate::run_dir::{checkpoints_dir, list};
use crate::tensors::parse;
use crate::{Checkpoint, CheckpointError, Result};

/// A checkpoint that was passed over because it cannot be believed, and the one used instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The folder of the damaged checkpoint.
    pub skipped: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// The folder that was loaded.
    pub used: PathBuf,
    /// Whether what is there is damaged; else it could not be read, which may pass.
    pub damaged: bool,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            skipped,
            reason,
            used,
            ..
        } = self;
        write!(
            f,
            "{} cannot be used ({reason}), using {}",
            skipped.display(),
            used.display()
        )
    }
}

impl Warning {
    /// Gives the damaged checkpoint a name under which it is neither read nor counted any more, and
    /// tells it; `None` if that cannot be done, which harms nothing. What could not be read stays
    /// where it is: it may be good.
    ///
    /// Only for who holds the [`crate::RunLock`].
    pub fn set_aside(&self) -> Option<PathBuf> {
        if !self.damaged {
            return None;
        }
        let name = self.skipped.file_name()?.to_str()?;
        let aside = self.skipped.with_file_name(format!("damaged-{name}"));
        (!aside.exists() && rename(&self.skipped, &aside).is_ok()).then_some(aside)
    }
}

/// Some files of a checkpoint.
#[derive(Clone, Debug)]
pub struct Partial {
    /// The folder they come from.
    pub dir: PathBuf,
    /// The whole manifest.
    pub manifest: Manifest,
    /// File name without extension to its tensors: those that were asked for.
    pub files: BTreeMap<String, BTreeMap<String, Tensor>>,
}

/// Loads the checkpoint in `dir`. Nothing of a file is used before its hash was found right.
///
/// # Errors
/// [`CheckpointError::Damaged`] naming the file; [`CheckpointError::NewerFormat`].
pub fn load(dir: &Path, device: &Device) -> Result<Checkpoint> {
    Ok(whole(load_files(dir, None, device)?))
}

/// Loads the newest good checkpoint of a run, with one warning per newer one that is damaged.
/// `None` if the run has no checkpoint at all.
///
/// # Errors
/// [`CheckpointError::NoneUsable`] if there are checkpoints and all are damaged: starting anew in
/// silence would lose a run. [`CheckpointError::NewerFormat`] is not passed over for the same reason.
pub fn load_newest(run_dir: &Path, device: &Device) -> Result<Option<(Checkpoint, Vec<Warning>)>> {
    let newest = newest(run_dir, |dir| load_files(dir, None, device))?;
    Ok(newest.map(|(partial, warnings)| (whole(partial), warnings)))
}

/// Like [`load_newest`], but reads and verifies only the files named, such as `["teacher"]`.
///
/// # Errors
/// Also [`CheckpointError::NoSuchFile`] if the newest good manifest does not list one of them.
pub fn load_newest_files(
    run_dir: &Path,
    names: &[&str],
    device: &Device,
) -> Result<Option<(Partial, Vec<Warning>)>> {
    newest(run_dir, |dir| load_files(dir, Some(names), device))
}

/// Checks one file against the manifest beside it, if it is a file of a checkpoint: then true.
///
/// # Errors
/// [`CheckpointError::Damaged`] and [`CheckpointError::NewerFormat`], also of the manifest;
/// [`CheckpointError::Io`] if it cannot be read.
pub fn verify_file(path: &Path) -> Result<bool> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let manifest = match Manifest::read(dir) {
        Ok(manifest) => manifest,
        Err(error) if Manifest::is_of_checkpoint(dir) => return Err(error),
        // Any other program may keep a file of that name beside its weights.
        Err(_) => return Ok(false),
    };
    match name.to_str().and_then(|name| manifest.files.get(name)) {
        None => Ok(false),
        Some(entry) => read_verified(path, entry).map(|_| true),
    }
}

/// Checks every file of a checkpoint against its hash.
pub(crate) fn verify(dir: &Path) -> Result<()> {
    for (file_name, entry) in &Manifest::read(dir)?.files {
        read_verified(&dir.join(file_name), entry)?;
    }
    Ok(())
}

/// Cheap: the manifest is as written and every file has its length.
pub(crate) fn looks_whole(dir: &Path) -> bool {
    let Ok(manifest) = Manifest::read(dir) else {
        return false;
    };
    manifest.files.iter().all(|(file_name, entry)| {
        fs::metadata(dir.join(file_name)).is_ok_and(|found| found.len() == entry.bytes)
    })
}

/// How often the list of a run's checkpoints is read at most while they are taken away.
const MOST_LISTS: usize = 8;

fn newest(
    run_dir: &Path,
    load: impl Fn(&Path) -> Result<Partial>,
) -> Result<Option<(Partial, Vec<Warning>)>> {
    let mut listed = list(run_dir)?;
    for _ in 1..MOST_LISTS {
        let found = newest_of(run_dir, &listed, &load);
        // A run that keeps few checkpoints takes them away under a reader, after it has saved others;
        // those that are damaged may stay.
        let Err(CheckpointError::NoneUsable { .. }) = found else {
            return found;
        };
        let is_gone = |(_, dir): &(u64, PathBuf)| !dir.exists();
        let now = list(run_dir)?;
        if now.is_empty() || !listed.iter().any(is_gone) {
            return found;
        }
        listed = now;
    }
    newest_of(run_dir, &listed, &load)
}

/// The newest good one of some checkpoints.
fn newest_of(
    run_dir: &Path,
    listed: &[(u64, PathBuf)],
    load: impl Fn(&Path) -> Result<Partial>,
) -> Result<Option<(Partial, Vec<Warning>)>> {
    let mut skipped: Vec<(PathBuf, CheckpointError)> = Vec::new();
    for (step, dir) in listed.iter().rev() {
        let loaded = load(dir).and_then(|partial| match partial.manifest.step {
            found if found == *step => Ok(partial),
            found => Err(CheckpointError::Damaged {
                path: dir.clone(),
                what: format!("its manifest is that of step {found}"),
            }),
        });
        match loaded {
            Ok(partial) => {
                let warning = |(skipped, error): (PathBuf, CheckpointError)| Warning {
                    skipped,
                    reason: reason(&error),
                    used: dir.clone(),
                    damaged: !error.may_pass(),
                };
                return Ok(Some((partial, skipped.into_iter().map(warning).collect())));
            }
            Err(error) if error.allows_fallback() => skipped.push((dir.clone(), error)),
            Err(error) => return Err(error),
        }
    }
    if skipped.is_empty() {
        return Ok(None);
    }
    let reasons = skipped.iter().map(|(_, error)| reason(error)).collect();
    Err(CheckpointError::NoneUsable {
        dir: checkpoints_dir(run_dir),
        reasons,
    })
}

/// The error and its causes in one line, for a warning has no source to ask.
fn reason(error: &CheckpointError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn load_files(dir: &Path, names: Option<&[&str]>, device: &Device) -> Result<Partial> {
    let manifest = Manifest::read(dir)?;
    let wanted: Vec<&str> = names.map_or_else(|| manifest.file_names().collect(), <[_]>::to_vec);
    let mut files = BTreeMap::new();
    for name in wanted {
        let file_name = format!("{name}.safetensors");
        let Some(entry) = manifest.files.get(&file_name) else {
            return Err(CheckpointError::NoSuchFile {
                dir: dir.to_path_buf(),
                name: name.to_string(),
                present: manifest.file_names().map(str::to_string).collect(),
            });
        };
        let path = dir.join(&file_name);
        let bytes = read_verified(&path, entry)?;
        files.insert(name.to_string(), parse(&path, &bytes, device)?.tensors);
    }
    Ok(Partial {
        dir: dir.to_path_buf(),
        manifest,
        files,
    })
}

fn read_verified(path: &Path, entry: &FileEntry) -> Result<Vec<u8>> {
    let damaged = |what: String| CheckpointError::Damaged {
        path: path.to_path_buf(),
        what,
    };
    let length = fs::metadata(path).on("read", path)?.len();
    if length != entry.bytes {
        return Err(damaged(format!(
            "it has {length} bytes instead of {}",
            entry.bytes
        )));
    }
    let bytes = fs::read(path).on("read", path)?;
    if blake3::hash(&bytes).to_hex().as_str() != entry.blake3 {
        return Err(damaged(
            "its BLAKE3 hash is not that in the manifest".to_string(),
        ));
    }
    Ok(bytes)
}

fn whole(partial: Partial) -> Checkpoint {
    let Partial {
        manifest:
            Manifest {
                step,
                epoch,
                config,
                extra,
                ..
            },
        files,
        ..
    } = partial;
    Checkpoint {
        step,
        epoch,
        config,
        extra,
        files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checkpoint_dir, save};

    fn empty(step: u64) -> Checkpoint {
        Checkpoint {
            step,
            epoch: 0,
            config: String::new(),
            extra: serde_json::Value::Null,
            files: BTreeMap::new(),
        }
    }

    #[test]
    fn a_checkpoint_taken_away_under_the_reader_gives_way_to_the_one_after() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), &empty(1), 1).unwrap();
        let (found, warnings) = newest(run.path(), |dir| {
            if dir == checkpoint_dir(run.path(), 1) {
                save(run.path(), &empty(2), 1).unwrap();
            }
            load_files(dir, None, &Device::Cpu)
        })
        .unwrap()
        .unwrap();
        assert_eq!((found.manifest.step, warnings), (2, vec![]));

        // However long that goes on, the answer comes.
        let newest_step = std::cell::Cell::new(2);
        let error = newest(run.path(), |dir| {
            newest_step.set(newest_step.get() + 1);
            save(run.path(), &empty(newest_step.get()), 1).unwrap();
            load_files(dir, None, &Device::Cpu)
        })
        .unwrap_err();
        assert!(matches!(error, CheckpointError::NoneUsable { .. }));
        assert_eq!(newest_step.get(), 2 + MOST_LISTS as u64);
    }

    #[test]
    fn a_damaged_checkpoint_that_stays_keeps_none_from_looking_for_new_ones() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), &empty(1), 2).unwrap();
        let damaged = save(run.path(), &empty(2), 2).unwrap();
        let load = |dir: &Path| {
            if dir == damaged {
                return Err(CheckpointError::Damaged {
                    path: dir.to_path_buf(),
                    what: "a test".to_string(),
                });
            }
            if dir == checkpoint_dir(run.path(), 1) {
                save(run.path(), &empty(3), 2).unwrap();
            }
            load_files(dir, None, &Device::Cpu)
        };
        let (found, warnings) = newest(run.path(), load).unwrap().unwrap();
        assert_eq!((found.manifest.step, warnings), (3, vec![]));
        assert!(damaged.exists() && !checkpoint_dir(run.path(), 1).exists());
    }

    #[cfg(unix)]
    #[test]
    fn what_could_not_be_read_for_now_stays_where_it_is() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), &empty(1), 2).unwrap();
        let unread = save(run.path(), &empty(2), 2).unwrap();
        let load = |dir: &Path| match dir == unread {
            // A sector that the disk cannot read.
            true => Err(std::io::Error::from_raw_os_error(5)).on("read", dir),
            false => load_files(dir, None, &Device::Cpu),
        };
        let (found, warnings) = newest(run.path(), load).unwrap().unwrap();
        assert_eq!((found.manifest.step, warnings.len()), (1, 1));
        assert_eq!(
            (&warnings[0].skipped, warnings[0].damaged),
            (&unread, false)
        );
        assert_eq!(warnings[0].set_aside(), None);
        assert!(unread.exists());
        let damaged = Warning {
            damaged: true,
            ..warnings[0].clone()
        };
        assert!(damaged.set_aside().unwrap().exists() && !unread.exists());
    }
}
