//! t-SNE (van der Maaten and Hinton 2008): neighbourhoods of features as a map of two dimensions.

mod affinity;
mod descent;
mod quadtree;
mod repulsion;

use crate::error::EvalError;
use crate::features::Features;
use crate::pca::Pca;
use crate::random::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Settings of [`tsne`]; the defaults are scikit-learn's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TsneConfig {
    /// About how many neighbours a point has; it must be below the number of points.
    pub perplexity: f64,
    /// Factor on the attraction in the first 250 iterations, which lets clusters form.
    pub early_exaggeration: f64,
    /// Step size; `None`: max(points / early_exaggeration / 4, 50).
    pub learning_rate: Option<f64>,
    /// Iterations in all, the first 250 of them exaggerated.
    pub iterations: usize,
    /// Barnes and Hut's angle: a cell so wide as seen from a point counts as one body.
    pub angle: f64,
    /// Up to so many points every pair repels exactly; above, by Barnes and Hut (2014).
    pub exact_up_to: usize,
    /// Seed of the start, where principal components do not give one.
    pub seed: u64,
}

impl Default for TsneConfig {
    fn default() -> TsneConfig {
        TsneConfig {
            perplexity: 30.0,
            early_exaggeration: 12.0,
            learning_rate: None,
            iterations: 1000,
            angle: 0.5,
            exact_up_to: 5000,
            seed: 42,
        }
    }
}

impl TsneConfig {
    /// Everything that is wrong with the settings for `n` points; empty if they can be used.
    pub fn check(&self, n: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if !(self.perplexity.is_finite() && self.perplexity >= 1.0) {
            problems.push(format!(
                "tsne.perplexity: {} is not 1 or more",
                self.perplexity
            ));
        } else if self.perplexity >= n as f64 {
            problems.push(format!(
                "tsne.perplexity: {} is not below the {n} points there are",
                self.perplexity
            ));
        }
        let above_zero = [
            ("early_exaggeration", self.early_exaggeration),
            ("learning_rate", self.learning_rate.unwrap_or(1.0)),
        ];
        for (name, value) in above_zero {
            if !(value.is_finite() && value > 0.0) {
                problems.push(format!("tsne.{name}: {value} is not above 0"));
            }
        }
        if !(self.angle > 0.0 && self.angle <= 1.0) {
            problems.push(format!(
                "tsne.angle: {} is not above 0 and up to 1",
                self.angle
            ));
        }
        if n > self.exact_up_to && n > quadtree::MOST_POINTS {
            problems.push(format!(
                "tsne: {n} points are more than a map has at most, {}",
                quadtree::MOST_POINTS
            ));
        }
        problems
    }
}

/// A finished map.
#[derive(Clone, Debug, PartialEq)]
pub struct Tsne {
    /// A place per row of the features.
    pub points: Vec<[f32; 2]>,
    /// Kullback-Leibler divergence of the map's neighbourhoods from the features'.
    pub kl: f64,
    /// Iterations done; fewer than asked for if nothing moved any more.
    pub iterations: usize,
}

