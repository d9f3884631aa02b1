//! How much each row counts another among its neighbours.

use crate::error::EvalError;
use crate::features::Features;
use crate::neighbors::nearest_euclidean;
use rayon::prelude::*;

/// Largest difference of the entropy from ln(perplexity), and most halvings (scikit-learn).
const TOLERANCE: f64 = 1e-5;
const MAX_HALVINGS: usize = 100;

/// Symmetric affinities that sum to 1, only between neighbours.
pub(super) struct Affinities {
    /// Where the entries of each row begin; one more than there are rows.
    pub(super) starts: Vec<usize>,
    /// Row of each neighbour, rising within a row.
    pub(super) columns: Vec<u32>,
    /// Its affinity.
    pub(super) values: Vec<f32>,
}

impl Affinities {
    /// Gaussian affinities whose width gives every row the same perplexity, made symmetric.
    pub(super) fn new(features: &Features, perplexity: f64) -> Result<Affinities, EvalError> {
        let n = features.n;
        let k = ((3.0 * perplexity + 1.0) as usize).min(n - 1);
        let found = nearest_euclidean(features, k)?;
        let conditional: Vec<f64> = found
            .squared_distances
            .par_chunks(k)
            .flat_map_iter(|distances| conditional(distances, perplexity.ln()))
            .collect();

        let mut counts = vec![0usize; n + 1];
        for (at, &j) in found.indices.iter().enumerate() {
            counts[at / k + 1] += 1;
            counts[j as usize + 1] += 1;
        }
        for i in 0..n {
            counts[i + 1] += counts[i];
        }
        let mut entries = vec![(0u32, 0f64); 2 * found.indices.len()];
        let mut next = counts.clone();
        for (at, (&j, &p)) in found.indices.iter().zip(&conditional).enumerate() {
            let i = at / k;
            for (row, column) in [(i, j), (j as usize, i as u32)] {
                entries[next[row]] = (column, p);
                next[row] += 1;
            }
        }
        let mut affinities = Affinities {
            starts: vec![0],
            columns: Vec::with_capacity(entries.len()),
            values: Vec::with_capacity(entries.len()),
        };
        let total: f64 = 2.0 * conditional.iter().sum::<f64>();
        for i in 0..n {
            let row = &mut entries[counts[i]..counts[i + 1]];
            row.sort_by_key(|entry| entry.0);
            // A pair of mutual neighbours stands here twice: p(j|i) and p(i|j).
            for pair in row.chunk_by(|a, b| a.0 == b.0) {
                let sum: f64 = pair.iter().map(|entry| entry.1).sum();
                affinities.columns.push(pair[0].0);
                affinities.values.push((sum / total) as f32);
            }
            affinities.starts.push(affinities.columns.len());
        }
        Ok(affinities)
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Neighbours and affinities of row `i`.
    pub(super) fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let row = self.starts[i]..self.starts[i + 1];
        (&self.columns[row.clone()], &self.values[row])
    }
}

/// The Gaussian over these squared distances whose entropy is `target`, by bisection.
fn conditional(distances: &[f64], target: f64) -> Vec<f64> {
    // The nearest distance is taken off, so that the largest weight is 1 whatever the scale.
    let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut beta, mut low, mut high) = (1.0, f64::NEG_INFINITY, f64::INFINITY);
    let mut weights = vec![0.0; distances.len()];
    for _ in 0..MAX_HALVINGS {
        let (mut sum, mut moment) = (0.0, 0.0);
        for (weight, distance) in weights.iter_mut().zip(distances) {
            let distance = distance - nearest;
            *weight = (-beta * distance).exp();
            sum += *weight;
            moment += *weight * distance;
        }
        let entropy = sum.ln() + beta * moment / sum;
        weights.iter_mut().for_each(|weight| *weight /= sum);
        let excess = entropy - target;
        if excess.abs() <= TOLERANCE {
            break;
        }
        if excess > 0.0 {
            low = beta;
            beta = if high.is_infinite() {
                2.0 * beta
            } else {
                0.5 * (beta + high)
            };
        } else {
            high = beta;
            beta = if low.is_infinite() {
                0.5 * beta
            } else {
                0.5 * (beta + low)
            };
        }
        if !(beta > 0.0 && beta.is_finite()) {
            break;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gets_the_perplexity_asked_for_at_any_scale() {
        for scale in [1e-8, 1.0, 1e8] {
            let distances: Vec<f64> = (0..91).map(|i| scale * (5.0 + f64::from(i))).collect();
            let weights = conditional(&distances, 30f64.ln());
            let entropy: f64 = weights.iter().map(|p| -p * p.ln()).sum();
            assert!((entropy.exp() - 30.0).abs() < 1e-3, "{}", entropy.exp());
        }
    }

    #[test]
    fn affinities_are_symmetric_and_sum_to_one() {
        let data: Vec<f32> = (0..200).map(|i| ((i * 37 % 101) as f32).sin()).collect();
        let features = Features::new(50, 4, data).unwrap();
        let affinities = Affinities::new(&features, 5.0).unwrap();
        let sum: f64 = affinities.values.iter().map(|p| f64::from(*p)).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        for i in 0..50 {
            let (columns, values) = affinities.row(i);
            for (j, value) in columns.iter().zip(values) {
                let (back, of_j) = affinities.row(*j as usize);
                let at = back.binary_search(&(i as u32)).unwrap();
                assert_eq!(of_j[at], *value);
            }
        }
    }
}
