//! Ridge regression for labels that are numbers.

use crate::error::{EvalError, finite_values, same_length};
use crate::features::Features;
use crate::matrix::{column_means, differences, dot};
use crate::metrics::mean_absolute_error;
use crate::random::{Purpose, Stream};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

// Columns per panel of the Cholesky factorisation.
const PANEL: usize = 96;

/// A fitted ridge regression: value = coef·x + intercept.
#[derive(Clone, Debug, PartialEq)]
pub struct Ridge {
    /// Coefficients, `[d]`.
    pub coef: Vec<f64>,
    /// The intercept, which is not penalised.
    pub intercept: f64,
}

impl Ridge {
    /// Minimises Σ(value − prediction)² + alpha·‖coef‖², as scikit-learn's `Ridge(alpha)`.
    ///
    /// Solved in f64 by Cholesky factorisation of the smaller of the two Gram matrices: `min(n, d)²` values.
    ///
    /// # Errors
    /// [`EvalError`] for a negative alpha, bad features or values, different lengths, or [`EvalError::Singular`].
    pub fn fit(features: &Features, values: &[f64], alpha: f64) -> Result<Ridge, EvalError> {
        Normal::new(features, values)?.solve(alpha)
    }

    /// The value for each row.
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width.
    pub fn predict(&self, features: &Features) -> Result<Vec<f64>, EvalError> {
        features.check_width(self.coef.len())?;
        let value = |row: &[f32]| {
            let sum: f64 = row
                .iter()
                .zip(&self.coef)
                .map(|(&x, w)| f64::from(x) * w)
                .sum();
            sum + self.intercept
        };
        Ok(features.data.par_chunks(features.d).map(value).collect())
    }
}

/// One value of alpha that was tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TriedAlpha {
    /// The value.
    pub alpha: f64,
    /// Mean absolute error on the part held out.
    pub mean_absolute_error: f64,
}

/// The values of alpha that are tried unless told otherwise: 10⁻⁴ to 10³ by decades, fit for
/// features of unit length.
pub fn default_grid() -> Vec<f64> {
    (-4..=3).map(|exponent| 10f64.powi(exponent)).collect()
}

/// Chooses alpha on a fifth of the rows held out by `seed`, then fits on everything with it.
///
/// The test set has no part in it. The lowest mean absolute error wins, then the larger alpha.
/// An alpha too small to determine the weights, of the part or of everything, is left out of what was tried.
///
/// # Errors
/// As [`Ridge::fit`], with [`EvalError::Singular`] only if every alpha is too small, and [`EvalError::Setting`] if `grid`
/// is empty or there are fewer than five rows.
pub fn fit_with_best_alpha(
    features: &Features,
    values: &[f64],
    grid: &[f64],
    seed: u64,
) -> Result<(Ridge, Vec<TriedAlpha>), EvalError> {
    features.check_width(features.d)?;
    same_length("values", features.n, values.len())?;
    if grid.is_empty() || features.n < 5 {
        return Err(EvalError::Setting(format!(
            "ridge: {} values of alpha and {} rows to compare them on",
            grid.len(),
            features.n
        )));
    }
    let mut rows: Vec<usize> = (0..features.n).collect();
    Stream::new(seed, Purpose::HeldOut, 0).shuffle(&mut rows);
    let (held_out, kept) = rows.split_at(features.n / 5);
    let values_of = |rows: &[usize]| rows.iter().map(|&i| values[i]).collect::<Vec<_>>();
    let normal = Normal::new(&features.subset(kept), &values_of(kept))?;
    let (test, test_values) = (features.subset(held_out), values_of(held_out));

    let mut grid = grid.to_vec();
    grid.sort_by(|a, b| b.total_cmp(a));
    let mut tried: Vec<TriedAlpha> = Vec::with_capacity(grid.len());
    let mut singular = None;
    for alpha in grid {
        let predictions = match normal.solve(alpha) {
            Err(error @ EvalError::Singular { .. }) => {
                singular.get_or_insert(error);
                continue;
            }
            model => model?.predict(&test)?,
        };
        let mean_absolute_error = mean_absolute_error(&test_values, &predictions)?;
        tried.push(TriedAlpha {
            alpha,
            mean_absolute_error,
        });
    }
    let all = Normal::new(features, values)?;
    loop {
        // The first of equal ones.
        let errors = tried.iter().map(|one| one.mean_absolute_error);
        let best = errors.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((best, _)) = best else {
            return Err(singular.expect("the grid is not empty, and all of it was left out"));
        };
        match all.solve(tried[best].alpha) {
            Err(error @ EvalError::Singular { .. }) => {
                singular.get_or_insert(error);
                tried.remove(best);
            }
            model => return Ok((model?, tried)),
        }
    }
}

/// Centred features and values, and the smaller Gram matrix.
struct Normal {
    /// `[n, d]`
    centred: Tensor,
    means: Vec<f64>,
    mean_value: f64,
    /// `X·Xᵀ [n, n]` if there are fewer rows than columns, else `Xᵀ·X [d, d]`.
    gram: Vec<f64>,
    /// Right-hand side that goes with it: values, or `Xᵀ·values`.
    right: Vec<f64>,
}

