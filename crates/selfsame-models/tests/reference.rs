//! Our backbones beside candle-transformers' with the same weights.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use candle_core::{DType, Device, Tensor};
use selfsame_models::{
    Arch, MlpKind, Mode, ModelConfig, ModelError, ParamStore, build_backbone, draw_backbone,
    reference_backbone,
};

fn config() -> ModelConfig {
    ModelConfig {
        arch: Arch::VitTiny,
        patch_size: 8,
        image_size: 32,
        embed_dim: 64,
        depth: 3,
        num_heads: 2,
        ..ModelConfig::default()
    }
}

/// Weights far from their first values, so that biases, scales and positions matter.
fn weights(config: &ModelConfig) -> ParamStore {
    let store = draw_backbone(config, 7, &Device::Cpu).unwrap();
    for var in store.weights().values() {
        let noise = Tensor::randn(0f32, 0.05, var.shape(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    store
}

fn pictures(size: usize) -> Tensor {
    Tensor::randn(0f32, 1.0, (2, 3, size, size), &Device::Cpu).unwrap()
}

/// Norm of the difference over the norm of the reference.
fn apart(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let norm = |xs: &Tensor| {
        let xs = xs.to_dtype(DType::F64).unwrap();
        xs.sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
            .sqrt()
    };
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

/// Class token and patch tokens of both, as differences.
fn both(config: &ModelConfig, size: usize) -> [f64; 3] {
    let store = weights(config);
    let ours = build_backbone(config, &store).unwrap();
    let theirs = reference_backbone(config, &store).unwrap();
    let xs = pictures(size);
    let features = apart(
        &ours.forward(&xs, &Mode::Eval).unwrap(),
        &theirs.forward(&xs, &Mode::Eval).unwrap(),
    );
    let (our_class, our_patches) = ours.intermediate_layers(&xs, 1).unwrap().remove(0);
    let (their_class, their_patches) = theirs.intermediate_layers(&xs, 1).unwrap().remove(0);
    [
        features,
        apart(&our_class, &their_class),
        apart(&our_patches, &their_patches),
    ]
}

#[test]
fn vit_agrees_to_rounding() {
    for difference in both(&config(), 32) {
        assert!(difference < 1e-5, "{difference:e}");
    }
}

/// Theirs has the tanh form of GELU and another eps, ours the published model's: the difference
/// is there and small.
#[test]
fn dinov2_agrees_up_to_the_known_differences() {
    let config = ModelConfig {
        patch_size: 14,
        image_size: 518,
        depth: 2,
        layer_scale: 1.0,
        ..config()
    };
    for difference in both(&config, 518) {
        assert!((1e-7..3e-3).contains(&difference), "{difference:e}");
    }
}

#[test]
fn what_candle_transformers_lacks_is_refused() {
    let refused = |config: &ModelConfig| {
        let store = draw_backbone(config, 0, &Device::Cpu).unwrap();
        match reference_backbone(config, &store) {
            Err(ModelError::Config(problems)) => problems.join(" "),
            other => panic!("{other:?}"),
        }
    };
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..ModelConfig::default()
    };
    assert!(refused(&resnet).contains("model.arch"));
    let small = ModelConfig {
        layer_scale: 1.0,
        ..config()
    };
    assert!(refused(&small).contains("model.image_size"));
    let native = ModelConfig {
        patch_size: 14,
        image_size: 518,
        ..small
    };
    let registers = ModelConfig {
        num_registers: 4,
        ..native.clone()
    };
    assert!(refused(&registers).contains("registers"));
    let swiglu = ModelConfig {
        mlp: MlpKind::Swiglu,
        ..native
    };
    assert!(refused(&swiglu).contains("SwiGLU"));
}

#[test]
fn another_size_is_an_error_that_names_the_native_one() {
    let store = weights(&config());
    let theirs = reference_backbone(&config(), &store).unwrap();
    let error = theirs.forward(&pictures(40), &Mode::Eval).unwrap_err();
    assert!(error.to_string().contains("native size of 32"), "{error}");
    assert!(theirs.attention_maps(&pictures(32), 0).unwrap().is_none());
    assert_eq!(theirs.embed_dim(), 64);
}
