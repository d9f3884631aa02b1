use super::*;
use selfsame_models::{Arch, ModelConfig};
use selfsame_optim::OptimizerKind;

/// A ViT of two blocks under a head with batch norm, so that there are running statistics.
fn config() -> RunConfig {
    let mut config = RunConfig {
        model: ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 16,
            embed_dim: 32,
            depth: 2,
            num_heads: 1,
            ..ModelConfig::default()
        },
        ..RunConfig::default()
    };
    config.head.out_dim = 16;
    config.head.use_bn = true;
    config
}

fn crops(value: f32) -> DeviceBatch {
    let mut pixels: Vec<f32> = (0..2 * 4 * 3 * 16 * 16)
        .map(|i| (i % 17) as f32 / 9.0 - 1.0)
        .collect();
    pixels[100] = value;
    let global = Tensor::from_vec(pixels, (2 * 4, 3, 16, 16), &Device::Cpu).unwrap();
    DeviceBatch {
        global,
        local: None,
    }
}

fn now() -> Now {
    Now {
        lr: 0.1,
        weight_decay: 0.1,
        momentum: 0.5,
        teacher_temp: 0.04,
    }
}

/// Everything that training changes, as bits.
fn bits(learner: &Learner) -> Vec<(String, Vec<u32>)> {
    let mut all = Vec::new();
    for (file, tensors) in learner.tensors().unwrap() {
        for (name, tensor) in tensors {
            let values = tensor.to_dtype(candle_core::DType::F32).unwrap();
            let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let values = values.into_iter().map(f32::to_bits).collect();
            all.push((format!("{file}.{name}"), values));
        }
    }
    all
}

#[test]
fn nothing_moves_when_a_pixel_or_a_weight_is_not_finite() {
    let mut learner = Learner::new(&config(), &Device::Cpu).unwrap();
    learner.step(&[crops(0.5)], &now(), 0, 0).unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let before = bits(&learner);
        let error = learner.step(&[crops(value)], &now(), 0, 1).unwrap_err();
        assert!(
            matches!(error, TrainError::NonFinite { step: 1, .. }),
            "{error}"
        );
        assert!(
            bits(&learner) == before,
            "a pixel of {value} moved something"
        );
    }
    let weight = &learner.student_params.weights()["backbone.norm.bias"];
    weight
        .set(&Tensor::full(f32::NAN, weight.shape(), &Device::Cpu).unwrap())
        .unwrap();
    let before = bits(&learner);
    let error = learner.step(&[crops(0.5)], &now(), 0, 1).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    assert!(
        bits(&learner) == before,
        "a weight that is NaN moved something"
    );
}

#[test]
fn a_step_that_is_given_up_changes_nothing() {
    let [mut asked, mut whole] = [(), ()].map(|()| Learner::new(&config(), &Device::Cpu).unwrap());
    let before = bits(&asked);
    let stop = StopFlag::default();
    stop.request(15);
    let given_up = asked.step_unless(&stop, &[crops(0.5)], &now(), 0, 0);
    assert!(given_up.unwrap().is_none());
    assert!(bits(&asked) == before);
    for learner in [&mut asked, &mut whole] {
        learner.step(&[crops(0.5)], &now(), 0, 0).unwrap();
    }
    assert!(bits(&asked) == bits(&whole));
    assert!(bits(&asked) != before);
}

/// With batch norm and without, by each rule.
const VARIANTS: [(OptimizerKind, bool); 4] = [
    (OptimizerKind::AdamW, false),
    (OptimizerKind::AdamW, true),
    (OptimizerKind::Sgd, true),
    (OptimizerKind::Lars, true),
];

fn variant((rule, use_bn): (OptimizerKind, bool), defers: bool) -> Learner {
    let mut config = config();
    config.head.use_bn = use_bn;
    config.optim.name = rule;
    config.optim.freeze_last_layer_epochs = 1;
    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    assert!(!learner.defers, "a CPU does not defer by itself");
    learner.defers = defers;
    learner
}

#[test]
fn deferred_steps_give_the_bits_of_steps_that_wait() {
    for of in VARIANTS {
        let (mut waiting, mut deferring) = (variant(of, false), variant(of, true));
        for step in 0..4 {
            let batches = [crops(0.5), crops(-0.1 * step as f32)];
            let epoch = step as usize / 2;
            let before = bits(&waiting);
            let [one, other] = [&mut waiting, &mut deferring]
                .map(|learner| learner.step(&batches, &now(), epoch, step).unwrap());
            assert_eq!((one.waits(), other.waits()), (false, true));
            let (one, other) = (one.read().unwrap(), other.read().unwrap());
            assert!((one.loss - other.loss).abs() < 1e-6 * one.loss);
            assert!((one.loss_floor - other.loss_floor).abs() < 1e-6);
            assert!((one.feature_std - other.feature_std).abs() < 1e-6);
            assert_eq!(one.grad_norm as f32, other.grad_norm as f32);
            let after = bits(&waiting);
            assert!(after == bits(&deferring), "{of:?} after step {step}");
            let moved = after.iter().filter(|now| !before.contains(now));
            let is_running = |(name, _): &&(String, Vec<u32>)| name.contains("running_");
            // Two norms of the student and two of the teacher, mean and variance.
            let expected = if of.1 { 8 } else { 0 };
            assert_eq!(moved.filter(is_running).count(), expected, "{of:?}");
        }
    }
}

#[test]
fn a_deferred_step_that_is_not_finite_moves_nothing_and_is_told_later_too() {
    for of in VARIANTS {
        let mut learner = variant(of, true);
        let step = |learner: &mut Learner, value, step| {
            learner.step(&[crops(value)], &now(), 0, step).unwrap()
        };
        step(&mut learner, 0.5, 0).read().unwrap();
        let state = |learner: &Learner| {
            let all = bits(learner).into_iter();
            all.filter(|(name, _)| !name.contains("step."))
                .collect::<Vec<_>>()
        };
        let before = state(&learner);
        let bad = step(&mut learner, f32::NAN, 1);
        assert!(state(&learner) == before, "{of:?}");
        let later = step(&mut learner, 0.5, 2);
        assert!(state(&learner) != before, "{of:?}");
        for pending in [bad, later] {
            let error = pending.read().unwrap_err();
            assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
        }
    }
}

#[test]
fn nothing_moves_when_only_the_gradient_is_not_finite() {
    // Logits and loss of about 1e37 are finite; their gradient, times the slopes of the layers
    // below, is not.
    let mut config = config();
    config.objective.student_temp = 1e-38;
    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    let before = bits(&learner);
    let error = learner.step(&[crops(0.5)], &now(), 0, 0).unwrap_err();
    let expected = BadFigure::GradientNorm;
    assert!(
        matches!(&error, TrainError::NonFinite { what, .. } if *what == expected),
        "{error}"
    );
    assert!(bits(&learner) == before);
}
