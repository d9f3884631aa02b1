//! The penalty chosen on training rows held out.

use super::{Logistic, LogisticConfig, Problem};
use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::metrics::accuracy;
use crate::random::{Purpose, Stream};
use std::collections::BTreeMap;

/// One value of C that was tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TriedC {
    /// The value.
    pub c: f64,
    /// Accuracy on the part held out, in 0..=1.
    pub accuracy: f64,
    /// Mean cross-entropy on the part held out; decides between equal accuracies.
    pub log_loss: f64,
}

/// Nine values from 1e-4 to 1e4, evenly spaced in the logarithm (scikit-learn's range for `Cs`).
pub fn default_grid() -> Vec<f64> {
    (-4..=4).map(|power| 10f64.powi(power)).collect()
}

/// Chooses C on a fifth of each class held out of `labels` by `seed`, then fits on everything with it.
///
/// The test set has no part in it. The best accuracy wins, then the lower cross-entropy, then the smaller C.
/// Each fit starts from the one before, along rising C; `on_fit` hears how many of the `grid.len() + 1` are
/// done.
///
/// # Errors
/// As [`Logistic::fit`], and [`EvalError::Setting`] if `grid` is empty or there are too few rows to hold any out.
pub fn fit_with_best_c(
    features: &Features,
    labels: &[usize],
    grid: &[f64],
    config: &LogisticConfig,
    seed: u64,
    on_fit: &mut dyn FnMut(usize),
) -> Result<(Logistic, Vec<TriedC>), EvalError> {
    features.check_width(features.d)?;
    same_length("labels", features.n, labels.len())?;
    let (kept, held_out) = hold_out_a_fifth(labels, seed);
    if grid.is_empty() {
        return Err(EvalError::Setting(
            "logistic: no value of C to try".to_owned(),
        ));
    }
    if held_out.is_empty() {
        return Err(EvalError::Setting(format!(
            "logistic: C is chosen on rows held out, and of {} row(s) none can be spared: some \
             class needs three at least",
            labels.len()
        )));
    }
    let labels_of = |rows: &[usize]| rows.iter().map(|&i| labels[i]).collect::<Vec<_>>();
    let problem = Problem::new(&features.subset(&kept), &labels_of(&kept))?;
    let (test, test_labels) = (features.subset(&held_out), labels_of(&held_out));

    let mut grid = grid.to_vec();
    grid.sort_by(f64::total_cmp);
    let mut tried: Vec<TriedC> = Vec::with_capacity(grid.len());
    let mut start: Option<Logistic> = None;
    for c in grid {
        let model = problem.solve(
            &LogisticConfig {
                c,
                ..config.clone()
            },
            start.as_ref(),
        )?;
        let accuracy = accuracy(&test_labels, &model.predict(&test)?)?;
        let probabilities = model.probabilities(&test)?;
        let rows = probabilities.chunks(model.classes.len()).zip(&test_labels);
        let log_loss = rows
            .map(|(row, label)| match model.classes.binary_search(label) {
                Ok(place) => -row[place].max(f64::MIN_POSITIVE).ln(),
                Err(_) => -f64::MIN_POSITIVE.ln(),
            })
            .sum::<f64>()
            / test.n as f64;
        tried.push(TriedC {
            c,
            accuracy,
            log_loss,
        });
        on_fit(tried.len());
        start = Some(model);
    }
    let mut best = tried[0];
    for one in &tried[1..] {
        if (one.accuracy, -one.log_loss) > (best.accuracy, -best.log_loss) {
            best = *one;
        }
    }
    let model = Logistic::fit(
        features,
        labels,
        &LogisticConfig {
            c: best.c,
            ..config.clone()
        },
    )?;
    on_fit(tried.len() + 1);
    Ok((model, tried))
}

