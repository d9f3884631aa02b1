//! Principal components, by subspace iteration.

use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::matrix::{centred, column_means, dot, eigen};
use crate::random::{Purpose, Stream};
use candle_core::{Device, Tensor};

/// Directions followed beside those asked for, so that the last one asked for settles soon.
const OVERSAMPLING: usize = 10;
/// The iteration ends when no variance changes by more than this share.
const TOLERANCE: f64 = 1e-8;
const MAX_ITERATIONS: usize = 300;
/// A variance below this share of the first is rounding: the products are `f32`, whose numbers have a relative error of
/// 6·10⁻⁸, and their sums more.
const ROUNDING: f64 = 1e-12;

/// The directions in which features vary most.
#[derive(Clone, Debug, PartialEq)]
pub struct Pca {
    /// Mean of each column, `[d]`.
    pub mean: Vec<f64>,
    /// Unit vectors, `[k, d]`, by falling variance; the largest entry of each is positive.
    /// Where no direction is left along which anything varies by more than rounding, a millionth of the first one's
    /// standard deviation, zeros: all of them if all rows are equal.
    pub components: Vec<f64>,
    /// Variance along each component (n − 1 in the denominator).
    pub variances: Vec<f64>,
    /// The same as shares of the variance of all columns, at most 1; 0 if nothing varies.
    pub shares: Vec<f64>,
}

impl Pca {
    /// The first `k` principal components of the rows; fewer if there are fewer rows or columns.
    ///
    /// The signs are scikit-learn's. Memory: two centred copies of the features, one of them transposed.
    /// Equal rows are no error: their components are zeros and their variances 0.
    ///
    /// # Errors
    /// [`EvalError`] for bad features, fewer than two rows, or a `k` of 0.
    pub fn fit(features: &Features, k: usize, seed: u64) -> Result<Pca, EvalError> {
        let mut pca = Pca::fit_with_rounding(features, k, seed)?;
        let d = pca.mean.len();
        let least = ROUNDING * pca.variances[0];
        for (i, component) in pca.components.chunks_exact_mut(d).enumerate() {
            if pca.variances[i] <= least {
                component.fill(0.0);
                (pca.variances[i], pca.shares[i]) = (0.0, 0.0);
            }
        }
        Ok(pca)
    }

    /// As [`Pca::fit`], with directions along which nothing but rounding varies.
    pub(crate) fn fit_with_rounding(
        features: &Features,
        k: usize,
        seed: u64,
    ) -> Result<Pca, EvalError> {
        features.check()?;
        let (n, d) = (features.n, features.d);
        if n < 2 {
            return Err(EvalError::Length {
                what: "rows for principal components",
                expected: 2,
                found: n,
            });
        }
        let k = k.min(d).min(n);
        if k == 0 {
            return Err(EvalError::Empty {
                what: "principal components",
            });
        }
        let mean = column_means(features);
        let (centred, unit) = centred(features, &mean, |x| x as f32);
        let total = centred.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let xs = Tensor::from_vec(centred, (n, d), &Device::Cpu)?;
        let xs_t = xs.t()?.contiguous()?;

        let q = (k + OVERSAMPLING).min(d).min(n);
        let mut stream = Stream::new(seed, Purpose::PcaStart, 0);
        let mut basis: Vec<Vec<f64>> = (0..q)
            .map(|_| (0..d).map(|_| stream.normal()).collect())
            .collect();
        orthonormalize(&mut basis);
        let mut last = vec![f64::INFINITY; k];
        for _ in 0..MAX_ITERATIONS {
            // Rayleigh and Ritz: the best directions within the subspace, then one step of power.
            let scores = xs.matmul(&columns(&basis, d)?)?; // [n, q]
            let (values, vectors) = eigen(gram(&scores)?, q);
            let settled =
                (0..k).all(|i| (values[i] - last[i]).abs() <= TOLERANCE * values[i].abs());
            last.copy_from_slice(&values[..k]);
            basis = rotate(&basis, &vectors);
            if settled {
                break;
            }
            let scores = xs.matmul(&columns(&basis, d)?)?;
            basis = rows(&xs_t.matmul(&scores)?)?;
            orthonormalize(&mut basis);
        }
        basis.truncate(k);
        for component in &mut basis {
            let largest = component
                .iter()
                .copied()
                .fold(0f64, |best, x| if x.abs() > best.abs() { x } else { best });
            if largest < 0.0 {
                component.iter_mut().for_each(|x| *x = -*x);
            }
        }
        let of = |sum: f64| sum / (n - 1) as f64 * (unit * unit);
        let variances: Vec<f64> = last.iter().map(|x| of(x.max(0.0))).collect();
        let all = of(total).max(f64::MIN_POSITIVE);
        Ok(Pca {
            mean,
            components: basis.concat(),
            shares: variances.iter().map(|v| (v / all).min(1.0)).collect(),
            variances,
        })
    }

