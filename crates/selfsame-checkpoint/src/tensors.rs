use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use selfsame_files::{Beside, UNFINISHED, remove};

use crate::error::OnPath;
use crate::manifest::FileEntry;
use crate::run_dir::{is_left, names_in};
use crate::{CheckpointError, Result};

/// What a safetensors file holds.
#[derive(Clone, Debug)]
pub struct TensorFile {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The texts of `__metadata__`, empty if there are none.
    pub metadata: BTreeMap<String, String>,
}

/// Writes a safetensors file; the same tensors and metadata give the same bytes.
///
/// Header entries stand in the order of their names, data by width of its type and then by name,
/// which keeps every value aligned. The file is written beside `path`, synced and renamed, so
/// `path` is the old file or the new one and never a part of either. Values that are not finite
/// are written as they are: whoever captures a failure wants to see them.
///
/// # Errors
/// [`CheckpointError::DiskFull`] with the file's size; [`CheckpointError::Tensor`] for a type that
/// is not stored: the floating-point numbers of 4, 6 and 8 bits.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let plan = Plan::new(path, tensors, metadata)?;
    write_beside(path, |file| plan.write(file, path, plan.len()).map(|_| ()))
}

/// Writes a small file such as a configuration the same way: whole or not at all.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, |mut file| {
        file.write_all(bytes).on_write(path, bytes.len() as u64)
    })
}

/// Tensors of a safetensors file, on the CPU. The file is read into memory, never mapped.
///
/// # Errors
/// [`CheckpointError::Io`] if it cannot be read, [`CheckpointError::Damaged`] if it is not a whole
/// safetensors file, [`CheckpointError::Tensor`] for a type that candle does not have.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    Ok(read_tensor_file(path, &Device::Cpu)?.tensors)
}

/// Tensors, on `device`, and metadata of a safetensors file.
///
/// # Errors
/// As [`read_tensors`]; [`CheckpointError::Tensor`] also if `device` does not take a tensor.
pub fn read_tensor_file(path: &Path, device: &Device) -> Result<TensorFile> {
    let bytes = fs::read(path).on("read", path)?;
    parse(path, &bytes, device)
}

/// Makes tensors of the bytes of a safetensors file.
pub(crate) fn parse(path: &Path, bytes: &[u8], device: &Device) -> Result<TensorFile> {
    let damaged = |error: safetensors::SafeTensorError| CheckpointError::Damaged {
        path: path.to_path_buf(),
        what: format!("it is not a whole safetensors file ({error})"),
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let metadata = header.metadata().iter().flatten();
    let metadata = metadata
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(bytes).map_err(damaged)?.iter() {
        let tensor = view
            .load(device)
            .map_err(|source| CheckpointError::Tensor {
                path: path.to_path_buf(),
                name: name.to_string(),
                source: Box::new(source),
            })?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(TensorFile { tensors, metadata })
}

/// A file's layout, known before its first byte is written.
pub(crate) struct Plan<'a> {
    header: Vec<u8>,
    /// In the order of their data.
    tensors: Vec<(&'a str, &'a Tensor)>,
    data_len: u64,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        path: &Path,
        tensors: &'a BTreeMap<String, Tensor>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut in_order: Vec<(&str, &Tensor)> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        // Stable: names stay in order within a width.
        in_order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));

        let mut data_len = 0;
        let mut entries: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
        for (name, tensor) in &in_order {
            if *name == "__metadata__" {
                let name = name.to_string();
                return Err(CheckpointError::BadName {
                    name,
                    what: "tensor",
                });
            }
            let dtype = stored_type(tensor.dtype()).ok_or_else(|| CheckpointError::Tensor {
                path: path.to_path_buf(),
                name: name.to_string(),
                source: Box::new(candle_core::Error::UnexpectedDType {
                    msg: "this type is not stored",
                    expected: DType::F32,
                    got: tensor.dtype(),
                }),
            })?;
            let end = data_len + byte_len(tensor);
            let entry = serde_json::json!({
                "dtype": dtype, "shape": tensor.dims(), "data_offsets": [data_len, end],
            });
            entries.insert(name, entry);
            data_len = end;
        }

        if !metadata.is_empty() {
            entries.insert("__metadata__", serde_json::json!(metadata));
        }
        let mut json = serde_json::to_vec(&entries).map_err(|source| CheckpointError::Json {
            path: path.to_path_buf(),
            source,
        })?;
        // The data begins at a multiple of 8; the format allows spaces after the header.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(Self {
            header,
            tensors: in_order,
            data_len,
        })
    }

    /// Length of the whole file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.header.len() as u64 + self.data_len
    }

    /// Writes the file, one tensor in memory at a time, and gives its length and hash.
    /// `needed` is what a full disk is reported with.
    pub(crate) fn write(&self, file: &File, path: &Path, needed: u64) -> Result<FileEntry> {
        let mut file = io::BufWriter::with_capacity(1 << 20, file);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.header);
        file.write_all(&self.header).on_write(path, needed)?;
        for (name, tensor) in &self.tensors {
            let host = to_host(tensor).map_err(|source| CheckpointError::Tensor {
                path: path.to_path_buf(),
                name: name.to_string(),
                source: Box::new(source),
            })?;
            let bytes: Cow<[u8]> = safetensors::View::data(&host);
            hasher.update(&bytes);
            file.write_all(&bytes).on_write(path, needed)?;
        }
        file.flush().on_write(path, needed)?;
        Ok(FileEntry {
            bytes: self.len(),
            blake3: hasher.finalize().to_hex().to_string(),
        })
    }
}

