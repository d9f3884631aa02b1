//! Classification and regression by the nearest neighbours.

use crate::error::{EvalError, finite_values, same_length};
use crate::features::Features;
use crate::neighbors::{Own, neighbors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How neighbours are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    /// Each neighbour counts exp(similarity / temperature) (official eval_knn.py).
    #[default]
    Weighted,
    /// Each neighbour counts 1 (the notebook).
    Majority,
}

/// Settings of [`knn`] and [`knn_regress`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnnConfig {
    /// Numbers of neighbours to report, all from one search.
    pub ks: Vec<usize>,
    /// Temperature of the weighted vote; not used by the majority vote.
    pub temperature: f64,
    /// How neighbours are counted.
    pub vote: Vote,
    /// Whether a query may be its own neighbour.
    pub own: Own,
}

impl Default for KnnConfig {
    /// eval_knn.py: `--nb_knn 10 20 100 200`, `--temperature 0.07`.
    fn default() -> KnnConfig {
        KnnConfig {
            ks: vec![10, 20, 100, 200],
            temperature: 0.07,
            vote: Vote::Weighted,
            own: Own::Keep,
        }
    }
}

impl KnnConfig {
    /// Everything that is wrong with the settings; empty if they can be used.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.ks.is_empty() {
            problems.push("knn.ks: no number of neighbours given".to_owned());
        }
        if self.ks.contains(&0) {
            problems.push("knn.ks: 0 is not a number of neighbours, 1 is the least".to_owned());
        }
        let is_temperature = self.temperature.is_finite() && self.temperature > 0.0;
        if self.vote == Vote::Weighted && !is_temperature {
            problems.push(format!(
                "knn.temperature: {} is not a number above 0, such as 0.07",
                self.temperature
            ));
        }
        problems
    }
}

/// The answers for one number of neighbours.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnAnswers<T> {
    /// The number of neighbours asked for.
    pub k: usize,
    /// The number used: `k`, or what the bank holds if that is less.
    pub k_used: usize,
    /// A class number or a value per query.
    pub predictions: Vec<T>,
}

/// Predicts the class of each query from its nearest bank rows by cosine similarity, for every k of `config.ks`.
///
/// Features need not be normalised.
/// A tie goes to the lowest class number.
/// The weighted vote gives what scikit-learn's `KNeighborsClassifier(k, metric="cosine",
/// weights=lambda d: exp((1 - d) / temperature))` gives.
///
/// # Shape
/// `bank_labels`: a class number per bank row. The result has one entry per k, in the order of `config.ks`.
///
/// # Errors
/// [`EvalError`] for settings out of range, bad features, different widths or lengths.
pub fn knn(
    bank: &Features,
    bank_labels: &[usize],
    queries: &Features,
    config: &KnnConfig,
) -> Result<Vec<KnnAnswers<usize>>, EvalError> {
    let ranked = knn_ranked(bank, bank_labels, queries, config, 1)?;
    let first = |answers: KnnAnswers<Vec<usize>>| KnnAnswers {
        k: answers.k,
        k_used: answers.k_used,
        predictions: answers.predictions.iter().map(|best| best[0]).collect(),
    };
    Ok(ranked.into_iter().map(first).collect())
}

/// As [`knn`], with the `most` classes that have the largest votes of each query, the largest first:
/// for the accuracy at five of `eval_knn.py`. A class that no neighbour has is not among them.
///
/// # Errors
/// As [`knn`], and [`EvalError::Setting`] if `most` is 0.
pub fn knn_ranked(
    bank: &Features,
    bank_labels: &[usize],
    queries: &Features,
    config: &KnnConfig,
    most: usize,
) -> Result<Vec<KnnAnswers<Vec<usize>>>, EvalError> {
    same_length("bank labels", bank.n, bank_labels.len())?;
    if most == 0 {
        return Err(EvalError::Setting("0 classes are no answer".to_owned()));
    }
    // Classes as places in the sorted list of those that occur: ids may be sparse.
    let mut classes = bank_labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    let places: Vec<usize> = bank_labels
        .iter()
        .map(|class| classes.partition_point(|other| other < class))
        .collect();
    answer(bank, queries, config, |rows, weights, ks| {
        let mut votes = vec![0.0; classes.len()];
        // Places with a vote: a query has few of a thousand classes.
        let mut voted: Vec<usize> = Vec::new();
        let mut seen = 0;
        ks.iter()
            .map(|&k| {
                for (&row, weight) in rows[seen..k].iter().zip(&weights[seen..k]) {
                    let place = places[row as usize];
                    if let Err(at) = voted.binary_search(&place) {
                        voted.insert(at, place);
                    }
                    votes[place] += weight;
                }
                seen = k;
                largest_first(&voted, &votes, most)
                    .into_iter()
                    .map(|place| classes[place])
                    .collect()
            })
            .collect()
    })
}

