//! Optimizer steps against steps computed by hand in f64, and against the composed ones.

use crate::common::{apart, flat, values};
use candle_core::{DType, Tensor, Var};
use selfsame_kernels::composed::update as composed;
use selfsame_kernels::multi_tensor::{self, AdamW, Lars, Sgd};

const SHAPE: [usize; 2] = [3, 7];

fn var(seed: u64) -> Var {
    Var::from_tensor(&values(&SHAPE, seed, 1.0)).unwrap()
}

fn zeros() -> Var {
    Var::zeros(&SHAPE, DType::F32, &candle_core::Device::Cpu).unwrap()
}

#[test]
fn adamw_follows_three_steps_computed_by_hand() {
    let (param, m, v) = (var(1), zeros(), zeros());
    let (mut p0, mut m0, mut v0) = (flat(&param), vec![0.0; 21], vec![0.0; 21]);
    for step in 1..=3u64 {
        let grad = values(&SHAPE, 10 + step, 1.0);
        let options = AdamW {
            lr: 0.01 * step as f64,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        multi_tensor::adamw_step(&param, &grad, &m, &v, options).unwrap();
        for (i, g) in flat(&grad).iter().enumerate() {
            let g = g * 0.5;
            m0[i] = 0.9 * m0[i] + 0.1 * g;
            v0[i] = 0.999 * v0[i] + 0.001 * g * g;
            let m_hat = m0[i] / (1.0 - 0.9f64.powi(step as i32));
            let v_hat: f64 = v0[i] / (1.0 - 0.999f64.powi(step as i32));
            p0[i] -= options.lr * (0.1 * p0[i] + m_hat / (v_hat.sqrt() + 1e-8));
        }
        for (got, expected) in flat(&param).iter().zip(&p0) {
            assert!(
                (got - expected).abs() < 1e-6,
                "step {step}: {got}, not {expected}"
            );
        }
    }
    let none = AdamW {
        step: 0,
        ..AdamW::default()
    };
    assert!(multi_tensor::adamw_step(&param, &zeros(), &m, &v, none).is_err());
    // The first step's size is the learning rate, whatever the gradient.
    let (param, before) = (var(1), flat(&var(1)));
    let options = AdamW {
        lr: 0.25,
        weight_decay: 0.0,
        ..AdamW::default()
    };
    multi_tensor::adamw_step(&param, &values(&SHAPE, 5, 1.0), &zeros(), &zeros(), options).unwrap();
    for (after, before) in flat(&param).iter().zip(&before) {
        assert!(((after - before).abs() - 0.25).abs() < 1e-5);
    }
}

#[test]
fn every_update_agrees_with_the_composed_one() {
    let grad = values(&SHAPE, 9, 1.0);
    let positive = || Var::from_tensor(&var(3).sqr().unwrap()).unwrap();
    let pair = |seed| (var(seed), var(seed));

    let ((p, q), (m, n), (v, w)) = (pair(1), pair(2), (positive(), positive()));
    let options = AdamW {
        step: 7,
        grad_scale: 0.3,
        ..AdamW::default()
    };
    multi_tensor::adamw_step(&p, &grad, &m, &v, options).unwrap();
    composed::adamw_step(&q, &grad, &n, &w, options).unwrap();
    assert!(apart(&p, &q) < 1e-6 && apart(&m, &n) < 1e-6 && apart(&v, &w) < 1e-6);

    let ((p, q), (m, n)) = (pair(1), pair(2));
    let options = Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        grad_scale: 0.3,
    };
    multi_tensor::sgd_step(&p, &grad, &m, options).unwrap();
    composed::sgd_step(&q, &grad, &n, options).unwrap();
    assert!(apart(&p, &q) < 1e-6 && apart(&m, &n) < 1e-6);

    let ((p, q), (m, n)) = (pair(1), pair(2));
    let options = Lars {
        lr: 2.0,
        momentum: 0.9,
        weight_decay: 0.1,
        eta: 0.5,
        grad_scale: 0.3,
    };
    multi_tensor::lars_step(&p, &grad, &m, options).unwrap();
    composed::lars_step(&q, &grad, &n, options).unwrap();
    assert!(apart(&p, &q) < 1e-6 && apart(&m, &n) < 1e-6);

    let (p, q) = pair(1);
    multi_tensor::ema(&p, &grad, 0.7).unwrap();
    composed::ema(&q, &grad, 0.7).unwrap();
    assert!(apart(&p, &q) < 1e-6);
}

