//! The number of threads changes no bit of any result.

use crate::common::{Op, flat, run, values};
use candle_core::{Tensor, Var};
use selfsame_kernels::multi_tensor;
use selfsame_kernels::{self as kernels, Precision};

pub(crate) fn bits(xs: &Tensor) -> Vec<u32> {
    xs.flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .iter()
        .map(|x| x.to_bits())
        .collect()
}

pub(crate) fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(f)
}

/// Bits of values and gradients with 2 and 3 threads are those with one.
fn check(name: &str, op: Op<'_>, inputs: &[Tensor]) {
    let run = |threads| {
        in_pool(threads, || {
            let (ys, grads) = run(op, inputs);
            (bits(&ys), grads.iter().map(bits).collect::<Vec<_>>())
        })
    };
    let expected = run(1);
    for threads in [2, 3] {
        assert!(
            run(threads) == expected,
            "{name} differs with {threads} threads"
        );
    }
}

#[test]
fn row_operations_do_not_depend_on_threads() {
    let (rows, width) = (611, 96);
    let xs = values(&[rows, width], 1, 2.0);
    let t = [xs, values(&[width], 2, 1.0), values(&[width], 3, 1.0)];
    check(
        "layer_norm",
        &|t| kernels::layer_norm(&t[0], &t[1], &t[2], 1e-6),
        &t,
    );
    check(
        "batch_norm",
        &|t| Ok(kernels::batch_norm_train(&t[0], &t[1], &t[2], 1e-6)?.0),
        &t,
    );
    check("gelu", &|t| kernels::gelu(&t[0]), &t[..1]);
    check("relu", &|t| kernels::relu(&t[0]), &t[..1]);
    check("softmax", &|t| kernels::softmax_last_dim(&t[0]), &t[..1]);
    check(
        "log_softmax",
        &|t| kernels::log_softmax_last_dim(&t[0]),
        &t[..1],
    );
    check(
        "l2_normalize",
        &|t| kernels::l2_normalize_last_dim(&t[0], 1e-12),
        &t[..1],
    );
}

#[test]
fn normalized_linear_does_not_depend_on_threads() {
    check(
        "normalized_linear",
        &|t| kernels::normalized_linear(&t[0], &t[1], None, 1e-12),
        &[values(&[300, 64], 1, 1.0), values(&[700, 64], 2, 1.0)],
    );
}

#[test]
fn products_do_not_depend_on_threads() {
    for (rows, inputs, outputs) in [
        (1, 384, 512),
        (260, 384, 1152),
        (260, 1536, 384),
        (33, 70, 50),
    ] {
        let t = [
            values(&[rows, inputs], 1, 1.0),
            values(&[outputs, inputs], 2, 1.0),
            values(&[outputs], 3, 1.0),
        ];
        check(
            "linear",
            &|t| kernels::linear(&t[0], &t[1], Some(&t[2])),
            &t,
        );
        check(
            "linear without bias",
            &|t| kernels::linear(&t[0], &t[1], None),
            &t[..2],
        );
        check(
            "linear_gelu",
            &|t| kernels::linear_gelu(&t[0], &t[1], Some(&t[2])),
            &t,
        );
    }
    for batch in [1, 5] {
        let qkv = values(&[batch, 65, 3 * 2 * 64], 1, 1.0);
        check("attention", &|t| kernels::attention(&t[0], 2), &[qkv]);
    }
}

#[test]
fn image_operations_do_not_depend_on_threads() {
    let xs = values(&[5, 16, 32, 32], 1, 1.0);
    check(
        "patchify",
        &|t| kernels::patchify(&t[0], 8),
        std::slice::from_ref(&xs),
    );
    check(
        "max_pool2d",
        &|t| kernels::max_pool2d(&t[0], 3, 2, 1),
        std::slice::from_ref(&xs),
    );
    for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 1), (1, 1, 0), (7, 2, 3)] {
        let t = [xs.clone(), values(&[32, 16, kernel, kernel], 2, 1.0)];
        check(
            "conv2d",
            &|t| kernels::conv2d(&t[0], &t[1], stride, padding, Precision::F32),
            &t,
        );
    }
    let t = [xs, values(&[16], 2, 1.0), values(&[16], 3, 1.0)];
    check(
        "batch_norm",
        &|t| Ok(kernels::batch_norm_train(&t[0], &t[1], &t[2], 1e-5)?.0),
        &t,
    );
}

#[test]
fn the_loss_does_not_depend_on_threads() {
    let teacher = kernels::softmax_last_dim(&values(&[8, 700], 2, 3.0)).unwrap();
    let student = values(&[20, 700], 1, 1.0);
    check(
        "loss",
        &|t| kernels::soft_cross_entropy(&t[0], &teacher, 5, 0.1),
        &[student],
    );
}

#[test]
fn updates_do_not_depend_on_threads() {
    let n = 50_001;
    let run = |threads| {
        in_pool(threads, || {
            let [param, m, v] = [1, 2, 3].map(|s| Var::from_tensor(&values(&[n], s, 1.0)).unwrap());
            let v = Var::from_tensor(&v.sqr().unwrap()).unwrap();
            let grad = values(&[n], 4, 1.0);
            let adamw = multi_tensor::AdamW::default();
            multi_tensor::adamw_step(&param, &grad, &m, &v, adamw).unwrap();
            multi_tensor::ema(&m, &param, 0.9).unwrap();
            let norm = multi_tensor::sum_of_squares(&param).unwrap();
            (bits(&param), bits(&m), norm.to_bits())
        })
    };
    let expected = run(1);
    assert!(run(2) == expected && run(3) == expected);
    let exact: f64 = flat(&values(&[n], 4, 1.0)).iter().map(|x| x * x).sum();
    let sum = multi_tensor::sum_of_squares(&values(&[n], 4, 1.0)).unwrap();
    assert!((sum / exact - 1.0).abs() < 1e-12);
}