/// Predicts a number for each query: the (weighted) mean over its nearest bank rows, for every k of `config.ks`.
///
/// # Shape
/// `bank_values`: a value per bank row. The result has one entry per k, in the order of `config.ks`.
///
/// # Errors
/// As [`knn`], and [`EvalError::ValueNotFinite`].
pub fn knn_regress(
    bank: &Features,
    bank_values: &[f64],
    queries: &Features,
    config: &KnnConfig,
) -> Result<Vec<KnnAnswers<f64>>, EvalError> {
    same_length("bank values", bank.n, bank_values.len())?;
    finite_values(bank_values)?;
    answer(bank, queries, config, |rows, weights, ks| {
        let (mut sum, mut total, mut seen) = (0.0, 0.0, 0);
        ks.iter()
            .map(|&k| {
                for (&row, weight) in rows[seen..k].iter().zip(&weights[seen..k]) {
                    sum += weight * bank_values[row as usize];
                    total += weight;
                }
                seen = k;
                sum / total
            })
            .collect()
    })
}

/// Searches once, then lets `decide` answer for each query from (bank rows, their weights, rising ks).
fn answer<T: Clone + Default + Send>(
    bank: &Features,
    queries: &Features,
    config: &KnnConfig,
    decide: impl Fn(&[u32], &[f64], &[usize]) -> Vec<T> + Sync,
) -> Result<Vec<KnnAnswers<T>>, EvalError> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(EvalError::Setting(problems.join("; ")));
    }
    let largest = config.ks.iter().copied().max().unwrap_or_default();
    let found = neighbors(bank, queries, largest, config.own)?;

    let mut rising: Vec<usize> = config.ks.iter().map(|&k| k.min(found.k)).collect();
    rising.sort_unstable();
    rising.dedup();
    let answers: Vec<Vec<T>> = (0..queries.n)
        .into_par_iter()
        .map(|i| {
            let (rows, similarities) = found.row(i);
            let weights: Vec<f64> = match config.vote {
                Vote::Majority => vec![1.0; rows.len()],
                // Relative to the nearest: no temperature can overflow, and the vote is the same.
                Vote::Weighted => similarities
                    .iter()
                    .map(|s| (f64::from(s - similarities[0]) / config.temperature).exp())
                    .collect(),
            };
            decide(rows, &weights, &rising)
        })
        .collect();
    Ok(config
        .ks
        .iter()
        .map(|&k| {
            let k_used = k.min(found.k);
            let place = rising.partition_point(|&other| other < k_used);
            let predictions = answers.iter().map(|answer| answer[place].clone()).collect();
            KnnAnswers {
                k,
                k_used,
                predictions,
            }
        })
        .collect())
}

