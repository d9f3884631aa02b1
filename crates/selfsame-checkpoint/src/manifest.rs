use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::OnPath;
use crate::{CheckpointError, Result};

/// Version of the checkpoint format that this crate writes, and the newest it reads.
pub const FORMAT: u64 = 1;

pub(crate) const MANIFEST: &str = "manifest.json";

/// Contents of `manifest.json`: what a checkpoint holds and how to know that it is whole.
///
/// The text ends with the manifest's own checksum, taken over every byte before it, so that a
/// changed step or configuration is noticed like a changed weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format, [`FORMAT`] when written here.
    pub format: u64,
    /// Count of optimizer steps done.
    pub step: u64,
    /// Epoch in which training goes on.
    pub epoch: u64,
    /// The run's configuration, as TOML text.
    pub config: String,
    /// Whatever else the caller wants back.
    pub extra: serde_json::Value,
    /// File name with extension, to its length and hash.
    pub files: BTreeMap<String, FileEntry>,
    /// BLAKE3 of the manifest's bytes up to this value, lower-case hexadecimal.
    checksum: String,
}

/// Length and hash of one file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole file, lower-case hexadecimal.
    pub blake3: String,
}

/// Length of a BLAKE3 hash in hexadecimal.
const HEX: usize = 64;
/// What follows the checksum in the text.
const TAIL: &[u8] = b"\"\n}\n";

#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

impl Manifest {
    pub(crate) fn new(
        step: u64,
        epoch: u64,
        config: String,
        extra: serde_json::Value,
        files: BTreeMap<String, FileEntry>,
    ) -> Self {
        Self {
            format: FORMAT,
            step,
            epoch,
            config,
            extra,
            files,
            checksum: "0".repeat(HEX),
        }
    }

    /// The manifest as text, checksum filled in. The same manifest gives the same bytes.
    pub(crate) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let blank = Self {
            checksum: "0".repeat(HEX),
            ..self.clone()
        };
        let mut bytes = serde_json::to_vec_pretty(&blank)?;
        bytes.push(b'\n');
        let at = bytes.len() - TAIL.len() - HEX;
        let checksum = blake3::hash(&bytes[..at]).to_hex();
        bytes[at..at + HEX].copy_from_slice(checksum.as_bytes());
        Ok(bytes)
    }

    /// Reads and verifies `dir/manifest.json`.
    ///
    /// # Errors
    /// [`CheckpointError::NewerFormat`] is told before the checksum is looked at, because a later
    /// format may keep it elsewhere; [`CheckpointError::Damaged`] for anything not as written.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let bytes = fs::read(&path).on("read", &path)?;
        let damaged = |what: String| CheckpointError::Damaged {
            path: path.clone(),
            what,
        };

        if let Ok(FormatOnly { format }) = serde_json::from_slice(&bytes)
            && format > FORMAT
        {
            return Err(CheckpointError::NewerFormat {
                path,
                found: format,
                supported: FORMAT,
            });
        }
        let body = bytes.strip_suffix(TAIL).filter(|body| body.len() > HEX);
        let (text, checksum) = match body {
            Some(body) => body.split_at(body.len() - HEX),
            None => return Err(damaged("it does not end with its checksum".to_string())),
        };
        if blake3::hash(text).to_hex().as_bytes() != checksum {
            return Err(damaged("its checksum does not match its text".to_string()));
        }
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
    }

    /// Whether `dir/manifest.json` has what no other program's has together, even if it cannot be
    /// believed or read.
    pub(crate) fn is_of_checkpoint(dir: &Path) -> bool {
        let value = fs::read(dir.join(MANIFEST)).ok().and_then(|bytes| {
            let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            Some(value)
        });
        let has = |key: &str| value.as_ref().is_some_and(|value| value.get(key).is_some());
        ["format", "files", "checksum"].into_iter().all(has)
    }

    /// Names of the tensor files, without their extension.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files
            .keys()
            .map(|name| name.strip_suffix(".safetensors").unwrap_or(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Manifest {
        let entry = FileEntry {
            bytes: 3,
            blake3: blake3::hash(b"abc").to_hex().to_string(),
        };
        let files = BTreeMap::from([("student.safetensors".to_string(), entry)]);
        Manifest::new(
            7,
            2,
            "seed = 42\n[data]\n".to_string(),
            json!({ "best": 0.1 }),
            files,
        )
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MANIFEST), sample().to_bytes().unwrap()).unwrap();
        let read = Manifest::read(dir.path()).unwrap();
        assert_eq!(
            (read.step, read.epoch, &read.config),
            (7, 2, &sample().config)
        );
        assert_eq!(read.extra, sample().extra);
        assert_eq!(read.files, sample().files);
        assert_eq!(read.to_bytes().unwrap(), sample().to_bytes().unwrap());
        assert_eq!(read.file_names().collect::<Vec<_>>(), ["student"]);
    }

    #[test]
    fn floats_in_extra_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        // Each of these loses its last bit in a parser that is merely fast.
        for value in [
            0.1 + 0.2,
            1.0 / 3.0,
            5e-324,
            51.248_178_756_324_86,
            f64::MAX,
        ] {
            let manifest = Manifest {
                extra: json!(value),
                ..sample()
            };
            fs::write(dir.path().join(MANIFEST), manifest.to_bytes().unwrap()).unwrap();
            let read = Manifest::read(dir.path()).unwrap().extra.as_f64().unwrap();
            assert_eq!(read.to_bits(), value.to_bits());
        }
    }

    #[test]
    fn a_newer_format_is_refused_in_words_even_if_its_checksum_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        let newer = text.replace("\"format\": 1", "\"format\": 2");
        fs::write(dir.path().join(MANIFEST), newer).unwrap();
        let error = Manifest::read(dir.path()).unwrap_err();
        assert!(matches!(
            error,
            CheckpointError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ));
        assert!(
            error
                .to_string()
                .contains("use the newer program that wrote it"),
            "{error}"
        );
    }

    #[test]
    fn an_edited_configuration_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        fs::write(
            dir.path().join(MANIFEST),
            text.replace("seed = 42", "seed = 43"),
        )
        .unwrap();
        let error = Manifest::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }
}
