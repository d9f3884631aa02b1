//! The most similar rows of a bank.

use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::matrix::{centred, column_means};
use candle_core::{Device, Tensor, WithDType};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

// A block of similarities is at most 256 x 4096 numbers (4 MiB of f32), whatever the sizes of bank and queries.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Own {
    /// Queries and bank are different images.
    #[default]
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

    let rows = |of: &Features| {
        let Features { n, d, data } = of.l2_normalized();
        Tensor::from_vec(data, (n, d), &Device::Cpu)
    };
    let (indices, similarities) =
        search(&rows(bank)?, &rows(queries)?, None, k, |query| match own {
            Own::Keep => None,
            Own::LeaveOut => Some(query),
        })?;
    Ok(Neighbors {
        k,
        indices,
        similarities,
    })
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
/// The products are `f32`, which is blind within a tight cluster that is far from the mean. Rows for which a row that
/// was left out may be nearer than one that was taken are therefore searched again in `f64`, which tells apart what
/// features of `f32` can.
pub(crate) fn nearest_euclidean(features: &Features, k: usize) -> Result<Nearest, EvalError> {
    const SPARE: usize = 16;
    features.check_width(features.d)?;
    let n = features.n;
    let mean = column_means(features);
    let candidates = (k + SPARE).min(n - 1);
    let all: Vec<u32> = (0..n as u32).collect();
    let (rows, unit) = centred(features, &mean, |x| x as f32);
    let squares: Vec<f64> = rows
        .par_chunks(features.d)
        .map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum())
        .collect();
    let halves: Vec<f32> = squares.iter().map(|square| (square / 2.0) as f32).collect();
    let found = nearest_by_products(rows, &halves, &all, candidates)?;

    let scale = unit * unit; // a power of two, by which a division is exact
    let mut exact = in_order(features, &all, &found.0, candidates, scale);
    let longest = squares.iter().copied().fold(0.0, f64::max).sqrt();
    let doubtful: Vec<u32> = all
        .into_iter()
        .filter(|&i| {
            // A product less half of |y|² is half of what |x|² exceeds the squared distance by. What `f32` makes of it
            // is off by less than `error`: d·u·|x|·|y| for the product (Higham 2002), some u for the rest.
            let i = i as usize;
            let u = f64::from(f32::EPSILON);
            let error = (features.d + 8) as f64 * u * squares[i].sqrt() * longest
                + 2.0 * u * longest * longest;
            let last = f64::from(found.1[(i + 1) * candidates - 1]);
            squares[i] - exact[i][k - 1].1 <= 2.0 * (last + error)
        })
        .collect();
    if candidates < n - 1 && !doubtful.is_empty() {
        let (rows, _) = centred(features, &mean, |x| x);
        let halves: Vec<f64> = rows
            .par_chunks(features.d)
            .map(|row| row.iter().map(|x| x * x).sum::<f64>() / 2.0)
            .collect();
        let (found, _) = nearest_by_products(rows, &halves, &doubtful, candidates)?;
        let again = in_order(features, &doubtful, &found, candidates, scale);
        for (i, row) in doubtful.into_iter().zip(again) {
            exact[i as usize] = row;
        }
    }
    let nearest = || exact.iter().flat_map(|row| &row[..k]);
    Ok(Nearest {
        indices: nearest().map(|item| item.0).collect(),
        squared_distances: nearest().map(|item| item.1).collect(),
    })
}

/// The `k` nearest other rows of those `asked` for, by products: |x - y|² = |x|² - 2 (x·y - |y|²/2). Indices and what
/// the brackets hold, `[asked, k]`.
fn nearest_by_products<T: Score>(
    rows: Vec<T>,
    half_squares: &[T],
    asked: &[u32],
    k: usize,
) -> Result<(Vec<u32>, Vec<T>), EvalError> {
    let n = half_squares.len();
    let bank = Tensor::from_vec(rows, (n, ()), &Device::Cpu)?;
    let queries = match asked.len() == n {
        true => bank.clone(),
        false => bank.index_select(&Tensor::new(asked, &Device::Cpu)?, 0)?,
    };
    search(&bank, &queries, Some(half_squares), k, |query| {
        Some(asked[query] as usize)
    })
}

/// For each row `asked` for, the rows `found` and their squared distances over `scale`, nearest first.
fn in_order(
    features: &Features,
    asked: &[u32],
    found: &[u32],
    candidates: usize,
    scale: f64,
) -> Vec<Vec<(u32, f64)>> {
    let rows = asked.par_iter().zip(found.par_chunks(candidates));
    rows.map(|(&i, found)| {
        let distance = |&j: &u32| {
            let (a, b) = (features.row(i as usize), features.row(j as usize));
            let squares = a
                .iter()
                .zip(b)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            (j, squares.sum::<f64>() / scale)
        };
        let mut row: Vec<(u32, f64)> = found.iter().map(distance).collect();
        row.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        row
    })
    .collect()
}

/// What similarities are computed in.
trait Score: WithDType {
    /// Below all others.
    const LEAST: Self;
    fn total_cmp(&self, other: &Self) -> Ordering;
}

