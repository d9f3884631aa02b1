//! Activations in bf16 beside weights in f32, on any device.

use candle_core::{DType, Device, Tensor, Var};
use selfsame_kernels as kernels;

use crate::common::{Op, apart, flat, run, values};

/// The operation on bf16 activations (the first input) stays near the one in f32, and weights get
/// gradients of their own type.
fn check(name: &str, op: Op<'_>, inputs: &[Tensor]) {
    let mut mixed = inputs.to_vec();
    mixed[0] = inputs[0].to_dtype(DType::BF16).unwrap();
    let (want, want_grads) = run(op, inputs);
    let (got, grads) = run(op, &mixed);
    assert_eq!(got.dtype(), DType::BF16, "{name}");
    let d = apart(&got, &want);
    assert!(d < 2e-2, "{name}: values are {d:e} apart");
    for ((grad, want), input) in grads.iter().zip(&want_grads).zip(&mixed) {
        assert_eq!(grad.dtype(), input.dtype(), "{name}");
        let d = apart(grad, want);
        assert!(d < 2e-2, "{name}: gradients are {d:e} apart");
    }
}

#[test]
fn activations_in_bf16_take_weights_in_f32() {
    let xs = values(&[21, 32], 1, 1.0);
    let norm = [xs.clone(), values(&[32], 2, 1.0), values(&[32], 3, 1.0)];
    let op = |x: &[Tensor]| kernels::layer_norm(&x[0], &x[1], &x[2], 1e-6);
    check("layer_norm", &op, &norm);
    let dense = [xs, values(&[24, 32], 4, 0.3), values(&[24], 5, 0.3)];
    let op = |x: &[Tensor]| kernels::linear(&x[0], &x[1], Some(&x[2]));
    check("linear", &op, &dense);
    let op = |x: &[Tensor]| kernels::linear_gelu(&x[0], &x[1], Some(&x[2]));
    check("linear_gelu", &op, &dense);
    let op = |x: &[Tensor]| kernels::normalized_linear(&x[0], &x[1], None, 1e-12);
    check("normalized_linear", &op, &dense[..2]);
    let op = |x: &[Tensor]| kernels::l2_normalize_last_dim(&x[0], 1e-12);
    check("l2_normalize", &op, &dense[..1]);
}

#[test]
fn half_precision_rows_of_any_length_are_normalised() {
    // The square of 1e-12 is zero in f16, that of 300 is infinite.
    let rows = Tensor::from_vec(
        vec![0f32, 0.0, 300.0, -400.0, 3e-5, 4e-5],
        (3, 2),
        &Device::Cpu,
    );
    let (rows, eye) = (rows.unwrap(), Tensor::eye(2, DType::F32, &Device::Cpu));
    let eye = eye.unwrap();
    let product = |t: &[Tensor]| {
        let eye = eye.to_dtype(t[0].dtype())?;
        kernels::normalized_linear(&eye, &t[0], None, 1e-12)?.t()
    };
    let fused = |t: &[Tensor]| kernels::l2_normalize_last_dim(&t[0], 1e-12);
    let composed = |t: &[Tensor]| kernels::composed::l2_normalize_last_dim(&t[0], 1e-12);
    let ops: [(&str, Op<'_>); 3] = [
        ("fused", &fused),
        ("composed", &composed),
        ("normalized_linear", &product),
    ];
    for (name, op) in ops {
        for dtype in [DType::F16, DType::BF16] {
            let (ys, grads) = run(op, &[rows.to_dtype(dtype).unwrap()]);
            assert_eq!((ys.dtype(), grads[0].dtype()), (dtype, dtype), "{name}");
            let ys = flat(&ys);
            for (y, want) in ys.iter().zip([0.0, 0.0, 0.6, -0.8, 0.6, 0.8]) {
                assert!((y - want).abs() < 5e-3, "{name}, {dtype:?}: {ys:?}");
            }
            // A row of zeros is divided by 1e-12, and so is its gradient.
            let grads = &flat(&grads[0])[2..];
            assert!(
                grads.iter().all(|x| x.is_finite()),
                "{name}, {dtype:?}: {grads:?}"
            );
        }
    }
}

#[test]
fn centered_softmax_is_the_softmax_of_the_difference_and_has_no_gradient() {
    let [logits, center] = [values(&[4, 37], 1, 2.0), values(&[1, 37], 2, 1.0)];
    let shifted = (logits.broadcast_sub(&center).unwrap() / 0.07).unwrap();
    let want = kernels::softmax_last_dim(&shifted).unwrap();
    let variable = Var::from_tensor(&logits).unwrap();
    let got = kernels::centered_softmax(&variable, &center, 0.07).unwrap();
    assert_eq!(apart(&got, &want), 0.0);
    assert!(!got.track_op());
    let narrow = Tensor::zeros((1, 36), DType::F32, &Device::Cpu).unwrap();
    assert!(kernels::centered_softmax(&logits, &narrow, 0.07).is_err());
}

#[test]
fn softmax_over_scores_in_bf16_is_computed_in_f32() {
    let (tokens, width) = (33, 48);
    let qkv = values(&[1, tokens, 3 * width], 6, 1.0);
    let qkv = qkv.to_dtype(DType::BF16).unwrap();
    let part = |i: usize| {
        qkv.narrow(2, i * width, width)
            .unwrap()
            .contiguous()
            .unwrap()
    };
    let scores = part(0).matmul(&part(1).t().unwrap()).unwrap();
    let scores = (scores.to_dtype(DType::F32).unwrap() / (width as f64).sqrt()).unwrap();
    let want = kernels::composed::softmax_last_dim(&scores).unwrap();
    let want = want.to_dtype(DType::BF16).unwrap();
    let got = kernels::composed::attention_weights(&qkv, 1).unwrap();
    assert_eq!(got.dtype(), DType::BF16);
    assert_eq!(flat(&got), flat(&want));
}