#[test]
fn sgd_follows_two_steps_computed_by_hand() {
    let (param, buffer) = (var(1), zeros());
    let (mut p, mut m) = (flat(&param)[4], 0.0);
    for step in 0..2 {
        let grad = values(&SHAPE, step, 1.0);
        let options = Sgd {
            lr: 0.1,
            momentum: 0.9,
            weight_decay: 0.01,
            grad_scale: 1.0,
        };
        multi_tensor::sgd_step(&param, &grad, &buffer, options).unwrap();
        m = 0.9 * m + flat(&grad)[4] + 0.01 * p;
        p -= 0.1 * m;
        assert!((flat(&param)[4] - p).abs() < 1e-6);
    }
}

#[test]
fn lars_follows_the_official_formula() {
    let options = Lars {
        lr: 2.0,
        momentum: 0.9,
        weight_decay: 0.1,
        eta: 0.001,
        grad_scale: 1.0,
    };
    let (param, mu, grad) = (var(1), var(2), values(&SHAPE, 3, 1.0));
    let (p, m, g) = (flat(&param), flat(&mu), flat(&grad));
    let d: Vec<f64> = g.iter().zip(&p).map(|(g, p)| g + 0.1 * p).collect();
    let norm = |xs: &[f64]| xs.iter().map(|x| x * x).sum::<f64>().sqrt();
    let q = 0.001 * norm(&p) / norm(&d);
    multi_tensor::lars_step(&param, &grad, &mu, options).unwrap();
    for i in 0..p.len() {
        let m = 0.9 * m[i] + q * d[i];
        assert!((flat(&mu)[i] - m).abs() < 1e-6 && (flat(&param)[i] - p[i] + 2.0 * m).abs() < 1e-6);
    }
}

#[test]
fn lars_neither_decays_nor_adapts_biases() {
    let options = Lars {
        lr: 0.5,
        momentum: 0.9,
        weight_decay: 0.1,
        eta: 0.001,
        grad_scale: 1.0,
    };
    let (param, grad) = (
        Var::from_tensor(&values(&[6], 1, 1.0)).unwrap(),
        values(&[6], 2, 1.0),
    );
    let mu = Var::from_tensor(&values(&[6], 3, 0.0)).unwrap();
    let expected = (param.as_tensor() - (&grad * 0.5).unwrap()).unwrap();
    multi_tensor::lars_step(&param, &grad, &mu, options).unwrap();
    assert!(apart(&param, &expected) < 1e-6);
}

#[test]
fn lars_of_a_zero_parameter_takes_the_plain_step() {
    let options = Lars {
        lr: 0.5,
        momentum: 0.9,
        weight_decay: 0.1,
        eta: 0.001,
        grad_scale: 1.0,
    };
    let (param, grad, mu) = (zeros(), values(&SHAPE, 2, 1.0), zeros());
    multi_tensor::lars_step(&param, &grad, &mu, options).unwrap();
    assert!(apart(&param, &(grad * -0.5).unwrap()) < 1e-6);
}

#[test]
fn a_detached_teacher_sees_the_moving_average() {
    let (teacher, student) = (var(1), var(2));
    let seen = teacher.as_detached_tensor();
    let expected =
        ((teacher.as_tensor() * 0.75).unwrap() + (student.as_tensor() * 0.25).unwrap()).unwrap();
    multi_tensor::ema(&teacher, &student, 0.75).unwrap();
    assert!(apart(&seen, &expected) < 1e-6);
}

#[test]
fn a_shared_storage_is_refused_instead_of_waited_for() {
    let (param, m) = (var(1), zeros());
    let error = multi_tensor::ema(&param, &param.as_detached_tensor(), 0.5).unwrap_err();
    assert!(error.to_string().contains("share a storage"), "{error}");
    let error = multi_tensor::adamw_step(&param, &var(2), &m, &m, AdamW::default()).unwrap_err();
    assert!(error.to_string().contains("share a storage"), "{error}");
}

#[test]
fn other_types_take_the_composed_way() {
    let to_f64 = |v: Var| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap();
    let (teacher, student) = (to_f64(var(1)), to_f64(var(2)));
    let expected: Tensor =
        ((teacher.as_tensor() * 0.75).unwrap() + (student.as_tensor() * 0.25).unwrap()).unwrap();
    multi_tensor::ema(&teacher, &student, 0.75).unwrap();
    assert!(apart(&teacher, &expected) < 1e-12);
    let sum = multi_tensor::sum_of_squares(&student).unwrap();
    assert!((sum - flat(&student).iter().map(|x| x * x).sum::<f64>()).abs() < 1e-9);
}
