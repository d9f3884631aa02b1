//! Small algebra that several evaluations share, in `f64` and in a fixed order.

use crate::features::Features;

/// Halvings of an interval that holds an eigenvalue: more than `f64` has bits.
const BISECTIONS: usize = 60;

/// Mean of each column, in `f64`.
pub(crate) fn column_means(features: &Features) -> Vec<f64> {
    let mut sums = vec![0f64; features.d];
    for row in features.rows() {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    sums.iter_mut()
        .for_each(|sum| *sum /= features.n.max(1) as f64);
    sums
}

/// The rows less the column means, row after row.
pub(crate) fn differences(features: &Features, mean: &[f64]) -> impl Iterator<Item = f64> {
    let of_row = move |row| std::iter::zip(row, mean).map(|(x, m): (&f32, _)| f64::from(*x) - m);
    features.rows().flat_map(of_row)
}

/// The rows less the column means, in a unit that is given too, each value by way of `number`.
///
/// The unit is 1 unless the largest difference is above 2³⁰ or below 2⁻³⁰; then it is a power of two near that
/// difference, so that sums of products stay within `f32` and no bit is lost.
pub(crate) fn centred<T>(
    features: &Features,
    mean: &[f64],
    number: impl Fn(f64) -> T,
) -> (Vec<T>, f64) {
    const ORDINARY: f64 = (1u64 << 30) as f64;
    let largest = differences(features, mean).fold(0f64, |largest, x| largest.max(x.abs()));
    let unit = match largest {
        0.0 => 1.0,
        x if (1.0 / ORDINARY..=ORDINARY).contains(&x) => 1.0,
        // The power of two at or below it: its bits without the fraction.
        x => f64::from_bits(x.to_bits() & f64::INFINITY.to_bits()),
    };
    let rows = differences(features, mean);
    (rows.map(|x| number(x / unit)).collect(), unit)
}

/// The sum of products in order, over the shorter of both.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Eigenvalues, falling, and eigenvectors of a symmetric matrix `[q, q]`, by Jacobi's rotations.
pub(crate) fn eigen(mut a: Vec<f64>, q: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut vectors: Vec<Vec<f64>> = (0..q)
        .map(|i| (0..q).map(|j| f64::from(u8::from(i == j))).collect())
        .collect();
    for _sweep in 0..50 {
        let off: f64 = (0..q * q)
            .filter(|at| at / q != at % q)
            .map(|at| a[at] * a[at])
            .sum();
        let on: f64 = (0..q).map(|i| a[i * q + i] * a[i * q + i]).sum();
        if off <= 1e-30 * on {
            break;
        }
        for i in 0..q {
            for j in i + 1..q {
                let (aii, ajj, aij) = (a[i * q + i], a[j * q + j], a[i * q + j]);
                if aij == 0.0 {
                    continue;
                }
                let tau = (ajj - aii) / (2.0 * aij);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = t * c;
                for k in 0..q {
                    let (x, y) = (a[k * q + i], a[k * q + j]);
                    (a[k * q + i], a[k * q + j]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..q {
                    let (x, y) = (a[i * q + k], a[j * q + k]);
                    (a[i * q + k], a[j * q + k]) = (c * x - s * y, s * x + c * y);
                }
                let (before, rest) = vectors.split_at_mut(j);
                for (x, y) in before[i].iter_mut().zip(&mut rest[0]) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..q).collect();
    order.sort_by(|&i, &j| a[j * q + j].total_cmp(&a[i * q + i]));
    (
        order.iter().map(|&i| a[i * q + i]).collect(),
        order.iter().map(|&i| vectors[i].clone()).collect(),
    )
}

/// The eigenvalues of a symmetric `[n, n]` matrix, in rising order, each within rounding of the
/// largest: Householder's reduction to three diagonals, whose eigenvalues are counted below a bound
/// and found by bisection (Golub and Van Loan, Matrix Computations, 8.3.1 and 8.4.1).
pub(crate) fn eigenvalues(matrix: Vec<f64>, n: usize) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

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
        let mut stream = Stream::new(3, Purpose::PcaStart, 0);
        let data: Vec<f32> = (0..n * n).map(|_| stream.normal() as f32).collect();
        let entry = |i: usize, j: usize| f64::from(data[i * n + j] + data[j * n + i]);
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
    fn jacobi_finds_what_was_put_in() {
        let (values, vectors) = eigen(vec![2.0, 1.0, 1.0, 2.0], 2);
        assert!((values[0] - 3.0).abs() < 1e-12 && (values[1] - 1.0).abs() < 1e-12);
        assert!((vectors[0][0].abs() - 0.5f64.sqrt()).abs() < 1e-12);
    }
}
