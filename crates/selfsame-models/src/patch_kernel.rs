//! Patch kernels at other patch sizes: the pseudo-inverse resize of FlexiViT (arXiv:2212.08013).
//!
//! If a matrix B enlarges pictures, the kernel that gives the enlarged picture the same token is
//! pinv(Bᵀ) times the old one. Bicubic resampling works on rows and columns apart, so B is a
//! Kronecker product, and so is its pseudo-inverse: two small matrices instead of a large one.

use crate::pos_embed::antialiased;

/// The row-major matrix `[to · to, from · from]` that turns a kernel of side `from` into one of
/// side `to`.
pub(crate) fn kernel_matrix(from: usize, to: usize) -> Vec<f32> {
    let axis = kernel_axis(from, to);
    let mut matrix = Vec::with_capacity(to * to * from * from);
    for row in axis.chunks_exact(from) {
        for column in axis.chunks_exact(from) {
            matrix.extend(
                row.iter()
                    .flat_map(|y| column.iter().map(move |x| (y * x) as f32)),
            );
        }
    }
    matrix
}

/// pinv(Aᵀ) `[to, from]` of the matrix A `[to, from]` that resizes one axis.
fn kernel_axis(from: usize, to: usize) -> Vec<f64> {
    let resize = antialiased(from, to);
    if to >= from {
        // A has full column rank: A·(AᵀA)⁻¹.
        let solved = solve(
            &gram(&transposed(&resize, from), to),
            transposed(&resize, from),
            to,
        );
        transposed(&solved, to)
    } else {
        // A has full row rank: (AAᵀ)⁻¹·A.
        solve(&gram(&resize, from), resize, from)
    }
}

/// Products of all pairs of rows of a matrix with `columns` columns.
fn gram(matrix: &[f64], columns: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = matrix.chunks_exact(columns).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    rows.iter()
        .flat_map(|a| rows.iter().map(move |b| dot(a, b)))
        .collect()
}

/// The columns of a matrix with `columns` columns as rows.
fn transposed(matrix: &[f64], columns: usize) -> Vec<f64> {
    let column = |j: usize| matrix.iter().skip(j).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

/// Solves `square · x = right` by elimination; `right` has `columns` columns. The matrices here are
/// symmetric and positive definite, so that no row has to be exchanged.
fn solve(square: &[f64], mut right: Vec<f64>, columns: usize) -> Vec<f64> {
    let n = right.len() / columns;
    let mut left = square.to_vec();
    for pivot in 0..n {
        let scale = 1.0 / left[pivot * n + pivot];
        left[pivot * n..(pivot + 1) * n]
            .iter_mut()
            .for_each(|x| *x *= scale);
        right[pivot * columns..(pivot + 1) * columns]
            .iter_mut()
            .for_each(|x| *x *= scale);
        for row in (0..n).filter(|row| *row != pivot) {
            let factor = left[row * n + pivot];
            for j in 0..n {
                left[row * n + j] -= factor * left[pivot * n + j];
            }
            for j in 0..columns {
                right[row * columns + j] -= factor * right[pivot * columns + j];
            }
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `matrix · vector`.
    fn times(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
        let rows = matrix.chunks_exact(vector.len());
        rows.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
            .collect()
    }

    #[test]
    fn an_enlarged_row_gives_the_same_token() {
        for (from, to) in [(8, 16), (14, 16), (7, 8), (4, 4)] {
            let picture: Vec<f64> = (0..from).map(|i| (i as f64 * 1.3).sin()).collect();
            let kernel: Vec<f64> = (0..from).map(|i| (i as f64 * 0.7).cos()).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            let enlarged = times(&antialiased(from, to), &picture);
            let resampled = times(&kernel_axis(from, to), &kernel);
            let (before, after) = (dot(&picture, &kernel), dot(&enlarged, &resampled));
            assert!(
                (before - after).abs() < 1e-9,
                "{from} {to}: {before} {after}"
            );
        }
    }

    #[test]
    fn a_kernel_made_smaller_is_the_best_there_is() {
        // The residual of a least-squares solution is orthogonal to all that could be reached.
        let (from, to) = (16, 6);
        let kernel: Vec<f64> = (0..from).map(|i| (i as f64 * 0.7).cos()).collect();
        let resize = antialiased(from, to);
        let small = times(&kernel_axis(from, to), &kernel);
        let reached = times(&transposed(&resize, from), &small);
        let residual: Vec<f64> = kernel.iter().zip(&reached).map(|(k, r)| k - r).collect();
        assert!(times(&resize, &residual).iter().all(|x| x.abs() < 1e-9));
        assert!(residual.iter().any(|x| x.abs() > 1e-3));
    }
}
