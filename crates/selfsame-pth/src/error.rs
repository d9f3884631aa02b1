//! What can be wrong with a file.

use std::path::PathBuf;

/// Why a file was not read. None of these means that anything of it was executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PthError {
    /// The operating system would not give the bytes.
    #[error("cannot read {}", if path.as_os_str().is_empty() { "the file".into() } else { path.to_string_lossy() })]
    Io {
        /// The file, empty for a reader without a path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A folder where a file is needed.
    #[error("cannot read {}: it is a folder, not a file", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// Not an archive at all.
    #[error("it is not a PyTorch file: it begins with {0}, not as a zip archive")]
    NotAnArchive(String),
    /// Saved by PyTorch before 1.6, or with `_use_new_zipfile_serialization=False`.
    #[error(
        "it is a PyTorch file of the old form, which is not read here; write it anew in Python: \
         torch.save(torch.load(OLD, map_location=\"cpu\", weights_only=True), NEW)"
    )]
    Legacy,
    /// The archive's structure is damaged or not PyTorch's.
    #[error("the archive is damaged or not PyTorch's: {0}")]
    Archive(String),
    /// An entry is compressed or encrypted, which PyTorch never writes.
    #[error(
        "its entry {} is {how}, which PyTorch does not write; unpack the archive and pack it again \
         without compression (zip -0), or save it anew by torch.save",
        shown(entry)
    )]
    NotStored {
        /// The entry.
        entry: String,
        /// "compressed" or "encrypted".
        how: &'static str,
    },
    /// The pickle asks for a class or function that is not on the list.
    #[error(
        "its pickle asks for {}.{}, which is not on the list of what a weights file needs; nothing \
         was executed. {}",
        shown(module),
        shown(name),
        advice(module)
    )]
    Forbidden {
        /// Python module.
        module: String,
        /// Class or function.
        name: String,
    },
    /// The pickle is not one that PyTorch writes.
    #[error("its pickle is not one that PyTorch writes (byte {offset}): {what}")]
    Pickle {
        /// Where in `data.pkl`.
        offset: usize,
        /// What is wrong there.
        what: String,
    },
    /// A cap of [`crate::Limits`] was reached.
    #[error("it is over the limit for {what}: {found}, at most {limit} are read")]
    TooLarge {
        /// What grew.
        what: &'static str,
        /// How far, at least.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A tensor that does not fit its storage, is of a kind that is not read, or whose name is too
    /// long or that of another.
    #[error("its tensor {}: {what}", shown(name))]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A sound file without a single tensor.
    #[error("it holds no tensor; what it holds: {}", keys.iter().map(|key| shown(key)).collect::<Vec<_>>().join(", "))]
    NoTensors {
        /// Top-level keys, each with the kind of its value.
        keys: Vec<String>,
    },
}

/// Most characters of a name in an error's text, and bytes of a tuple that is a key.
pub(crate) const MAX_SHOWN: usize = 256;

/// The beginning of a name out of a file, without characters that a terminal obeys.
fn shown(name: &str) -> String {
    let mut text = String::new();
    for (position, character) in name.chars().enumerate() {
        match character {
            _ if position == MAX_SHOWN => {
                text.push('…');
                break;
            }
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// What to do about a class or function that is not on the list, by its module.
fn advice(module: &str) -> &'static str {
    match module {
        "torch" | "torch._utils" | "torch._tensor" | "torch.serialization" | "torch.storage" => {
            "It belongs to a kind of tensor that is not read here: in Python, save that one as a plain \
             tensor of another type, or leave it out"
        }
        _ => "If you trust the file, save only its state_dict in Python",
    }
}
