//! Every loop gives the same result, up to rounding, at all levels that this machine has.

use super::columns::{self, Affine, GradFactors};
use super::{Level, activation, norm, reduce, softmax, update};
use crate::host::written_by;
use crate::testing::{assert_close, values};
use std::mem::MaybeUninit;

/// Row lengths on both sides of every lane count.
const WIDTHS: [usize; 9] = [1, 3, 15, 16, 17, 31, 33, 65, 384];
const ROWS: usize = 3;
const TOLERANCE: f32 = 1e-6;

/// Runs `f` at every level and compares with the baseline.
fn for_all_levels(what: &str, tolerance: f32, f: impl Fn(Level) -> Vec<f32>) {
    let levels = Level::available();
    let expected = f(levels[0]);
    for level in &levels[1..] {
        assert_close(
            &f(*level),
            &expected,
            tolerance,
            &format!("{what} at {level:?}"),
        );
    }
}

#[expect(
    unsafe_code,
    reason = "the loops write all of their output, as their docs say"
)]
fn output(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    // SAFETY: only used on loops that write all of their output.
    unsafe { written_by(len, fill) }
}

#[test]
fn activations_agree() {
    for n in WIDTHS {
        let (xs, grad) = (values(ROWS * n, 1, 4.0), values(ROWS * n, 2, 1.0));
        let bias = values(n, 3, 1.0);
        for_all_levels("gelu", TOLERANCE, |level| {
            output(xs.len(), |ys| activation::gelu(level, &xs, ys))
        });
        for_all_levels("gelu_grad", TOLERANCE, |level| {
            output(xs.len(), |dx| activation::gelu_grad(level, &xs, &grad, dx))
        });
        for_all_levels("bias_gelu", TOLERANCE, |level| {
            let mut hs = xs.clone();
            activation::bias_gelu(level, &mut hs, &bias);
            hs
        });
        for_all_levels("bias_gelu_keep_slope", TOLERANCE, |level| {
            let mut hs = xs.clone();
            let ys = output(xs.len(), |ys| {
                activation::bias_gelu_keep_slope(level, &mut hs, &bias, ys);
            });
            [hs, ys].concat()
        });
        for_all_levels("multiply_and_sum_columns", TOLERANCE, |level| {
            let (mut rows, mut sums) = (xs.clone(), bias.clone());
            activation::multiply_and_sum_columns(level, &mut rows, &grad, &mut sums);
            [rows, sums].concat()
        });
    }
}

#[test]
fn norms_agree() {
    for n in WIDTHS {
        let (xs, grad) = (values(ROWS * n, 1, 2.0), values(ROWS * n, 2, 1.0));
        let (weight, bias) = (values(n, 3, 1.0), values(n, 4, 1.0));
        let forward = |level| {
            let mut stats = vec![0f32; 2 * ROWS];
            let ys = output(xs.len(), |ys| {
                norm::layer_norm(level, &xs, &weight, &bias, 1e-2, ys, &mut stats);
            });
            (ys, stats)
        };
        for_all_levels("layer_norm", 4.0 * TOLERANCE, |level| {
            let (ys, stats) = forward(level);
            [ys, stats].concat()
        });
        let (_, stats) = forward(Level::available()[0]);
        for_all_levels("layer_norm_grad", 4.0 * TOLERANCE, |level| {
            let mut sums = vec![0f32; 2 * n];
            let dx = output(xs.len(), |dx| {
                norm::layer_norm_grad(level, &xs, &stats, &weight, &grad, dx, &mut sums);
            });
            [dx, sums].concat()
        });
        for_all_levels("plane sums", TOLERANCE, |level| {
            let (sum, squares) = norm::plane_moments(level, &xs, 0.25);
            let (grads, hats) = norm::plane_grad_sums(level, &xs, &grad, 0.5, 2.0);
            [sum, squares, grads, hats].map(|x| x as f32).to_vec()
        });
        for_all_levels("plane maps", TOLERANCE, |level| {
            let ys = output(xs.len(), |ys| {
                norm::plane_affine(level, &xs, 0.5, 2.0, 0.1, ys)
            });
            let factors = [0.5, -0.25, 0.125];
            let dx = output(xs.len(), |dx| {
                norm::plane_grad(level, &xs, &grad, 0.5, factors, dx)
            });
            [ys, dx].concat()
        });
    }
}

