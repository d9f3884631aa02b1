//! Logistic regression, fitted as scikit-learn fits it.

mod choose_c;

pub use choose_c::{TriedC, default_grid, fit_with_best_c};

use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::lbfgs::{Stop, minimize};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

// Rows per matrix product. Sums over rows run block by block, so their order is fixed.
const BLOCK: usize = 2048;

/// Settings of [`Logistic::fit`]; the names are scikit-learn's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogisticConfig {
    /// Inverse strength of the L2 penalty: the objective is C·Σ cross-entropy + ½‖coef‖². The intercept is free.
    pub c: f64,
    /// It stops once no component of the gradient (of the mean cross-entropy) exceeds this.
    pub tol: f64,
    /// Most iterations. scikit-learn's default is 100, which raw features often exceed.
    pub max_iter: usize,
}

impl Default for LogisticConfig {
    /// scikit-learn's `LogisticRegression()`, but with 1000 iterations.
    fn default() -> LogisticConfig {
        LogisticConfig {
            c: 1.0,
            tol: 1e-4,
            max_iter: 1000,
        }
    }
}

impl LogisticConfig {
    /// Everything that is wrong with the settings; empty if they can be used.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in [("c", self.c), ("tol", self.tol)] {
            if !(value.is_finite() && value > 0.0) {
                problems.push(format!("logistic.{name}: {value} is not above 0"));
            }
        }
        if self.max_iter == 0 {
            problems.push("logistic.max_iter: 0 is too few".to_owned());
        }
        problems
    }
}

/// A fitted logistic regression.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    /// The class numbers that occur, rising.
    pub classes: Vec<usize>,
    /// Columns of the features.
    pub d: usize,
    /// Coefficients, row-major `[rows, d]`: one row for two classes (logit of the second), else one per class.
    pub coef: Vec<f64>,
    /// Intercepts, `[rows]`.
    pub intercept: Vec<f64>,
    /// Iterations taken.
    pub iterations: usize,
    /// Whether a tolerance was reached within `max_iter`.
    pub converged: bool,
}

impl Logistic {
    /// Fits by L-BFGS in f64, from zeros.
    ///
    /// The coefficients are those of scikit-learn's `LogisticRegression(C=c, tol=tol, solver="lbfgs")`, binomial for
    /// two classes and multinomial for more. A class number that does not occur in `labels` is not a class.
    /// Memory: one copy of the features in f64.
    ///
    /// # Errors
    /// [`EvalError`] for settings out of range, bad features, another number of labels, or a single class.
    pub fn fit(
        features: &Features,
        labels: &[usize],
        config: &LogisticConfig,
    ) -> Result<Logistic, EvalError> {
        Problem::new(features, labels)?.solve(config, None)
    }

    /// The class of each row.
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width, or the sizes of the fields disagree.
    pub fn predict(&self, features: &Features) -> Result<Vec<usize>, EvalError> {
        let logits = self.logits(features)?;
        let rows = self.intercept.len();
        let class_of = |logits: &[f64]| {
            if rows == 1 {
                return self.classes[usize::from(logits[0] > 0.0)];
            }
            let mut best = 0;
            for (place, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = place;
                }
            }
            self.classes[best]
        };
        Ok(logits.chunks(rows).map(class_of).collect())
    }

    /// Probabilities, row-major `[n, classes]`, columns in the order of `classes`.
    ///
    /// # Errors
    /// As [`Logistic::predict`].
    pub fn probabilities(&self, features: &Features) -> Result<Vec<f64>, EvalError> {
        let mut logits = self.logits(features)?;
        let rows = self.intercept.len();
        if rows == 1 {
            return Ok(logits
                .iter()
                .flat_map(|&z| [sigmoid(-z), sigmoid(z)])
                .collect());
        }
        logits.par_chunks_mut(rows).for_each(|row| {
            softmax(row);
        });
        Ok(logits)
    }

    fn logits(&self, features: &Features) -> Result<Vec<f64>, EvalError> {
        features.check_width(self.d)?;
        let rows = match self.classes.len() {
            few @ (0 | 1) => {
                let (what, expected) = ("logistic classes", 2);
                return Err(EvalError::Length {
                    what,
                    expected,
                    found: few,
                });
            }
            2 => 1,
            classes => classes,
        };
        same_length("logistic intercepts", rows, self.intercept.len())?;
        let weights = rows.saturating_mul(self.d);
        same_length("logistic coefficients", weights, self.coef.len())?;
        let weight = Tensor::from_slice(&self.coef, (self.intercept.len(), self.d), &Device::Cpu)?;
        let mut logits = Vec::with_capacity(features.n * self.intercept.len());
        for block in blocks(features) {
            logits.extend(block_logits(&block?, &weight, &self.intercept)?);
        }
        Ok(logits)
    }
}

