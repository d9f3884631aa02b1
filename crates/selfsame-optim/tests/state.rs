//! State: which parameters have some, a resumed run, and what is refused.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind, StateError};

const KINDS: [OptimizerKind; 3] = [
    OptimizerKind::AdamW,
    OptimizerKind::Sgd,
    OptimizerKind::Lars,
];

fn tensor(seed: usize, shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len)
        .map(|i| ((7 * i + 13 * seed) as f32).sin())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn weights() -> BTreeMap<String, Var> {
    let var = |seed, shape: &[usize]| Var::from_tensor(&tensor(seed, shape)).unwrap();
    BTreeMap::from([
        ("body.bias".to_owned(), var(1, &[3])),
        ("body.weight".to_owned(), var(2, &[5, 3])),
        ("last.weight".to_owned(), var(3, &[2, 2])),
    ])
}

fn grads(step: usize) -> Grads {
    let named =
        |name: &str, seed, shape: &[usize]| (name.to_owned(), tensor(seed + 50 * step, shape));
    let tensors = [
        named("body.bias", 10, &[3]),
        named("body.weight", 20, &[5, 3]),
        named("last.weight", 30, &[2, 2]),
    ];
    let mut grads = Grads::new(tensors.into());
    grads.clip(0.7, ClipMode::PerParameter).unwrap();
    if step < 2 {
        grads.drop_prefix("last");
    }
    grads
}

fn bits(xs: &Tensor) -> Vec<u32> {
    let values = xs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn all_bits<T: AsRef<Tensor>>(tensors: &BTreeMap<String, T>) -> Vec<(&str, Vec<u32>)> {
    tensors
        .iter()
        .map(|(name, xs)| (name.as_str(), bits(xs.as_ref())))
        .collect()
}

/// Weights as plain tensors: `Var` has no `AsRef`.
fn values(weights: &BTreeMap<String, Var>) -> BTreeMap<String, Tensor> {
    weights
        .iter()
        .map(|(name, weight)| (name.clone(), weight.as_detached_tensor()))
        .collect()
}

#[test]
fn a_resumed_optimizer_goes_on_bit_for_bit() {
    for kind in KINDS {
        let run = weights();
        let mut optimizer = Optimizer::new(kind, &run, Decayed::WeightsOnly).unwrap();
        let mut saved = None;
        for step in 0..6 {
            if step == 3 {
                let copies = values(&run)
                    .into_iter()
                    .map(|(n, t)| (n, t.copy().unwrap()));
                saved = Some((
                    copies.collect::<BTreeMap<_, _>>(),
                    optimizer.state().unwrap(),
                ));
            }
            optimizer.step(&run, &grads(step), 0.01, 0.1).unwrap();
        }
        // The state taken before step 3 must not have moved with the steps after it.
        let (saved_weights, saved_state) = saved.unwrap();
        let resumed: BTreeMap<String, Var> = saved_weights
            .iter()
            .map(|(name, xs)| (name.clone(), Var::from_tensor(&xs.copy().unwrap()).unwrap()))
            .collect();
        let mut again = Optimizer::new(kind, &resumed, Decayed::WeightsOnly).unwrap();
        again.load_state(&saved_state).unwrap();
        let before = all_bits(&saved_state);
        assert_eq!(all_bits(&again.state().unwrap()), before, "{kind:?}");
        for step in 3..6 {
            again.step(&resumed, &grads(step), 0.01, 0.1).unwrap();
        }
        assert_eq!(
            all_bits(&values(&resumed)),
            all_bits(&values(&run)),
            "{kind:?}"
        );
        let (state, state_again) = (optimizer.state().unwrap(), again.state().unwrap());
        assert_eq!(all_bits(&state_again), all_bits(&state), "{kind:?}");
        assert_eq!(
            all_bits(&saved_state),
            before,
            "{kind:?}: the loaded state was written to"
        );
    }
}

#[test]
fn a_parameter_without_gradient_is_untouched_and_starts_later() {
    for kind in KINDS {
        let run = weights();
        let mut optimizer = Optimizer::new(kind, &run, Decayed::All).unwrap();
        let untouched = bits(&run["last.weight"]);
        for step in 0..2 {
            optimizer.step(&run, &grads(step), 0.01, 0.5).unwrap();
        }
        assert_eq!(bits(&run["last.weight"]), untouched, "{kind:?}");
        assert!(
            optimizer
                .state()
                .unwrap()
                .keys()
                .all(|key| !key.ends_with("last.weight"))
        );
        optimizer.step(&run, &grads(2), 0.01, 0.5).unwrap();
        assert_ne!(bits(&run["last.weight"]), untouched, "{kind:?}");
        if kind == OptimizerKind::AdamW {
            let state = optimizer.state().unwrap();
            let step = |name: &str| state[&format!("step.{name}")].to_scalar::<f32>().unwrap();
            assert_eq!((step("body.weight"), step("last.weight")), (3.0, 1.0));
        }
    }
}

#[test]
fn weight_decay_reaches_the_decayed_group_alone() {
    let run = weights();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &run, Decayed::WeightsOnly).unwrap();
    let zeros = |name: &str| (name.to_owned(), run[name].zeros_like().unwrap());
    let grads = Grads::new([zeros("body.bias"), zeros("body.weight")].into());
    let before = (bits(&run["body.bias"]), run["body.weight"].copy().unwrap());
    optimizer.step(&run, &grads, 0.5, 0.5).unwrap();
    assert_eq!(bits(&run["body.bias"]), before.0);
    assert_eq!(bits(&run["body.weight"]), bits(&(before.1 * 0.75).unwrap()));
}