/// The `most` of these places, which rise, whose values are the largest; of equal ones the first.
fn largest_first(places: &[usize], values: &[f64], most: usize) -> Vec<usize> {
    let mut sorted = places.to_vec();
    // Stable, so that equal ones stay in their order.
    sorted.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    sorted.truncate(most);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors at the given angles, in degrees.
    fn at_angles(degrees: &[f32]) -> Features {
        let data = degrees
            .iter()
            .flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]);
        Features::new(degrees.len(), 2, data.collect()).unwrap()
    }

    fn config(ks: &[usize], vote: Vote) -> KnnConfig {
        KnnConfig {
            ks: ks.to_vec(),
            vote,
            ..KnnConfig::default()
        }
    }

    #[test]
    fn a_near_neighbour_outweighs_two_far_ones_but_is_outvoted_by_them() {
        let bank = at_angles(&[0.0, 60.0, 61.0]);
        let query = at_angles(&[1.0]);
        let weighted = knn(&bank, &[4, 9, 9], &query, &config(&[1, 3], Vote::Weighted)).unwrap();
        assert_eq!(
            (&weighted[0].predictions[..], &weighted[1].predictions[..]),
            (&[4][..], &[4][..])
        );
        let majority = knn(&bank, &[4, 9, 9], &query, &config(&[1, 3], Vote::Majority)).unwrap();
        assert_eq!(
            (&majority[0].predictions[..], &majority[1].predictions[..]),
            (&[4][..], &[9][..])
        );
    }

    #[test]
    fn a_tie_goes_to_the_lowest_class() {
        let bank = at_angles(&[0.0, 10.0]);
        let answers = knn(
            &bank,
            &[7, 3],
            &at_angles(&[1.0]),
            &config(&[2], Vote::Majority),
        );
        assert_eq!(answers.unwrap()[0].predictions, [3]);
    }

    #[test]
    fn classes_are_ranked_by_their_votes() {
        let bank = at_angles(&[0.0, 20.0, 21.0, 40.0, 90.0]);
        let labels = [7, 3, 3, 1, 9];
        let query = at_angles(&[1.0]);
        let ranked = |ks: &[usize], most| {
            let config = config(ks, Vote::Majority);
            let answers = knn_ranked(&bank, &labels, &query, &config, most).unwrap();
            let ranked = answers.into_iter().map(|of_k| of_k.predictions[0].clone());
            ranked.collect::<Vec<_>>()
        };
        // Equal votes by class number; no class that nobody voted for.
        assert_eq!(
            ranked(&[1, 2, 3, 5], 5),
            [vec![7], vec![3, 7], vec![3, 7], vec![3, 1, 7, 9]]
        );
        assert_eq!(ranked(&[5], 2), [[3, 1]]);
        let config = config(&[1], Vote::Majority);
        assert!(knn_ranked(&bank, &labels, &query, &config, 0).is_err());
    }

    #[test]
    fn k_beyond_the_bank_is_clamped_and_reported() {
        let bank = at_angles(&[0.0, 90.0]);
        let answers = knn(&bank, &[0, 1], &bank, &config(&[200, 1], Vote::Weighted)).unwrap();
        assert_eq!((answers[0].k, answers[0].k_used), (200, 2));
        assert_eq!((answers[1].k, answers[1].k_used), (1, 1));
    }

    #[test]
    fn leave_one_out_ignores_the_own_label() {
        let bank = at_angles(&[0.0, 1.0, 90.0, 91.0]);
        let config = KnnConfig {
            own: Own::LeaveOut,
            ..config(&[1], Vote::Weighted)
        };
        let answers = knn(&bank, &[0, 1, 2, 3], &bank, &config).unwrap();
        assert_eq!(answers[0].predictions, [1, 0, 3, 2]);
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() {
        let bank = at_angles(&[0.0, 10.0, 20.0]);
        let config = KnnConfig {
            temperature: 1e-4,
            ..config(&[3], Vote::Weighted)
        };
        let answers = knn_regress(&bank, &[5.0, 6.0, 7.0], &at_angles(&[1.0]), &config).unwrap();
        assert!((answers[0].predictions[0] - 5.0).abs() < 1e-9);
    }

    #[test]
    fn regression_by_majority_is_the_plain_mean() {
        let bank = at_angles(&[0.0, 10.0, 20.0]);
        let config = config(&[2, 3], Vote::Majority);
        let answers = knn_regress(&bank, &[5.0, 6.0, 10.0], &at_angles(&[1.0]), &config).unwrap();
        assert_eq!(
            (answers[0].predictions[0], answers[1].predictions[0]),
            (5.5, 7.0)
        );
    }

    #[test]
    fn every_wrong_setting_is_listed() {
        let config = KnnConfig {
            ks: vec![0],
            temperature: 0.0,
            ..KnnConfig::default()
        };
        let problems = config.check();
        let keys: Vec<&str> = problems
            .iter()
            .filter_map(|problem| problem.split(':').next())
            .collect();
        assert_eq!(keys, ["knn.ks", "knn.temperature"]);
        let majority = KnnConfig {
            ks: vec![1],
            vote: Vote::Majority,
            ..config.clone()
        };
        assert!(majority.check().is_empty(), "it uses no temperature");
        assert!(knn(&at_angles(&[0.0]), &[0], &at_angles(&[0.0]), &config).is_err());
    }
}
