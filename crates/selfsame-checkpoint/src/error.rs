use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between tensors in memory and a checkpoint on the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused an operation on one path.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// The disk is full, or the user's quota on it or limit of a file is reached.
    #[error("no room left to write {}: {needed} bytes are needed in all", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
        /// Bytes of the whole checkpoint (or file, if it was written alone).
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },

    /// A file is not what was written: a hash, a length or the form differs.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file that cannot be believed.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },

    /// The checkpoint was written by a later program.
    #[error(
        "{} has checkpoint format {found}, but this program reads formats up to {supported}: \
         use the newer program that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// The version it names.
        found: u64,
        /// The newest version this program reads.
        supported: u64,
    },

    /// There are checkpoints, and not one of them can be believed.
    #[error("none of the checkpoints in {} can be used: {}", dir.display(), reasons.join("; "))]
    NoneUsable {
        /// The folder that holds them.
        dir: PathBuf,
        /// Why each was passed over, newest first.
        reasons: Vec<String>,
    },

    /// A file that was asked for is not part of the checkpoint.
    #[error("{} holds no {name:?}, only {}", dir.display(), present.join(", "))]
    NoSuchFile {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// What was asked for.
        name: String,
        /// What is there.
        present: Vec<String>,
    },

    /// Another process works in the run directory.
    #[error("{} is in use by {}", run_dir.display(), holder(*.pid))]
    Locked {
        /// The run directory.
        run_dir: PathBuf,
        /// Process number of the holder, where it can be read.
        pid: Option<u32>,
    },

    /// A value to be saved is NaN or infinite.
    #[error("{file}: tensor {tensor:?} holds a value that is not finite, nothing was saved")]
    NotFinite {
        /// File of the checkpoint, without extension.
        file: String,
        /// Name of the tensor.
        tensor: String,
    },

    /// A name that cannot become a file or a tensor of a checkpoint.
    #[error("{name:?} cannot be used as the name of a {what}")]
    BadName {
        /// The name.
        name: String,
        /// What it should have named.
        what: &'static str,
    },

    /// A tensor could not be brought to or from the host, or has a type that is not stored.
    #[error("tensor {name:?} of {}", path.display())]
    Tensor {
        /// The file it belongs to.
        path: PathBuf,
        /// Its name there.
        name: String,
        /// candle's reason.
        source: Box<candle_core::Error>,
    },

    /// What stands in a file as JSON cannot be written so: the manifest, or a tensor file's header.
    #[error("what {} holds as JSON cannot be written", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
}

impl CheckpointError {
    /// True if an older checkpoint may be used instead of the one that gave this error: it is
    /// damaged, not out of reach for now, as by want of permission or of file handles.
    pub(crate) fn allows_fallback(&self) -> bool {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), IsADirectory | NotADirectory | NotFound) || self.may_pass()
            }
            _ => false,
        }
    }

    /// True if the same may be read another time: a disk says so of a sector that it cannot read,
    /// and a network file system of a server that did not answer in time.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(number) if cfg!(unix) => number == EIO,
                Some(number) if cfg!(windows) => UNREADABLE.contains(&number),
                _ => false,
            },
            _ => false,
        }
    }
}

/// A Unix's number for an error of input or output.
const EIO: i32 = 5;
/// Windows's: data that fail their checksum, a device error, a name that is gone from the network, a
/// server that did not answer in time.
const UNREADABLE: [i32; 4] = [23, 1117, 64, 121];

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_string(),
    }
}

/// Turns an [`io::Error`] into an error that names action and path.
pub(crate) trait OnPath<T> {
    fn on(self, action: &'static str, path: &Path) -> crate::Result<T>;
    fn on_write(self, path: &Path, needed: u64) -> crate::Result<T>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> crate::Result<T> {
        self.map_err(|source| CheckpointError::Io {
            action,
            path: path.to_path_buf(),
            source,
        })
    }

    /// As `on("write", path)`, with a full disk told apart.
    fn on_write(self, path: &Path, needed: u64) -> crate::Result<T> {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Err(source) if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
                Err(CheckpointError::DiskFull {
                    path: path.to_path_buf(),
                    needed,
                    source,
                })
            }
            other => other.on("write", path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_reach_for_now_is_not_damaged() {
        let io = |source: io::Error| CheckpointError::Io {
            action: "read",
            path: PathBuf::from("student.safetensors"),
            source,
        };
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::OutOfMemory,
            io::ErrorKind::TimedOut,
        ] {
            assert!(!io(kind.into()).allows_fallback(), "{kind}");
        }
        let missing = io(io::ErrorKind::NotFound.into());
        assert!(missing.allows_fallback() && !missing.may_pass());
        if cfg!(windows) {
            // A failed checksum of data, and access denied.
            assert!(io(io::Error::from_raw_os_error(23)).may_pass());
            assert!(!io(io::Error::from_raw_os_error(5)).may_pass());
        }
        if cfg!(unix) {
            // EIO, and EMFILE: too many open files.
            let eio = io(io::Error::from_raw_os_error(5));
            assert!(eio.allows_fallback() && eio.may_pass());
            assert!(!io(io::Error::from_raw_os_error(24)).allows_fallback());
        }
    }
}
