//! The most similar rows of a bank.

use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::pca::{centred, column_means};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::cmp::Ordering;

// A block of similarities is at most 256 x 4096 f32 = 4 MiB, whatever the sizes of bank and queries.
const QUERY_BLOCK: usize = 256;
const BANK_BLOCK: usize = 4096;
// A matrix product of fewer rows and columns may sum in another order: `gemm` has other routines for one row or column,
// for at most 256 results, and for at most 64 rows and columns. A block that is smaller is filled up with zeros.
const FEWEST_QUERIES: usize = 4;
const FEWEST_BANK_ROWS: usize = 128;
// Candidates kept while searching: at most so many for the queries of one block together.
const MAX_CANDIDATES: usize = 1 << 22;

/// The `k` most similar bank rows of each query, most similar first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbors {
    /// Neighbours per query.
    pub k: usize,
    /// Bank rows, `[queries, k]`.
    pub indices: Vec<u32>,
    /// Cosine similarities, `[queries, k]`.
    pub similarities: Vec<f32>,
}

impl Neighbors {
    /// Bank rows and similarities of query `i`.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let row = i * self.k..(i + 1) * self.k;
        (&self.indices[row.clone()], &self.similarities[row])
    }
}

/// Whether a query may find itself in the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Queries and bank are different images.
    Keep,
    /// The queries are the bank; row `i` is not a neighbour of query `i`.
    LeaveOut,
}

/// Finds the `k` nearest bank rows by cosine similarity.
///
/// `k` is lowered to what the bank holds; see [`Neighbors::k`].
/// Of equally similar rows the lower index comes first.
/// A similarity depends, to the last bit, on its query and its bank row alone: not on their places, nor on what else is
/// in the bank or asked; equal bank rows are equally similar.
/// Memory beyond the inputs: a normalised copy of both, a fixed block, and the result.
///
/// # Errors
/// [`EvalError`] if the features are bad, the widths differ, no neighbour is left, or, with [`Own::LeaveOut`], the
/// numbers of rows differ.
pub fn neighbors(
    bank: &Features,
    queries: &Features,
    k: usize,
    own: Own,
) -> Result<Neighbors, EvalError> {
    bank.check_width(bank.d)?;
    queries.check_width(bank.d)?;
    if own == Own::LeaveOut {
        same_length("queries that are the bank", bank.n, queries.n)?;
    }
    let k = k.min(bank.n - usize::from(own == Own::LeaveOut));
    if k == 0 {
        return Err(EvalError::Empty { what: "neighbours" });
    }

    search(bank.l2_normalized(), &queries.l2_normalized(), None, k, own)
}

/// The nearest other rows of each row by Euclidean distance.
pub(crate) struct Nearest {
    /// Rows, `[n, k]`, nearest first.
    pub(crate) indices: Vec<u32>,
    /// Squared distances, `[n, k]`; of features above 2³⁰ or below 2⁻³⁰ in a unit of their size (see [`centred`]).
    pub(crate) squared_distances: Vec<f64>,
}

/// Finds the `k` (below n) nearest other rows of each row; of equally near ones the lower index comes first.
///
/// Matrix products find somewhat more than `k` candidates; their distances are then summed in `f64` from differences.
pub(crate) fn nearest_euclidean(features: &Features, k: usize) -> Result<Nearest, EvalError> {
    const SPARE: usize = 16;
    features.check_width(features.d)?;
    let mean = column_means(features);
    let (data, _) = centred(features, &mean);
    let rows = Features { data, ..*features };
    // |x - y|² = |x|² - 2 (x·y - |y|²/2)
    let half_squares: Vec<f32> = rows
        .rows()
        .map(|row| (row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 2.0) as f32)
        .collect();
    let candidates = (k + SPARE).min(features.n - 1);
    let bank = rows.clone();
    let found = search(bank, &rows, Some(&half_squares), candidates, Own::LeaveOut)?;
    let exact: Vec<(u32, f64)> = (0..features.n)
        .into_par_iter()
        .flat_map_iter(|i| {
            let distance = |&j: &u32| {
                let pairs = rows.row(i).iter().zip(rows.row(j as usize));
                let squares = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
                (j, squares.sum::<f64>())
            };
            let mut row: Vec<(u32, f64)> = found.row(i).0.iter().map(distance).collect();
            row.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            row.truncate(k);
            row
        })
        .collect();
    Ok(Nearest {
        indices: exact.iter().map(|item| item.0).collect(),
        squared_distances: exact.iter().map(|item| item.1).collect(),
    })
}

