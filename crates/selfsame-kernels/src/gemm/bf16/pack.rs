//! Rounded copies of matrix blocks in the order in which the inner loop reads them.
//!
//! A panel holds `W` vectors (rows of the left matrix, columns of the right one) side by side:
//! for every two steps along the inner dimension a word of two bf16 for each of them, the earlier
//! one in its lower half. Vectors beyond the last, and a step beyond the last, are zeros.

use super::bf16;

/// `count` vectors of `len` elements within a slice that starts at the first element.
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    pub(super) count: usize,
    pub(super) len: usize,
    /// Distance between vectors.
    pub(super) stride: usize,
    /// Distance between elements of a vector.
    pub(super) step: usize,
}

/// Side of the squares that are transposed at a time.
const SIDE: usize = 8;

#[inline(always)]
fn pair(a: f32, b: f32) -> u32 {
    bf16(a) | (bf16(b) << 16)
}

/// Packs panels of `W` vectors one after the other into `out`, `depth · W` words each, where
/// `depth` is half of the vectors' length, rounded up.
#[inline(always)]
pub(super) fn pack<const W: usize>(out: &mut [u32], data: &[f32], vectors: Vectors, depth: usize) {
    let panels = out.chunks_exact_mut(depth * W);
    for (panel, first) in panels.zip((0..vectors.count).step_by(W)) {
        let width = W.min(vectors.count - first);
        let data = &data[first * vectors.stride..];
        if vectors.stride == 1 {
            adjacent::<W>(panel, data, vectors, width);
        } else {
            apart::<W>(panel, data, vectors, width);
        }
    }
}

/// Vectors whose elements lie side by side: two rows of `W` make a row of words.
#[inline(always)]
fn adjacent<const W: usize>(panel: &mut [u32], data: &[f32], vectors: Vectors, width: usize) {
    for (d, out) in panel.chunks_exact_mut(W).enumerate() {
        let mut rows = [[0f32; W]; 2];
        for (row, k) in rows.iter_mut().zip(2 * d..vectors.len) {
            let from = &data[k * vectors.step..];
            if width == W {
                row.copy_from_slice(&from[..W]);
            } else {
                row[..width].copy_from_slice(&from[..width]);
            }
        }
        for ((out, a), b) in out.iter_mut().zip(rows[0]).zip(rows[1]) {
            *out = pair(a, b);
        }
    }
}

/// Vectors that lie one after the other: squares are transposed.
#[inline(always)]
fn apart<const W: usize>(panel: &mut [u32], data: &[f32], vectors: Vectors, width: usize) {
    for (square, rows) in panel.chunks_mut(SIDE * W).enumerate() {
        let first = 2 * square * SIDE;
        let whole = first + 2 * SIDE <= vectors.len && vectors.step == 1;
        for group in (0..W).step_by(SIDE) {
            let lanes = SIDE.min(W - group);
            let mut words = [[0u32; SIDE]; SIDE];
            for (lane, words) in words.iter_mut().enumerate().take(lanes) {
                if group + lane >= width {
                    continue;
                }
                let vector = &data[(group + lane) * vectors.stride..];
                if whole {
                    let (pairs, _) = vector[first..first + 2 * SIDE].as_chunks::<2>();
                    for (word, [a, b]) in words.iter_mut().zip(pairs) {
                        *word = pair(*a, *b);
                    }
                    continue;
                }
                for (d, word) in words.iter_mut().enumerate() {
                    let at = |k: usize| match k < vectors.len {
                        true => vector[k * vectors.step],
                        false => 0.0,
                    };
                    *word = pair(at(first + 2 * d), at(first + 2 * d + 1));
                }
            }
            let words = transposed(words);
            for (row, words) in rows.chunks_exact_mut(W).zip(&words) {
                row[group..group + lanes].copy_from_slice(&words[..lanes]);
            }
        }
    }
}

#[inline(always)]
fn transposed(rows: [[u32; SIDE]; SIDE]) -> [[u32; SIDE]; SIDE] {
    let mut columns = [[0u32; SIDE]; SIDE];
    for (i, row) in rows.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            columns[j][i] = *x;
        }
    }
    columns
}
