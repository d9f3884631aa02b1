//! Values and gradients of every operation, at sizes that are awkward for vector code.

use crate::common::{apart, check, flat, run, values};
use candle_core::{DType, Tensor};
use selfsame_kernels::composed;
use selfsame_kernels::{self as kernels, Precision};

/// Row lengths around multiples of the lane counts.
const WIDTHS: [usize; 6] = [1, 7, 16, 33, 65, 384];

#[test]
fn layer_norm_has_the_right_gradient() {
    for (rows, width) in [(1, 7), (5, 16), (3, 33), (1, 384), (700, 48)] {
        check(
            "layer_norm",
            &|t| kernels::layer_norm(&t[0], &t[1], &t[2], 1e-6),
            &|t| composed::layer_norm(&t[0], &t[1], &t[2], 1e-6),
            &[
                values(&[rows, width], 1, 2.0),
                values(&[width], 2, 1.0),
                values(&[width], 3, 1.0),
            ],
            2e-6,
        );
    }
    let one = |t: &[Tensor]| kernels::layer_norm(&t[0], &t[1], &t[2], 1e-6);
    let (ys, _) = run(
        &one,
        &[
            values(&[2, 1], 1, 2.0),
            values(&[1], 2, 1.0),
            values(&[1], 3, 1.0),
        ],
    );
    assert_eq!(
        flat(&ys)[0],
        flat(&values(&[1], 3, 1.0))[0],
        "one value minus its mean is 0"
    );
}

#[test]
fn gelu_has_the_right_gradient() {
    for n in WIDTHS {
        check(
            "gelu",
            &|t| kernels::gelu(&t[0]),
            &|t| composed::gelu(&t[0]),
            &[values(&[2, n], 1, 6.0)],
            1e-6,
        );
    }
}

#[test]
fn linear_has_the_right_gradient() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (1, 7, 3),
        (5, 16, 33),
        (65, 48, 17),
        (200, 96, 64),
    ] {
        let t = [
            values(&[2, rows, inputs], 1, 1.0),
            values(&[outputs, inputs], 2, 1.0),
            values(&[outputs], 3, 1.0),
        ];
        check(
            "linear",
            &|t| kernels::linear(&t[0], &t[1], Some(&t[2])),
            &|t| composed::linear(&t[0], &t[1], Some(&t[2])),
            &t,
            2e-6,
        );
        check(
            "linear without bias",
            &|t| kernels::linear(&t[0], &t[1], None),
            &|t| composed::linear(&t[0], &t[1], None),
            &t[..2],
            2e-6,
        );
        check(
            "linear_gelu",
            &|t| kernels::linear_gelu(&t[0], &t[1], Some(&t[2])),
            &|t| composed::gelu(&composed::linear(&t[0], &t[1], Some(&t[2]))?),
            &t,
            2e-6,
        );
    }
}

#[test]
fn softmaxes_have_the_right_gradient() {
    for n in WIDTHS {
        check(
            "softmax",
            &|t| kernels::softmax_last_dim(&t[0]),
            &|t| composed::softmax_last_dim(&t[0]),
            &[values(&[3, n], 1, 5.0)],
            1e-6,
        );
        check(
            "log_softmax",
            &|t| kernels::log_softmax_last_dim(&t[0]),
            &|t| composed::log_softmax_last_dim(&t[0]),
            &[values(&[3, n], 1, 5.0)],
            1e-6,
        );
    }
}

#[test]
fn attention_has_the_right_gradient() {
    for (batch, tokens, heads, dim) in [(1, 1, 1, 8), (2, 5, 3, 4), (1, 17, 2, 16), (3, 65, 2, 8)] {
        let qkv = values(&[batch, tokens, 3 * heads * dim], 1, 2.0);
        check(
            "attention",
            &|t| kernels::attention(&t[0], heads),
            &|t| composed::attention(&t[0], heads),
            std::slice::from_ref(&qkv),
            2e-6,
        );
        let weights = kernels::attention_weights(&qkv, heads).unwrap();
        let expected = composed::attention_weights(&qkv, heads).unwrap();
        assert!(apart(&weights, &expected) < 2e-6);
        assert_eq!(weights.dims(), [batch, heads, tokens, tokens]);
        let first = kernels::first_token_attention(&qkv, heads).unwrap();
        let expected = weights.narrow(2, 0, 1).unwrap().squeeze(2).unwrap();
        assert!(apart(&first, &expected) < 2e-6);
    }
}