/// Rows to keep and rows to hold out: a fifth of each class, rounded; a class of one or two rows is kept whole.
fn hold_out_a_fifth(labels: &[usize], seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut by_class: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, &label) in labels.iter().enumerate() {
        by_class.entry(label).or_default().push(row);
    }
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for (class, mut rows) in by_class {
        Stream::new(seed, Purpose::HeldOut, class as u64).shuffle(&mut rows);
        let count = (rows.len() + 2) / 5;
        held_out.extend_from_slice(&rows[..count]);
        kept.extend_from_slice(&rows[count..]);
    }
    kept.sort_unstable();
    held_out.sort_unstable();
    (kept, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, d: usize) -> Features {
        let mut stream = Stream::new(11, Purpose::Bootstrap, 1);
        Features::new(n, d, (0..n * d).map(|_| stream.normal() as f32).collect()).unwrap()
    }

    #[test]
    fn the_part_held_out_is_a_fifth_of_every_class() {
        let labels: Vec<usize> = (0..101)
            .map(|i| usize::from(i >= 50) + usize::from(i == 100))
            .collect();
        let (kept, held_out) = hold_out_a_fifth(&labels, 1);
        let count = |class| held_out.iter().filter(|&&i| labels[i] == class).count();
        assert_eq!((count(0), count(1), count(2)), (10, 10, 0));
        assert_eq!(kept.len() + held_out.len(), 101);
        assert_ne!(held_out, hold_out_a_fifth(&labels, 2).1);
    }

    #[test]
    fn c_is_chosen_without_the_test_set() {
        // The label is the sign of column 0, with a fifth of the labels wrong: too large a C fits the noise.
        let features = noise(120, 30);
        let labels: Vec<usize> = (0..120)
            .map(|i| usize::from((features.row(i)[0] > 0.0) ^ (i % 5 == 0)))
            .collect();
        let mut fits = Vec::new();
        let (model, tried) = fit_with_best_c(
            &features,
            &labels,
            &[1e4, 1e-2],
            &LogisticConfig::default(),
            0,
            &mut |done| fits.push(done),
        )
        .unwrap();
        assert_eq!(fits, [1, 2, 3]);
        assert_eq!(tried.iter().map(|t| t.c).collect::<Vec<_>>(), [1e-2, 1e4]);
        let best = if tried[0].accuracy >= tried[1].accuracy {
            1e-2
        } else {
            1e4
        };
        let config = LogisticConfig {
            c: best,
            ..LogisticConfig::default()
        };
        assert_eq!(model, Logistic::fit(&features, &labels, &config).unwrap());
    }

    #[test]
    fn c_is_judged_on_rows_that_were_not_fitted() {
        // More columns than rows: any labels can be fitted without an error, and there is nothing to learn.
        let features = noise(60, 100);
        let labels: Vec<usize> = (0..60).map(|i| i % 2).collect();
        let config = LogisticConfig::default();
        let (model, tried) =
            fit_with_best_c(&features, &labels, &[1e4], &config, 0, &mut |_| ()).unwrap();
        assert_eq!(model.predict(&features).unwrap(), labels);
        assert!(tried[0].accuracy < 1.0, "{tried:?}");
        assert!(tried[0].log_loss > 0.5, "{tried:?}");
    }

    #[test]
    fn the_lower_cross_entropy_decides_between_equal_accuracies() {
        let labels: Vec<usize> = (0..40).map(|i| i % 2).collect();
        let sides = labels.iter().map(|label| [-1.0, 1.0][*label]).collect();
        let features = Features::new(40, 1, sides).unwrap();
        let grid = [1e-2, 1e2];
        let config = LogisticConfig::default();
        let (model, tried) =
            fit_with_best_c(&features, &labels, &grid, &config, 0, &mut |_| ()).unwrap();
        assert!(tried.iter().all(|one| one.accuracy == 1.0), "{tried:?}");
        let config = LogisticConfig { c: 1e2, ..config };
        assert_eq!(model, Logistic::fit(&features, &labels, &config).unwrap());
    }
}
