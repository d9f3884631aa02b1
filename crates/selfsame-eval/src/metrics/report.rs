//! scikit-learn's `classification_report`, to the letter.

use super::check;
use crate::error::EvalError;
use std::collections::BTreeSet;
use std::fmt;

/// What a ratio with denominator 0 becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZeroDivision {
    /// 0, as scikit-learn's default (which also warns).
    #[default]
    Zero,
    /// 1.
    One,
    /// Not a number; left out of the averages.
    NaN,
}

/// Settings of a [`ClassificationReport`]; the default is scikit-learn's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// The classes to report, in this order; `None`: those that occur in truth or predictions, rising.
    pub labels: Option<Vec<usize>>,
    /// Decimals.
    pub digits: usize,
    /// What a ratio with denominator 0 becomes.
    pub zero_division: ZeroDivision,
}

impl Default for ReportOptions {
    fn default() -> ReportOptions {
        ReportOptions {
            labels: None,
            digits: 2,
            zero_division: ZeroDivision::Zero,
        }
    }
}

/// Scores of one class, or an average of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassScores {
    /// Of the rows predicted as this class, the share that is.
    pub precision: f64,
    /// Of the rows of this class, the share predicted as it.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Rows of this class.
    pub support: usize,
}

/// Precision, recall, F1 and support per class and on average.
///
/// [`fmt::Display`] gives the text of scikit-learn's `classification_report`.
/// ```
/// # use selfsame_eval::metrics::{ClassificationReport, ReportOptions};
/// let names = ["f".to_owned(), "m".to_owned()];
/// let report = ClassificationReport::new(&[0, 0, 1, 1], &[0, 1, 1, 1], &names, &ReportOptions::default())?;
/// assert!(report.to_string().contains("    accuracy                           0.75         4\n"));
/// # Ok::<(), selfsame_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ClassificationReport {
    /// Name and scores of each reported class.
    pub classes: Vec<(String, ClassScores)>,
    /// From the sums of all counts. Its three scores are the accuracy if every class that occurs is reported.
    pub micro: ClassScores,
    /// Plain mean over the classes.
    pub macro_avg: ClassScores,
    /// Mean over the classes weighted by support.
    pub weighted_avg: ClassScores,
    /// Whether every class that occurs is reported, so that the `micro avg` row reads `accuracy`.
    pub micro_is_accuracy: bool,
    digits: usize,
    /// Whether any row at all was predicted right; if none was, scikit-learn's supports are floats: `2.0`.
    any_right: bool,
}

impl ClassificationReport {
    /// The report for predicted against true class numbers; `names` are the texts of all class numbers.
    ///
    /// # Errors
    /// [`EvalError`] without rows, for different lengths, or for a class that has no name or is asked for twice.
    pub fn new(
        truth: &[usize],
        predicted: &[usize],
        names: &[String],
        options: &ReportOptions,
    ) -> Result<ClassificationReport, EvalError> {
        check(truth.len(), predicted.len())?;
        let present: BTreeSet<usize> = truth.iter().chain(predicted).copied().collect();
        let labels = match &options.labels {
            Some(labels) => labels.clone(),
            None => present.iter().copied().collect(),
        };
        if labels.is_empty() {
            return Err(EvalError::Empty {
                what: "classes to report",
            });
        }
        // A class without a name can occur, but not be reported.
        let mut places = vec![None; names.len()];
        for (place, &label) in labels.iter().enumerate() {
            if label >= names.len() {
                return Err(EvalError::Setting(format!(
                    "report: class {label} has no name"
                )));
            }
            if places[label].replace(place).is_some() {
                return Err(EvalError::Setting(format!(
                    "report: class {label} is listed twice"
                )));
            }
        }
        let place = |class: usize| places.get(class).copied().flatten();

        let mut counts = vec![Counts::default(); labels.len()];
        for (&t, &p) in truth.iter().zip(predicted) {
            if let Some(place) = place(t) {
                counts[place].truth += 1;
                counts[place].hits += usize::from(t == p);
            }
            if let Some(place) = place(p) {
                counts[place].predicted += 1;
            }
        }
        let scores: Vec<ClassScores> = counts
            .iter()
            .map(|counts| counts.scores(options.zero_division))
            .collect();
        let sums = counts.iter().fold(Counts::default(), |sum, one| Counts {
            hits: sum.hits + one.hits,
            predicted: sum.predicted + one.predicted,
            truth: sum.truth + one.truth,
        });
        let averaged = |mean: fn(&[f64], &[usize]) -> f64| {
            let support: Vec<usize> = scores.iter().map(|s| s.support).collect();
            let column = |of: fn(&ClassScores) -> f64| {
                mean(&scores.iter().map(of).collect::<Vec<f64>>(), &support)
            };
            ClassScores {
                precision: column(|s| s.precision),
                recall: column(|s| s.recall),
                f1: column(|s| s.f1),
                support: sums.truth,
            }
        };
        Ok(ClassificationReport {
            micro: sums.scores(options.zero_division),
            macro_avg: averaged(plain_mean),
            weighted_avg: averaged(weighted_mean),
            micro_is_accuracy: present.iter().all(|&label| place(label).is_some()),
            classes: labels
                .iter()
                .map(|&label| names[label].clone())
                .zip(scores)
                .collect(),
            digits: options.digits,
            any_right: truth.iter().zip(predicted).any(|(t, p)| t == p),
        })
    }
}