/// Draws a map in which rows that are near in the features are near.
///
/// The recipe is scikit-learn's `TSNE()`: Euclidean distances, affinities on 3·perplexity + 1
/// neighbours, principal components as start, 250 exaggerated iterations, momentum 0.5 then 0.8,
/// gains. Only the repulsion differs: it is exact up to [`TsneConfig::exact_up_to`] points.
/// `progress` is told how many iterations are done. The same seed gives the same bits for any
/// number of threads.
///
/// Features of any finite size have a map: distances count by their ratios alone.
///
/// # Errors
/// [`EvalError`] for bad features or settings out of range, and [`EvalError::Setting`] if a step size or an exaggeration
/// far from the default drives the points beyond all numbers.
pub fn tsne(
    features: &Features,
    config: &TsneConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Tsne, EvalError> {
    features.check()?;
    let problems = config.check(features.n);
    if !problems.is_empty() {
        return Err(EvalError::Setting(problems.join("; ")));
    }
    let affinities = affinity::Affinities::new(features, config.perplexity)?;
    let start = start(features, config.seed)?;
    let map = descent::descend(&affinities, start, config, progress);
    let is_finite = map.points.iter().flatten().all(|x| x.is_finite());
    match is_finite && map.kl.is_finite() {
        true => Ok(map),
        false => Err(EvalError::Setting(format!(
            "tsne: the points left the range of numbers; tsne.early_exaggeration ({}) or tsne.learning_rate ({}) is too \
             far from its default",
            config.early_exaggeration,
            config
                .learning_rate
                .map_or("automatic".to_owned(), |rate| format!("{rate}")),
        ))),
    }
}

/// The first two principal components, the first with a standard deviation of 10⁻⁴; noise of that
/// size where the features have no spread.
fn start(features: &Features, seed: u64) -> Result<Vec<[f64; 2]>, EvalError> {
    const SIZE: f64 = 1e-4;
    let n = features.n;
    if features.d >= 2 && n > 2 {
        // Also of points on a line, which no gradient would move off it.
        let pca = Pca::fit_with_rounding(features, 2, seed)?;
        let places = pca.transform(features)?;
        let first = || places.chunks_exact(2).map(|place| place[0]);
        let mean = first().sum::<f64>() / n as f64;
        let deviation = (first().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        if deviation > 0.0 && deviation.is_finite() {
            let scaled = places.chunks_exact(2);
            let scaled = scaled.map(|place| [place[0], place[1]].map(|x| x / deviation * SIZE));
            return Ok(scaled.collect());
        }
    }
    let mut stream = Stream::new(seed, Purpose::TsneStart, 0);
    Ok((0..n)
        .map(|_| [(); 2].map(|()| SIZE * stream.normal()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `per` points around each of `clusters` far corners.
    fn clusters(clusters: usize, per: usize, d: usize) -> Features {
        let mut stream = Stream::new(5, Purpose::TsneStart, 9);
        let mut data = Vec::new();
        for i in 0..clusters * per {
            for j in 0..d {
                let corner = if j % clusters == i / per { 3.0 } else { 0.0 };
                data.push((corner + 0.3 * stream.normal()) as f32);
            }
        }
        Features::new(clusters * per, d, data).unwrap()
    }

    fn nearest(points: &[[f32; 2]], i: usize) -> usize {
        let distance = |j: &usize| {
            let [dx, dy] = [0, 1].map(|c| f64::from(points[i][c]) - f64::from(points[*j][c]));
            dx * dx + dy * dy
        };
        let others = (0..points.len()).filter(|j| *j != i);
        others
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .unwrap()
    }

    #[test]
    fn clusters_stay_together_exactly_and_by_barnes_and_hut() {
        let features = clusters(3, 40, 6);
        for exact_up_to in [5000, 0] {
            let config = TsneConfig {
                perplexity: 10.0,
                iterations: 400,
                exact_up_to,
                ..TsneConfig::default()
            };
            let mut told = 0;
            let map = tsne(&features, &config, &mut |done| told = done).unwrap();
            assert_eq!((map.iterations, told), (400, 400));
            let own = (0..120).filter(|&i| nearest(&map.points, i) / 40 == i / 40);
            assert_eq!(own.count(), 120);
            assert!(map.kl > 0.0 && map.kl < 1.0, "{}", map.kl);
        }
    }

    #[test]
    fn the_divergence_is_that_of_the_definition() {
        const N: usize = 20;
        let features = clusters(2, 10, 3);
        let perplexity = 6.5; // three times it is more than there are others, so all are neighbours
        let config = TsneConfig {
            perplexity,
            iterations: 300,
            ..TsneConfig::default()
        };
        let map = tsne(&features, &config, &mut |_| ()).unwrap();
        let squared = |a: &[f32], b: &[f32]| -> f64 {
            let apart = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
            apart.map(|x| x * x).sum()
        };
        // p(j|i): the Gaussian around i whose entropy is the perplexity's logarithm.
        let conditional = |i: usize| -> Vec<f64> {
            let of = |exponent: f64| -> Vec<f64> {
                let far = |j| squared(features.row(i), features.row(j));
                let weight = |j| f64::from(u8::from(i != j)) * (-exponent.exp() * far(j)).exp();
                let sum: f64 = (0..N).map(weight).sum();
                (0..N).map(|j| weight(j) / sum).collect()
            };
            let (mut low, mut high) = (-10.0, 5.0);
            for _ in 0..60 {
                let middle = f64::midpoint(low, high);
                let p = of(middle);
                let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                match entropy > perplexity.ln() {
                    true => low = middle,
                    false => high = middle,
                }
            }
            of(low)
        };
        let p: Vec<Vec<f64>> = (0..N).map(conditional).collect();
        let pairs = || {
            (0..N * N)
                .map(|at| (at / N, at % N))
                .filter(|(i, j)| i != j)
        };
        let w = |(i, j): (usize, usize)| 1.0 / (1.0 + squared(&map.points[i], &map.points[j]));
        let z: f64 = pairs().map(w).sum();
        let kl = pairs().map(|(i, j)| {
            let p = (p[i][j] + p[j][i]) / (2 * N) as f64;
            p * (p / (w((i, j)) / z)).ln()
        });
        let kl: f64 = kl.sum();
        // The widths are found to 10⁻⁵ of an entropy.
        assert!((map.kl - kl).abs() < 1e-4, "{} {kl}", map.kl);
    }

    #[test]
    fn the_same_bits_on_one_thread_and_on_many() {
        let features = clusters(4, 60, 5);
        for exact_up_to in [5000, 0] {
            let config = TsneConfig {
                iterations: 300,
                exact_up_to,
                ..TsneConfig::default()
            };
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                pool.install(|| tsne(&features, &config, &mut |_| ()).unwrap())
            };
            assert_eq!(on(1), on(5));
        }
    }

    #[test]
    fn clusters_of_huge_and_of_tiny_features_stay_together() {
        let config = TsneConfig {
            perplexity: 10.0,
            iterations: 300,
            ..TsneConfig::default()
        };
        for exponent in [60, 120, -100] {
            let mut features = clusters(3, 40, 6);
            let factor = 2f32.powi(exponent);
            features.data.iter_mut().for_each(|x| *x *= factor);
            let map = tsne(&features, &config, &mut |_| ()).unwrap();
            let own = (0..120).filter(|&i| nearest(&map.points, i) / 40 == i / 40);
            assert_eq!(own.count(), 120, "2^{exponent}");
        }
    }

    #[test]
    fn settings_that_drive_points_beyond_numbers_are_an_error() {
        let features = clusters(2, 10, 3);
        let tried = |early_exaggeration, learning_rate, exact_up_to| {
            let config = TsneConfig {
                perplexity: 3.0,
                iterations: 60,
                early_exaggeration,
                learning_rate,
                exact_up_to,
                ..TsneConfig::default()
            };
            assert!(config.check(20).is_empty());
            tsne(&features, &config, &mut |_| ())
        };
        for exact_up_to in [5000, 0] {
            for (exaggeration, rate) in [(12.0, Some(1e300)), (1e300, None), (1e-300, None)] {
                let error = tried(exaggeration, rate, exact_up_to)
                    .unwrap_err()
                    .to_string();
                assert!(error.contains("left the range of numbers"), "{error}");
            }
            assert!(tried(12.0, None, exact_up_to).is_ok());
        }
    }

    #[test]
    fn every_problem_is_told_and_too_many_points_are_one() {
        let config = TsneConfig {
            angle: 2.0,
            ..TsneConfig::default()
        };
        let error = tsne(&clusters(2, 5, 3), &config, &mut |_| ()).unwrap_err();
        let error = error.to_string();
        for key in ["tsne.perplexity: ", "tsne.angle: "] {
            assert!(error.contains(key), "{error}");
        }
        let check = |points| TsneConfig::default().check(points);
        assert!(check(1 << 24).is_empty());
        assert!(check((1 << 24) + 1)[0].contains("16777217 points"));
    }

    #[test]
    fn equal_rows_and_few_rows_give_finite_places() {
        let equal = Features::new(8, 3, vec![1.0; 24]).unwrap();
        let config = TsneConfig {
            perplexity: 2.0,
            ..TsneConfig::default()
        };
        let map = tsne(&equal, &config, &mut |_| ()).unwrap();
        assert!(map.points.iter().flatten().all(|x| x.is_finite()));
        let error = tsne(&equal, &TsneConfig::default(), &mut |_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tsne.perplexity: 30 is not below the 8 points there are"
        );
    }
}