impl Normal {
    fn new(features: &Features, values: &[f64]) -> Result<Normal, EvalError> {
        features.check_width(features.d)?;
        same_length("values", features.n, values.len())?;
        finite_values(values)?;
        let (n, d) = (features.n, features.d);
        let means = column_means(features);
        let mean_value = values.iter().sum::<f64>() / n as f64;
        let centred: Vec<f64> = differences(features, &means).collect();
        let centred = Tensor::from_vec(centred, (n, d), &Device::Cpu)?;
        let values: Vec<f64> = values.iter().map(|value| value - mean_value).collect();
        let (gram, right) = if n < d {
            (centred.matmul(&centred.t()?)?, values)
        } else {
            let values = Tensor::from_vec(values, (n, 1), &Device::Cpu)?;
            let right = centred
                .t()?
                .matmul(&values)?
                .flatten_all()?
                .to_vec1::<f64>()?;
            (centred.t()?.matmul(&centred)?, right)
        };
        let gram = gram.flatten_all()?.to_vec1::<f64>()?;
        Ok(Normal {
            centred,
            means,
            mean_value,
            gram,
            right,
        })
    }

    fn solve(&self, alpha: f64) -> Result<Ridge, EvalError> {
        if !(alpha.is_finite() && alpha >= 0.0) {
            return Err(EvalError::Setting(format!(
                "ridge: alpha {alpha} is not 0 or more"
            )));
        }
        let (n, d) = self.centred.dims2()?;
        let size = self.right.len();
        let mut factor = self.gram.clone();
        for i in 0..size {
            factor[i * size + i] += alpha;
        }
        cholesky(&mut factor, size)?
            .then_some(())
            .ok_or(EvalError::Singular { alpha })?;
        let mut solution = self.right.clone();
        substitute(&factor, &mut solution);
        let coef = if n < d {
            let solution = Tensor::from_vec(solution, (n, 1), &Device::Cpu)?;
            self.centred
                .t()?
                .matmul(&solution)?
                .flatten_all()?
                .to_vec1::<f64>()?
        } else {
            solution
        };
        let intercept = self.mean_value - dot(&coef, &self.means);
        Ok(Ridge { coef, intercept })
    }
}

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor; false if it is not positive definite.
///
/// Panel by panel: a panel is first reduced by all finished columns in one matrix product, then factored.
fn cholesky(a: &mut [f64], n: usize) -> Result<bool, EvalError> {
    let largest = (0..n).map(|i| a[i * n + i]).fold(0.0, f64::max);
    // What rounding leaves of a zero is below n·eps·largest; some room above it.
    let tiny = 16.0 * largest * n as f64 * f64::EPSILON;
    for first in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - first);
        if first > 0 {
            let finished: Vec<f64> = a[first * n..]
                .chunks(n)
                .flat_map(|row| row[..first].iter().copied())
                .collect();
            let below = Tensor::from_vec(finished, (n - first, first), &Device::Cpu)?;
            let product = below.matmul(&below.narrow(0, 0, width)?.t()?)?;
            let product = product.flatten_all()?.to_vec1::<f64>()?;
            for (row, product) in a[first * n..].chunks_mut(n).zip(product.chunks(width)) {
                for (x, p) in row[first..first + width].iter_mut().zip(product) {
                    *x -= p;
                }
            }
        }
        // The diagonal block, then every row below it on its own.
        let (upper, below) = a.split_at_mut((first + width) * n);
        let block = &mut upper[first * n..];
        for i in 0..width {
            let (done, rest) = block.split_at_mut(i * n);
            let row = &mut rest[first..first + i + 1];
            reduce(row, |j| &done[j * n + first..j * n + first + j + 1]);
            let square = row[i] - row[..i].iter().map(|x| x * x).sum::<f64>();
            if square <= tiny {
                return Ok(false);
            }
            row[i] = square.sqrt();
        }
        let block = &*block;
        below.par_chunks_mut(n).for_each(|row| {
            let mut extended = row[first..first + width].to_vec();
            extended.push(0.0); // `reduce` leaves the last one
            reduce(&mut extended, |j| {
                &block[j * n + first..j * n + first + j + 1]
            });
            row[first..first + width].copy_from_slice(&extended[..width]);
        });
    }
    Ok(true)
}

/// Forward substitution of all but the last of `row`, where `factor(j)` is row j of the triangle, j + 1 values.
fn reduce<'a>(row: &mut [f64], factor: impl Fn(usize) -> &'a [f64]) {
    for j in 0..row.len() - 1 {
        let other = factor(j);
        row[j] = (row[j] - dot(&row[..j], other)) / other[j];
    }
}