#[test]
fn norms_over_columns_agree() {
    for n in WIDTHS {
        let [xs, added, ys] = [1, 2, 3].map(|seed| values(ROWS * n, seed, 2.0));
        let [mean, scale, bias, constant] = [4, 5, 6, 7].map(|seed| values(n, seed, 1.0));
        let norm = Affine {
            mean: &mean,
            scale: &scale,
            bias: &bias,
        };
        let factors = GradFactors {
            mean: &mean,
            of_grad: &scale,
            of_centered: &bias,
            constant: &constant,
        };
        for_all_levels("column sums", TOLERANCE, |level| {
            let (mut sums, mut masked) = (vec![0.5; 2 * n], added.clone());
            columns::moments(level, &xs, &mut sums);
            columns::grad_sums(level, &added, &xs, &mut sums);
            columns::masked_grad_sums(level, &mut masked, &ys, &xs, &mut sums);
            let sums: Vec<f32> = sums.iter().map(|x| *x as f32).collect();
            [sums, masked].concat()
        });
        for_all_levels("column norms", TOLERANCE, |level| {
            let mut maps = [(); 3].map(|()| vec![0.0; xs.len()]);
            let (mut biased, mut joined) = (xs.clone(), xs.clone());
            columns::bias_relu(level, &mut biased, norm.bias);
            columns::bias_add_relu(level, &mut joined, norm.bias, &added);
            columns::norm_relu(level, &xs, norm, &mut maps[0]);
            columns::norm_add_relu(level, &xs, norm, &added, &mut maps[1]);
            columns::norms_add_relu(level, &xs, norm, &added, norm, &mut maps[2]);
            [maps.concat(), biased, joined].concat()
        });
        for_all_levels("gradients of column norms", TOLERANCE, |level| {
            let (mut dx, mut replaced) = (vec![0.0; xs.len()], added.clone());
            columns::norm_grad(level, &added, &xs, factors, &mut dx);
            columns::norm_grad_replace(level, &mut replaced, &xs, factors);
            [dx, replaced].concat()
        });
    }
}

#[test]
fn softmaxes_agree() {
    for n in WIDTHS {
        let (xs, grad) = (values(ROWS * n, 1, 5.0), values(ROWS * n, 2, 1.0));
        for_all_levels("softmax", TOLERANCE, |level| {
            let mut rows = xs.clone();
            softmax::softmax_rows(level, &mut rows, n, 0.7);
            let mut d_rows = grad.clone();
            softmax::softmax_rows_grad(level, &rows, &mut d_rows, n, 0.7);
            [rows, d_rows].concat()
        });
        for_all_levels("log_softmax", TOLERANCE, |level| {
            let mut rows = xs.clone();
            softmax::log_softmax_rows(level, &mut rows, n, &mut vec![0f32; n]);
            let mut d_rows = grad.clone();
            softmax::log_softmax_rows_grad(level, &rows, &mut d_rows, n);
            [rows, d_rows].concat()
        });
        for_all_levels("cross_entropy", 4.0 * TOLERANCE, |level| {
            let (targets, mut row) = (values(2 * n, 3, 0.1), xs[..n].to_vec());
            let (a, b) = targets.split_at(n);
            let loss = softmax::cross_entropy_row(level, &mut row, [Some(a), Some(b)], 3.0, 0.5);
            row.push(loss as f32);
            row
        });
    }
}

#[test]
fn row_sums_agree() {
    for n in WIDTHS {
        let (xs, grad) = (values(ROWS * n, 1, 2.0), values(ROWS * n, 2, 1.0));
        for_all_levels("sum_columns", TOLERANCE, |level| {
            let mut sums = vec![0f32; n];
            reduce::sum_columns(level, &xs, &mut sums);
            sums
        });
        for_all_levels("normalize_rows", 4.0 * TOLERANCE, |level| {
            let ys = output(xs.len(), |ys| {
                reduce::normalize_rows(level, &xs, n, 0.1, ys)
            });
            let dx = output(xs.len(), |dx| {
                reduce::normalize_rows_grad(level, &xs, &grad, n, 0.1, dx)
            });
            [ys, dx].concat()
        });
    }
}

#[test]
fn updates_and_square_sums_have_the_same_bits() {
    for n in WIDTHS {
        let (param, grad) = (values(n, 1, 1.0), values(n, 2, 1.0));
        let (m, v) = (
            values(n, 3, 0.1),
            values(n, 4, 0.1).iter().map(|v| v * v).collect::<Vec<_>>(),
        );
        for_all_levels("adamw", 0.0, |level| {
            let (mut param, mut m, mut v) = (param.clone(), m.clone(), v.clone());
            let scalars = update::AdamWScalars {
                grad_scale: 0.3,
                decay: 0.999,
                one_minus_beta1: 0.1,
                beta2: 0.999,
                one_minus_beta2: 0.001,
                minus_step_size: -0.01,
                bias2_sqrt: 0.7,
                eps: 1e-8,
            };
            update::adamw(level, &mut param, &grad, &mut m, &mut v, scalars);
            [param, m, v].concat()
        });
        for_all_levels("momentum", 0.0, |level| {
            let (mut param, mut buffer) = (param.clone(), m.clone());
            let scalars = update::MomentumScalars {
                grad_scale: 0.3,
                weight_decay: 0.01,
                trust: 0.5,
                momentum: 0.9,
                lr: 0.1,
            };
            update::momentum(level, &mut param, &grad, &mut buffer, scalars);
            [param, buffer].concat()
        });
        for_all_levels("moving_average", 0.0, |level| {
            let mut average = param.clone();
            update::moving_average(level, &mut average, &grad, 0.996, 0.004);
            average
        });
        for level in Level::available() {
            let squares = |level| {
                let decayed = reduce::decayed_sum_of_squares(level, &grad, &param, 0.5, 0.1);
                [
                    reduce::sum_of_squares(level, &grad).to_bits(),
                    decayed.to_bits(),
                ]
            };
            assert_eq!(squares(level), squares(Level::available()[0]), "{level:?}");
        }
    }
}
