//! Seven steps of every optimizer against PyTorch: groups, clipping, a layer that starts late.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/trajectories.json")).unwrap()
}

fn floats(json: &Value) -> Vec<f32> {
    json.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect()
}

/// Tensors of a JSON object, in the shapes of the golden file.
fn tensors(golden: &Value, json: &Value) -> BTreeMap<String, Tensor> {
    let tensor = |(name, values): (&String, &Value)| {
        let shape = golden["shapes"][name].as_array().unwrap();
        let shape: Vec<usize> = shape.iter().map(|n| n.as_u64().unwrap() as usize).collect();
        (
            name.clone(),
            Tensor::from_vec(floats(values), shape, &Device::Cpu).unwrap(),
        )
    };
    json.as_object().unwrap().iter().map(tensor).collect()
}

fn variables(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Var> {
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), Var::from_tensor(t).unwrap()))
        .collect()
}

/// How a run may deviate from the golden one, to see that the comparison would notice.
#[derive(Clone, Copy)]
struct Options {
    decayed: Decayed,
    clip_mode: ClipMode,
}

fn options(case: &Value) -> Options {
    Options {
        decayed: match case["decay_bias_and_norm"].as_bool().unwrap() {
            true => Decayed::All,
            false => Decayed::WeightsOnly,
        },
        clip_mode: serde_json::from_value(case["clip_mode"].clone()).unwrap(),
    }
}

/// The largest deviation from the golden parameters, norms and state, relative to 1 or the value.
fn largest_deviation(golden: &Value, case: &Value, options: Options) -> f32 {
    let kind: OptimizerKind = serde_json::from_value(case["kind"].clone()).unwrap();
    let weights = variables(&tensors(golden, &case["start"]));
    let mut optimizer = Optimizer::new(kind, &weights, options.decayed).unwrap();
    let mut largest = 0f32;
    let mut compare = |got: &Tensor, want: &[f32]| {
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!(got.is_finite(), "{got} instead of {want}");
            largest = largest.max((got - want).abs() / want.abs().max(1.0));
        }
    };
    for (step, now) in case["steps"].as_array().unwrap().iter().enumerate() {
        let number = |key: &str| now[key].as_f64().unwrap();
        let mut grads = Grads::new(tensors(golden, &now["grads"]));
        let norm = grads
            .clip(case["clip"].as_f64().unwrap(), options.clip_mode)
            .unwrap();
        compare(
            &Tensor::new(norm as f32, &Device::Cpu).unwrap(),
            &[number("norm") as f32],
        );
        if (step as u64) < golden["freeze_steps"].as_u64().unwrap() {
            assert_eq!(grads.drop_prefix("head.last_layer"), 2);
        }
        optimizer
            .step(&weights, &grads, number("lr"), number("weight_decay"))
            .unwrap();
        for (name, want) in now["params"].as_object().unwrap() {
            compare(&weights[name], &floats(want));
        }
    }
    let state = optimizer.state().unwrap();
    let wanted = case["state"].as_object().unwrap();
    assert!(state.keys().eq(wanted.keys()), "{:?}", state.keys());
    for (name, want) in wanted {
        compare(&state[name], &floats(want));
    }
    largest
}

/// All is f32 on both sides with values of order 1, seven steps and a few roundings in each; the
/// factor of clipping is f32 in PyTorch and f64 here.
const TOLERANCE: f32 = 3e-6;

#[test]
fn every_optimizer_walks_as_in_pytorch() {
    let golden = golden();
    for case in golden["cases"].as_array().unwrap() {
        let deviation = largest_deviation(&golden, case, options(case));
        let what = (
            &case["kind"],
            &case["decay_bias_and_norm"],
            &case["clip_mode"],
        );
        assert!(deviation < TOLERANCE, "{what:?} is off by {deviation}");
    }
}

#[test]
fn the_comparison_notices_swapped_groups_and_swapped_clipping() {
    let golden = golden();
    for case in golden["cases"].as_array().unwrap() {
        let right = options(case);
        // LARS never decays one-dimensional parameters, so there is nothing to swap.
        if case["kind"] != "lars" {
            let swapped = Options {
                decayed: match right.decayed {
                    Decayed::All => Decayed::WeightsOnly,
                    Decayed::WeightsOnly => Decayed::All,
                },
                ..right
            };
            assert!(largest_deviation(&golden, case, swapped) > 100.0 * TOLERANCE);
        }
        if case["clip"].as_f64().unwrap() > 0.0 {
            let clip_mode = match right.clip_mode {
                ClipMode::Global => ClipMode::PerParameter,
                ClipMode::PerParameter => ClipMode::Global,
            };
            let swapped = Options { clip_mode, ..right };
            assert!(largest_deviation(&golden, case, swapped) > 100.0 * TOLERANCE);
        }
    }
}