/// The `k` rows of `bank` with the largest products, less `penalties` if there are any.
fn search(
    bank: Features,
    queries: &Features,
    penalties: Option<&[f32]>,
    k: usize,
    own: Own,
) -> Result<Neighbors, EvalError> {
    let Features { n, d, data } = bank;
    let bank = Tensor::from_vec(data, (n, d), &Device::Cpu)?;
    // Views of the bank, which is not copied.
    let bank_blocks = (0..n)
        .step_by(BANK_BLOCK)
        .map(|first| {
            let width = BANK_BLOCK.min(n - first);
            let rows = filled(&bank.narrow(0, first, width)?, FEWEST_BANK_ROWS)?.t()?;
            Ok((first, width, rows))
        })
        .collect::<candle_core::Result<Vec<(usize, usize, Tensor)>>>()?;

    let query_block = (MAX_CANDIDATES / (2 * k)).clamp(16, QUERY_BLOCK);
    let mut found = Neighbors {
        k,
        indices: Vec::with_capacity(queries.n * k),
        similarities: Vec::with_capacity(queries.n * k),
    };
    for (block, rows) in queries.data.chunks(query_block * d).enumerate() {
        let count = rows.len() / d;
        let rows = Tensor::from_slice(rows, (count, d), &Device::Cpu)?;
        let rows = filled(&rows, FEWEST_QUERIES)?;
        let mut best: Vec<Best> = (0..count).map(|_| Best::new(k)).collect();
        for &(first, width, ref bank_rows) in &bank_blocks {
            let mut similarities = rows.matmul(bank_rows)?.flatten_all()?.to_vec1::<f32>()?;
            let stride = bank_rows.dim(1)?; // `width`, or more where zeros fill the block
            if let Some(penalties) = penalties {
                similarities.par_chunks_mut(stride).for_each(|row| {
                    let penalties = &penalties[first..first + width];
                    row.iter_mut().zip(penalties).for_each(|(x, p)| *x -= p);
                });
            }
            best.par_iter_mut()
                .zip(similarities.par_chunks(stride))
                .enumerate()
                .for_each(|(i, (best, similarities))| {
                    let skip = (own == Own::LeaveOut).then_some(block * query_block + i);
                    for (j, &similarity) in similarities[..width].iter().enumerate() {
                        if similarity > best.bar && Some(first + j) != skip {
                            best.push(similarity, (first + j) as u32);
                        }
                    }
                });
        }
        best.par_iter_mut().for_each(Best::finish);
        for (similarity, index) in best.iter().flat_map(|best| &best.items) {
            found.indices.push(*index);
            found.similarities.push(*similarity);
        }
    }
    Ok(found)
}

/// The rows, and rows of zeros below them if they are fewer than `fewest`.
fn filled(rows: &Tensor, fewest: usize) -> candle_core::Result<Tensor> {
    rows.pad_with_zeros(0, 0, fewest.saturating_sub(rows.dim(0)?))
}

/// The best `k` of a stream of candidates that come by rising index.
struct Best {
    k: usize,
    items: Vec<(f32, u32)>,
    /// Only what is above it can still be among the best; an equal one has a higher index, hence loses.
    bar: f32,
}

impl Best {
    fn new(k: usize) -> Best {
        Best {
            k,
            items: Vec::new(),
            bar: f32::NEG_INFINITY,
        }
    }

    fn push(&mut self, similarity: f32, index: u32) {
        self.items.push((similarity + 0.0, index)); // -0 becomes 0: they are equal
        if self.items.len() >= 2 * self.k {
            self.items.select_nth_unstable_by(self.k - 1, nearer);
            self.items.truncate(self.k);
            self.bar = self.items[self.k - 1].0;
        }
    }

    fn finish(&mut self) {
        self.items.sort_unstable_by(nearer);
        self.items.truncate(self.k);
    }
}