    /// Places of rows along the components, `[n, k]`.
    ///
    /// # Errors
    /// [`EvalError`] if the features are bad or of another width, or the components are not as many and
    /// as wide as variances and mean say.
    pub fn transform(&self, features: &Features) -> Result<Vec<f64>, EvalError> {
        let d = self.mean.len();
        features.check_width(d)?;
        let expected = self.variances.len().saturating_mul(d);
        same_length("values of all components", expected, self.components.len())?;
        let mut places = Vec::with_capacity(features.n * self.variances.len());
        for row in features.rows() {
            for component in self.components.chunks_exact(d) {
                let terms = row.iter().zip(&self.mean).zip(component);
                places.push(terms.map(|((x, m), c)| (f64::from(*x) - m) * c).sum());
            }
        }
        Ok(places)
    }
}

/// `q` vectors of length `d` as the columns of a matrix `[d, q]`.
fn columns(basis: &[Vec<f64>], d: usize) -> candle_core::Result<Tensor> {
    let q = basis.len();
    let mut data = Vec::with_capacity(d * q);
    for j in 0..d {
        data.extend(basis.iter().map(|vector| vector[j] as f32));
    }
    Tensor::from_vec(data, (d, q), &Device::Cpu)
}

/// The columns of a matrix as vectors.
fn rows(matrix: &Tensor) -> candle_core::Result<Vec<Vec<f64>>> {
    let rows = matrix.t()?.contiguous()?.to_vec2::<f32>()?;
    let wide = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
    Ok(rows.into_iter().map(wide).collect())
}

/// The products of all pairs of columns, `[q, q]`, summed in `f64`.
fn gram(matrix: &Tensor) -> candle_core::Result<Vec<f64>> {
    let columns = rows(matrix)?;
    let q = columns.len();
    let mut gram = vec![0.0; q * q];
    for i in 0..q {
        for j in 0..=i {
            gram[i * q + j] = dot(&columns[i], &columns[j]);
            gram[j * q + i] = gram[i * q + j];
        }
    }
    Ok(gram)
}

/// Gram and Schmidt, twice, which is enough (Giraud et al. 2005); a vector without a direction of
/// its own becomes zero.
fn orthonormalize(basis: &mut [Vec<f64>]) {
    for i in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(i);
        let vector = &mut rest[0];
        let length = dot(vector, vector).sqrt();
        for _ in 0..2 {
            for other in before.iter() {
                let along = dot(vector, other);
                vector
                    .iter_mut()
                    .zip(other)
                    .for_each(|(x, o)| *x -= along * o);
            }
        }
        let left = dot(vector, vector).sqrt();
        let scale = if left > 1e-10 * length {
            1.0 / left
        } else {
            0.0
        };
        vector.iter_mut().for_each(|x| *x *= scale);
    }
}

