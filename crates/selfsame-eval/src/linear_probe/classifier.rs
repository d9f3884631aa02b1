//! The classifier itself.

use super::ProbeInit;
use crate::error::EvalError;
use crate::features::Features;
use crate::random::{Purpose, Stream};
use rayon::prelude::*;

/// Logits W·x + b.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearClassifier {
    /// Columns of the features.
    pub d: usize,
    /// Number of classes.
    pub num_classes: usize,
    /// Weights, row-major `[num_classes, d]`.
    pub weight: Vec<f32>,
    /// Biases, `[num_classes]`.
    pub bias: Vec<f32>,
}

impl LinearClassifier {
    /// A classifier drawn from a seed.
    pub fn init(d: usize, num_classes: usize, init: ProbeInit, seed: u64) -> LinearClassifier {
        let mut stream = Stream::new(seed, Purpose::ProbeInit, 0);
        let bound = 1.0 / (d as f64).sqrt();
        let mut draw = |count: usize, of_bias: bool| -> Vec<f32> {
            (0..count)
                .map(|_| match init {
                    ProbeInit::Uniform => (bound * (2.0 * stream.uniform() - 1.0)) as f32,
                    ProbeInit::Normal if of_bias => 0.0,
                    ProbeInit::Normal => (0.01 * stream.normal()) as f32,
                })
                .collect()
        };
        let (weight, bias) = (draw(num_classes * d, false), draw(num_classes, true));
        LinearClassifier {
            d,
            num_classes,
            weight,
            bias,
        }
    }

    /// The class of each row: that of the largest logit, the first of equal ones.
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width.
    pub fn predict(&self, features: &Features) -> Result<Vec<usize>, EvalError> {
        features.check_width(self.d)?;
        Ok((0..features.n)
            .into_par_iter()
            .map(|i| {
                let (mut best, mut best_logit) = (0, f32::NEG_INFINITY);
                for class in 0..self.num_classes {
                    let logit = self.logit(class, features.row(i));
                    if logit > best_logit {
                        (best, best_logit) = (class, logit);
                    }
                }
                best
            })
            .collect())
    }

    /// Logit of one class for one row.
    pub(super) fn logit(&self, class: usize, row: &[f32]) -> f32 {
        dot(&self.weight[class * self.d..(class + 1) * self.d], row) + self.bias[class]
    }
}

/// Dot product in sixteen fixed lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_start_fills_its_bounds_and_normal_start_has_zero_biases() {
        let uniform = LinearClassifier::init(16, 50, ProbeInit::Uniform, 1);
        let largest = uniform
            .weight
            .iter()
            .chain(&uniform.bias)
            .fold(0.0f32, |m, x| m.max(x.abs()));
        assert!((0.24..=0.25).contains(&largest), "{largest}");
        let normal = LinearClassifier::init(16, 500, ProbeInit::Normal, 1);
        let squares: f32 = normal.weight.iter().map(|x| x * x).sum();
        assert!(((squares / 8000.0).sqrt() - 0.01).abs() < 3e-4);
        assert!(normal.bias.iter().all(|&b| b == 0.0));
    }

    #[test]
    fn equal_logits_go_to_the_first_class() {
        let classifier = LinearClassifier {
            d: 1,
            num_classes: 3,
            weight: vec![0.0, 1.0, 1.0],
            bias: vec![0.0; 3],
        };
        let rows = Features::new(2, 1, vec![2.0, -2.0]).unwrap();
        assert_eq!(classifier.predict(&rows).unwrap(), [1, 0]);
    }
}
