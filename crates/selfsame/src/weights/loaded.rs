//! A backbone with what is known of it.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use selfsame_models::{BackboneModel, INPUT_KEY, InputConfig, MODEL_KEY, ModelConfig, ParamStore};

/// A backbone and what it was trained with.
pub(crate) struct Loaded {
    /// Its architecture.
    pub(crate) model: ModelConfig,
    /// Its parameters, under `backbone.`.
    pub(crate) params: ParamStore,
    /// The network over them, without gradients.
    pub(crate) backbone: BackboneModel,
    /// Size and normalisation of its training pictures, if known.
    pub(crate) input: InputConfig,
    /// Whose names the tensors had where they came from.
    pub(crate) layout: &'static str,
    /// What came with the backbone and is not used, such as a head: name and shape.
    pub(crate) others: BTreeMap<String, Vec<usize>>,
    /// The projection head's tensors, under `head.`, if there is one.
    pub(crate) head: BTreeMap<String, Tensor>,
    /// How many tensors of the backbone's file have which element type; empty for a drawn one.
    pub(crate) dtypes: BTreeMap<String, usize>,
    /// The text metadata of the file.
    pub(crate) file_metadata: BTreeMap<String, String>,
}

impl Loaded {
    /// What a weights file says about itself, so that it opens without flags.
    pub(crate) fn metadata(&self) -> anyhow::Result<BTreeMap<String, String>> {
        self.metadata_for(&self.input)
    }

    /// The same of weights that were then trained on other pictures.
    pub(crate) fn metadata_for(
        &self,
        input: &InputConfig,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        Ok(BTreeMap::from([
            (MODEL_KEY.to_owned(), serde_json::to_string(&self.model)?),
            (INPUT_KEY.to_owned(), serde_json::to_string(input)?),
        ]))
    }

    /// Whether both are the same numbers under the same names.
    pub(crate) fn same_weights(&self, other: &Self) -> anyhow::Result<bool> {
        let (ours, theirs) = (self.params.tensors(), other.params.tensors());
        if !ours.keys().eq(theirs.keys()) {
            return Ok(false);
        }
        for (tensor, other) in ours.values().zip(theirs.values()) {
            // A batch norm counts its batches in an integer.
            if (tensor.dtype(), tensor.dims()) != (other.dtype(), other.dims()) {
                return Ok(false);
            }
            let differs = tensor.ne(other)?.flatten_all()?.max(0)?;
            if differs.to_scalar::<u8>()? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tensors of the backbone with a value that is NaN or infinite.
    pub(crate) fn not_finite(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, tensor) in self.params.tensors() {
            if !name.starts_with("backbone.") {
                continue;
            }
            // Zero times a number is zero, of which a sum cannot overflow; all others stay NaN.
            let sum = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?;
            if !sum.to_scalar::<f32>()?.is_finite() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Counts element types, keeps the head of what was read with the backbone, lists the rest.
    pub(super) fn take_rest(&mut self, tensors: BTreeMap<String, Tensor>) {
        for (name, tensor) in tensors {
            if name.starts_with("backbone.") {
                let dtype = tensor.dtype().as_str().to_owned();
                *self.dtypes.entry(dtype).or_default() += 1;
            } else {
                self.others.insert(name.clone(), tensor.dims().to_vec());
                if name.starts_with("head.") {
                    self.head.insert(name, tensor);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use crate::cli::Which;
    use crate::weights::Weights;

    #[test]
    fn the_same_weights_are_told_in_every_network() {
        let drawn =
            |spec: String| Weights::open(&spec, Which::Teacher, None, &Device::Cpu).unwrap();
        for arch in ["vit_tiny/16@32", "resnet18"] {
            let [first, again, other] =
                ["0", "0", "1"].map(|seed| drawn(format!("random:{arch}?seed={seed}")));
            let first = first.backbone().unwrap();
            assert!(first.same_weights(again.backbone().unwrap()).unwrap());
            assert!(!first.same_weights(other.backbone().unwrap()).unwrap());
        }
    }

    #[test]
    fn a_head_that_no_model_here_has_does_not_refuse_the_backbone() {
        let drawn = Weights::open("random:vit_tiny/16@32", Which::Teacher, None, &Device::Cpu);
        let drawn = drawn.unwrap();
        let drawn = drawn.backbone().unwrap();
        let mut tensors: HashMap<String, Tensor> = drawn.params.tensors().into_iter().collect();
        let weight = Tensor::zeros((8, 192), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("head.mlp.0.weight".to_owned(), weight);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("teacher.safetensors");
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let read = Weights::open_at(&path, Which::Teacher, None, &Device::Cpu).unwrap();
        let read = read.backbone().unwrap();
        assert!(read.same_weights(drawn).unwrap());
        assert_eq!(read.others["head.mlp.0.weight"], [8, 192]);
    }
}
