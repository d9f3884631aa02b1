//! Backbones as ONNX models, opset 17, for any runtime.
//!
//! The input is `pixels`, `[batch, 3, H, W]`, normalised with the mean and standard deviation that
//! stand in the model's metadata. A vision transformer has one image size and gives `class_token`
//! `[batch, D]` and `patch_tokens` `[batch, N, D]`, both after the final norm; a ResNet takes any
//! size and gives `features` `[batch, D]` and `feature_map` `[batch, D, H/32, W/32]`.

mod graph;
mod proto;
mod resnet;
mod vit;

use std::collections::BTreeMap;

use candle_core::Tensor;
use prost::Message;

use crate::backbone::backbone_specs;
use crate::config::ModelConfig;
use crate::error::ModelError;
use graph::Graph;

/// The operator set that the model asks for: the first with layer norm.
pub const OPSET: i64 = 17;

/// Protocol buffers end here.
const MAX_BYTES: usize = i32::MAX as usize;

/// The bytes of an ONNX file.
///
/// `tensors` are the backbone's, named `backbone.…`; `metadata` is written into the model.
/// # Errors
/// [`ModelError::Config`] for an unsound configuration, [`ModelError::Unrecognised`] if a tensor is
/// missing or the model is over 2 GB.
pub fn encode(
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, ModelError> {
    backbone_specs(config)?;
    let mut graph = Graph::new(tensors);
    let outputs = match config.vit_dims() {
        Some(dims) => vit::build(config, dims, &mut graph)?,
        None => resnet::build(config, &mut graph)?,
    };
    let side = config.vit_dims().map(|_| config.image_size);
    let model = graph.finish(side, outputs, metadata);
    let bytes = model.encoded_len();
    if bytes > MAX_BYTES {
        return Err(ModelError::Unrecognised(format!(
            "the model has {bytes} bytes, and an ONNX file at most {MAX_BYTES}"
        )));
    }
    Ok(model.encode_to_vec())
}