#[test]
fn patchify_has_the_right_gradient_and_order() {
    for (batch, channels, h, w, patch) in [(1, 3, 4, 4, 4), (2, 3, 6, 9, 3), (1, 1, 2, 3, 1)] {
        check(
            "patchify",
            &|t| kernels::patchify(&t[0], patch),
            &|t| composed::patchify(&t[0], patch),
            &[values(&[batch, channels, h, w], 1, 1.0)],
            1e-7,
        );
    }
    let (xs, weight) = (
        values(&[2, 3, 8, 12], 1, 1.0),
        values(&[5, 3, 4, 4], 2, 1.0),
    );
    let expected = xs
        .conv2d(&weight, 0, 4, 1, 1)
        .unwrap()
        .flatten_from(2)
        .unwrap();
    let patches = kernels::patchify(&xs, 4).unwrap();
    let ys = kernels::linear(&patches, &weight.reshape((5, 48)).unwrap(), None).unwrap();
    assert!(apart(&ys.transpose(1, 2).unwrap(), &expected) < 1e-6);
}

#[test]
fn relu_has_gradient_zero_at_zero() {
    let xs = values(&[3, 50], 1, 1.0);
    check(
        "relu",
        &|t| kernels::relu(&t[0]),
        &|t| composed::relu(&t[0]),
        &[xs],
        1e-7,
    );
    let xs = Tensor::new(
        &[-1f32, -0.0, 0.0, 2.0, f32::NAN],
        &candle_core::Device::Cpu,
    )
    .unwrap();
    for op in [kernels::relu, composed::relu] {
        let (ys, grads) = run(&|t| op(&t[0]), std::slice::from_ref(&xs));
        let grad = flat(&grads[0]);
        assert_eq!(grad[..3], [0.0, 0.0, 0.0]);
        assert_ne!(grad[3], 0.0);
        assert!(flat(&ys)[4].is_nan(), "NaN is not swallowed");
    }
}

#[test]
fn max_pool_has_the_right_gradient() {
    for (h, w, kernel, stride, padding) in [
        (6, 6, 2, 2, 0),
        (7, 9, 3, 2, 1),
        (8, 8, 3, 2, 1),
        (5, 4, 3, 1, 1),
        (1, 1, 3, 2, 1),
    ] {
        check(
            "max_pool2d",
            &|t| kernels::max_pool2d(&t[0], kernel, stride, padding),
            &|t| composed::max_pool2d(&t[0], kernel, stride, padding),
            &[values(&[2, 3, h, w], 1, 1.0)],
            1e-6,
        );
    }
}