/// Features and targets in the form that the objective needs.
struct Problem {
    classes: Vec<usize>,
    /// Place of each label in `classes`.
    targets: Vec<usize>,
    blocks: Vec<Tensor>,
    d: usize,
}

impl Problem {
    fn new(features: &Features, labels: &[usize]) -> Result<Problem, EvalError> {
        features.check_width(features.d)?;
        same_length("labels", features.n, labels.len())?;
        let mut classes = labels.to_vec();
        classes.sort_unstable();
        classes.dedup();
        if classes.len() < 2 {
            return Err(EvalError::OneClass { rows: labels.len() });
        }
        let targets = labels
            .iter()
            .map(|class| classes.partition_point(|c| c < class))
            .collect();
        let blocks = blocks(features).collect::<candle_core::Result<_>>()?;
        Ok(Problem {
            classes,
            targets,
            blocks,
            d: features.d,
        })
    }

    fn solve(
        &self,
        config: &LogisticConfig,
        start: Option<&Logistic>,
    ) -> Result<Logistic, EvalError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(EvalError::Setting(problems.join("; ")));
        }
        let rows = if self.classes.len() == 2 {
            1
        } else {
            self.classes.len()
        };
        let x = match start {
            Some(start) => [&start.coef[..], &start.intercept].concat(),
            None => vec![0.0; rows * (self.d + 1)],
        };
        let stop = Stop {
            gradient: config.tol,
            decrease: 64.0 * f64::EPSILON, // scikit-learn's ftol
            iterations: config.max_iter,
        };
        let penalty = 1.0 / (config.c * self.targets.len() as f64);
        let found = minimize(x, &stop, |x, gradient| {
            self.value_and_gradient(x, penalty, gradient)
        })?;
        let mut coef = found.x;
        let intercept = coef.split_off(rows * self.d);
        Ok(Logistic {
            classes: self.classes.clone(),
            d: self.d,
            coef,
            intercept,
            iterations: found.iterations,
            converged: found.converged,
        })
    }

    /// Mean cross-entropy + ½·penalty·‖coef‖², and its gradient by (coefficients, intercepts).
    fn value_and_gradient(
        &self,
        x: &[f64],
        penalty: f64,
        gradient: &mut [f64],
    ) -> Result<f64, EvalError> {
        let rows = x.len() / (self.d + 1);
        let (coef, intercept) = x.split_at(rows * self.d);
        let (coef_gradient, intercept_gradient) = gradient.split_at_mut(rows * self.d);
        coef_gradient.fill(0.0);
        intercept_gradient.fill(0.0);
        let weight = Tensor::from_slice(coef, (rows, self.d), &Device::Cpu)?;

        let mut loss = 0.0;
        for (block, targets) in self.blocks.iter().zip(self.targets.chunks(BLOCK)) {
            let mut logits = block_logits(block, &weight, intercept)?;
            let losses: Vec<f64> = logits
                .par_chunks_mut(rows)
                .zip(targets)
                .map(|(row, &target)| loss_and_gradient(row, target))
                .collect();
            loss += losses.iter().sum::<f64>();
            for row in logits.chunks(rows) {
                for (sum, g) in intercept_gradient.iter_mut().zip(row) {
                    *sum += g;
                }
            }
            let by_logits = Tensor::from_vec(logits, (targets.len(), rows), &Device::Cpu)?;
            let by_coef = by_logits
                .t()?
                .matmul(block)?
                .flatten_all()?
                .to_vec1::<f64>()?;
            for (sum, g) in coef_gradient.iter_mut().zip(by_coef) {
                *sum += g;
            }
        }
        let n = self.targets.len() as f64;
        let mut squares = 0.0;
        for (g, w) in coef_gradient.iter_mut().zip(coef) {
            *g = *g / n + penalty * w;
            squares += w * w;
        }
        intercept_gradient.iter_mut().for_each(|g| *g /= n);
        Ok(loss / n + 0.5 * penalty * squares)
    }
}

/// The features as f64 tensors of up to [`BLOCK`] rows.
fn blocks(features: &Features) -> impl Iterator<Item = candle_core::Result<Tensor>> {
    features.data.chunks(BLOCK * features.d).map(|rows| {
        let values: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
        Tensor::from_vec(values, (rows.len() / features.d, features.d), &Device::Cpu)
    })
}

