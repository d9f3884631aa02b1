//! What can be wrong with a name, a hub or a transfer.

use std::path::PathBuf;

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not the name of a repository.
    #[error(
        "{text:?} is not a repository: write it as ORGANISATION/NAME or ORGANISATION/NAME@REVISION, \
         with a branch, a tag or a commit without a slash"
    )]
    Name {
        /// What was given.
        text: String,
    },
    /// Not the name of a file in a repository.
    #[error(
        "{file:?} is not a file of a repository: write it as NAME or FOLDER/NAME, without a leading \
         slash, \"..\" or a backslash"
    )]
    FileName {
        /// What was given.
        file: String,
    },
    /// A setting that cannot be used.
    #[error("{what}: {why}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The hub does not have it.
    #[error("{repo} has no {file}{why}")]
    NotFound {
        /// Repository with revision.
        repo: String,
        /// The file.
        file: String,
        /// The hub's own word for it, or nothing.
        why: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "{repo}: the hub refuses it ({status}): no such repository, or a private or gated one, \
         which needs a token (and its terms accepted on its page)"
    )]
    Refused {
        /// Repository with revision.
        repo: String,
        /// 401 or 403.
        status: u16,
    },
    /// Another answer than expected.
    #[error("{url}: the server answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("{url}: {why}")]
    Redirect {
        /// Where it was asked.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The server was not reached, or went away too often.
    #[error("{url}: {why}; what has come so far is kept and taken up by the next try")]
    Transfer {
        /// What was asked for.
        url: String,
        /// The last thing that went wrong.
        why: String,
    },
    /// Without a hash nothing tells a whole file from a damaged one.
    #[error("{url}: the server tells no hash (ETag: {etag:?}), so the file cannot be checked")]
    NoChecksum {
        /// What was asked for.
        url: String,
        /// What it told.
        etag: Option<String>,
    },
    /// The bytes are not those that the hub promised; they were removed.
    #[error("{file}: its {algorithm} is {found}, the hub told {expected}; the file was removed")]
    Checksum {
        /// The file.
        file: String,
        /// The name of the hash.
        algorithm: &'static str,
        /// As told.
        expected: String,
        /// As computed.
        found: String,
    },
    /// More came than was told.
    #[error("{file} is longer than the {limit} bytes it should have; it was removed")]
    TooLong {
        /// The file.
        file: String,
        /// Bytes told, or read at most where none are.
        limit: u64,
    },
    /// Not in the cache, and nobody may be asked.
    #[error("{repo}: {file} is not in {}, and the hub {why}", cache.display())]
    NotCached {
        /// Repository with revision.
        repo: String,
        /// The file.
        file: String,
        /// The cache.
        cache: PathBuf,
        /// Why the hub was not asked.
        why: String,
    },
    /// The operating system would not read or write.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl HubError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether what was asked for, and not the hub, the network or the disk, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Name { .. }
                | Self::FileName { .. }
                | Self::Setting { .. }
                | Self::NotFound { .. }
                | Self::Refused { .. }
        )
    }
}