#[test]
fn max_pool_gives_a_tie_to_the_first() {
    let xs = Tensor::ones((1, 1, 2, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
    for op in [kernels::max_pool2d, composed::max_pool2d] {
        let (_, grads) = run(&|t| op(&t[0], 2, 2, 0), std::slice::from_ref(&xs));
        let winners: Vec<bool> = flat(&grads[0]).iter().map(|g| *g != 0.0).collect();
        assert_eq!(
            winners,
            [true, false, true, false, false, false, false, false]
        );
    }
}

#[test]
fn conv2d_has_the_right_gradient() {
    for (batch, channels, out, h, w, kernel, stride, padding) in [
        (2, 3, 4, 8, 8, 3, 1, 1),
        (2, 3, 5, 9, 9, 7, 2, 3),
        (3, 4, 6, 8, 8, 3, 2, 1),
        (2, 3, 4, 7, 10, 3, 2, 1),
        (2, 5, 3, 6, 6, 1, 1, 0),
        (2, 5, 3, 7, 7, 1, 2, 0),
        (1, 2, 3, 4, 4, 1, 1, 0),
        (1, 1, 1, 1, 1, 7, 2, 3),
        (1, 2, 2, 2, 2, 5, 3, 4),
    ] {
        check(
            "conv2d",
            &|t| kernels::conv2d(&t[0], &t[1], stride, padding, Precision::F32),
            &|t| composed::conv2d(&t[0], &t[1], stride, padding),
            &[
                values(&[batch, channels, h, w], 1, 1.0),
                values(&[out, channels, kernel, kernel], 2, 1.0),
            ],
            2e-6,
        );
    }
}

#[test]
fn conv2d_equals_candle_over_several_groups_of_images() {
    // 5 images of 64·64·9·16 gathered values: three groups, the last one smaller.
    let (xs, weight) = (
        values(&[5, 16, 64, 64], 1, 1.0),
        values(&[8, 16, 3, 3], 2, 1.0),
    );
    let (ys, grads) = run(
        &|t| kernels::conv2d(&t[0], &t[1], 1, 1, Precision::F32),
        &[xs.clone(), weight.clone()],
    );
    let (expected, expected_grads) = run(&|t| t[0].conv2d(&t[1], 1, 1, 1, 1), &[xs, weight]);
    assert!(apart(&ys, &expected) < 1e-5);
    for (grad, expected) in grads.iter().zip(&expected_grads) {
        assert!(apart(grad, expected) < 1e-5);
    }
}

#[test]
fn batch_norm_has_the_right_gradient() {
    for shape in [
        &[2, 1][..],
        &[9, 33],
        &[300, 70],
        &[1, 3, 1, 2],
        &[4, 5, 3, 7],
        &[3, 2, 33, 9],
    ] {
        let c = shape[1];
        let t = [
            values(shape, 1, 2.0),
            values(&[c], 2, 1.0),
            values(&[c], 3, 1.0),
        ];
        check(
            "batch_norm_train",
            &|t| Ok(kernels::batch_norm_train(&t[0], &t[1], &t[2], 1e-2)?.0),
            &|t| Ok(composed::batch_norm_train(&t[0], &t[1], &t[2], 1e-2)?.0),
            &t,
            4e-6,
        );
        let (_, mean, var) = kernels::batch_norm_train(&t[0], &t[1], &t[2], 1e-5).unwrap();
        let (_, mean2, var2) = composed::batch_norm_train(&t[0], &t[1], &t[2], 1e-5).unwrap();
        assert!(apart(&mean, &mean2) < 1e-6 && apart(&var, &var2) < 1e-6);
    }
}

#[test]
fn batch_norm_of_one_value_is_refused() {
    let t = [
        values(&[1, 3], 1, 1.0),
        values(&[3], 2, 1.0),
        values(&[3], 3, 1.0),
    ];
    let error = kernels::batch_norm_train(&t[0], &t[1], &t[2], 1e-5).unwrap_err();
    assert!(error.to_string().contains("no variance"), "{error}");
}

#[test]
fn batch_norm_eval_follows_the_formula() {
    let xs = values(&[2, 3, 2, 2], 1, 1.0);
    let [mean, weight, bias] = [2, 3, 4].map(|seed| values(&[3], seed, 1.0));
    let var = values(&[3], 5, 1.0).sqr().unwrap();
    let ys = kernels::batch_norm_eval(&xs, &mean, &var, &weight, &bias, 1e-5).unwrap();
    let [m, v, w, b] = [&mean, &var, &weight, &bias].map(|t| flat(t)[1]);
    let expected = (flat(&xs)[4] - m) / (v + 1e-5).sqrt() * w + b;
    assert!((flat(&ys)[4] - expected).abs() < 1e-5);
}

#[test]
fn normalized_linear_has_the_right_gradient() {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 7, 5), (9, 33, 70), (40, 256, 300)] {
        let length = (values(&[outputs, 1], 3, 1.0) + 2.0).unwrap();
        for length in [None, Some(&length)] {
            check(
                "normalized_linear",
                &|t| kernels::normalized_linear(&t[0], &t[1], length, 1e-12),
                &|t| composed::normalized_linear(&t[0], &t[1], length, 1e-12),
                &[
                    values(&[rows, inputs], 1, 1.0),
                    values(&[outputs, inputs], 2, 1.0),
                ],
                1e-5,
            );
        }
    }
    // Rows shorter than eps are divided by eps, and their gradient is that of a product.
    let op = |t: &[Tensor]| kernels::normalized_linear(&t[0], &t[1], None, 0.5);
    let short = [values(&[2, 4], 1, 1.0), values(&[3, 4], 2, 0.01)];
    let (ys, grads) = run(&op, &short);
    let doubled = |t: &[Tensor]| kernels::linear(&t[0], &(&t[1] * 2.0)?, None);
    let (expected, expected_grads) = run(&doubled, &short);
    assert!(apart(&ys, &expected) < 1e-6);
    for (grad, expected) in grads.iter().zip(&expected_grads) {
        assert!(apart(grad, expected) < 1e-6);
    }
}

