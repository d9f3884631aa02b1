//! Reading a weights file of any kind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use selfsame_pth::{PthFile, PthTensor};

use super::beside::Beside;
use super::container::{Which, prefix};
use super::infer::infer_model;
use super::names::{Layout, to_own_names};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::input::InputConfig;

/// Tensors under our own names.
#[derive(Debug, Clone)]
pub struct ImportedWeights {
    /// Tensors named `backbone.…` and `head.…`, on the CPU, in the type they are stored in.
    pub tensors: BTreeMap<String, Tensor>,
    /// Names and shapes in the file that belong to no network here: a supervised classifier, a
    /// pooler, an optimizer, the other network of a checkpoint.
    pub left_out: BTreeMap<String, Vec<usize>>,
    /// The text metadata of the file.
    pub metadata: BTreeMap<String, String>,
    /// Whose names the file has.
    pub layout: Layout,
}

/// Metadata key of a [`ModelConfig`], as JSON.
pub const MODEL_KEY: &str = "selfsame.model";
/// Metadata key of an [`InputConfig`], as JSON.
pub const INPUT_KEY: &str = "selfsame.input";

impl ImportedWeights {
    /// The backbone's configuration: as the file says it, else as what lies beside it does, else as
    /// [`infer_model`] tells it from names and shapes, which takes a ViT's heads to be 64 wide.
    ///
    /// # Errors
    /// As [`ImportedWeights::stated_model`], [`Beside::model`] and [`infer_model`].
    pub fn model(&self, beside: &Beside) -> Result<ModelConfig, ModelError> {
        if let Some(model) = self.stated_model()? {
            return Ok(model);
        }
        match beside.model()? {
            Some(model) => Ok(model),
            None => infer_model(&self.tensors),
        }
    }

    /// The backbone's configuration if the file says it, under [`MODEL_KEY`].
    ///
    /// # Errors
    /// [`ModelError::Metadata`] if what it says cannot be read: a key of a later version may well
    /// make another network.
    pub fn stated_model(&self) -> Result<Option<ModelConfig>, ModelError> {
        let read = |text: &String| {
            serde_json::from_str(text).map_err(|error| unread_metadata(MODEL_KEY, error))
        };
        self.metadata.get(MODEL_KEY).map(read).transpose()
    }

    /// Size and normalisation of pictures for `model`: as the file says them, under [`INPUT_KEY`],
    /// else as what lies beside it does; `None` where nothing says them.
    ///
    /// # Errors
    /// [`ModelError::Metadata`] if what the file says cannot be read, [`ModelError::Input`] if that is
    /// no size or normalisation; as [`Beside::input`].
    pub fn input(
        &self,
        beside: &Beside,
        model: &ModelConfig,
    ) -> Result<Option<InputConfig>, ModelError> {
        let Some(text) = self.metadata.get(INPUT_KEY) else {
            return beside.input(model);
        };
        let input: InputConfig =
            serde_json::from_str(text).map_err(|error| unread_metadata(INPUT_KEY, error))?;
        match input.check().as_slice() {
            [] => Ok(Some(input)),
            problems => Err(ModelError::Input {
                place: format!("{INPUT_KEY} in the metadata"),
                why: problems.join("; "),
            }),
        }
    }
}

/// Reads a safetensors file or a PyTorch `.pth`, told apart by content, with the names of
/// Selfsame, timm, torchvision, Hugging Face, the official DINO or the official DINOv2 code.
///
/// `which` decides in a checkpoint that has a student and a teacher.
/// # Errors
/// [`ModelError::Read`] if the file is not readable, [`ModelError::OtherNetwork`] if it lacks the
/// network asked for and has the other, [`ModelError::SameName`] if two of its names are one of ours.
pub fn read_weights(path: &Path, which: Which) -> Result<ImportedWeights, ModelError> {
    let (tensors, metadata, others) = if is_pth(path)? {
        let (tensors, others) = read_pth(path, which)?;
        (tensors, BTreeMap::new(), others)
    } else {
        let (mut tensors, metadata) = read_safetensors(path)?;
        let prefix = prefix(tensors.keys(), which)?;
        let others = tensors
            .iter()
            .filter(|(name, _)| !name.starts_with(&prefix));
        let others = others.map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        let others: Shapes = others.collect();
        tensors.retain(|name, _| name.starts_with(&prefix));
        (strip(tensors, &prefix), metadata, others)
    };
    let mut weights = to_own_names(tensors)?;
    weights.metadata = metadata;
    weights.left_out.extend(others);
    Ok(weights)
}