/// Solves L·Lᵀ·x = right in place.
fn substitute(factor: &[f64], right: &mut [f64]) {
    let n = right.len();
    for i in 0..n {
        let row = &factor[i * n..i * n + i + 1];
        right[i] = (right[i] - dot(&row[..i], right)) / row[i];
    }
    for i in (0..n).rev() {
        let row = &factor[i * n..i * n + i + 1];
        right[i] /= row[i];
        let x = right[i];
        for (y, l) in right[..i].iter_mut().zip(row) {
            *y -= l * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, d: usize, seed: u64) -> Features {
        let mut stream = Stream::new(seed, Purpose::Bootstrap, 2);
        Features::new(n, d, (0..n * d).map(|_| stream.normal() as f32).collect()).unwrap()
    }

    #[test]
    fn an_alpha_too_small_to_determine_the_weights_is_left_out() {
        let single = noise(20, 1, 4);
        let data = single.data.iter().flat_map(|x| [*x, *x]).collect();
        let twice = Features::new(20, 2, data).unwrap();
        let values: Vec<f64> = single.data.iter().map(|x| f64::from(*x)).collect();
        let (_, tried) = fit_with_best_alpha(&twice, &values, &[0.0, 1.0, 10.0], 0).unwrap();
        let alphas: Vec<f64> = tried.iter().map(|one| one.alpha).collect();
        assert_eq!(alphas, [10.0, 1.0]);
        let error = fit_with_best_alpha(&twice, &values, &[0.0], 0).unwrap_err();
        assert!(
            matches!(error, EvalError::Singular { alpha: 0.0 }),
            "{error}"
        );
    }

    #[test]
    fn an_alpha_that_is_too_small_for_all_rows_alone_is_left_out_too() {
        // One row a billion times as long, which is held out by some seeds.
        let mut features = noise(10, 2, 5);
        features.data[0] = 1e9;
        let values: Vec<f64> = features.rows().map(|row| f64::from(row[0])).collect();
        for seed in 0..20 {
            let (model, tried) =
                fit_with_best_alpha(&features, &values, &[1e-3, 1e8], seed).unwrap();
            assert_eq!(tried.len(), 1);
            assert_eq!(model, Ridge::fit(&features, &values, 1e8).unwrap());
        }
    }

    #[test]
    fn the_solution_has_a_zero_gradient_on_both_sides_of_square() {
        // More than one Cholesky panel each way.
        for (n, d) in [(250, 120), (110, 250), (5, 1)] {
            let features = noise(n, d, 1);
            let values: Vec<f64> = features
                .rows()
                .map(|row| 2.0 * f64::from(row[0]) + 7.0)
                .collect();
            let model = Ridge::fit(&features, &values, 3.0).unwrap();
            let predictions = model.predict(&features).unwrap();
            let errors: Vec<f64> = predictions
                .iter()
                .zip(&values)
                .map(|(p, v)| p - v)
                .collect();
            assert!(errors.iter().sum::<f64>().abs() < 1e-8);
            for (j, w) in model.coef.iter().enumerate() {
                let by_row = features.rows().zip(&errors);
                let gradient: f64 =
                    by_row.map(|(row, e)| f64::from(row[j]) * e).sum::<f64>() + 3.0 * w;
                assert!(gradient.abs() < 1e-8, "{n} x {d}, column {j}: {gradient}");
            }
        }
    }

    #[test]
    fn a_repeated_column_without_penalty_is_singular() {
        let features = Features::new(3, 2, vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0]).unwrap();
        let error = Ridge::fit(&features, &[1.0, 2.0, 3.0], 0.0).unwrap_err();
        assert!(matches!(error, EvalError::Singular { .. }), "{error}");
        assert!(Ridge::fit(&features, &[1.0, 2.0, 3.0], 1e-3).is_ok());
    }

    #[test]
    fn alpha_is_chosen_by_the_part_held_out() {
        let features = noise(200, 3, 4);
        let values: Vec<f64> = features.rows().map(|row| f64::from(row[1]) - 1.0).collect();
        let (model, tried) = fit_with_best_alpha(&features, &values, &[1e-3, 1e4], 0).unwrap();
        assert_eq!(
            tried.iter().map(|t| t.alpha).collect::<Vec<_>>(),
            [1e4, 1e-3]
        );
        assert!(tried[1].mean_absolute_error < 1e-3);
        assert!((model.coef[1] - 1.0).abs() < 1e-4);
    }

    #[test]
    fn alpha_is_judged_on_rows_that_were_not_fitted() {
        // More columns than rows: any values can be fitted without an error, and there is nothing to learn.
        let features = noise(40, 60, 6);
        let values: Vec<f64> = noise(40, 1, 7).data.into_iter().map(f64::from).collect();
        let (model, tried) = fit_with_best_alpha(&features, &values, &[1e-6], 0).unwrap();
        let predictions = model.predict(&features).unwrap();
        assert!(mean_absolute_error(&values, &predictions).unwrap() < 1e-3);
        assert!(tried[0].mean_absolute_error > 0.1, "{tried:?}");
    }
}
