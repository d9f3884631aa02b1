//! The classifier itself.

use super::ProbeInit;
use crate::error::{EvalError, fitting, same_length};
use crate::features::Features;
use crate::random::{Purpose, Stream};
use rayon::prelude::*;

/// Logits W·x + b.
///
/// The fields are public so that trained weights can be brought; they are checked before use.
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
    ///
    /// # Errors
    /// [`EvalError`] without columns, for fewer than two classes, or if the weights do not fit into memory.
    pub fn init(
        d: usize,
        num_classes: usize,
        init: ProbeInit,
        seed: u64,
    ) -> Result<LinearClassifier, EvalError> {
        check_sizes(d, num_classes)?;
        fitting::<f32>("weights of a linear classifier", num_classes, d)?;
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
        Ok(LinearClassifier {
            d,
            num_classes,
            weight,
            bias,
        })
    }

    /// Checks that there are columns and two classes or more, that the sizes agree, and that all weights are finite.
    ///
    /// # Errors
    /// [`EvalError::Empty`] without columns, [`EvalError::Setting`] for fewer than two classes,
    /// [`EvalError::Length`] for another number of weights or biases, and [`EvalError::WeightNotFinite`].
    pub fn check(&self) -> Result<(), EvalError> {
        check_sizes(self.d, self.num_classes)?;
        let weights = self.num_classes.saturating_mul(self.d);
        same_length("classifier weights", weights, self.weight.len())?;
        same_length("classifier biases", self.num_classes, self.bias.len())?;
        let rows = self.weight.chunks_exact(self.d).zip(&self.bias);
        let is_finite =
            |(row, bias): (&[f32], &f32)| row.iter().chain([bias]).all(|x| x.is_finite());
        match rows.map(is_finite).position(|is_finite| !is_finite) {
            Some(class) => Err(EvalError::WeightNotFinite { class }),
            None => Ok(()),
        }
    }

    /// The class of each row: that of the largest logit, the first of equal ones.
    ///
    /// # Errors
    /// As [`LinearClassifier::check`]; [`EvalError`] if the features are bad or of another width;
    /// [`EvalError::LogitNotFinite`] for the first row whose logits leave the range of numbers.
    pub fn predict(&self, features: &Features) -> Result<Vec<usize>, EvalError> {
        let ranked = self.predict_ranked(features, 1)?;
        Ok(ranked.iter().map(|best| best[0]).collect())
    }

    /// The `most` classes with the largest logits of each row, the largest first, the lower number
    /// first of equal ones: for the accuracy at five.
    ///
    /// # Errors
    /// As [`LinearClassifier::predict`], and [`EvalError::Setting`] if `most` is 0.
    pub fn predict_ranked(
        &self,
        features: &Features,
        most: usize,
    ) -> Result<Vec<Vec<usize>>, EvalError> {
        self.check()?;
        features.check_width(self.d)?;
        if most == 0 {
            return Err(EvalError::Setting("0 classes are no answer".to_owned()));
        }
        let ranked: Vec<Option<Vec<usize>>> = (0..features.n)
            .into_par_iter()
            .map(|i| {
                // The best so far with their logits, the largest first.
                let mut best: Vec<(usize, f32)> = Vec::with_capacity(most.min(self.num_classes));
                for class in 0..self.num_classes {
                    let logit = self.logit(class, features.row(i));
                    if logit.is_nan() {
                        return None;
                    }
                    let at = best.partition_point(|(_, other)| *other >= logit);
                    if at < most && logit > f32::NEG_INFINITY {
                        best.truncate(most - 1);
                        best.insert(at, (class, logit));
                    }
                }
                let is_number = best.first().is_some_and(|(_, logit)| logit.is_finite());
                is_number.then(|| best.into_iter().map(|(class, _)| class).collect())
            })
            .collect();
        let classes =
            |(row, best): (usize, Option<_>)| best.ok_or(EvalError::LogitNotFinite { row });
        ranked.into_iter().enumerate().map(classes).collect()
    }

    /// Whether every weight and bias is a finite number.
    pub(super) fn is_finite(&self) -> bool {
        self.weight.iter().chain(&self.bias).all(|x| x.is_finite())
    }

    /// Logit of one class for one row.
    pub(super) fn logit(&self, class: usize, row: &[f32]) -> f32 {
        dot(&self.weight[class * self.d..(class + 1) * self.d], row) + self.bias[class]
    }
}