/// Whether a file is a PyTorch file rather than safetensors.
///
/// # Errors
/// [`ModelError::Read`] if it cannot be opened.
pub fn is_pth(path: &Path) -> Result<bool, ModelError> {
    let fail = |error: std::io::Error| read_error(path, error);
    let mut first = Vec::new();
    let kind = std::fs::metadata(path).map_err(fail)?;
    if !kind.is_file() {
        // A pipe would be waited for.
        return Err(fail(std::io::Error::other("it is not a regular file")));
    }
    let file = File::open(path).map_err(fail)?;
    file.take(9).read_to_end(&mut first).map_err(fail)?;
    // Safetensors begins with a length in eight bytes, which may be any, and a header of JSON.
    let is_safetensors = first.get(8) == Some(&b'{');
    // A zip archive, or the pickle of PyTorch before 1.6.
    let is_pth = first.starts_with(b"PK") || first.starts_with(b"\x80\x02");
    Ok(is_pth && !is_safetensors)
}

type Tensors = BTreeMap<String, Tensor>;
type Shapes = BTreeMap<String, Vec<usize>>;

fn read_safetensors(path: &Path) -> Result<(Tensors, BTreeMap<String, String>), ModelError> {
    let bytes = std::fs::read(path).map_err(|error| read_error(path, error))?;
    let header = SafeTensors::read_metadata(&bytes);
    let (_, header) = header.map_err(|error| read_error(path, error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| read_error(path, error))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let tensor = match view.dtype() {
            // Of masks, and no network's here: as of `.pth` files.
            Dtype::BOOL => {
                Tensor::from_raw_buffer(view.data(), DType::U8, view.shape(), &Device::Cpu)
            }
            _ => view.load(&Device::Cpu),
        };
        let tensor = tensor.map_err(|error| read_error(path, error.context(name.to_owned())))?;
        tensors.insert(name.to_owned(), tensor);
    }
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok((tensors, metadata.into_iter().collect()))
}

/// The network's tensors, and what else is in the file.
fn read_pth(path: &Path, which: Which) -> Result<(Tensors, Shapes), ModelError> {
    let mut file = PthFile::open(path).map_err(|error| read_error(path, error))?;
    let prefix = prefix(file.tensors().keys(), which)?;
    let others = file
        .tensors()
        .iter()
        .filter(|(name, _)| !name.starts_with(&prefix));
    let others = others
        .map(|(name, info)| (name.clone(), info.shape.clone()))
        .collect();
    let raw = file
        .read(|name| name.starts_with(&prefix))
        .map_err(|error| read_error(path, error))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in raw {
        // One at a time, so that bytes are freed as tensors are made.
        tensors.insert(name, to_candle(&tensor)?);
    }
    Ok((strip(tensors, &prefix), others))
}

fn strip(tensors: Tensors, prefix: &str) -> Tensors {
    let stripped = tensors.into_iter();
    stripped
        .map(|(name, tensor)| match name.strip_prefix(prefix) {
            Some(inner) => (inner.to_owned(), tensor),
            None => (name, tensor),
        })
        .collect()
}

fn to_candle(tensor: &PthTensor) -> candle_core::Result<Tensor> {
    use selfsame_pth::DType as Pth;
    let dtype = match tensor.dtype {
        Pth::F64 => DType::F64,
        Pth::F32 => DType::F32,
        Pth::F16 => DType::F16,
        Pth::BF16 => DType::BF16,
        Pth::I64 => DType::I64,
        Pth::I32 => DType::I32,
        Pth::I16 => DType::I16,
        Pth::U8 | Pth::Bool => DType::U8,
        Pth::I8 => {
            let wide = tensor.bytes.iter().map(|byte| i64::from(*byte as i8));
            return Tensor::from_iter(wide, &Device::Cpu)?.reshape(tensor.shape.as_slice());
        }
    };
    Tensor::from_raw_buffer(&tensor.bytes, dtype, &tensor.shape, &Device::Cpu)
}