impl fmt::Display for ClassificationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits;
        let longest = self
            .classes
            .iter()
            .map(|(name, _)| name.chars().count())
            .max();
        let width = longest.unwrap_or(0).max("weighted avg".len()).max(digits);
        let count = |support: usize| match self.any_right {
            true => support.to_string(),
            false => format!("{support}.0"),
        };
        // The width of a format may not exceed 65,535.
        let name_at_right = |f: &mut fmt::Formatter<'_>, name: &str| {
            let blanks = " ".repeat(width.saturating_sub(name.chars().count()));
            write!(f, "{blanks}{name} ")
        };
        let row = |f: &mut fmt::Formatter<'_>, name: &str, s: &ClassScores| {
            name_at_right(f, name)?;
            for score in [s.precision, s.recall, s.f1] {
                write!(f, " {:>9}", decimal(score, digits))?;
            }
            writeln!(f, " {:>9}", count(s.support))
        };

        name_at_right(f, "")?;
        for head in ["precision", "recall", "f1-score", "support"] {
            write!(f, " {head:>9}")?;
        }
        write!(f, "\n\n")?;
        for (name, scores) in &self.classes {
            row(f, name, scores)?;
        }
        writeln!(f)?;
        if self.micro_is_accuracy {
            let (blank, score) = ("", decimal(self.micro.f1, digits));
            let support = count(self.micro.support);
            name_at_right(f, "accuracy")?;
            writeln!(f, " {blank:>9} {blank:>9} {score:>9} {support:>9}")?;
        } else {
            row(f, "micro avg", &self.micro)?;
        }
        row(f, "macro avg", &self.macro_avg)?;
        row(f, "weighted avg", &self.weighted_avg)
    }
}

/// As Python's `%.nf`, which writes a missing number in lower case.
fn decimal(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    // No f64 has more decimals that are not 0, and a format may not ask for more than 65,535.
    let written = digits.min(1100);
    format!("{value:.written$}{}", "0".repeat(digits - written))
}

#[derive(Clone, Copy, Default)]
struct Counts {
    hits: usize,
    predicted: usize,
    truth: usize,
}

impl Counts {
    fn scores(&self, zero_division: ZeroDivision) -> ClassScores {
        let ratio = |numerator: usize, denominator: usize| match (denominator, zero_division) {
            (0, ZeroDivision::Zero) => 0.0,
            (0, ZeroDivision::One) => 1.0,
            (0, ZeroDivision::NaN) => f64::NAN,
            _ => numerator as f64 / denominator as f64,
        };
        ClassScores {
            precision: ratio(self.hits, self.predicted),
            recall: ratio(self.hits, self.truth),
            f1: ratio(2 * self.hits, self.truth + self.predicted),
            support: self.truth,
        }
    }
}

/// numpy's `nanmean`.
fn plain_mean(values: &[f64], _: &[usize]) -> f64 {
    let known = values.iter().filter(|value| !value.is_nan()).count();
    let values: Vec<f64> = values
        .iter()
        .map(|v| if v.is_nan() { 0.0 } else { *v })
        .collect();
    pairwise_sum(&values) / known as f64
}