/// Checks that there is a column and that there are classes to tell apart.
fn check_sizes(d: usize, num_classes: usize) -> Result<(), EvalError> {
    if d == 0 {
        return Err(EvalError::Empty {
            what: "feature columns",
        });
    }
    if num_classes < 2 {
        return Err(EvalError::Setting(format!(
            "linear probe: {num_classes} classes given, at least 2 are needed"
        )));
    }
    Ok(())
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
        let uniform = LinearClassifier::init(16, 50, ProbeInit::Uniform, 1).unwrap();
        let largest = uniform
            .weight
            .iter()
            .chain(&uniform.bias)
            .fold(0.0f32, |m, x| m.max(x.abs()));
        assert!((0.24..=0.25).contains(&largest), "{largest}");
        let normal = LinearClassifier::init(16, 500, ProbeInit::Normal, 1).unwrap();
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

    #[test]
    fn classes_are_ranked_by_their_logits() {
        let classifier = LinearClassifier {
            d: 1,
            num_classes: 5,
            weight: vec![1.0, 3.0, 2.0, 3.0, f32::MIN],
            bias: vec![0.0; 5],
        };
        let rows = Features::new(2, 1, vec![2.0, 0.5]).unwrap();
        let ranked = classifier.predict_ranked(&rows, 3).unwrap();
        assert_eq!(ranked, [[1, 3, 2], [1, 3, 2]]);
        // No more than have a finite logit.
        let lengths = classifier.predict_ranked(&rows, 9).unwrap();
        let lengths: Vec<usize> = lengths.iter().map(Vec::len).collect();
        assert_eq!(lengths, [4, 5]);
        assert!(classifier.predict_ranked(&rows, 0).is_err());
        let turned = Features::new(1, 1, vec![-0.5]).unwrap();
        let ranked = classifier.predict_ranked(&turned, 3).unwrap();
        assert_eq!(ranked, [[4, 0, 2]]);
    }

    #[test]
    fn a_class_whose_weights_are_not_numbers_is_named() {
        let rows = Features::new(1, 2, vec![1.0; 2]).unwrap();
        for (weight, bias) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (0.0, f32::NAN)] {
            let classifier = LinearClassifier {
                d: 2,
                num_classes: 3,
                weight: vec![1.0, 1.0, 1.0, weight, 2.0, 2.0],
                bias: vec![0.0, bias, 0.0],
            };
            let error = classifier.predict(&rows).unwrap_err().to_string();
            let text =
                "linear classifier: the weights and the bias of class 1 are not all finite numbers";
            assert_eq!(error, text);
        }
    }

    #[test]
    fn sizes_that_disagree_are_told_before_anything_is_predicted() {
        let rows = Features::new(1, 2, vec![1.0; 2]).unwrap();
        let predict = |d, num_classes, weights, biases| {
            let classifier = LinearClassifier {
                d,
                num_classes,
                weight: vec![0.0; weights],
                bias: vec![0.0; biases],
            };
            classifier.predict(&rows).unwrap_err().to_string()
        };
        assert_eq!(
            predict(2, 3, 5, 3),
            "classifier weights: expected 6, found 5"
        );
        assert_eq!(
            predict(2, 3, 6, 2),
            "classifier biases: expected 3, found 2"
        );
        assert_eq!(predict(0, 3, 0, 3), "feature columns: none given");
        assert!(predict(2, 0, 0, 0).contains("0 classes given"));
        assert!(predict(2, usize::MAX, 0, 0).starts_with("classifier weights: expected"));
    }

    #[test]
    fn a_classifier_without_columns_or_beyond_memory_is_not_drawn() {
        for init in [ProbeInit::Uniform, ProbeInit::Normal] {
            let error = |d, classes| LinearClassifier::init(d, classes, init, 1).unwrap_err();
            assert_eq!(error(0, 2).to_string(), "feature columns: none given");
            assert!(error(3, 1).to_string().contains("at least 2 are needed"));
            for classes in [1 << 62, usize::MAX] {
                let error = error(3, classes);
                assert!(matches!(error, EvalError::TooLarge { .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_row_whose_logits_are_not_numbers_has_no_class() {
        let classifier = |weight| LinearClassifier {
            d: 1,
            num_classes: 2,
            weight,
            bias: vec![0.0; 2],
        };
        let rows = Features::new(2, 1, vec![1.0, 1e10]).unwrap();
        for weight in [vec![1e30, 2e30], vec![-1e30, -2e30]] {
            let error = classifier(weight).predict(&rows).unwrap_err();
            assert!(
                matches!(error, EvalError::LogitNotFinite { row: 1 }),
                "{error}"
            );
        }
        // The logit of the second class is ∞ − ∞.
        let classifier = LinearClassifier {
            d: 2,
            num_classes: 2,
            weight: vec![0.0, 0.0, 1e38, -1e38],
            bias: vec![0.0; 2],
        };
        let rows = Features::new(2, 2, vec![1.0, 1.0, 100.0, 100.0]).unwrap();
        let error = classifier.predict(&rows).unwrap_err();
        assert!(
            matches!(error, EvalError::LogitNotFinite { row: 1 }),
            "{error}"
        );
    }
}
