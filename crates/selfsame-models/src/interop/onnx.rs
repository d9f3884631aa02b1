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

use crate::backbone::check_backbone;
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
/// [`ModelError::Config`] for an unsound configuration, [`ModelError::Weights`] if the tensors are
/// not those of its backbone, [`ModelError::TooLarge`] if the model is over 2 GB.
pub fn encode(
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, ModelError> {
    check_backbone(config, tensors)?;
    let mut graph = Graph::new(tensors);
    let outputs = match config.vit_dims() {
        Some(dims) => vit::build(config, dims, &mut graph)?,
        None => resnet::build(config, &mut graph)?,
    };
    let side = config.vit_dims().map(|_| config.image_size);
    let model = graph.finish(side, outputs, metadata);
    let bytes = model.encoded_len();
    if bytes > MAX_BYTES {
        return Err(ModelError::TooLarge {
            bytes,
            most: MAX_BYTES,
        });
    }
    Ok(model.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_core::Device;

    use super::*;
    use crate::backbone::draw_backbone;
    use crate::config::{Arch, MlpKind};

    fn models() -> Vec<ModelConfig> {
        let vit = ModelConfig {
            embed_dim: 32,
            depth: 2,
            num_heads: 2,
            patch_size: 8,
            image_size: 32,
            ..Default::default()
        };
        let dinov2 = ModelConfig {
            num_registers: 3,
            layer_scale: 1e-5,
            mlp: MlpKind::Swiglu,
            ..vit.clone()
        };
        let resnet = |arch| ModelConfig {
            arch,
            ..Default::default()
        };
        vec![vit, dinov2, resnet(Arch::Resnet18), resnet(Arch::Resnet50)]
    }

    /// What onnx's checker asks for, without it: names are defined once and before their use, and
    /// every constant and output has its place.
    #[test]
    fn every_name_is_defined_once_before_it_is_used() {
        for config in models() {
            let tensors = draw_backbone(&config, 0, &Device::Cpu).unwrap().tensors();
            let metadata = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
            let bytes = encode(&config, &tensors, &metadata).unwrap();
            assert_eq!(bytes, encode(&config, &tensors, &metadata).unwrap());
            let model = proto::Model::decode(bytes.as_slice()).unwrap();
            assert_eq!(model.opset_import[0].version, OPSET);
            assert_eq!(model.metadata_props[0].value, "value");
            let graph = model.graph.unwrap();
            let mut defined: BTreeSet<&str> = BTreeSet::from([graph.input[0].name.as_str()]);
            for constant in &graph.initializer {
                let count: i64 = constant.dims.iter().product();
                let width = if constant.data_type == 1 { 4 } else { 8 };
                assert_eq!(constant.raw_data.len() as i64, count * width);
                assert!(defined.insert(&constant.name), "{}", constant.name);
            }
            let mut used: BTreeSet<&str> = BTreeSet::new();
            for node in &graph.node {
                for input in &node.input {
                    assert!(defined.contains(input.as_str()), "{input} of {}", node.name);
                    used.insert(input);
                }
                assert!(defined.insert(&node.output[0]), "{}", node.name);
                assert!(defined.insert(&node.name), "{} is a value too", node.name);
            }
            for output in &graph.output {
                assert!(defined.contains(output.name.as_str()), "{}", output.name);
            }
            for constant in &graph.initializer {
                assert!(used.contains(constant.name.as_str()), "{}", constant.name);
            }
        }
    }

    #[test]
    fn tensors_that_are_not_the_resnets_are_named() {
        let config = &models()[2];
        let tensors = draw_backbone(config, 0, &Device::Cpu).unwrap().tensors();
        let refused = |tensors: &BTreeMap<String, Tensor>, name: &str| {
            let error = encode(config, tensors, &BTreeMap::new()).unwrap_err();
            assert!(matches!(error, ModelError::Weights(_)));
            assert!(error.to_string().contains(name), "{error}");
        };
        for name in ["layer4.1.conv1.weight", "layer2.0.downsample.0.weight"] {
            let name = format!("backbone.{name}");
            let mut fewer = tensors.clone();
            let tensor = fewer.remove(&name).unwrap();
            refused(&fewer, &name);
            fewer.insert(name.clone(), tensor.narrow(0, 0, 1).unwrap());
            refused(&fewer, &name);
        }
        let mut more = tensors.clone();
        let third = "backbone.layer4.2.conv1.weight";
        more.insert(
            third.to_owned(),
            tensors["backbone.layer4.1.conv1.weight"].clone(),
        );
        refused(&more, third);
        let counted = |name: &String| name.ends_with("num_batches_tracked");
        let mut uncounted = tensors;
        uncounted.retain(|name, _| !counted(name));
        assert!(encode(config, &uncounted, &BTreeMap::new()).is_ok());
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let config = &models()[0];
        let mut tensors = draw_backbone(config, 0, &Device::Cpu).unwrap().tensors();
        tensors.remove("backbone.blocks.1.mlp.fc2.bias");
        let error = encode(config, &tensors, &BTreeMap::new()).unwrap_err();
        assert!(
            error.to_string().contains("blocks.1.mlp.fc2.bias"),
            "{error}"
        );
    }
}