/// The combinations of the basis named by the rows of `vectors`.
fn rotate(basis: &[Vec<f64>], vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let combine = |weights: &Vec<f64>| {
        let mut sum = vec![0.0; basis[0].len()];
        for (weight, vector) in weights.iter().zip(basis) {
            sum.iter_mut()
                .zip(vector)
                .for_each(|(s, v)| *s += weight * v);
        }
        sum
    };
    vectors.iter().map(combine).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ellipse_is_measured_along_its_axes() {
        // Uncorrelated along (0.6, 0.8, 0) and (0.8, -0.6, 0), three times as far along the first.
        let mut data = Vec::new();
        for (a, b) in [(3.0, 1.0), (3.0, -1.0), (-3.0, 1.0), (-3.0, -1.0)] {
            let at = [0.6 * a + 0.8 * b + 7.0, 0.8 * a - 0.6 * b - 2.0, 5.0];
            data.extend(at.map(|x: f64| x as f32));
        }
        let features = Features::new(4, 3, data).unwrap();
        let pca = Pca::fit(&features, 2, 0).unwrap();
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(
            close(&pca.components, &[0.6, 0.8, 0.0, 0.8, -0.6, 0.0]),
            "{pca:?}"
        );
        assert!(close(&pca.variances, &[12.0, 4.0 / 3.0]), "{pca:?}");
        assert!(close(&pca.shares, &[0.9, 0.1]), "{pca:?}");
        assert!(close(&pca.mean, &[7.0, -2.0, 5.0]));
        let places = pca.transform(&features).unwrap();
        assert!(
            close(&places, &[3.0, 1.0, 3.0, -1.0, -3.0, 1.0, -3.0, -1.0]),
            "{places:?}"
        );
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let features = Features::new(3, 2, vec![0.0, 1.0, 2.0, 5.0, 4.0, 3.0]).unwrap();
        let pca = Pca::fit(&features, 2, 0).unwrap();
        for components in [&pca.components[..2], &pca.components[..3]] {
            let components = components.to_vec();
            let error = Pca {
                components,
                ..pca.clone()
            }
            .transform(&features);
            let error = error.unwrap_err().to_string();
            assert!(
                error.starts_with("values of all components: expected 4"),
                "{error}"
            );
        }
    }

    #[test]
    fn features_without_spread_have_no_variance() {
        let pca = Pca::fit(&Features::new(5, 3, vec![2.0; 15]).unwrap(), 2, 0).unwrap();
        assert_eq!((pca.variances, pca.shares), (vec![0.0; 2], vec![0.0; 2]));
        assert_eq!(pca.components, [0.0; 6]);
        assert!(Pca::fit(&Features::new(1, 3, vec![2.0; 3]).unwrap(), 2, 0).is_err());
    }

    #[test]
    fn directions_in_which_nothing_is_left_are_zeros() {
        let line = |rows: &[f32]| {
            let place = |t: &f32| [0.3, -0.71, 0.13, 0.9, 0.011].map(|x: f32| x * t);
            let data = rows.iter().flat_map(place).collect();
            Pca::fit(&Features::new(rows.len(), 5, data).unwrap(), 3, 0).unwrap()
        };
        let many: Vec<f32> = (0..50).map(|i| i as f32 * 0.37).collect();
        for rows in [&[1.0, 2.0][..], &[1.0, 2.0, 4.0], &many] {
            let pca = line(rows);
            let (first, rest) = pca.components.split_at(5);
            assert!(first.iter().any(|x| *x != 0.0), "{pca:?}");
            assert!(rest.iter().all(|x| *x == 0.0), "{pca:?}");
            assert!(pca.variances[1..].iter().all(|x| *x == 0.0), "{pca:?}");
            assert!(
                pca.shares.iter().all(|x| (0.0..=1.0).contains(x)),
                "{pca:?}"
            );
            assert!(
                pca.shares[0] > 1.0 - 1e-6 && pca.shares[1] == 0.0,
                "{pca:?}"
            );
        }
    }

    #[test]
    fn a_power_of_two_changes_the_variances_alone() {
        let mut stream = Stream::new(3, Purpose::Bootstrap, 7);
        let data: Vec<f32> = (0..60).map(|_| stream.normal() as f32).collect();
        let at = |factor: f32| {
            let data = data.iter().map(|x| x * factor).collect();
            Pca::fit(&Features::new(20, 3, data).unwrap(), 2, 0).unwrap()
        };
        let plain = at(1.0);
        assert!(plain.shares[0] > plain.shares[1] && plain.shares[1] > 0.1);
        // 2²⁰ is done in its own unit, the others are scaled: 1e18, 1e37 and 1e-30 or so.
        for exponent in [20i32, 60, 124, -100] {
            let pca = at(2f32.powi(exponent));
            assert_eq!(pca.components, plain.components, "2^{exponent}");
            assert_eq!(pca.shares, plain.shares, "2^{exponent}");
            let back = |x: &f64| x / 4f64.powi(exponent);
            let variances: Vec<f64> = pca.variances.iter().map(back).collect();
            assert_eq!(variances, plain.variances, "2^{exponent}");
        }
    }

    #[test]
    fn the_largest_and_the_smallest_numbers_have_components() {
        let data = vec![f32::MAX, 0.0, -f32::MAX, 0.0];
        let pca = Pca::fit(&Features::new(2, 2, data).unwrap(), 1, 0).unwrap();
        assert!((pca.components[0] - 1.0).abs() < 1e-6, "{pca:?}");
        assert!((pca.shares[0] - 1.0).abs() < 1e-6, "{pca:?}");
        let data = vec![f32::from_bits(1), 0.0, 0.0, 0.0];
        let pca = Pca::fit(&Features::new(2, 2, data).unwrap(), 1, 0).unwrap();
        assert!((pca.components[0] - 1.0).abs() < 1e-6, "{pca:?}");
    }
}
