use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::error::HubError;

/// What a file's bytes must hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// Of a large file (git LFS).
    Sha256(String),
    /// Of a small file: git's SHA-1 of `blob LENGTH\0` and the bytes.
    GitBlob(String),
}

impl Checksum {
    /// The hash within an ETag, if it is one of a hub.
    pub(crate) fn from_etag(etag: &str) -> Option<Self> {
        let bare = etag.trim();
        let bare = bare.strip_prefix("W/").unwrap_or(bare).trim_matches('"');
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if !bare.chars().all(is_hex) {
            return None;
        }
        match bare.len() {
            64 => Some(Self::Sha256(bare.to_owned())),
            40 => Some(Self::GitBlob(bare.to_owned())),
            _ => None,
        }
    }

    /// The hash in hexadecimal, which is also the file's name in the cache.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Its name in a message.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git SHA-1",
        }
    }

    /// The same hash of a file as it is on disk.
    pub(crate) fn of(&self, path: &Path) -> Result<String, HubError> {
        let mut file = File::open(path).map_err(HubError::io(path))?;
        match self {
            Self::Sha256(_) => digest(Sha256::new(), &mut file, path),
            Self::GitBlob(_) => {
                let length = file.metadata().map_err(HubError::io(path))?.len();
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {length}\0"));
                digest(hasher, &mut file, path)
            }
        }
    }
}

fn digest(mut hasher: impl Digest, file: &mut File, path: &Path) -> Result<String, HubError> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(HubError::io(path))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum_and_git() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | sha256sum, and | git hash-object --stdin
        for (etag, name) in [
            (
                "\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"",
                "SHA-256",
            ),
            (
                "W/\"ce013625030ba8dba906f756967f9e9ca394464a\"",
                "git SHA-1",
            ),
        ] {
            let checksum = Checksum::from_etag(etag).unwrap();
            assert_eq!(checksum.of(&path).unwrap(), checksum.hex());
            assert_eq!(checksum.algorithm(), name);
        }
    }

    #[test]
    fn other_etags_are_no_hash() {
        let upper = "5891B5B522D5DF086D0FF0B110FBD9D21BB4FC7163AF34D08286A2E846F6BE03";
        for etag in [
            "",
            "\"\"",
            "\"abc\"",
            "\"../../../../../etc/passwd\"",
            upper,
        ] {
            assert_eq!(Checksum::from_etag(etag), None, "{etag}");
        }
    }
}
