//! Figures for predictions: accuracy, errors, reports, and how sure one can be of them.

mod bootstrap;
mod confusion;
mod report;

pub use bootstrap::{BootstrapConfig, Interval, bootstrap, bootstrap_mean, paired_bootstrap};
pub use confusion::ConfusionMatrix;
pub use report::{ClassScores, ClassificationReport, ReportOptions, ZeroDivision};

use crate::error::{EvalError, same_length};

/// Share of rows with the right class, in 0..=1.
///
/// # Errors
/// [`EvalError`] without rows or for different lengths.
pub fn accuracy(truth: &[usize], predicted: &[usize]) -> Result<f64, EvalError> {
    let hits = correct(truth, predicted)?;
    Ok(hits.iter().sum::<f64>() / hits.len() as f64)
}

/// Share of rows whose right class is among the ones predicted, in 0..=1: the accuracy at five, where
/// those are the five likeliest.
///
/// # Errors
/// [`EvalError`] without rows or for different lengths.
pub fn accuracy_among(truth: &[usize], predicted: &[Vec<usize>]) -> Result<f64, EvalError> {
    check(truth.len(), predicted.len())?;
    let hits = truth.iter().zip(predicted);
    let hits = hits.filter(|(truth, predicted)| predicted.contains(truth));
    Ok(hits.count() as f64 / truth.len() as f64)
}

/// 1 for each row with the right class, else 0: what [`bootstrap_mean`] and [`paired_bootstrap`] take.
///
/// # Errors
/// [`EvalError`] without rows or for different lengths.
pub fn correct(truth: &[usize], predicted: &[usize]) -> Result<Vec<f64>, EvalError> {
    check(truth.len(), predicted.len())?;
    Ok(truth
        .iter()
        .zip(predicted)
        .map(|(t, p)| f64::from(u8::from(t == p)))
        .collect())
}

/// Mean of |truth − prediction|, in the unit of the label.
///
/// # Errors
/// [`EvalError`] without rows or for different lengths.
pub fn mean_absolute_error(truth: &[f64], predicted: &[f64]) -> Result<f64, EvalError> {
    check(truth.len(), predicted.len())?;
    let sum: f64 = truth
        .iter()
        .zip(predicted)
        .map(|(t, p)| (t - p).abs())
        .sum();
    Ok(sum / truth.len() as f64)
}

/// R²: 1 − Σ(truth − prediction)² / Σ(truth − mean)².
///
/// As scikit-learn's `r2_score`: if all truths are equal it is 1 for perfect predictions, else 0, also where the mean is
/// rounded; of a single row it is not a number.
///
/// # Errors
/// [`EvalError`] without rows or for different lengths.
pub fn r2(truth: &[f64], predicted: &[f64]) -> Result<f64, EvalError> {
    check(truth.len(), predicted.len())?;
    if truth.len() == 1 {
        return Ok(f64::NAN);
    }
    let mean = truth.iter().sum::<f64>() / truth.len() as f64;
    let residual: f64 = truth
        .iter()
        .zip(predicted)
        .map(|(t, p)| (t - p).powi(2))
        .sum();
    let total: f64 = truth.iter().map(|t| (t - mean).powi(2)).sum();
    // The mean of equal numbers may be another number, and their total more than 0, by rounding.
    let all_equal = total == 0.0 || truth.iter().all(|t| *t == truth[0]);
    Ok(match (residual == 0.0, all_equal) {
        (true, _) => 1.0,
        (false, true) => 0.0,
        (false, false) => 1.0 - residual / total,
    })
}

fn check(truth: usize, predicted: usize) -> Result<(), EvalError> {
    same_length("predictions", truth, predicted)?;
    if truth == 0 {
        Err(EvalError::Empty {
            what: "predictions",
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_among_those_predicted_is_right() {
        let predicted = [vec![1, 2], vec![2], vec![3, 0, 1], vec![]];
        assert_eq!(accuracy_among(&[2, 1, 1, 0], &predicted).unwrap(), 0.5);
        assert!(accuracy_among(&[2], &predicted).is_err());
        assert!(accuracy_among(&[], &[]).is_err());
    }

    #[test]
    fn accuracy_is_the_share_of_equal_classes() {
        assert_eq!(accuracy(&[0, 1, 2, 3], &[0, 1, 2, 0]).unwrap(), 0.75);
        assert!(accuracy(&[], &[]).is_err());
        assert!(accuracy(&[1], &[1, 2]).is_err());
    }

    #[test]
    fn errors_of_numbers_follow_their_formulas() {
        // sklearn.metrics.r2_score's documented example: 0.948608...; mean_absolute_error: 0.5
        let (truth, predicted) = ([3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0]);
        assert_eq!(mean_absolute_error(&truth, &predicted).unwrap(), 0.5);
        assert!((r2(&truth, &predicted).unwrap() - 0.948_608_137_044_967_9).abs() < 1e-15);
        assert_eq!(r2(&[2.0, 2.0], &[2.0, 2.0]).unwrap(), 1.0);
        assert_eq!(r2(&[2.0, 2.0], &[2.0, 3.0]).unwrap(), 0.0);
        assert!(r2(&[2.0], &[3.0]).unwrap().is_nan());
        // 0.1 + 0.1 + 0.1 is more than 0.3.
        assert_eq!(r2(&[0.1; 3], &[0.1, 0.1, 0.2]).unwrap(), 0.0);
        assert_eq!(r2(&[0.1; 3], &[0.1; 3]).unwrap(), 1.0);
    }
}
