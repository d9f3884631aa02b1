//! Position embeddings at other image sizes, as constant matrices computed on the host.
//!
//! Bicubic resampling of a grid is linear in the grid, so each (mode, from, to) is one matrix.
//! Multiplying by it is exact, differentiable and works for any size, while candle has no bicubic
//! interpolation at all.

use crate::config::PosEmbedResample;

/// Side lengths of a grid of patches: rows, columns.
pub type Grid = (usize, usize);

/// The row-major matrix `[to.0 * to.1, from.0 * from.1]` that resamples a grid of embeddings.
///
/// Each row sums to 1. `from == to` gives the matrix of the formula, which for
/// [`PosEmbedResample::Official`] is not the identity; the reference does not resample then. A grid
/// with a side of 0 has no patches, and gives an empty matrix.
pub fn resample_matrix(mode: PosEmbedResample, from: Grid, to: Grid) -> Vec<f32> {
    if from.0 * from.1 == 0 {
        return Vec::new();
    }
    let rows = resample_axis(mode, from.0, to.0);
    let columns = resample_axis(mode, from.1, to.1);
    let mut matrix = Vec::with_capacity(to.0 * to.1 * from.0 * from.1);
    for row in rows.chunks_exact(from.0) {
        for column in columns.chunks_exact(from.1) {
            matrix.extend(
                row.iter()
                    .flat_map(|y| column.iter().map(move |x| (y * x) as f32)),
            );
        }
    }
    matrix
}

/// The row-major matrix `[to, from]` of one axis.
fn resample_axis(mode: PosEmbedResample, from: usize, to: usize) -> Vec<f64> {
    match mode {
        PosEmbedResample::Official => {
            // torch uses a given scale factor itself, not the ratio of the sizes.
            let scale_factor = (to as f64 + 0.1) / from as f64;
            interpolate(from, to, 1.0 / scale_factor)
        }
        PosEmbedResample::Hf => interpolate(from, to, from as f64 / to as f64),
        PosEmbedResample::Timm => antialiased(from, to),
    }
}

/// torch's bicubic interpolation without `align_corners`: four taps, A = −0.75, edges repeated.
fn interpolate(from: usize, to: usize, scale: f64) -> Vec<f64> {
    let mut matrix = vec![0.0; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let position = (i as f64 + 0.5) * scale - 0.5;
        let first = position.floor() as i64 - 1;
        for tap in first..first + 4 {
            let source = tap.clamp(0, from as i64 - 1) as usize;
            row[source] += cubic(position - tap as f64, -0.75);
        }
    }
    matrix
}

/// torch's bicubic interpolation with `antialias=True`: A = −0.5, the filter widened by the scale.
pub(crate) fn antialiased(from: usize, to: usize) -> Vec<f64> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let mut matrix = vec![0.0; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let center = (i as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        for (source, weight) in row.iter_mut().enumerate().take(end).skip(start) {
            *weight = cubic((source as f64 - center + 0.5) / stretch, -0.5);
        }
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    matrix
}

/// The cubic convolution kernel of Keys (1981) with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [PosEmbedResample; 3] = [
        PosEmbedResample::Official,
        PosEmbedResample::Hf,
        PosEmbedResample::Timm,
    ];

    #[test]
    fn a_constant_grid_stays_constant() {
        for mode in MODES {
            for (from, to) in [((14, 14), (6, 6)), ((8, 8), (14, 14)), ((3, 5), (7, 2))] {
                let matrix = resample_matrix(mode, from, to);
                assert_eq!(matrix.len(), from.0 * from.1 * to.0 * to.1);
                for row in matrix.chunks_exact(from.0 * from.1) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{mode:?}");
                }
            }
        }
    }

    #[test]
    fn a_grid_without_patches_has_an_empty_matrix() {
        for mode in MODES {
            for (from, to) in [((0, 3), (2, 2)), ((3, 0), (2, 2)), ((3, 3), (0, 2))] {
                assert!(resample_matrix(mode, from, to).is_empty(), "{mode:?}");
            }
        }
    }

    #[test]
    fn an_equal_size_is_the_identity_except_in_the_official_mode() {
        let identity = |mode| {
            let matrix = resample_matrix(mode, (4, 4), (4, 4));
            matrix
                .iter()
                .enumerate()
                .all(|(i, value)| (value - f32::from(u8::from(i % 17 == 0))).abs() < 1e-6)
        };
        assert!(identity(PosEmbedResample::Hf));
        assert!(identity(PosEmbedResample::Timm));
        assert!(!identity(PosEmbedResample::Official));
    }
}
