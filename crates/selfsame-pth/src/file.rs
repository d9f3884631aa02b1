//! A file: its list of tensors, and reading some of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use crate::archive::Archive;
use crate::pickle::{self, Tensor};
use crate::{DType, Limits, PthError, Result, flatten};

/// What is known of a tensor without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PthTensor {
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

impl PthTensor {
    /// The elements as `f32`, those of `f64` rounded; nothing if they are no floating-point numbers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let bytes = &self.bytes;
        Some(match self.dtype {
            DType::F64 => elements(bytes, |b| f64::from_le_bytes(b) as f32),
            DType::F32 => elements(bytes, f32::from_le_bytes),
            DType::F16 => elements(bytes, |b| f32_of_half(u16::from_le_bytes(b))),
            DType::BF16 => elements(bytes, |b| {
                f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
            }),
            _ => return None,
        })
    }
}

fn elements<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| value(*b)).collect()
}

/// IEEE 754's binary16: a sign, 5 bits of exponent, 10 of fraction.
fn f32_of_half(bits: u16) -> f32 {
    let (exponent, fraction) = (bits >> 10 & 0x1f, u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction as f32 / f32::from_bits(0x4b80_0000), // by 2^24
        0x1f => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(u32::from(exponent + 112) << 23 | fraction << 13),
    };
    match bits >> 15 {
        0 => magnitude,
        _ => -magnitude,
    }
}

/// An open file whose description was read and checked; the tensors are still on the disk.
pub struct PthFile<R> {
    archive: Archive<R>,
    views: BTreeMap<String, Tensor>,
    infos: BTreeMap<String, TensorInfo>,
    unreadable: BTreeMap<String, &'static str>,
    limits: Limits,
}

impl<R> std::fmt::Debug for PthFile<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PthFile")
            .field("tensors", &self.infos)
            .field("unreadable", &self.unreadable)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl PthFile<BufReader<File>> {
    /// Opens a file with the default [`Limits`].
    ///
    /// # Errors
    /// [`PthError`] with what is wrong; it names the file only if that cannot be opened or read, or is a folder
    /// ([`PthError::Folder`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| PthError::Io {
            path: path.to_owned(),
            source,
        };
        // Before it is opened: elsewhere than on Unix a folder cannot be.
        let kind = std::fs::metadata(path).map_err(io)?;
        if kind.is_dir() {
            return Err(PthError::Folder {
                path: path.to_owned(),
            });
        }
        if !kind.is_file() {
            // A pipe would be waited for, and cannot be searched.
            let source = std::io::Error::other("it is not a regular file");
            return Err(io(source));
        }
        let file = File::open(path).map_err(io)?;
        Self::new(BufReader::new(file), Limits::default()).map_err(|error| match error {
            PthError::Io { source, .. } => io(source),
            other => other,
        })
    }
}

impl<R: Read + Seek> PthFile<R> {
    /// Reads the description from anything that can be read and searched.
    ///
    /// # Errors
    /// [`PthError::NoTensors`] for a sound file without any, with its keys; [`PthError::Tensor`] for
    /// one with none that is read; every other variant for a file that is not what PyTorch writes.
    pub fn new(reader: R, limits: Limits) -> Result<Self> {
        let mut archive = Archive::open(reader)?;
        let objects = pickle::parse(&archive.pickle(&limits)?, &limits)?;
        let (mut views, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for (name, found) in flatten::tensors(&objects, &limits)? {
            match found {
                Ok(tensor) => {
                    check(&name, &tensor)?;
                    views.insert(name, tensor);
                }
                Err(kind) => {
                    unreadable.insert(name, kind);
                }
            }
        }
        if let (true, Some((name, kind))) = (views.is_empty(), unreadable.first_key_value()) {
            return Err(not_read(name, kind));
        }
        let info = |tensor: &Tensor| TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.layout.shape.clone(),
        };
        let infos = views.iter().map(|(name, t)| (name.clone(), info(t)));
        Ok(Self {
            infos: infos.collect(),
            unreadable,
            archive,
            views,
            limits,
        })
    }

