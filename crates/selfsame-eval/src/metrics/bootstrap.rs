//! How sure a figure is: the bootstrap (Efron 1979).

use crate::error::{EvalError, finite_values, same_length};
use crate::random::{Purpose, Stream};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Settings of the bootstrap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// How many times rows are drawn again, with replacement.
    pub resamples: usize,
    /// Share of the resampled figures that the interval holds.
    pub level: f64,
    /// Seed of the draws; resample i depends on (seed, i) only.
    pub seed: u64,
}

impl Default for BootstrapConfig {
    fn default() -> BootstrapConfig {
        BootstrapConfig {
            resamples: 2000,
            level: 0.95,
            seed: 42,
        }
    }
}

impl BootstrapConfig {
    /// Everything that is wrong with the settings; empty if they can be used.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.resamples < 2 {
            problems.push(format!(
                "bootstrap.resamples: {} is fewer than 2",
                self.resamples
            ));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            problems.push(format!(
                "bootstrap.level: {} is not between 0 and 1",
                self.level
            ));
        }
        problems
    }
}

/// A figure and how far chance may have moved it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The figure of the rows as they are.
    pub estimate: f64,
    /// Standard deviation of the resampled figures.
    pub standard_error: f64,
    /// Lower end of the percentile interval.
    pub low: f64,
    /// Upper end of the percentile interval.
    pub high: f64,
    /// Resamples whose figure is not a number, such as the recall of a class that was not drawn; the standard error and
    /// the interval are those of the others, and not numbers if there are too few.
    pub undefined: usize,
}

/// The interval of any figure of `n` rows: `figure` gets row numbers, with repetitions.
///
/// Resamples in which the figure is not a number are left out and counted in [`Interval::undefined`].
///
/// # Errors
/// [`EvalError`] without rows or for settings out of range.
pub fn bootstrap(
    n: usize,
    config: &BootstrapConfig,
    figure: impl Fn(&[usize]) -> f64 + Sync,
) -> Result<Interval, EvalError> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(EvalError::Setting(problems.join("; ")));
    }
    if n == 0 {
        return Err(EvalError::Empty {
            what: "rows to draw from",
        });
    }
    let rows: Vec<usize> = (0..n).collect();
    let mut figures: Vec<f64> = (0..config.resamples)
        .into_par_iter()
        .map_init(
            || vec![0; n],
            |drawn, i| {
                let mut stream = Stream::new(config.seed, Purpose::Bootstrap, i as u64);
                drawn.fill_with(|| stream.below(n));
                figure(drawn)
            },
        )
        .collect();
    figures.retain(|figure| !figure.is_nan());
    figures.sort_by(f64::total_cmp);
    let mean = figures.iter().sum::<f64>() / figures.len() as f64;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    Ok(Interval {
        estimate: figure(&rows),
        standard_error: (squares / (figures.len() as f64 - 1.0).max(0.0)).sqrt(),
        low: quantile(&figures, 0.5 - 0.5 * config.level),
        high: quantile(&figures, 0.5 + 0.5 * config.level),
        undefined: config.resamples - figures.len(),
    })
}

/// The interval of the mean of one score per row: accuracy from [`super::correct`], or an error in years.
///
/// # Errors
/// As [`bootstrap`], and [`EvalError::ValueNotFinite`].
pub fn bootstrap_mean(scores: &[f64], config: &BootstrapConfig) -> Result<Interval, EvalError> {
    finite_values(scores)?;
    let n = scores.len();
    bootstrap(n, config, |rows| {
        rows.iter().map(|&i| scores[i]).sum::<f64>() / n as f64
    })
}

/// The interval of the mean of `a − b`, two scores of the same rows.
///
/// Both models meet the same images in every resample, so what is hard for both cancels: two models can differ clearly
/// although their own intervals overlap.
///
/// # Errors
/// As [`bootstrap_mean`], and [`EvalError::Length`].
pub fn paired_bootstrap(
    a: &[f64],
    b: &[f64],
    config: &BootstrapConfig,
) -> Result<Interval, EvalError> {
    same_length("scores of the second model", a.len(), b.len())?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    bootstrap_mean(&differences, config)
}

/// Quantile of rising values, linear between neighbours (numpy's default); of none it is not a number.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_of_an_accuracy_is_that_of_a_proportion() {
        let scores: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 != 0))).collect();
        let interval = bootstrap_mean(&scores, &BootstrapConfig::default()).unwrap();
        let expected = (0.75f64 * 0.25 / 400.0).sqrt();
        assert_eq!(interval.estimate, 0.75);
        assert!(
            (interval.standard_error / expected - 1.0).abs() < 0.05,
            "{interval:?}"
        );
        assert!(
            (interval.high - 0.75 - 1.96 * expected).abs() < 0.005,
            "{interval:?}"
        );
        assert!(
            (0.75 - interval.low - 1.96 * expected).abs() < 0.005,
            "{interval:?}"
        );
    }

    #[test]
    fn pairing_cancels_what_is_hard_for_both() {
        // b is a, but wrong on 8 rows more.
        let a: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let b: Vec<f64> = (0..400).map(|i| if i < 16 { 0.0 } else { a[i] }).collect();
        let config = BootstrapConfig::default();
        let paired = paired_bootstrap(&a, &b, &config).unwrap();
        let alone = bootstrap_mean(&a, &config).unwrap();
        assert_eq!(paired.estimate, 0.02);
        assert!(paired.low > 0.0, "{paired:?}");
        assert!(alone.standard_error > 3.0 * paired.standard_error);
    }

    #[test]
    fn one_thread_and_many_draw_the_same() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i).sin()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| bootstrap_mean(&scores, &BootstrapConfig::default()).unwrap())
        };
        assert_eq!(on(1), on(7));
    }

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
        assert_eq!(quantile(&[1.0], 0.3), 1.0);
    }

    #[test]
    fn resamples_without_a_figure_are_left_out_and_counted() {
        // The recall of a class with four of a hundred rows, one of them missed.
        let recall = |rows: &[usize]| {
            let of_class = rows.iter().filter(|&&i| i < 4).count() as f64;
            let right = rows.iter().filter(|&&i| i < 3).count() as f64;
            right / of_class
        };
        let config = BootstrapConfig::default();
        let interval = bootstrap(100, &config, recall).unwrap();
        assert!((10..100).contains(&interval.undefined), "{interval:?}"); // 0.96^100 of 2000
        assert!((0.0..0.75).contains(&interval.low), "{interval:?}");
        assert_eq!((interval.estimate, interval.high), (0.75, 1.0));
        assert!(interval.standard_error > 0.1, "{interval:?}");
        // The sign of what is not a number has no say.
        let turned = bootstrap(100, &config, |rows| match recall(rows) {
            x if x.is_nan() => -x,
            x => x,
        });
        assert_eq!(turned.unwrap(), interval);

        let nowhere = bootstrap(3, &config, |_| f64::NAN).unwrap();
        assert_eq!(nowhere.undefined, config.resamples);
        assert!(nowhere.low.is_nan() && nowhere.high.is_nan() && nowhere.standard_error.is_nan());
        let mean = bootstrap_mean(&[1.0, 2.0], &config).unwrap();
        assert_eq!(mean.undefined, 0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let config = BootstrapConfig {
            resamples: 1,
            level: 1.0,
            seed: 0,
        };
        assert_eq!(config.check().len(), 2);
        assert!(bootstrap_mean(&[1.0], &config).is_err());
    }
}