/// `[block rows, rows]` logits, row-major.
fn block_logits(
    block: &Tensor,
    weight: &Tensor,
    intercept: &[f64],
) -> candle_core::Result<Vec<f64>> {
    let mut logits = block
        .matmul(&weight.t()?)?
        .flatten_all()?
        .to_vec1::<f64>()?;
    for row in logits.chunks_mut(intercept.len()) {
        for (logit, b) in row.iter_mut().zip(intercept) {
            *logit += b;
        }
    }
    Ok(logits)
}

/// Cross-entropy of one row, whose logits become its gradient.
fn loss_and_gradient(row: &mut [f64], target: usize) -> f64 {
    if let [z] = row {
        let signed = if target == 1 { *z } else { -*z };
        *z = sigmoid(*z) - target as f64;
        // ln(1 + exp(-signed)) without overflow.
        return (-signed).max(0.0) + (-signed.abs()).exp().ln_1p();
    }
    let logit = row[target];
    let log_sum = softmax(row);
    row[target] -= 1.0;
    log_sum - logit
}

/// Softmax in place; returns ln Σ exp(logit).
fn softmax(row: &mut [f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - largest).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
    largest + sum.ln()
}

fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    fn noise(n: usize, d: usize) -> Features {
        let mut stream = Stream::new(11, Purpose::Bootstrap, 1);
        Features::new(n, d, (0..n * d).map(|_| stream.normal() as f32).collect()).unwrap()
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        for num_classes in [2, 3] {
            let labels: Vec<usize> = (0..40)
                .map(|i| (i * i) % num_classes + usize::from(i < 3))
                .collect();
            let labels: Vec<usize> = labels.into_iter().map(|l| l % num_classes).collect();
            let problem = Problem::new(&noise(40, 3), &labels).unwrap();
            let rows = if problem.classes.len() == 2 {
                1
            } else {
                problem.classes.len()
            };
            let x: Vec<f64> = (0..rows * 4).map(|i| (i as f64 * 0.7).sin()).collect();
            let mut gradient = vec![0.0; x.len()];
            problem.value_and_gradient(&x, 0.3, &mut gradient).unwrap();
            for i in 0..x.len() {
                let at = |h: f64| {
                    let mut moved = x.clone();
                    moved[i] += h;
                    problem
                        .value_and_gradient(&moved, 0.3, &mut vec![0.0; x.len()])
                        .unwrap()
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!(
                    (slope - gradient[i]).abs() < 1e-8,
                    "{i}: {slope} {}",
                    gradient[i]
                );
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let mut binary = [-800.0];
        assert_eq!(loss_and_gradient(&mut binary, 1), 800.0);
        assert_eq!(binary[0], -1.0);
        let mut row = [900.0, -900.0, 0.0];
        assert_eq!(loss_and_gradient(&mut row, 1), 1800.0);
        assert_eq!(row, [1.0, -1.0, 0.0]);
    }

    #[test]
    fn sizes_that_disagree_are_told_before_anything_is_predicted() {
        let rows = noise(2, 3);
        let predict = |classes: usize, weights, intercepts| {
            let model = Logistic {
                classes: (0..classes).collect(),
                d: 3,
                coef: vec![0.0; weights],
                intercept: vec![0.0; intercepts],
                iterations: 0,
                converged: true,
            };
            assert!(model.probabilities(&rows).is_err());
            model.predict(&rows).unwrap_err().to_string()
        };
        for (sizes, text) in [
            ((0, 0, 0), "logistic classes: expected 2, found 0"),
            ((1, 3, 1), "logistic classes: expected 2, found 1"),
            ((2, 0, 0), "logistic intercepts: expected 1, found 0"),
            ((2, 6, 1), "logistic coefficients: expected 3, found 6"),
            ((4, 12, 3), "logistic intercepts: expected 4, found 3"),
        ] {
            let (classes, weights, intercepts) = sizes;
            assert_eq!(predict(classes, weights, intercepts), text);
        }
    }

    #[test]
    fn absent_class_numbers_are_not_classes() {
        let features = Features::new(4, 1, vec![-2.0, -1.0, 1.0, 2.0]).unwrap();
        let model = Logistic::fit(&features, &[3, 3, 8, 8], &LogisticConfig::default()).unwrap();
        assert_eq!(model.classes, [3, 8]);
        assert_eq!(model.predict(&features).unwrap(), [3, 3, 8, 8]);
        let error = Logistic::fit(&features, &[5; 4], &LogisticConfig::default()).unwrap_err();
        assert!(matches!(error, EvalError::OneClass { rows: 4 }));
    }
}
