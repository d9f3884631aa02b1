//! The cache of Hugging Face's libraries, one folder for each repository:
//! `blobs/HASH`, `snapshots/COMMIT/FILE` linked to a blob, `refs/REVISION` holding a commit; a file of a subfolder
//! lies in `snapshots/COMMIT/FOLDER/FILE`.
//! (huggingface.co/docs/hub/local-cache)

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use selfsame_files::{remove, rename};

use crate::checksum::Checksum;
use crate::error::HubError;
use crate::repo::RepoId;

/// The folder of one repository within the cache.
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &RepoId) -> Self {
        Self {
            folder: cache.join(repo.folder()),
            locks: cache.join(".locks").join(repo.folder()),
        }
    }

    /// The place of a whole, checked file.
    pub(crate) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(checksum.hex())
    }

    /// The place of what has come of it so far.
    pub(crate) fn partial(&self, checksum: &Checksum) -> PathBuf {
        let name = format!("{}.incomplete", checksum.hex());
        self.folder.join("blobs").join(name)
    }

    /// The folder of one commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Waits until no other process fetches this blob; it does not until the file is dropped.
    pub(crate) fn lock(&self, checksum: &Checksum) -> Result<File, HubError> {
        make_folder(&self.locks)?;
        make_folder(&self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{}.lock", checksum.hex()));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(HubError::io(&path))?;
        file.lock().map_err(HubError::io(&path))?;
        Ok(file)
    }

    /// Puts a blob under its name, which may have folders, into a commit's folder.
    pub(crate) fn link(
        &self,
        commit: &str,
        name: &str,
        checksum: &Checksum,
    ) -> Result<PathBuf, HubError> {
        let path = self.snapshot(commit).join(name);
        let folder = path.parent().expect("it lies in the commit's folder");
        make_folder(folder)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = Path::new(&up).join("blobs").join(checksum.hex());
        if fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(path);
        }
        let blob = self.blob(checksum);
        put(folder, &path, |beside| link_or_copy(&target, &blob, beside))?;
        Ok(path)
    }

    /// Remembers which commit a branch or tag is.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let refs = self.folder.join("refs");
        make_folder(&refs)?;
        put(&refs, &refs.join(revision), |beside| {
            fs::write(beside, commit)
        })
    }

    /// Which commit a revision was when it was last asked for.
    pub(crate) fn remembered(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        is_commit(commit.trim()).then(|| commit.trim().to_owned())
    }
}

/// Whether a text is the hash of a commit, and hence a sound name of a folder.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn make_folder(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(HubError::io(path))
}

/// Makes a file of `folder` beside its place and moves it there: another program may be doing the
/// same, or reading it.
fn put(
    folder: &Path,
    path: &Path,
    make: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), HubError> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let beside = folder.join(format!(".new.{}.{number}", std::process::id()));
    let made = make(&beside).and_then(|()| rename(&beside, path));
    if made.is_err() {
        let _ = remove(&beside);
    }
    made.map_err(HubError::io(path))
}

#[cfg(unix)]
fn link_or_copy(target: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Links need a privilege elsewhere.
#[cfg(not(unix))]
fn link_or_copy(_target: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    fs::copy(blob, path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_revision_that_moves_on_is_never_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &"org/net".parse().unwrap());
        let commits = [0, 1].map(|number| format!("{number:040}"));
        cache.remember("main", &commits[0]).unwrap();
        // What another program has open stays as it was.
        let path = cache.folder.join("refs").join("main");
        let opened = dir.path().join("opened");
        fs::hard_link(&path, &opened).unwrap();
        cache.remember("main", &commits[1]).unwrap();
        assert_eq!(fs::read_to_string(opened).unwrap(), commits[0]);
        assert_eq!(cache.remembered("main").unwrap(), commits[1]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn programs_that_link_at_once_do_not_disturb_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &"org/net".parse().unwrap());
        let checksum = Checksum::GitBlob("0123".to_owned());
        make_folder(&cache.folder.join("blobs")).unwrap();
        fs::write(cache.blob(&checksum), "weights").unwrap();
        const PROGRAMS: usize = 4;
        let start = Barrier::new(PROGRAMS);
        for round in 0..200 {
            let commit = format!("{round:040}");
            std::thread::scope(|scope| {
                let link = || {
                    start.wait();
                    cache.link(&commit, "net.bin", &checksum)
                };
                let all = [(); PROGRAMS].map(|()| scope.spawn(link));
                for one in all {
                    let path = one.join().unwrap().unwrap();
                    assert_eq!(fs::read(path).unwrap(), b"weights");
                }
            });
            let left = fs::read_dir(cache.snapshot(&commit)).unwrap().count();
            assert_eq!(left, 1, "round {round}");
        }
    }
}
