//! Against timm, torchvision and torch in float64 (`golden/make_golden.py`).
//!
//! Tolerances: f32 with different summation orders reaches about 1e-6 relative on features of two
//! blocks; 1e-5 still catches a wrong layer-norm eps or the tanh GELU. Gradients pass through
//! batch norm over few values, which amplifies rounding: 1e-4.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod common;

use candle_core::{Device, Tensor};
use common::{fill, gradients, larger, noise, norm, tensor, values};
use selfsame_models::pos_embed::resample_matrix;
use selfsame_models::{
    Arch, Draws, Gradients, HeadConfig, HeadKind, Mode, ModelConfig, Network, ParamStore,
    PosEmbedResample, build_backbone_with, draw_backbone,
};
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("golden/reference.json")).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

/// The largest difference, relative to the largest expected value.
fn assert_close(what: &str, found: &[f64], expected: &Value, tolerance: f64) {
    let expected = list(expected);
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let scale = expected.iter().fold(0f64, |max, v| max.max(v.abs()));
    let off = found
        .iter()
        .zip(&expected)
        .fold(0f64, |max, (a, b)| larger(max, (a - b).abs()));
    assert!(
        off <= tolerance * scale,
        "{what}: off by {:e} of {scale:e}",
        off / scale
    );
}

/// Norm and projection of a tensor, each relative to the norm.
fn assert_projection(name: &str, xs: &Tensor, expected: &Value, tolerance: f64, floor: f64) {
    let (xs, expected) = (values(xs), list(expected));
    let probe = noise(&format!("probe.{name}"), xs.len());
    let projection: f64 = xs.iter().zip(probe).map(|(x, p)| x * p).sum();
    let scale = expected[0].max(floor);
    for (what, found, expected) in [
        ("norm", norm(&xs), expected[0]),
        ("projection", projection, expected[1]),
    ] {
        let off = (found - expected).abs() / scale;
        assert!(
            off <= tolerance,
            "{name}: {what} {found:e}, expected {expected:e}"
        );
    }
}

fn assert_gradients(output: &Tensor, store: &ParamStore, expected: &Value, tolerance: f64) {
    let found = gradients(output, &store.trainable());
    let expected = expected.as_object().unwrap();
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    // A gradient that is zero in theory is rounding noise: measured against the others.
    let largest = expected
        .values()
        .fold(0f64, |max, v| max.max(v[0].as_f64().unwrap()));
    for (name, gradient) in &found {
        let gradient = gradient
            .as_ref()
            .unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_projection(name, gradient, &expected[name], tolerance, 1e-3 * largest);
    }
}

fn assert_statistics(store: &ParamStore, expected: &Value) {
    for (name, expected) in expected.as_object().unwrap() {
        assert_projection(name, store.buffers()[name].as_tensor(), expected, 1e-4, 0.0);
    }
}

fn tiny_vit() -> ModelConfig {
    ModelConfig {
        arch: Arch::VitTiny,
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        patch_size: 8,
        image_size: 32,
        pos_embed_resample: PosEmbedResample::Timm,
        ..Default::default()
    }
}

fn backbone(config: &ModelConfig) -> (ParamStore, selfsame_models::BackboneModel) {
    let store = draw_backbone(config, 0, &Device::Cpu).unwrap();
    fill(&store);
    let model = build_backbone_with(config, &store, Gradients::Recorded).unwrap();
    (store, model)
}

#[test]
fn a_vit_equals_timms_at_its_own_and_at_other_sizes() {
    let reference = &reference()["vit"];
    let (store, vit) = backbone(&tiny_vit());
    for size in [32, 16, 48] {
        let xs = tensor("input", &[2, 3, size, size], 2.0);
        let features = vit.forward(&xs, &Mode::Train(Draws::default())).unwrap();
        let expected = &reference[size.to_string()];
        assert_close(
            &format!("features at {size}"),
            &values(&features),
            &expected["features"],
            1e-5,
        );
        assert_gradients(&features, &store, &expected["gradients"], 1e-4);
    }
}

#[test]
fn intermediate_layers_and_attention_equal_timms() {
    let reference = &reference()["vit"];
    let (_, vit) = backbone(&tiny_vit());
    let xs = tensor("input", &[2, 3, 32, 32], 2.0);
    let layers = vit.intermediate_layers(&xs, 2).unwrap();
    assert_eq!(layers.len(), 2);
    for ((class, patches), expected) in layers.iter().zip(reference["layers"].as_array().unwrap()) {
        assert_eq!(patches.dims(), [2, 16, 32]);
        assert_close("class token", &values(class), &expected["class"], 1e-5);
        let first = patches.narrow(1, 0, 3).unwrap();
        assert_close("patch tokens", &values(&first), &expected["patches"], 1e-5);
    }
    let maps = vit.attention_maps(&xs, 1).unwrap().unwrap();
    assert_eq!(maps.dims(), [2, 2, 17, 17]);
    let class = vit.class_attention(&xs, 1).unwrap().unwrap();
    let row = values(&maps.narrow(2, 0, 1).unwrap());
    assert_close("the class token's row", &values(&class), &row.into(), 1e-6);
    let row = maps.narrow(2, 0, 1).unwrap();
    assert_close(
        "attention",
        &values(&row),
        &reference["attention_class_row"],
        1e-5,
    );
}