#[test]
fn l2_normalize_has_the_right_gradient() {
    for n in [2, 7, 16, 33, 65, 384] {
        check(
            "l2_normalize",
            &|t| kernels::l2_normalize_last_dim(&t[0], 1e-12),
            &|t| composed::l2_normalize_last_dim(&t[0], 1e-12),
            &[values(&[3, n], 1, 1.0)],
            2e-6,
        );
    }
    // A row of one value is ±1 wherever it is: the gradient vanishes.
    let (_, grads) = run(
        &|t| kernels::l2_normalize_last_dim(&t[0], 1e-12),
        &[values(&[1, 1], 1, 1.0)],
    );
    assert!(flat(&grads[0])[0].abs() < 1e-6);
    let zero = values(&[2, 5], 1, 0.0);
    for op in [
        kernels::l2_normalize_last_dim,
        composed::l2_normalize_last_dim,
    ] {
        let (ys, grads) = run(&|t| op(&t[0], 0.5), std::slice::from_ref(&zero));
        assert_eq!(flat(&ys), [0.0; 10]);
        assert!((flat(&grads[0])[0] - 2.0 * flat(&values(&[2, 5], 99, 1.0))[0]).abs() < 1e-6);
    }
}

#[test]
fn soft_cross_entropy_has_the_right_gradient() {
    for (batch, crops, k) in [(1, 2, 1), (1, 2, 5), (2, 3, 16), (3, 10, 33), (2, 4, 1500)] {
        let teacher = values(&[2 * batch, k], 2, 3.0);
        let teacher = composed::softmax_last_dim(&teacher).unwrap();
        let exact = teacher.to_dtype(DType::F64).unwrap();
        check(
            "soft_cross_entropy",
            &|t| kernels::soft_cross_entropy(&t[0], &teacher, crops, 0.1),
            &|t| composed::soft_cross_entropy(&t[0], &exact, crops, 0.1),
            &[values(&[crops * batch, k], 1, 1.0)],
            4e-6,
        );
    }
}

#[test]
fn soft_cross_entropy_gives_the_teacher_no_gradient_and_scales() {
    let t = [
        values(&[6, 7], 1, 1.0),
        composed::softmax_last_dim(&values(&[4, 7], 2, 1.0)).unwrap(),
    ];
    let (_, once) = run(&|t| kernels::soft_cross_entropy(&t[0], &t[1], 3, 0.1), &t);
    let (_, twice) = run(
        &|t| kernels::soft_cross_entropy(&t[0], &t[1], 3, 0.1)? * 2.0,
        &t,
    );
    assert_eq!(flat(&once[1]), [0.0; 28]);
    assert!(apart(&(&once[0] * 2.0).unwrap(), &twice[0]) < 1e-6);
}

#[test]
fn a_second_backward_pass_gives_the_same_gradient() {
    let xs = candle_core::Var::from_tensor(&values(&[2, 5, 12], 1, 1.0)).unwrap();
    let (weight, bias) = (values(&[24, 12], 2, 1.0), values(&[24], 3, 1.0));
    let teacher = composed::softmax_last_dim(&values(&[2, 40], 4, 1.0)).unwrap();
    let ys = kernels::linear_gelu(&xs, &weight, Some(&bias)).unwrap();
    let ys = kernels::attention(&ys, 2)
        .unwrap()
        .reshape((2, 40))
        .unwrap();
    let loss = kernels::soft_cross_entropy(&ys, &teacher, 2, 0.1).unwrap();
    let grad = || flat(loss.backward().unwrap().get(&xs).unwrap());
    assert_eq!(grad(), grad());
}

#[test]
fn inputs_may_lie_anyhow_in_memory() {
    let qkv = values(&[5, 2, 24], 1, 1.0);
    let (weight, bias) = (values(&[24], 2, 1.0), values(&[24], 3, 1.0));
    let ys = |xs: &Tensor| {
        let xs = kernels::layer_norm(xs, &weight, &bias, 1e-6)?;
        kernels::softmax_last_dim(&kernels::gelu(&kernels::attention(&xs, 2)?)?)
    };
    let (turned, grads) = run(&|t| ys(&t[0].transpose(0, 1)?), std::slice::from_ref(&qkv));
    let copied = qkv.transpose(0, 1).unwrap().contiguous().unwrap();
    let (expected, expected_grads) = run(&|t| ys(&t[0]), &[copied]);
    assert_eq!(flat(&turned), flat(&expected));
    assert_eq!(
        flat(&grads[0].transpose(0, 1).unwrap()),
        flat(&expected_grads[0])
    );
}
