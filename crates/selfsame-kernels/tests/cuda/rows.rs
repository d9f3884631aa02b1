//! Operations on rows, attention and the loss.

use candle_core::{DType, Tensor};
use selfsame_kernels as kernels;

use super::{TYPES, apart, compare, gpu, values};

#[test]
#[ignore = "needs cuda"]
fn layer_norm_is_the_cpus() {
    for width in [37, 384] {
        let xs = values(&[3, 65, width], 1, 2.0);
        let inputs = [xs, values(&[width], 2, 1.0), values(&[width], 3, 1.0)];
        for dtype in TYPES {
            let op = |x: &[Tensor]| kernels::layer_norm(&x[0], &x[1], &x[2], 1e-6);
            compare("layer_norm", &op, &inputs, 1, dtype);
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn linear_layers_and_gelu_are_the_cpus() {
    let inputs = [
        values(&[2, 37, 64], 1, 1.0),
        values(&[96, 64], 2, 0.3),
        values(&[96], 3, 0.5),
    ];
    for dtype in TYPES {
        let linear = |x: &[Tensor]| kernels::linear(&x[0], &x[1], Some(&x[2]));
        compare("linear", &linear, &inputs, 1, dtype);
        let linear_gelu = |x: &[Tensor]| kernels::linear_gelu(&x[0], &x[1], Some(&x[2]));
        compare("linear_gelu", &linear_gelu, &inputs, 1, dtype);
        compare("gelu", &|x| kernels::gelu(&x[0]), &inputs[..1], 1, dtype);
    }
}

#[test]
#[ignore = "needs cuda"]
fn views_that_begin_anywhere_are_taken() {
    // One row, so that the view is contiguous and begins behind one element.
    let inputs = [
        values(&[1, 65], 1, 1.0),
        values(&[96, 64], 2, 0.3),
        values(&[96], 3, 0.5),
    ];
    let view = |x: &[Tensor]| x[0].narrow(1, 1, 64);
    for dtype in TYPES {
        let gelu = |x: &[Tensor]| kernels::gelu(&view(x)?);
        compare("gelu of a view", &gelu, &inputs[..1], 1, dtype);
        let linear = |x: &[Tensor]| kernels::linear_gelu(&view(x)?, &x[1], Some(&x[2]));
        compare("linear_gelu of a view", &linear, &inputs, 1, dtype);
    }
    let qkv = [values(&[1 + 5 * 3 * 32], 4, 1.0)];
    let attention = |x: &[Tensor]| {
        let view = x[0].narrow(0, 1, 5 * 3 * 32)?;
        kernels::attention(&view.reshape((1, 5, 96))?, 1)
    };
    for dtype in TYPES {
        compare("attention of a view", &attention, &qkv, 1, dtype);
    }
}

#[test]
#[ignore = "needs cuda"]
fn softmax_and_its_logarithm_are_the_cpus() {
    for width in [37, 65_536] {
        let inputs = [values(&[3, width], 1, 6.0)];
        for dtype in TYPES {
            let softmax = |x: &[Tensor]| kernels::softmax_last_dim(&x[0]);
            compare("softmax", &softmax, &inputs, 1, dtype);
        }
        let log = |x: &[Tensor]| kernels::log_softmax_last_dim(&x[0]);
        compare("log_softmax", &log, &inputs, 1, DType::F32);
        let center = values(&[1, width], 2, 1.0);
        let want = kernels::centered_softmax(&inputs[0], &center, 0.04).unwrap();
        let [xs, center] = [&inputs[0], &center].map(|x| x.to_device(&gpu()).unwrap());
        let got = kernels::centered_softmax(&xs, &center, 0.04).unwrap();
        assert!(apart(&got, &want) < 5e-5);
    }
}

#[test]
#[ignore = "needs cuda"]
fn attention_is_the_cpus() {
    // 48 has no kernel and is composed.
    for head_dim in [32, 48, 64] {
        for tokens in [10, 37, 65, 197, 257, 1025] {
            let inputs = [values(&[2, tokens, 3 * 2 * head_dim], 1, 2.0)];
            for dtype in TYPES {
                let op = |x: &[Tensor]| kernels::attention(&x[0], 2);
                compare(&format!("attention of {tokens}"), &op, &inputs, 1, dtype);
            }
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn the_loss_is_the_cpus() {
    for width in [2048, 65_536] {
        let probs = kernels::softmax_last_dim(&values(&[4, width], 2, 9.0)).unwrap();
        let inputs = [values(&[8, width], 1, 3.0)];
        for dtype in TYPES {
            let op = |x: &[Tensor]| {
                let probs = probs.to_device(x[0].device())?;
                kernels::soft_cross_entropy(&x[0], &probs, 4, 0.1)
            };
            compare("soft_cross_entropy", &op, &inputs, 1, dtype);
        }
    }
}