impl Score for f32 {
    const LEAST: f32 = f32::NEG_INFINITY;
    fn total_cmp(&self, other: &f32) -> Ordering {
        f32::total_cmp(self, other)
    }
}

impl Score for f64 {
    const LEAST: f64 = f64::NEG_INFINITY;
    fn total_cmp(&self, other: &f64) -> Ordering {
        f64::total_cmp(self, other)
    }
}

/// For each query the `k` rows of `bank` with the largest products, less `penalties` if there are any: indices and
/// what they have, `[queries, k]`. `own` says which row of the bank a query may not find.
fn search<T: Score>(
    bank: &Tensor,
    queries: &Tensor,
    penalties: Option<&[T]>,
    k: usize,
    own: impl Fn(usize) -> Option<usize> + Sync,
) -> Result<(Vec<u32>, Vec<T>), EvalError> {
    let (n, _) = bank.dims2()?;
    let (asked, _) = queries.dims2()?;
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
    let mut indices = Vec::with_capacity(asked * k);
    let mut found = Vec::with_capacity(asked * k);
    for start in (0..asked).step_by(query_block) {
        let count = query_block.min(asked - start);
        let rows = filled(&queries.narrow(0, start, count)?, FEWEST_QUERIES)?;
        let mut best: Vec<Best<T>> = (0..count).map(|_| Best::new(k)).collect();
        for &(first, width, ref bank_rows) in &bank_blocks {
            let mut similarities = rows.matmul(bank_rows)?.flatten_all()?.to_vec1::<T>()?;
            let stride = bank_rows.dim(1)?; // `width`, or more where zeros fill the block
            if let Some(penalties) = penalties {
                similarities.par_chunks_mut(stride).for_each(|row| {
                    let penalties = &penalties[first..first + width];
                    row.iter_mut().zip(penalties).for_each(|(x, p)| *x -= *p);
                });
            }
            best.par_iter_mut()
                .zip(similarities.par_chunks(stride))
                .enumerate()
                .for_each(|(i, (best, similarities))| {
                    let skip = own(start + i);
                    for (j, &similarity) in similarities[..width].iter().enumerate() {
                        if similarity > best.bar && Some(first + j) != skip {
                            best.push(similarity, (first + j) as u32);
                        }
                    }
                });
        }
        best.par_iter_mut().for_each(Best::finish);
        for (similarity, index) in best.iter().flat_map(|best| &best.items) {
            indices.push(*index);
            found.push(*similarity);
        }
    }
    Ok((indices, found))
}

/// The rows, and rows of zeros below them if they are fewer than `fewest`.
fn filled(rows: &Tensor, fewest: usize) -> candle_core::Result<Tensor> {
    rows.pad_with_zeros(0, 0, fewest.saturating_sub(rows.dim(0)?))
}

/// The best `k` of a stream of candidates that come by rising index.
struct Best<T> {
    k: usize,
    items: Vec<(T, u32)>,
    /// Only what is above it can still be among the best; an equal one has a higher index, hence loses.
    bar: T,
}

impl<T: Score> Best<T> {
    fn new(k: usize) -> Best<T> {
        Best {
            k,
            items: Vec::new(),
            bar: T::LEAST,
        }
    }

    fn push(&mut self, similarity: T, index: u32) {
        self.items.push((similarity + T::zero(), index)); // -0 becomes 0: they are equal
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

fn nearer<T: Score>(a: &(T, u32), b: &(T, u32)) -> Ordering {
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
    fn euclidean_search_sees_into_tight_clusters_far_apart() {
        // f32 tells numbers near 1000 apart by 6·10⁻⁵, and squares near 10⁷ by 1.
        for (spread, d) in [(0.05f32, 16), (1e-3, 40), (0.0, 7)] {
            let mut features = noise(900, d, 5);
            for (i, row) in features.data.chunks_exact_mut(d).enumerate() {
                let (place, spread) = match i % 3 {
                    0 => (1000.0, spread),
                    1 => (-1000.0, spread),
                    // Scattered between both.
                    _ => (0.0, 1000.0),
                };
                row.iter_mut().for_each(|x| *x = place + spread * *x);
            }
            let k = 91;
            let found = nearest_euclidean(&features, k).unwrap();
            for i in 0..900 {
                let others = (0..900u32).filter(|&j| j as usize != i);
                let distance = |j: u32| {
                    let pairs = features.row(i).iter().zip(features.row(j as usize));
                    let squares = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
                    (squares.sum::<f64>(), j)
                };
                let mut all: Vec<(f64, u32)> = others.map(distance).collect();
                all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let expected: Vec<u32> = all[..k].iter().map(|item| item.1).collect();
                let (found, squares) = (
                    &found.indices[i * k..][..k],
                    &found.squared_distances[i * k..][..k],
                );
                assert_eq!(found, expected, "row {i}, spread {spread}");
                assert!(all.iter().zip(squares).all(|(all, found)| all.0 == *found));
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
