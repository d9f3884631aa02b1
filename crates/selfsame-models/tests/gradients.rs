//! Every parameter of every architecture learns, and learns in the right direction.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod common;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::{gradients, norm, perturb, tensor, values};
use selfsame_models::{
    Arch, Draws, Gradients, HeadConfig, HeadKind, Mode, ModelConfig, Network, ParamStore,
    build_backbone_with, draw_backbone,
};

const TRAIN: Mode = Mode::Train(Draws {
    seed: 5,
    step: 0,
    micro_batch: 0,
    first_row: 0,
});

fn heads() -> Vec<HeadConfig> {
    let mut heads = Vec::new();
    for kind in [HeadKind::Notebook, HeadKind::Official] {
        for (norm_last_layer, use_bn) in [(true, false), (false, true)] {
            heads.push(HeadConfig {
                kind,
                out_dim: 32,
                hidden_dim: 48,
                bottleneck_dim: 16,
                norm_last_layer,
                use_bn,
            });
        }
    }
    heads
}

/// Gradient norms of a network on two resolutions from a start away from all special values.
fn gradient_norms(
    model: &ModelConfig,
    head: &HeadConfig,
    sizes: [usize; 2],
) -> (BTreeMap<String, Vec<f64>>, ParamStore) {
    let (network, store) = Network::new(model, head, 1, &Device::Cpu).unwrap();
    perturb(&store, 0.05);
    let crops = [
        tensor("global", &[4, 3, sizes[0], sizes[0]], 2.0),
        tensor("local", &[4, 3, sizes[1], sizes[1]], 2.0),
    ];
    let logits = network.forward_all(&crops, &TRAIN).unwrap();
    assert_eq!(logits.dims(), [8, head.out_dim]);
    let gradients = gradients(&logits, &store.trainable())
        .into_iter()
        .map(|(name, gradient)| {
            let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
            (name, values(&gradient))
        });
    (gradients.collect(), store)
}

fn assert_all_learn(gradients: &BTreeMap<String, Vec<f64>>, blind: &[&str]) {
    for (name, gradient) in gradients {
        assert!(
            gradient.iter().all(|g| g.is_finite()),
            "{name} has a gradient that is not finite"
        );
        // A shift that a linear layer takes into batch norm moves nothing, by theory.
        if !blind.contains(&name.as_str()) {
            assert!(
                norm(gradient) > 1e-4,
                "{name} has gradient {:e}",
                norm(gradient)
            );
        }
    }
}

fn vit(arch: Arch) -> ModelConfig {
    ModelConfig {
        arch,
        depth: 2,
        patch_size: 8,
        image_size: 32,
        drop_path_rate: 0.1,
        ..Default::default()
    }
}

#[test]
fn every_parameter_of_every_head_gets_a_gradient() {
    for head in heads() {
        let (gradients, _) = gradient_norms(&vit(Arch::VitTiny), &head, [32, 16]);
        let blind: &[&str] = match (head.use_bn, head.kind) {
            (true, HeadKind::Official) => {
                &["backbone.norm.bias", "head.mlp.0.bias", "head.mlp.3.bias"]
            }
            _ => &[],
        };
        assert_all_learn(&gradients, blind);
    }
}

#[test]
fn every_parameter_of_a_vit_gets_a_gradient() {
    for arch in [Arch::VitSmall, Arch::VitBase] {
        let (gradients, _) = gradient_norms(&vit(arch), &heads()[2], [32, 16]);
        assert_all_learn(&gradients, &[]);
    }
}

#[test]
fn the_key_bias_alone_gets_none_because_softmax_cancels_it() {
    let (gradients, _) = gradient_norms(&vit(Arch::VitTiny), &heads()[0], [32, 16]);
    for block in 0..2 {
        let gradient = &gradients[&format!("backbone.blocks.{block}.attn.qkv.bias")];
        let [query, key, value] = [0, 1, 2].map(|part| norm(&gradient[part * 192..][..192]));
        assert!(
            query > 1e-4 && value > 1e-4,
            "query {query:e}, value {value:e}"
        );
        assert!(key < 1e-4 * value, "key {key:e}, value {value:e}");
    }
}

#[test]
fn every_parameter_of_a_resnet_gets_a_gradient() {
    for arch in [Arch::Resnet18, Arch::Resnet50] {
        let model = ModelConfig {
            arch,
            ..Default::default()
        };
        let head = HeadConfig {
            out_dim: 16,
            ..heads()[2].clone()
        };
        let (gradients, _) = gradient_norms(&model, &head, [64, 32]);
        assert_all_learn(&gradients, &[]);
    }
}

/// <output, fixed direction> changes along the gradient as the gradient says.
///
/// In f32 the quotient itself is good to about 1e-3 of the slope, hence the tolerance.
fn assert_slope(store: &ParamStore, loss: impl Fn() -> Tensor, step: f64) {
    let output = loss();
    let project = |output: &Tensor| -> f64 {
        let direction = values(&tensor("direction", output.dims(), 1.0));
        values(output)
            .iter()
            .zip(direction)
            .map(|(a, b)| a * b)
            .sum()
    };
    let mut checked = 0;
    for (name, gradient) in gradients(&output, &store.trainable()) {
        let var = &store.weights()[&name];
        let gradient = gradient.unwrap();
        let slope = norm(&values(&gradient));
        if slope < 1e-2 {
            continue;
        }
        let direction = (gradient / slope).unwrap();
        let start = var.as_detached_tensor().copy().unwrap();
        let at = |distance: f64| {
            var.set(&(&start + (&direction * distance).unwrap()).unwrap())
                .unwrap();
            project(&loss())
        };
        let quotient = (at(step) - at(-step)) / (2.0 * step);
        var.set(&start).unwrap();
        assert!(
            (quotient / slope - 1.0).abs() < 0.02,
            "{name}: {quotient} against {slope}"
        );
        checked += 1;
    }
    assert!(checked > 20, "{checked} gradients are large enough");
}

#[test]
fn the_gradient_of_a_vit_is_its_slope() {
    let model = ModelConfig {
        arch: Arch::VitTiny,
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        patch_size: 8,
        image_size: 32,
        drop_path_rate: 0.2,
        ..Default::default()
    };
    let store = draw_backbone(&model, 1, &Device::Cpu).unwrap();
    perturb(&store, 0.2);
    let vit = build_backbone_with(&model, &store, Gradients::Recorded).unwrap();
    let xs = tensor("input", &[3, 3, 16, 16], 2.0);
    assert_slope(&store, || vit.forward(&xs, &TRAIN).unwrap(), 1e-2);
}