fn nearer(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    fn noise(n: usize, d: usize, seed: u64) -> Features {
        let mut stream = Stream::new(seed, Purpose::Bootstrap, 99);
        Features::new(n, d, (0..n * d).map(|_| stream.normal() as f32).collect()).unwrap()
    }

    #[test]
    fn blocked_search_agrees_with_sorting_everything() {
        // More than one block on both sides.
        let (bank, queries) = (noise(5000, 5, 1), noise(300, 5, 2));
        let found = neighbors(&bank, &queries, 7, Own::Keep).unwrap();
        let (bank, queries) = (bank.l2_normalized(), queries.l2_normalized());
        for i in [0, 131, 255, 256, 299] {
            let mut all: Vec<(f32, u32)> = bank
                .rows()
                .enumerate()
                .map(|(j, row)| {
                    let dot = row
                        .iter()
                        .zip(queries.row(i))
                        .map(|(a, b)| f64::from(a * b));
                    (dot.sum::<f64>() as f32, j as u32)
                })
                .collect();
            all.sort_by(nearer);
            let expected: Vec<u32> = all.iter().take(7).map(|item| item.1).collect();
            assert_eq!(found.row(i).0, expected, "query {i}");
        }
    }

    #[test]
    fn euclidean_search_agrees_with_sorting_everything_far_from_zero() {
        let mut features = noise(700, 3, 4);
        features.data.iter_mut().for_each(|x| *x += 1000.0);
        let found = nearest_euclidean(&features, 9).unwrap();
        for i in [0, 350, 699] {
            let mut all: Vec<(f64, u32)> = (0..700u32)
                .filter(|&j| j as usize != i)
                .map(|j| {
                    let pairs = features.row(i).iter().zip(features.row(j as usize));
                    (pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum(), j)
                })
                .collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (place, (distance, j)) in all.iter().take(9).enumerate() {
                assert_eq!(found.indices[i * 9 + place], *j, "row {i}");
                assert!(
                    (found.squared_distances[i * 9 + place] - distance).abs() < 1e-3 * distance
                );
            }
        }
    }

    #[test]
    fn features_of_any_size_have_the_same_neighbours() {
        let plain = noise(300, 4, 6);
        let cosine = neighbors(&plain, &plain, 5, Own::LeaveOut).unwrap();
        let euclidean = nearest_euclidean(&plain, 5).unwrap();
        for exponent in [60, 124, -100] {
            let mut scaled = plain.clone();
            let factor = 2f32.powi(exponent);
            scaled.data.iter_mut().for_each(|x| *x *= factor);
            let found = neighbors(&scaled, &scaled, 5, Own::LeaveOut).unwrap();
            assert_eq!(found, cosine, "2^{exponent}");
            let found = nearest_euclidean(&scaled, 5).unwrap();
            assert_eq!(found.indices, euclidean.indices, "2^{exponent}");
        }
    }

    #[test]
    fn equally_similar_rows_come_by_index() {
        let bank = Features::new(5000, 2, [1.0, 1.0].repeat(5000)).unwrap();
        let queries = Features::new(2, 2, vec![1.0, 0.0, -1.0, 3.0]).unwrap();
        let found = neighbors(&bank, &queries, 4, Own::Keep).unwrap();
        assert_eq!(found.indices, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn equal_rows_are_equally_similar_across_blocks() {
        for d in [3, 37, 600] {
            let bank = noise(1, d, 8).subset(&[0; BANK_BLOCK + 1]);
            let found = neighbors(&bank, &noise(300, d, 9), BANK_BLOCK + 1, Own::Keep).unwrap();
            for i in 0..300 {
                let (rows, similarities) = found.row(i);
                assert!(rows.is_sorted(), "query {i} of {d} columns");
                assert_eq!(similarities[0], similarities[BANK_BLOCK], "query {i}");
            }
        }
    }

    #[test]
    fn a_query_is_answered_as_it_is_among_others() {
        for (n, d) in [(3, 40), (40, 600), (70, 5), (BANK_BLOCK + 1, 40)] {
            let (bank, queries) = (noise(n, d, 10), noise(260, d, 11));
            let all = neighbors(&bank, &queries, 5, Own::Keep).unwrap();
            for i in [0, 100, 255, 256, 259] {
                let alone = neighbors(&bank, &queries.subset(&[i]), 5, Own::Keep).unwrap();
                assert_eq!(
                    alone.row(0),
                    all.row(i),
                    "query {i}, {n} rows of {d} columns"
                );
            }
        }
    }

    #[test]
    fn leave_one_out_never_returns_the_query() {
        let bank = noise(300, 4, 3);
        let found = neighbors(&bank, &bank, 1000, Own::LeaveOut).unwrap();
        assert_eq!(found.k, 299);
        for i in 0..300 {
            let mut row = found.row(i).0.to_vec();
            row.sort_unstable();
            let others: Vec<u32> = (0..300).filter(|&j| j != i as u32).collect();
            assert_eq!(row, others);
        }
    }
}
