//! The zip archive: which entry is what, and reading one whole.

use std::io::{Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::{Limits, PthError, Result};

/// The name of the entry that describes the tensors, in the archive's one folder.
const PICKLE: &str = "data.pkl";

/// An archive with PyTorch's layout: `NAME/data.pkl`, `NAME/data/KEY` and a few texts.
pub(crate) struct Archive<R> {
    zip: ZipArchive<R>,
    folder: String,
    pub(crate) file_len: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the list of entries.
    pub(crate) fn open(mut reader: R) -> Result<Self> {
        let file_len = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.seek(SeekFrom::Start(0)).map_err(io)?;
        check_magic(&mut reader)?;
        reader.seek(SeekFrom::Start(0)).map_err(io)?;
        let zip = ZipArchive::new(reader).map_err(damaged)?;
        let mut folders = zip.file_names().filter_map(|name| {
            let name = name.ok()?;
            let folder = name.strip_suffix(PICKLE)?;
            folder.strip_suffix('/').map(str::to_owned)
        });
        let folder = folders.next().ok_or_else(|| {
            PthError::Archive(format!(
                "there is no {PICKLE} in a folder of it; it is another program's zip file"
            ))
        })?;
        if folders.next().is_some() {
            return Err(PthError::Archive(format!("it has more than one {PICKLE}")));
        }
        drop(folders);
        Ok(Self {
            zip,
            folder,
            file_len,
        })
    }

    /// The description, after the byte order was looked at.
    pub(crate) fn pickle(&mut self, limits: &Limits) -> Result<Vec<u8>> {
        if let Some(order) = self.entry("byteorder", 16)?
            && order.trim_ascii() != b"little"
        {
            return Err(PthError::Archive(
                "its numbers are big-endian; save it anew on a little-endian machine".to_owned(),
            ));
        }
        self.entry(PICKLE, limits.max_pickle_bytes)?
            .ok_or_else(|| PthError::Archive(format!("{PICKLE} cannot be found again")))
    }

    /// The bytes of a storage, which must be `expected` many.
    pub(crate) fn storage(&mut self, key: &str, expected: u64) -> Result<Vec<u8>> {
        let bytes = self.entry(&format!("data/{key}"), self.file_len)?;
        let bytes =
            bytes.ok_or_else(|| PthError::Archive(format!("there is no entry data/{key}")))?;
        if bytes.len() as u64 != expected {
            return Err(PthError::Archive(format!(
                "data/{key} has {} bytes where the pickle says {expected}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// A whole entry below the folder, its checksum verified; `None` if there is none.
    fn entry(&mut self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let full = format!("{}/{name}", self.folder);
        let Some(index) = self.zip.index_for_name(&full) else {
            return Ok(None);
        };
        let raw = self.zip.by_index_raw(index).map_err(damaged)?;
        let how = if raw.encrypted() {
            Some("encrypted")
        } else if raw.compression() != zip::CompressionMethod::Stored {
            Some("compressed")
        } else {
            None
        };
        if let Some(how) = how {
            return Err(PthError::NotStored { entry: full, how });
        }
        let size = raw.size();
        drop(raw);
        // A stored entry cannot be longer than the file it stands in.
        if size > self.file_len {
            return Err(PthError::Archive(format!(
                "{name} claims {size} bytes in a file of {}",
                self.file_len
            )));
        }
        if size > max_bytes {
            return Err(PthError::TooLarge {
                what: "bytes of an entry",
                found: size,
                limit: max_bytes,
            });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let entry = self.zip.by_index(index).map_err(damaged)?;
        entry
            .take(size + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| match is_damage(&error) {
                true => PthError::Archive(format!("{name}: {error}")),
                false => io(error),
            })?;
        if bytes.len() as u64 != size {
            return Err(PthError::Archive(format!(
                "{name} has {} bytes where the archive's list says {size}",
                bytes.len()
            )));
        }
        Ok(Some(bytes))
    }
}

/// Tells an archive from an old file and from anything else.
fn check_magic(reader: &mut impl Read) -> Result<()> {
    let mut first = Vec::new();
    reader.take(16).read_to_end(&mut first).map_err(io)?;
    if first.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    // The old form opens with a pickled magic number: PROTO 2, LONG1 of ten bytes.
    if first.starts_with(b"\x80\x02\x8a\x0a") {
        return Err(PthError::Legacy);
    }
    let shown = match first.as_slice() {
        [] => "nothing (the file is empty)".to_owned(),
        bytes => format!("{:?}", String::from_utf8_lossy(bytes)),
    };
    Err(PthError::NotAnArchive(shown))
}

fn io(source: std::io::Error) -> PthError {
    PthError::Io {
        path: Default::default(),
        source,
    }
}

fn damaged(error: ZipError) -> PthError {
    match error {
        ZipError::Io(source) if !is_damage(&source) => io(source),
        error => PthError::Archive(error.to_string()),
    }
}

/// Whether it is the bytes that are wrong, and not the system that would not give them.
fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | InvalidData | InvalidInput)
}