    /// Names, types and shapes of all tensors.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    /// Names of the tensors that are of a kind that is not read, with what makes them so:
    /// `torch.float8_e4m3fn`, `torch._utils._rebuild_sparse_tensor`.
    pub fn unreadable(&self) -> &BTreeMap<String, &'static str> {
        &self.unreadable
    }

    /// Reads the tensors whose names `keep` wants, each storage once.
    ///
    /// # Errors
    /// [`PthError::Tensor`] if one of them is [`unreadable`](Self::unreadable);
    /// [`PthError::TooLarge`] if they are larger than the file by more than `max_expansion` and
    /// `max_repeated_bytes` allow, which takes tensors that share or repeat bytes;
    /// [`PthError::Archive`] if a storage is missing, has another length or a wrong checksum.
    pub fn read(&mut self, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, PthTensor>> {
        if let Some((name, kind)) = self.unreadable.iter().find(|(name, _)| keep(name)) {
            return Err(not_read(name, kind));
        }
        let wanted = self.views.iter().filter(|(name, _)| keep(name));
        let wanted: Vec<(&String, &Tensor)> = wanted.collect();
        let Limits {
            max_expansion,
            max_repeated_bytes,
            ..
        } = self.limits;
        let len = self.archive.file_len;
        let limit = len
            .saturating_mul(max_expansion)
            .min(len.saturating_add(max_repeated_bytes));
        let sizes = wanted.iter().map(|(_, tensor)| {
            let count = tensor.layout.count().unwrap_or(usize::MAX) as u64;
            count.saturating_mul(tensor.dtype.size() as u64)
        });
        let total = sizes.fold(0u64, u64::saturating_add);
        if total > limit {
            return Err(PthError::TooLarge {
                what: "bytes of all tensors together, where tensors share or repeat what the file has \
                       once",
                found: total,
                limit,
            });
        }
        let mut storages: BTreeMap<&str, Vec<(&String, &Tensor)>> = BTreeMap::new();
        for (name, tensor) in wanted {
            let views = storages.entry(&tensor.storage.key).or_default();
            views.push((name, tensor));
        }
        let mut tensors = BTreeMap::new();
        for (key, views) in storages {
            let expected = views.iter().map(|(_, t)| storage_bytes(t)).max();
            let storage = self.archive.storage(key, expected.unwrap_or(0))?;
            let whole = views.len() == 1 && is_whole(views[0].1, storage.len());
            let mut storage = Some(storage);
            for (name, tensor) in views {
                let mut bytes = if whole {
                    storage.take().unwrap_or_default()
                } else {
                    let bytes = storage.as_deref().unwrap_or_default();
                    check_end(name, tensor, bytes.len())?;
                    tensor.layout.gather(bytes, tensor.dtype.size())
                };
                if tensor.negative {
                    let width = tensor.dtype.size();
                    let highest = bytes.iter_mut().skip(width - 1).step_by(width);
                    highest.for_each(|byte| *byte ^= 0x80);
                }
                let tensor = PthTensor {
                    dtype: tensor.dtype,
                    shape: tensor.layout.shape.clone(),
                    bytes,
                };
                tensors.insert(name.clone(), tensor);
            }
        }
        Ok(tensors)
    }
}

/// The error for a tensor of a kind that is not read.
fn not_read(name: &str, kind: &str) -> PthError {
    PthError::Tensor {
        name: name.to_owned(),
        what: format!(
            "{kind} is not read here; in Python, save it as a plain tensor of another type, or \
             leave it out"
        ),
    }
}

/// Whether a tensor is its whole storage in order, so that no copy is needed.
fn is_whole(tensor: &Tensor, storage_len: usize) -> bool {
    let layout = &tensor.layout;
    let bytes = layout
        .count()
        .and_then(|count| count.checked_mul(tensor.dtype.size()));
    layout.offset == 0 && layout.is_contiguous() && bytes == Some(storage_len)
}

/// Length of a tensor's storage as the pickle has it.
fn storage_bytes(tensor: &Tensor) -> u64 {
    let width = tensor.storage.dtype.map_or(1, DType::size) as u64;
    tensor.storage.elements.saturating_mul(width)
}

/// Whether a tensor lies inside the storage that the pickle describes.
fn check(name: &str, tensor: &Tensor) -> Result<()> {
    let bytes = usize::try_from(storage_bytes(tensor)).unwrap_or(usize::MAX);
    check_end(name, tensor, bytes)
}

fn check_end(name: &str, tensor: &Tensor, storage_len: usize) -> Result<()> {
    let layout = &tensor.layout;
    let end = layout.count().and(layout.end());
    let end = end.and_then(|end| end.checked_mul(tensor.dtype.size()));
    if end.is_some_and(|end| end <= storage_len) {
        return Ok(());
    }
    Err(PthError::Tensor {
        name: name.to_owned(),
        what: format!(
            "shape {:?} with strides {:?} from element {} does not lie in a storage of {} bytes",
            layout.shape, layout.strides, layout.offset, storage_len
        ),
    })
}
