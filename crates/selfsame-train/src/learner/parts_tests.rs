//! A batch that is run part by part.

use candle_core::DType;
use selfsame_models::{Arch, HeadConfig, ModelConfig};
use selfsame_objectives::Schedules;

use super::parts::even_part;
use super::*;

fn config() -> RunConfig {
    let mut config = RunConfig {
        model: ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 32,
            embed_dim: 48,
            depth: 3,
            num_heads: 3,
            drop_path_rate: 0.3,
            ..ModelConfig::default()
        },
        head: HeadConfig {
            out_dim: 40,
            ..HeadConfig::default()
        },
        ..RunConfig::default()
    };
    // More would turn the sign of a rounding error into a step of Adam that is seen in the loss.
    config.optim.lr = 0.005;
    config.optim.warmup_epochs = 0;
    config.train.epochs = 40;
    config
}

/// Crops that are a function of their position alone.
fn crops(rows: usize, size: usize) -> Tensor {
    let values = (0..rows * 3 * size * size).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0);
    let values: Vec<f32> = values.collect();
    Tensor::from_vec(values, (rows, 3, size, size), &Device::Cpu).unwrap()
}

/// Figures of three steps and the weights after them.
fn three_steps(part_bytes: usize, local_size: usize) -> (Vec<StepFigures>, Vec<f32>) {
    let config = config();
    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    learner.part_bytes = part_bytes;
    let batch = DeviceBatch {
        global: crops(8, 32),
        local: Some(crops(12, local_size)),
    };
    let parts = learner.student_parts(&batch).unwrap().len();
    // Crops of one size are one part, if they may be.
    assert_eq!(parts > 2, part_bytes == 1, "{parts} parts");
    let schedules = Schedules::new(&config.schedule(), 5).unwrap();
    let step = |step| {
        let now = schedules.at(step);
        learner
            .step(std::slice::from_ref(&batch), &now, 0, step)
            .and_then(|pending| pending.read())
            .unwrap()
    };
    let figures = (0..3).map(step).collect();
    let weights = learner.student_params.tensors();
    let values = |tensor: &Tensor| -> Vec<f32> {
        let tensor = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        tensor.to_vec1().unwrap()
    };
    (figures, weights.values().flat_map(values).collect())
}

#[test]
fn a_teacher_in_parts_equals_the_whole_teacher_up_to_rounding() {
    let learner = Learner::new(&config(), &Device::Cpu).unwrap();
    let global = crops(8, 32);
    let of = |size: usize| learner.teacher_in_parts(&global, size, Draws::default());
    let (features, logits) = of(8).unwrap();
    for size in [1, 3, 4] {
        let (in_parts, logits_in_parts) = of(size).unwrap();
        for (whole, parts) in [(&features, &in_parts), (&logits, &logits_in_parts)] {
            assert_eq!(whole.dims(), parts.dims());
            let apart = (whole - parts).unwrap().abs().unwrap().max_all().unwrap();
            assert!(apart.to_scalar::<f32>().unwrap() < 1e-5);
        }
    }
}

#[test]
fn a_batch_in_parts_equals_the_whole_batch_up_to_rounding() {
    for local_size in [32, 16] {
        let (whole, whole_weights) = three_steps(usize::MAX, local_size);
        let (parts, part_weights) = three_steps(1, local_size);
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{a:?} {b:?}");
            assert!(
                (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4,
                "{a:?} {b:?}"
            );
        }
        assert!(
            (whole[0].loss - whole[2].loss).abs() > 1e-3,
            "the steps move something: {whole:?}"
        );
        let norm = |xs: &[f32]| xs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let gap: Vec<f32> = whole_weights
            .iter()
            .zip(&part_weights)
            .map(|(a, b)| a - b)
            .collect();
        assert!(norm(&gap) < 1e-3 * norm(&whole_weights), "{}", norm(&gap));
    }
}

#[test]
fn batch_norm_keeps_a_batch_in_one_part() {
    let mut config = config();
    config.head.use_bn = true;
    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    learner.part_bytes = 1;
    let batch = DeviceBatch {
        global: crops(4, 32),
        local: None,
    };
    assert_eq!(learner.student_parts(&batch).unwrap().len(), 1);
}

#[test]
fn parts_stay_within_what_they_may_keep() {
    assert_eq!(even_part(128, 100), 64);
    assert_eq!(even_part(120, 100), 64);
    assert_eq!(even_part(34, 17), 17);
    assert_eq!(even_part(8, 100), 8);
    for most in 1..70 {
        for rows in 1..300 {
            let size = even_part(rows, most);
            assert!((1..=most).contains(&size), "{rows} rows, {most} at most");
            // No more parts than there must be.
            assert!(rows.div_ceil(size) == rows.div_ceil(most));
        }
    }
}
