//! How many directions features use.

use candle_core::{Device, Tensor};

use crate::error::EvalError;
use crate::features::Features;

/// Halvings of an interval that holds an eigenvalue: more than `f64` has bits.
const BISECTIONS: usize = 60;

/// The effective rank of `[n, d]` features: exp of the entropy of their singular values, each taken as
/// a share of their sum (Roy and Vetterli 2007; RankMe, Garrido et al. 2023, arXiv 2210.02885,
/// equation 1, without its ε). Rows are neither centred nor scaled.
///
/// It is 1 if all rows are multiples of one, min(n, d) if no direction is longer than another, and 0
/// for zeros. It grows with `n`, so that only figures of equally many rows can be compared.
///
/// # Errors
/// [`EvalError`] for bad features or none.
///
/// ```
/// use selfsame_eval::{Features, effective_rank};
///
/// # fn main() -> Result<(), selfsame_eval::EvalError> {
/// let rows = Features::new(3, 2, vec![2.0, 0.0, 0.0, 2.0, 0.0, 0.0])?;
/// assert!((effective_rank(&rows)? - 2.0).abs() < 1e-6);
/// # Ok(()) }
/// ```
pub fn effective_rank(features: &Features) -> Result<f64, EvalError> {
    features.check_width(features.d)?;
    let largest = features.data.iter().fold(0f32, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return Ok(0.0);
    }
    // Of about 1, so that no square leaves the range of numbers.
    let scaled = features.data.iter();
    let scaled: Vec<f64> = scaled.map(|&x| f64::from(x) / f64::from(largest)).collect();
    let rows = Tensor::from_vec(scaled, (features.n, features.d), &Device::Cpu)?;
    let columns = rows.t()?.contiguous()?;
    let gram = match features.n < features.d {
        true => rows.matmul(&columns)?,
        false => columns.matmul(&rows)?,
    };
    let n = gram.dim(0)?;
    let squares = eigenvalues(gram.flatten_all()?.to_vec1()?, n);
    let lengths: Vec<f64> = squares
        .iter()
        .map(|square| square.max(0.0).sqrt())
        .collect();
    let sum: f64 = lengths.iter().sum();
    let shares = lengths.iter().map(|length| length / sum);
    let entropy: f64 = shares.filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

/// The eigenvalues of a symmetric `[n, n]` matrix, in rising order, each within rounding of the
/// largest: Householder's reduction to three diagonals, whose eigenvalues are counted below a bound
/// and found by bisection (Golub and Van Loan, Matrix Computations, 8.3.1 and 8.4.1).
fn eigenvalues(matrix: Vec<f64>, n: usize) -> Vec<f64> {
    let (diagonal, beside) = tridiagonal(matrix, n);
    let beside_of = |i: usize| beside.get(i).map_or(0.0, |x: &f64| x.abs());
    // Gershgorin: no eigenvalue is further out.
    let reach = |i: usize| beside_of(i) + if i > 0 { beside_of(i - 1) } else { 0.0 };
    let low = (0..n)
        .map(|i| diagonal[i] - reach(i))
        .fold(f64::INFINITY, f64::min);
    let high = (0..n)
        .map(|i| diagonal[i] + reach(i))
        .fold(f64::NEG_INFINITY, f64::max);
    let kth = |k: usize| {
        let (mut low, mut high) = (low, high);
        for _ in 0..BISECTIONS {
            let middle = 0.5 * (low + high);
            match count_below(&diagonal, &beside, middle) > k {
                true => high = middle,
                false => low = middle,
            }
        }
        0.5 * (low + high)
    };
    (0..n).map(kth).collect()
}

/// How many eigenvalues of a matrix of three diagonals lie below `bound`: the negative pivots of its
/// triangular factors (Sylvester's law of inertia).
fn count_below(diagonal: &[f64], beside: &[f64], bound: f64) -> usize {
    let mut below = 0;
    let mut pivot = 1.0;
    for (i, entry) in diagonal.iter().enumerate() {
        let squared = if i > 0 { beside[i - 1].powi(2) } else { 0.0 };
        pivot = entry - bound - squared / pivot;
        if pivot == 0.0 {
            pivot = -f64::MIN_POSITIVE;
        }
        below += usize::from(pivot < 0.0);
    }
    below
}

/// A symmetric matrix as one of three diagonals with the same eigenvalues: the middle one, and the one
/// beside it.
fn tridiagonal(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = Vec::with_capacity(n.saturating_sub(1));
    for k in 0..n.saturating_sub(1) {
        let rest = k + 1..n;
        let mut v: Vec<f64> = a[k * n..(k + 1) * n][rest.clone()].to_vec();
        let length = dot(&v, &v).sqrt();
        let below: f64 = dot(&v[1..], &v[1..]);
        if below == 0.0 {
            beside.push(v[0]); // nothing beside the three diagonals
            continue;
        }
        let end = if v[0] > 0.0 { -length } else { length };
        v[0] -= end;
        beside.push(end);
        // The rest becomes H·A·H with H = 1 - 2vvᵀ/vᵀv, that is A - vwᵀ - wvᵀ.
        let scale = 2.0 / dot(&v, &v);
        let row = |i: usize| i * n + k + 1..(i + 1) * n;
        let mut w: Vec<f64> = rest.clone().map(|i| scale * dot(&a[row(i)], &v)).collect();
        let along = 0.5 * scale * dot(&w, &v);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= along * v);
        for i in rest {
            let (vi, wi) = (v[i - k - 1], w[i - k - 1]);
            for (x, (v, w)) in a[row(i)].iter_mut().zip(v.iter().zip(&w)) {
                *x -= vi * w + wi * v;
            }
        }
    }
    let diagonal = (0..n).map(|i| a[i * n + i]).collect();
    (diagonal, beside)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    fn random(n: usize, d: usize, seed: u64) -> Features {
        let mut stream = Stream::new(seed, Purpose::PcaStart, 0);
        let data = (0..n * d).map(|_| stream.normal() as f32).collect();
        Features { n, d, data }
    }

    #[test]
    fn eigenvalues_are_those_of_known_matrices() {
        // The second difference of n points: 2 - 2·cos(kπ/(n + 1)).
        let n = 7;
        let mut matrix = vec![0.0; n * n];
        for i in 0..n {
            matrix[i * n + i] = 2.0;
            if i > 0 {
                matrix[i * n + i - 1] = -1.0;
                matrix[(i - 1) * n + i] = -1.0;
            }
        }
        let angle = |k: usize| k as f64 * std::f64::consts::PI / (n + 1) as f64;
        for (k, found) in eigenvalues(matrix, n).into_iter().enumerate() {
            assert!((found - (2.0 - 2.0 * angle(k + 1).cos())).abs() < 1e-12);
        }
        // Ones: n once, otherwise 0.
        let found = eigenvalues(vec![1.0; 25], 5);
        assert!((found[4] - 5.0).abs() < 1e-12 && found[3].abs() < 1e-12);
        assert_eq!(eigenvalues(vec![3.5], 1), [3.5]);
    }

    #[test]
    fn traces_of_a_full_matrix_and_of_its_square_are_kept() {
        let n = 40;
        let rows = random(n, n, 3);
        let entry = |i: usize, j: usize| f64::from(rows.data[i * n + j] + rows.data[j * n + i]);
        let matrix: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let (trace, squares) = (
            (0..n).map(|i| entry(i, i)).sum::<f64>(),
            dot(&matrix, &matrix),
        );
        let found = eigenvalues(matrix, n);
        assert!((found.iter().sum::<f64>() - trace).abs() < 1e-9);
        assert!((dot(&found, &found) / squares - 1.0).abs() < 1e-12);
        assert!(found.is_sorted());
    }

    #[test]
    fn directions_of_equal_length_count_whole_and_others_in_part() {
        // Three directions, one of them twice as long: shares 1/4, 1/4, 1/2.
        let mut data = vec![0.0; 5 * 8];
        (data[0], data[8 + 3], data[16 + 6]) = (1.0, 1.0, -2.0);
        let rows = Features { n: 5, d: 8, data };
        let expected = (0.5 * 4f64.ln() + 0.5 * 2f64.ln()).exp();
        assert!((effective_rank(&rows).unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn equal_rows_have_rank_one_random_ones_nearly_all_and_zeros_none() {
        let row = random(1, 60, 1).data;
        let same = Features {
            n: 50,
            d: 60,
            data: row.repeat(50),
        };
        assert!((effective_rank(&same).unwrap() - 1.0).abs() < 1e-3);
        let rank = effective_rank(&random(400, 20, 2)).unwrap();
        assert!(rank > 19.0 && rank <= 20.0 + 1e-9, "{rank}");
        let zeros = Features {
            n: 3,
            d: 2,
            data: vec![0.0; 6],
        };
        assert_eq!(effective_rank(&zeros).unwrap(), 0.0);
    }

    #[test]
    fn neither_scale_nor_turned_axes_matter_and_bad_features_are_refused() {
        let rows = random(30, 12, 5);
        let rank = effective_rank(&rows).unwrap();
        for factor in [1e-30f32, 1e30] {
            let data = rows.data.iter().map(|x| x * factor).collect();
            let scaled = Features { data, ..rows };
            assert!((effective_rank(&scaled).unwrap() - rank).abs() < 1e-4 * rank);
        }
        let data = (0..12 * 30)
            .map(|at| rows.data[at % 30 * 12 + at / 30])
            .collect();
        let turned = Features { n: 12, d: 30, data };
        assert!((effective_rank(&turned).unwrap() - rank).abs() < 1e-6 * rank);
        let mut bad = rows.clone();
        bad.data[3] = f32::NAN;
        assert!(effective_rank(&bad).is_err());
        assert!(effective_rank(&Features::default()).is_err());
    }
}
