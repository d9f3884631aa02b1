//! Our models against those of candle-transformers, over the same weights at their native size.

#![cfg(feature = "reference")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod common;

use candle_core::Device;
use common::{fill, norm, tensor, values};
use selfsame_models::{
    Arch, MlpKind, Mode, ModelConfig, build_backbone, draw_backbone, reference_backbone,
};

fn vit(image_size: usize, patch_size: usize) -> ModelConfig {
    ModelConfig {
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        image_size,
        patch_size,
        ..Default::default()
    }
}

/// Norm of the difference of all features over the norm of theirs.
fn difference(model: &ModelConfig, images: usize) -> f64 {
    let store = draw_backbone(model, 0, &Device::Cpu).unwrap();
    fill(&store);
    let ours = build_backbone(model, &store).unwrap();
    let theirs = reference_backbone(model, &store.tensors(), &Device::Cpu).unwrap();
    assert_eq!(theirs.embed_dim(), ours.embed_dim());
    let side = model.image_size;
    let xs = tensor("images", &[images, 3, side, side], 1.0);
    let ours = values(&ours.forward(&xs, &Mode::Eval).unwrap());
    let theirs = values(&theirs.forward(&xs, &Mode::Eval).unwrap());
    assert_eq!(ours.len(), theirs.len());
    let off: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
    norm(&off) / norm(&theirs)
}

#[test]
fn the_vision_transformer_is_the_same() {
    let off = difference(&vit(32, 8), 3);
    assert!(off < 1e-5, "{off:e}");
}

#[test]
fn dinov2_differs_by_the_form_of_gelu_and_eps_only() {
    for registers in [0, 4] {
        let model = ModelConfig {
            num_registers: registers,
            layer_scale: 1e-5,
            ..vit(518, 14)
        };
        let off = difference(&model, 2);
        // The tanh form alone makes about 1e-4: neither the same nor something else.
        assert!(
            (1e-6..2e-3).contains(&off),
            "{registers} registers: {off:e}"
        );
    }
}

#[test]
fn what_candle_transformers_lacks_is_refused_with_the_key() {
    let refused = |model: ModelConfig| {
        let store = draw_backbone(&model, 0, &Device::Cpu).unwrap();
        let error = reference_backbone(&model, &store.tensors(), &Device::Cpu);
        error.unwrap_err().to_string()
    };
    let dinov2 = ModelConfig {
        layer_scale: 1e-5,
        ..vit(32, 8)
    };
    assert!(refused(dinov2.clone()).contains("model.image_size"));
    let swiglu = ModelConfig {
        mlp: MlpKind::Swiglu,
        ..dinov2
    };
    assert!(refused(swiglu).contains("model.mlp"));
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..Default::default()
    };
    assert!(refused(resnet).contains("model.arch"));

    let model = vit(32, 8);
    let store = draw_backbone(&model, 0, &Device::Cpu).unwrap();
    let theirs = reference_backbone(&model, &store.tensors(), &Device::Cpu).unwrap();
    let larger = tensor("images", &[1, 3, 48, 48], 1.0);
    assert!(theirs.forward(&larger, &Mode::Eval).is_err());
}