/// numpy's `average` of the values that are numbers; their plain mean if all weights are 0.
fn weighted_mean(values: &[f64], weights: &[usize]) -> f64 {
    let known = || {
        values
            .iter()
            .zip(weights)
            .filter(|(value, _)| !value.is_nan())
    };
    let total: usize = known().map(|(_, weight)| weight).sum();
    if total == 0 {
        return plain_mean(
            &known().map(|(value, _)| *value).collect::<Vec<_>>(),
            weights,
        );
    }
    let products: Vec<f64> = known()
        .map(|(value, &weight)| value * weight as f64)
        .collect();
    pairwise_sum(&products) / total as f64
}

/// Sum in numpy's order, so that a mean on the edge of rounding falls to the same side.
fn pairwise_sum(values: &[f64]) -> f64 {
    match values.len() {
        0..8 => values.iter().fold(0.0, |sum, value| sum + value),
        8..=128 => {
            let (eights, rest) = values.as_chunks::<8>();
            let mut lanes = eights[0];
            for eight in &eights[1..] {
                for (lane, value) in lanes.iter_mut().zip(eight) {
                    *lane += value;
                }
            }
            let [a, b, c, d, e, f, g, h] = lanes;
            let sum = ((a + b) + (c + d)) + ((e + f) + (g + h));
            rest.iter().fold(sum, |sum, value| sum + value)
        }
        n => {
            let half = n / 2 - (n / 2) % 8;
            pairwise_sum(&values[..half]) + pairwise_sum(&values[half..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn every_class_counts_even_if_it_is_never_predicted() {
        let report = ClassificationReport::new(
            &[0, 1, 2, 2, 2],
            &[0, 0, 2, 2, 1],
            &names(3),
            &ReportOptions::default(),
        )
        .unwrap();
        let second = report.classes[1].1;
        assert_eq!(
            (second.precision, second.recall, second.support),
            (0.0, 0.0, 1)
        );
        assert_eq!(report.micro.f1, 0.6);
        assert!(report.micro_is_accuracy);
    }

    #[test]
    fn names_and_decimals_of_any_length_are_written() {
        let long = "x".repeat(70_000);
        let report = |names: &[String], digits| {
            let options = ReportOptions {
                digits,
                ..ReportOptions::default()
            };
            let report = ClassificationReport::new(&[0, 1, 1], &[0, 0, 1], names, &options);
            report.unwrap().to_string()
        };
        let text = report(&[long.clone(), "b".to_owned()], 2);
        assert!(text.contains(&format!(
            "{long}       0.50      1.00      0.67         1\n"
        )));
        assert!(text.contains(&format!("{}b       1.00", " ".repeat(69_999))));
        let text = report(&names(2), 100_000);
        assert!(text.contains(&format!(" 0.5{} ", "0".repeat(99_999))));
    }

    #[test]
    fn a_class_without_name_or_listed_twice_is_an_error() {
        let report = |labels: Vec<usize>| {
            let options = ReportOptions {
                labels: Some(labels),
                ..ReportOptions::default()
            };
            ClassificationReport::new(&[0], &[0], &names(2), &options)
        };
        assert_eq!(
            report(vec![5]).unwrap_err().to_string(),
            "report: class 5 has no name"
        );
        assert_eq!(
            report(vec![1, 1]).unwrap_err().to_string(),
            "report: class 1 is listed twice"
        );
        assert!(report(vec![]).is_err());
    }

    #[test]
    fn a_class_of_any_number_without_name_is_an_error_or_left_out() {
        for class in [2, 1 << 40, usize::MAX] {
            let report = |options: &ReportOptions| {
                ClassificationReport::new(&[0, class], &[0, class], &names(2), options)
            };
            assert_eq!(
                report(&ReportOptions::default()).unwrap_err().to_string(),
                format!("report: class {class} has no name")
            );
            let some = report(&ReportOptions {
                labels: Some(vec![0]),
                ..ReportOptions::default()
            });
            let some = some.unwrap();
            assert_eq!((some.micro.support, some.micro_is_accuracy), (1, false));
        }
    }
}
