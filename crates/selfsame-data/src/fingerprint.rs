//! A hash that tells one data set from another without reading all of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files whose content is sampled, evenly spaced over the data set.
const SAMPLED_FILES: usize = 64;
/// Bytes read from the start of each of them.
const SAMPLED_BYTES: u64 = 64 << 10;

/// Collects names, sizes and samples of content.
#[derive(Debug)]
pub(crate) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    pub(crate) fn new(kind: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"selfsame data 1\n");
        let mut fingerprint = Self(hasher);
        fingerprint.add_text(kind);
        fingerprint
    }

    /// Length first, so that no two lists of texts run together into the same bytes.
    pub(crate) fn add_text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    /// Name and size; a file that is not there counts as one of the largest size.
    pub(crate) fn add_file(&mut self, name: &str, path: &Path) {
        self.add_text(name);
        let size = std::fs::metadata(path).map_or(u64::MAX, |metadata| metadata.len());
        self.0.update(&size.to_le_bytes());
    }

    /// The first bytes of the files [`sampled`] from all.
    pub(crate) fn add_content(&mut self, paths: impl Iterator<Item = PathBuf>) {
        for path in paths {
            let bytes = head(&path);
            self.0.update(&(bytes.len() as u64).to_le_bytes());
            self.0.update(&bytes);
        }
    }

    pub(crate) fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// The files of `len` whose content is sampled, in ascending order.
pub(crate) fn sampled(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len.div_ceil(SAMPLED_FILES).max(1))
}

/// BLAKE3 of the first bytes of a file.
pub(crate) fn head_hash(path: &Path) -> String {
    blake3::hash(&head(path)).to_hex().to_string()
}

fn head(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Only regular files: opening a pipe would wait for a writer.
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = File::open(path)
    {
        // What cannot be read contributes what could be read.
        let _ = file.take(SAMPLED_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::{OpenOptions, open};

    #[test]
    fn names_sizes_and_content_change_it_and_moving_the_folder_does_not() {
        let make = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in files {
                fs::write(folder.path().join(name), content).unwrap();
            }
            open(folder.path().to_str().unwrap(), &OpenOptions::default())
                .unwrap()
                .fingerprint()
        };
        let base = make(&[("a.jpg", "one"), ("b.jpg", "two")]);
        assert_eq!(base, make(&[("b.jpg", "two"), ("a.jpg", "one")]));
        assert_eq!(base.len(), 64);
        for other in [
            make(&[("a.jpg", "one")]),
            make(&[("a.jpg", "one"), ("c.jpg", "two")]),
            make(&[("a.jpg", "one"), ("b.jpg", "three")]),
            make(&[("a.jpg", "one"), ("b.jpg", "tow")]),
        ] {
            assert_ne!(base, other);
        }
    }
}