fn read_error(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> ModelError {
    ModelError::Read {
        path: path.to_owned(),
        source: Box::new(error),
    }
}

fn unread_metadata(key: &'static str, error: serde_json::Error) -> ModelError {
    ModelError::Metadata {
        key,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let text = read_weights(Path::new("no/such.safetensors"), Which::Teacher)
            .unwrap_err()
            .to_string();
        assert!(text.contains("no/such.safetensors"), "{text}");
    }

    #[test]
    fn a_header_as_long_as_a_magic_number_makes_no_pth() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        for first in [*b"PK", *b"\x80\x02"] {
            let length = u16::from_le_bytes(first);
            let mut file = u64::from(length).to_le_bytes().to_vec();
            file.extend(br#"{"__metadata__":{"key":"value"}}"#);
            file.resize(8 + usize::from(length), b' ');
            std::fs::write(&path, &file).unwrap();
            assert!(!is_pth(&path).unwrap());
            let weights = read_weights(&path, Which::Teacher).unwrap();
            assert_eq!(weights.metadata["key"], "value");
        }
        std::fs::write(&path, b"PK\x03\x04\0\0\x08\x08\0\0").unwrap();
        assert!(is_pth(&path).unwrap());
    }

    #[test]
    fn types_that_candle_lacks_are_bytes_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.safetensors");
        for (dtype, size) in [("BOOL", 2), ("U64", 16)] {
            let header = format!(
                r#"{{"cls_token":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{size}]}}}}"#
            );
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.as_bytes());
            file.extend(vec![1; size]);
            std::fs::write(&path, &file).unwrap();
            let read = read_weights(&path, Which::Teacher);
            if dtype == "BOOL" {
                let tensor = &read.unwrap().tensors["backbone.cls_token"];
                assert_eq!(tensor.to_vec1::<u8>().unwrap(), [1, 1]);
            } else {
                let error = read.unwrap_err();
                let error = std::error::Error::source(&error).unwrap().to_string();
                assert!(error.contains("cls_token"), "{error}");
            }
        }
    }

    fn weights_with(key: &str, text: &str) -> ImportedWeights {
        ImportedWeights {
            tensors: BTreeMap::new(),
            left_out: BTreeMap::new(),
            metadata: BTreeMap::from([(key.to_owned(), text.to_owned())]),
            layout: Layout::Selfsame,
        }
    }

    #[test]
    fn a_model_of_a_later_version_is_refused_with_the_key_and_the_cause() {
        let stated = |text: &str| weights_with(MODEL_KEY, text).stated_model();
        assert!(stated(r#"{"arch": "vit_tiny"}"#).unwrap().is_some());
        let error = stated(r#"{"arch": "vit_tiny", "rotary": true}"#).unwrap_err();
        assert!(matches!(error, ModelError::Metadata { .. }), "{error}");
        assert!(error.to_string().contains(MODEL_KEY), "{error}");
        let source = error.source().unwrap().to_string();
        assert!(source.contains("rotary"), "{source}");
    }

    #[test]
    fn an_input_that_cannot_be_read_or_is_none_is_refused() {
        let input = |text: &str| {
            let weights = weights_with(INPUT_KEY, text);
            weights.input(&Beside::default(), &ModelConfig::default())
        };
        let sound = r#"{"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}"#;
        assert_eq!(input(sound).unwrap().unwrap().image_size, 64);
        for (said, instead, told) in [
            ("\"image_size\": 64, ", "", "image_size"),
            ("[0.5, 0.5, 0.5]", "[0.5, 0.5]", "length 2"),
            ("[0.2, 0.2, 0.2]", "[0.2, 0.0, 0.2]", "std: "),
            ("64", "18446744073709551615", "image_size: "),
            ("64,", "64, \"crop_pct\": 0.9,", "crop_pct"),
        ] {
            let error = input(&sound.replace(said, instead)).unwrap_err();
            let source = error.source().map(ToString::to_string);
            let error = format!("{error}: {}", source.unwrap_or_default());
            assert!(error.contains(INPUT_KEY) && error.contains(told), "{error}");
        }
    }
}
