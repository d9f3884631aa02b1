//! Batch norm over rows `[R, C]`, out of sums that the convolutions gather.

use crate::host::{for_each_chunk, rows_per_chunk};
use crate::simd::Level;
use crate::simd::columns::{self, Affine, GradFactors};

/// A batch's statistics and what they make of the weights.
#[derive(Debug, Default)]
pub(super) struct Norm {
    pub(super) mean: Vec<f32>,
    /// Unbiased, for the running statistics.
    pub(super) variance: Vec<f32>,
    inv_std: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    /// From the sums `[2, C]` of `rows` values and of their squares.
    pub(super) fn new(sums: &[f64], rows: usize, [weight, bias]: [&[f32]; 2], eps: f64) -> Self {
        let (sums, squares) = sums.split_at(weight.len());
        let count = rows as f64;
        let mut norm = Self {
            bias: bias.to_vec(),
            ..Self::default()
        };
        for ((sum, square), weight) in sums.iter().zip(squares).zip(weight) {
            let mean = sum / count;
            // Products of two f32 are exact in f64, so that little is lost by the difference.
            let variance = square / count - mean * mean;
            // Not `max`, which would make a number of a NaN.
            let variance = if variance < 0.0 { 0.0 } else { variance };
            let inv_std = 1.0 / (variance + eps).sqrt();
            norm.mean.push(mean as f32);
            norm.variance
                .push((variance * count / (count - 1.0)) as f32);
            norm.inv_std.push(inv_std as f32);
            norm.scale.push(inv_std as f32 * weight);
        }
        norm
    }

    fn affine(&self) -> Affine<'_> {
        Affine {
            mean: &self.mean,
            scale: &self.scale,
            bias: &self.bias,
        }
    }

    /// `ys = relu(norm(xs) + added)`.
    pub(super) fn relu(&self, xs: &[f32], added: Added<'_>, ys: &mut [f32]) {
        let level = Level::best();
        let len = rows_per_chunk(self.mean.len()) * self.mean.len();
        for_each_chunk(ys, len, |i, ys| {
            let range = i * len..i * len + ys.len();
            let xs = &xs[range.clone()];
            match added {
                Added::Nothing => columns::norm_relu(level, xs, self.affine(), ys),
                Added::Rows(rows) => {
                    columns::norm_add_relu(level, xs, self.affine(), &rows[range], ys);
                }
                Added::Normalised(rows, norm) => {
                    let (own, of_added) = (self.affine(), norm.affine());
                    columns::norms_add_relu(level, xs, own, &rows[range], of_added, ys);
                }
            }
        });
    }

    /// The gradients of weight and bias and what makes that of the values, from the sums `[2, C]`
    /// of `rows` gradients and of them times the values.
    pub(super) fn grads(&self, sums: &[f64], rows: usize) -> NormGrads {
        let (sums, products) = sums.split_at(self.mean.len());
        let count = rows as f64;
        let mut grads = NormGrads::default();
        for (c, (sum, product)) in sums.iter().zip(products).enumerate() {
            let inv_std = f64::from(self.inv_std[c]);
            let sum_hat = (product - f64::from(self.mean[c]) * sum) * inv_std;
            // dx = w/σ · (g − mean(g) − x̂ · mean(g·x̂))
            let scale = f64::from(self.scale[c]);
            grads.weight.push(sum_hat as f32);
            grads.bias.push(*sum as f32);
            grads.of_grad.push(scale as f32);
            grads
                .of_centered
                .push((-scale * inv_std * sum_hat / count) as f32);
            grads.constant.push((-scale * sum / count) as f32);
        }
        grads
    }

    fn factors<'a>(&'a self, grads: &'a NormGrads) -> GradFactors<'a> {
        GradFactors {
            mean: &self.mean,
            of_grad: &grads.of_grad,
            of_centered: &grads.of_centered,
            constant: &grads.constant,
        }
    }

    /// The gradient of the values `xs`.
    pub(super) fn grad(&self, grads: &NormGrads, grad: &[f32], xs: &[f32], dx: &mut [f32]) {
        let (level, factors) = (Level::best(), self.factors(grads));
        let len = rows_per_chunk(self.mean.len()) * self.mean.len();
        for_each_chunk(dx, len, |i, dx| {
            let range = i * len..i * len + dx.len();
            columns::norm_grad(level, &grad[range.clone()], &xs[range], factors, dx);
        });
    }

    /// As [`Norm::grad`], in the place of `grad`.
    pub(super) fn grad_replace(&self, grads: &NormGrads, grad: &mut [f32], xs: &[f32]) {
        let (level, factors) = (Level::best(), self.factors(grads));
        let len = rows_per_chunk(self.mean.len()) * self.mean.len();
        for_each_chunk(grad, len, |i, grad| {
            let xs = &xs[i * len..][..grad.len()];
            columns::norm_grad_replace(level, grad, xs, factors);
        });
    }
}

/// What is added to a norm's result.
#[derive(Clone, Copy)]
pub(super) enum Added<'a> {
    Nothing,
    Rows(&'a [f32]),
    Normalised(&'a [f32], &'a Norm),
}

/// See [`Norm::grads`].
#[derive(Debug, Default)]
pub(super) struct NormGrads {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    of_grad: Vec<f32>,
    of_centered: Vec<f32>,
    constant: Vec<f32>,
}
