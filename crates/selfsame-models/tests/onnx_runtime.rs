//! The ONNX files run by rten, a runtime in Rust that knows nothing of ours, against our features.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use selfsame_models::interop::onnx::encode;
use selfsame_models::{
    Arch, MlpKind, Mode, ModelConfig, ParamStore, build_backbone, draw_backbone,
};

/// A network of two blocks for pictures of 32 pixels.
fn vit() -> ModelConfig {
    ModelConfig {
        arch: Arch::VitTiny,
        patch_size: 8,
        image_size: 32,
        embed_dim: 48,
        depth: 2,
        num_heads: 3,
        ..ModelConfig::default()
    }
}

/// Weights far from their first values, so that biases, scales and positions matter; variances
/// stay positive.
fn weights(config: &ModelConfig) -> ParamStore {
    let store = draw_backbone(config, 3, &Device::Cpu).unwrap();
    for var in store.weights().values() {
        let noise = Tensor::randn(0f32, 0.05, var.shape(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    store
}

/// Runs a file on `[batch, 3, height, width]` pictures; shape and values of each output asked for.
fn run(file: &[u8], pixels: &Tensor, outputs: [&str; 2]) -> [(Vec<usize>, Vec<f32>); 2] {
    let model = rten::Model::load(file.to_vec()).unwrap();
    let (b, c, h, w) = pixels.dims4().unwrap();
    let values: Vec<f32> = pixels.flatten_all().unwrap().to_vec1().unwrap();
    let input = NdTensor::from_data([b, c, h, w], values);
    let ids = outputs.map(|name| model.node_id(name).unwrap());
    let pixels = model.node_id("pixels").unwrap();
    let given = model
        .run_n(vec![(pixels, input.view().into())], ids, None)
        .unwrap();
    given.map(|value| {
        let value: rten_tensor::Tensor<f32> = value.try_into().unwrap();
        (value.shape().to_vec(), value.iter().copied().collect())
    })
}

/// Norm of the difference over the norm of ours.
fn apart(ours: &Tensor, (shape, theirs): &(Vec<usize>, Vec<f32>)) -> f64 {
    assert_eq!(ours.dims(), shape.as_slice());
    let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
    let square = |x: f32| f64::from(x) * f64::from(x);
    let gap: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    (gap / ours.iter().map(|a| square(*a)).sum::<f64>()).sqrt()
}

/// A file of `config` gives our features for so many pictures of such height and width.
fn agrees(config: &ModelConfig, batches: &[(usize, usize, usize)]) {
    let store = weights(config);
    let file = encode(config, &store.tensors(), &BTreeMap::new()).unwrap();
    let ours = build_backbone(config, &store).unwrap();
    let names = match config.arch.is_vit() {
        true => ["class_token", "patch_tokens"],
        false => ["features", "feature_map"],
    };
    for &(batch, height, width) in batches {
        let pixels = Tensor::randn(0f32, 1.0, (batch, 3, height, width), &Device::Cpu).unwrap();
        let theirs = run(&file, &pixels, names);
        let features = ours.forward(&pixels, &Mode::Eval).unwrap();
        let (_, patches) = ours.intermediate_layers(&pixels, 1).unwrap().remove(0);
        let local = match config.arch.is_vit() {
            true => patches,
            false => {
                let map = patches.transpose(1, 2).unwrap().contiguous().unwrap();
                let shape = (batch, ours.embed_dim(), height / 32, width / 32);
                map.reshape(shape).unwrap()
            }
        };
        for (name, (ours, theirs)) in names.iter().zip([features, local].iter().zip(&theirs)) {
            let difference = apart(ours, theirs);
            // Sums in another order, in f32: 1e-6 was seen, a wrong constant is above 1e-3.
            assert!(
                difference < 1e-4,
                "{name} of {batch} × {height} × {width}: {difference:e}"
            );
        }
    }
}

#[test]
fn a_vision_transformer_runs_elsewhere_with_the_same_features() {
    agrees(&vit(), &[(1, 32, 32), (3, 32, 32)]);
}

#[test]
fn layer_scale_registers_and_swiglu_run_elsewhere_too() {
    let dinov2 = ModelConfig {
        num_registers: 3,
        layer_scale: 0.3,
        mlp: MlpKind::Swiglu,
        ..vit()
    };
    agrees(&dinov2, &[(1, 32, 32), (3, 32, 32)]);
}

#[test]
fn a_resnet_runs_elsewhere_at_any_size() {
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..ModelConfig::default()
    };
    agrees(&resnet, &[(1, 32, 32), (2, 64, 32)]);
}