fn assert_resnet(arch: Arch, raise_biases: f64) {
    let reference = &reference()[arch.name()];
    let (store, resnet) = backbone(&ModelConfig {
        arch,
        ..Default::default()
    });
    for (name, bias) in store
        .weights()
        .iter()
        .filter(|(name, _)| name.ends_with("bias"))
    {
        let raised = (bias.as_detached_tensor() + raise_biases).unwrap();
        bias.set(&raised)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let xs = tensor("input", &[4, 3, 64, 64], 2.0);
    let check = |features: &Tensor, prefix: &str, tolerance| {
        let first = features.narrow(1, 0, 64).unwrap();
        let key = |name: &str| format!("{prefix}{name}");
        assert_close(
            &key("features"),
            &values(&first),
            &reference[key("features")],
            tolerance,
        );
        let norms = values(&features.sqr().unwrap().sum(1).unwrap().sqrt().unwrap());
        assert_close(&key("norm"), &norms, &reference[key("norm")], tolerance);
    };
    let features = resnet.forward(&xs, &Mode::Train(Draws::default())).unwrap();
    check(&features, "", 1e-4);
    assert_gradients(&features, &store, &reference["gradients"], 1e-4);
    assert_statistics(&store, &reference["statistics"]);
    let count = &store.buffers()["backbone.bn1.num_batches_tracked"];
    assert_eq!(count.to_scalar::<i64>().unwrap(), 1);
    check(&resnet.forward(&xs, &Mode::Eval).unwrap(), "eval_", 1e-5);
}

#[test]
fn a_resnet18_trains_and_evaluates_as_torchvisions() {
    assert_resnet(Arch::Resnet18, 0.0);
}

#[test]
fn a_resnet50_trains_and_evaluates_as_torchvisions() {
    // Away from the kinks of ReLU: torch's own f32 gradients are off by 6 % otherwise.
    assert_resnet(Arch::Resnet50, 3.0);
}

#[test]
fn both_heads_equal_their_definitions_in_torch() {
    for (key, expected) in reference()["heads"].as_object().unwrap() {
        let official = key.starts_with("official");
        let head = HeadConfig {
            kind: if official {
                HeadKind::Official
            } else {
                HeadKind::Notebook
            },
            out_dim: 24,
            hidden_dim: 20,
            bottleneck_dim: 12,
            norm_last_layer: key.contains("_norm"),
            use_bn: key.contains("_bn"),
        };
        // The head alone is not public: features of width 16 come from a network whose backbone
        // is not run.
        let model = ModelConfig {
            embed_dim: 16,
            num_heads: 1,
            ..tiny_vit()
        };
        let (network, store) = Network::new(&model, &head, 0, &Device::Cpu).unwrap();
        fill(&store);
        let features = tensor("input", &[6, 16], 2.0);
        let mode = Mode::Train(Draws::default());
        let logits = network.head().forward(&features, &mode).unwrap();
        assert_close(key, &values(&logits), &expected["logits"], 1e-5);
        let mut found = gradients(&logits, &store.trainable());
        found.retain(|name, _| name.starts_with("head."));
        let gradients = expected["gradients"].as_object().unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            gradients.keys().collect::<Vec<_>>(),
            "{key}"
        );
        let largest = gradients
            .values()
            .fold(0f64, |max, v| max.max(v[0].as_f64().unwrap()));
        for (name, gradient) in found {
            let gradient = gradient.unwrap_or_else(|| panic!("{key}: {name} has no gradient"));
            assert_projection(&name, &gradient, &gradients[&name], 1e-4, 1e-3 * largest);
        }
        assert_statistics(&store, &expected["statistics"]);
    }
}

#[test]
fn position_matrices_equal_torchs_interpolation() {
    for case in reference()["position_embeddings"].as_array().unwrap() {
        let mode: PosEmbedResample = serde_json::from_value(case["mode"].clone()).unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (side, rows, columns) = (size("side"), size("rows"), size("columns"));
        let matrix = resample_matrix(mode, (side, side), (rows, columns));
        let grids = noise("grid", 2 * side * side);
        let found: Vec<f64> = grids
            .chunks_exact(side * side)
            .flat_map(|grid| {
                matrix.chunks_exact(side * side).map(move |row| {
                    row.iter()
                        .zip(grid)
                        .map(|(weight, value)| f64::from(*weight) * value)
                        .sum()
                })
            })
            .collect();
        // The matrix is rounded to f32 once; everything else is f64 on both sides.
        let what = format!("{mode:?} {side} -> {rows}x{columns}");
        assert_close(&what, &found, &case["values"], 1e-6);
    }
}