fn to_host(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.detach().to_device(&Device::Cpu)?.contiguous()
}

fn byte_len(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// The format's name of a type, for those that are stored.
fn stored_type(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::U8 => "U8",
        DType::U32 => "U32",
        DType::I16 => "I16",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F32 => "F32",
        DType::F64 => "F64",
        _ => return None,
    })
}

/// Removes what killed processes left of writing `path`. What another process is writing stays, and
/// so does what cannot be removed, which harms nothing.
pub fn remove_unfinished(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return;
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for found in names_in(folder).unwrap_or_default() {
        // Earlier versions wrote no process number.
        let is_of_it = found.strip_prefix(UNFINISHED).is_some_and(|rest| {
            let number = rest.strip_suffix(name).and_then(|n| n.strip_suffix('-'));
            rest == name || number.is_some_and(|n| n.parse::<u32>().is_ok())
        });
        let found = folder.join(found);
        if is_of_it && found.is_file() && is_left(&found) {
            let _ = remove(&found);
        }
    }
}

/// Lets `write` fill a hidden sibling of `path` and renames it when it is on the disk; removes it
/// if anything fails.
fn write_beside(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    if path.file_name().is_none() {
        let name = path.display().to_string();
        return Err(CheckpointError::BadName { name, what: "file" });
    }
    let beside = Beside::create(path).on("create", path)?;
    write(beside.file())?;
    let len = beside.file().metadata().map_or(0, |file| file.len());
    beside.put().on_write(path, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_type() -> BTreeMap<String, Tensor> {
        let cpu = &Device::Cpu;
        let odd = [
            f32::NAN,
            f32::NEG_INFINITY,
            -0.0,
            f32::MIN_POSITIVE / 2.0,
            1.0 / 3.0,
            5.0,
        ];
        BTreeMap::from([
            (
                "a.u8".to_string(),
                Tensor::new(&[1u8, 2, 255], cpu).unwrap(),
            ),
            (
                "b.f32".to_string(),
                Tensor::new(&odd, cpu).unwrap().reshape((2, 3)).unwrap(),
            ),
            ("c.i64".to_string(), Tensor::new(i64::MIN, cpu).unwrap()),
            (
                "d.u32".to_string(),
                Tensor::new(&[[7u32], [u32::MAX]], cpu).unwrap(),
            ),
            (
                "e.empty".to_string(),
                Tensor::zeros((0, 4), DType::F32, cpu).unwrap(),
            ),
            ("f.f64".to_string(), Tensor::new(0.1f64 + 0.2, cpu).unwrap()),
            (
                "g.i16".to_string(),
                Tensor::new(&[i16::MIN, -2, 300], cpu).unwrap(),
            ),
            (
                "h.i32".to_string(),
                Tensor::new(&[i32::MIN, 70_000], cpu).unwrap(),
            ),
            (
                "i.f16".to_string(),
                Tensor::new(&odd, cpu)
                    .unwrap()
                    .to_dtype(DType::F16)
                    .unwrap(),
            ),
            (
                "j.bf16".to_string(),
                Tensor::new(&odd[1..], cpu)
                    .unwrap()
                    .to_dtype(DType::BF16)
                    .unwrap(),
            ),
        ])
    }

    fn bytes_of(tensor: &Tensor) -> Vec<u8> {
        safetensors::View::data(tensor).into_owned()
    }

    #[test]
    fn an_unfinished_file_is_its_processes_own_and_cleared_when_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-1.csv");
        let at = |name: &str| dir.path().join(name);
        let left = [".tmp-x-1.csv", ".tmp-4000000-x-1.csv"].map(at);
        let others = [".tmp-7-1-x-1.csv", ".tmp-y.csv", ".tmp-7-other-x-1.csv"].map(at);
        for file in left.iter().chain(&others) {
            fs::write(file, "half").unwrap();
        }
        write_beside(&path, |_| {
            remove_unfinished(&path);
            let own = at(&format!(".tmp-{}-x-1.csv", std::process::id()));
            assert!(own.exists(), "{:?}", names_in(dir.path()));
            Ok(())
        })
        .unwrap();
        assert!(path.exists() && !left.iter().any(|file| file.exists()));
        assert!(others.iter().all(|file| file.exists()));
    }

    #[test]
    fn tensors_come_back_bit_for_bit_with_their_shapes_and_types() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let metadata = BTreeMap::from([("arch".to_string(), "vit \"tiny\"".to_string())]);
        write_tensors(&path, &every_type(), &metadata).unwrap();
        let read = read_tensor_file(&path, &Device::Cpu).unwrap();
        assert_eq!(read.metadata, metadata);
        assert_eq!(read.tensors.len(), 10);
        for (name, tensor) in every_type() {
            let back = &read.tensors[&name];
            assert_eq!(
                (back.dims(), back.dtype()),
                (tensor.dims(), tensor.dtype()),
                "{name}"
            );
            assert_eq!(bytes_of(back), bytes_of(&tensor), "{name}");
        }
    }

    #[test]
    fn the_same_state_gives_the_same_bytes_whatever_its_memory_layout() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let keys = ["z", "arch", "mean", "std", "format", "image_size"];
        let metadata = keys.map(|key| (key.to_string(), format!("value of {key}")));
        let metadata = BTreeMap::from(metadata);
        let plain = Tensor::arange(0f32, 6., &Device::Cpu)
            .unwrap()
            .reshape((2, 3))
            .unwrap();
        let twice_turned = plain.t().unwrap().contiguous().unwrap().t().unwrap();
        assert!(!twice_turned.is_contiguous());
        write_tensors(&a, &BTreeMap::from([("w".to_string(), plain)]), &metadata).unwrap();
        write_tensors(
            &b,
            &BTreeMap::from([("w".to_string(), twice_turned)]),
            &metadata,
        )
        .unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    }

    #[test]
    fn wide_types_come_first_so_that_all_data_is_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &every_type(), &BTreeMap::new()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (header_len, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header_len % 8, 0);
        let in_order = header.offset_keys();
        assert_eq!(in_order[..2], ["c.i64", "f.f64"]);
        for name in every_type().keys() {
            let info = header.info(name).unwrap();
            let width = DType::try_from(info.dtype).unwrap().size_in_bytes();
            assert_eq!(info.data_offsets.0 % width, 0, "{name}");
        }
    }

    #[test]
    fn a_type_kept_for_show_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensor = Tensor::from_raw_buffer(&[0u8; 4], DType::F8E8M0, &[4], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("scale".to_string(), tensor)]);
        let error = write_tensors(&path, &tensors, &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("\"scale\""), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "kept").unwrap();
        assert!(write_bytes(&path, b"new").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"kept");
    }

    #[test]
    fn something_else_than_safetensors_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        for bytes in [
            &b""[..],
            b"not this",
            &[0xff; 40],
            b"\x02\0\0\0\0\0\0\0{}surplus",
        ] {
            fs::write(&path, bytes).unwrap();
            let error = read_tensors(&path).unwrap_err();
            assert!(matches!(error, CheckpointError::Damaged { .. }));
            assert!(error.to_string().contains("x.safetensors"), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_with_the_bytes_needed() {
        let full = Path::new("/dev/full");
        let file = fs::OpenOptions::new().write(true).open(full).unwrap();
        let tensors = every_type();
        let plan = Plan::new(full, &tensors, &BTreeMap::new()).unwrap();
        let error = plan.write(&file, full, 4321).unwrap_err().to_string();
        assert!(
            error.contains("/dev/full") && error.contains("4321 bytes"),
            "{error}"
        );
    }
}