#[test]
fn folded_clipping_equals_clipped_gradients() {
    for kind in KINDS {
        let (folded, plain) = (weights(), weights());
        let mut optimizers = [&folded, &plain]
            .map(|weights| Optimizer::new(kind, weights, Decayed::WeightsOnly).unwrap());
        for step in 0..4 {
            let grads = grads(step);
            let clipped = Grads::new(grads.tensors().unwrap());
            optimizers[0].step(&folded, &grads, 0.01, 0.1).unwrap();
            optimizers[1].step(&plain, &clipped, 0.01, 0.1).unwrap();
        }
        for (name, weight) in &folded {
            let difference = (weight.as_tensor() - plain[name].as_tensor())
                .unwrap()
                .abs()
                .unwrap();
            let largest = difference.flatten_all().unwrap().max(0).unwrap();
            assert!(
                largest.to_scalar::<f32>().unwrap() < 1e-6,
                "{kind:?} {name}"
            );
        }
    }
}

#[test]
fn every_entry_that_does_not_fit_is_listed_and_the_state_stays() {
    let run = weights();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &run, Decayed::WeightsOnly).unwrap();
    optimizer.step(&run, &grads(0), 0.01, 0.1).unwrap();
    let before = optimizer.state().unwrap();

    let mut saved = before.clone();
    saved.remove("exp_avg_sq.body.bias");
    saved.insert("exp_avg.body.weight".into(), tensor(1, &[3, 5]));
    saved.insert(
        "step.body.weight".into(),
        Tensor::new(1.5f32, &Device::Cpu).unwrap(),
    );
    saved.insert("mu.body.weight".into(), tensor(1, &[5, 3]));
    saved.insert("exp_avg.tail".into(), tensor(1, &[1]));
    let error = optimizer.load_state(&saved).unwrap_err();
    let StateError::Misfit { problems } = &error else {
        panic!("{error}")
    };
    assert_eq!(problems.len(), 5, "{problems:?}");
    for part in [
        "exp_avg_sq.body.bias: missing",
        "exp_avg.body.weight: shape [3, 5] instead of [5, 3]",
        "step.body.weight: 1.5",
        "mu.body.weight: not one of",
        "exp_avg.tail: no such parameter",
    ] {
        assert!(
            error.to_string().contains(part),
            "{part:?} is missing from {error}"
        );
    }
    assert_eq!(all_bits(&optimizer.state().unwrap()), all_bits(&before));
}

#[test]
fn rates_that_are_none_are_refused_and_nothing_moves() {
    let run = weights();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &run, Decayed::WeightsOnly).unwrap();
    let before: BTreeMap<String, Tensor> = values(&run)
        .into_iter()
        .map(|(name, value)| (name, value.copy().unwrap()))
        .collect();
    for (lr, decay) in [
        (f64::NAN, 0.0),
        (f64::INFINITY, 0.0),
        (-1e-3, 0.0),
        (1e-3, f64::NAN),
        (1e-3, -0.1),
    ] {
        assert!(optimizer.step(&run, &grads(0), lr, decay).is_err());
    }
    assert_eq!(all_bits(&values(&run)), all_bits(&before));
    optimizer.step(&run, &grads(0), 1e-3, 0.0).unwrap();
    assert_ne!(all_bits(&values(&run)), all_bits(&before));
}

#[test]
fn gradients_that_fit_no_weight_are_listed_and_nothing_moves() {
    let run = weights();
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd, &run, Decayed::WeightsOnly).unwrap();
    let before = values(&run)
        .into_iter()
        .map(|(n, t)| (n, t.copy().unwrap()))
        .collect();
    let grads = Grads::new(BTreeMap::from([
        ("body.bias".to_owned(), tensor(0, &[3])),
        ("body.weight".to_owned(), tensor(0, &[3, 5])),
        ("tail".to_owned(), tensor(0, &[1])),
    ]));
    let text = optimizer
        .step(&run, &grads, 0.1, 0.0)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("body.weight is [3, 5]") && text.contains("tail is unknown"),
        "{text}"
    );
    assert_eq!(all_bits(&values(&run)), all_bits(&before));
}

#[test]
fn teachers_built_on_detached_views_see_the_step() {
    let run = weights();
    let view = run["body.weight"].as_detached_tensor();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &run, Decayed::WeightsOnly).unwrap();
    optimizer.step(&run, &grads(0), 0.01, 0.0).unwrap();
    assert_eq!(bits(&view), bits(&run["body.weight"]));
    assert_ne!(bits(&view), bits(&tensor(2, &[5, 3])));
}

#[test]
fn step_counts_may_come_as_integers_or_one_element() {
    let run = weights();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &run, Decayed::WeightsOnly).unwrap();
    optimizer.step(&run, &grads(0), 0.01, 0.0).unwrap();
    let mut saved = optimizer.state().unwrap();
    for (name, step) in [("body.bias", 7i64), ("body.weight", 9)] {
        let step = Tensor::new(&[step], &Device::Cpu).unwrap();
        saved.insert(format!("step.{name}"), step);
    }
    optimizer.load_state(&saved).unwrap();
    let step = &optimizer.state().unwrap()["step.body.weight"];
    assert_eq!(
        (step.dtype(), step.to_scalar::<f32>().unwrap()),
        (DType::F32, 9.0)
    );
}
