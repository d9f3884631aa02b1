//! Weighted sums of rows of bytes in 22-bit fixed point: both passes of a resize.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::ops::coefficients::PRECISION_BITS;
use crate::ops::coefficients::{Coefficients, HALF, clip8};
use crate::simd::Level;
use crate::simd::level::dispatch;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::simd::words::Weight;
use crate::simd::words::WeightPair;

/// In which order the results of a pass are put down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Mirrored,
}

/// What a pass of a resize reads and how it is weighted.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Bytes of a row that become a row of the result.
    pub(crate) len: usize,
}

/// One result row: `out[x] = Σ weight[i] · rows[i][x]` for `taps` rows, rounded and clipped.
///
/// With an odd number of rows the last pair's second weight is not used.
struct Sum<'a> {
    rows: &'a [u8],
    stride: usize,
    taps: usize,
    pairs: &'a [WeightPair],
}

impl<'a> Sum<'a> {
    /// The two rows between which the result lies, and the weight of the second, if there are no
    /// more and their weights add up to one: what most rows of an enlarged image are.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline]
    fn between(&self) -> Option<([&'a [u8]; 2], Weight)> {
        let [pair] = self.pairs else { return None };
        let [first, second] = pair.weights();
        let is_between = self.taps == 2 && first.min(second) >= 0;
        (is_between && first + second == 1 << PRECISION_BITS).then(|| {
            let rows = [self.rows, &self.rows[self.stride..]];
            (rows, Weight::new((second as u32) << (24 - PRECISION_BITS)))
        })
    }
}

/// One pass: row i of the result, which starts at `out[i · out_stride]`, is the weighted sum of the
/// rows that the i-th entry of the table names, counted from the first row that the table reads.
///
/// # Panics
/// If a slice ends before what is read or written.
pub(crate) fn resample(
    level: Level,
    out: &mut [u8],
    out_stride: usize,
    rows: Rows,
    table: Coefficients,
    order: Order,
) {
    dispatch!(level, {
        scalar: pass(out, out_stride, rows, table, order, scalar),
        avx2: avx2::pass(out, out_stride, rows, table, order),
        avx512: avx512::pass(out, out_stride, rows, table, order),
        neon: neon::pass(out, out_stride, rows, table, order),
    });
}

#[inline(always)]
fn pass(
    out: &mut [u8],
    out_stride: usize,
    rows: Rows,
    table: Coefficients,
    order: Order,
    sum_row: impl Fn(&mut [u8], Sum),
) {
    let base = table.input_range().start;
    let count = table.len();
    for (i, (first, taps, pairs)) in table.pairs().enumerate() {
        let sum = Sum {
            rows: &rows.bytes[(first - base) * rows.stride..],
            stride: rows.stride,
            taps,
            pairs,
        };
        let i = match order {
            Order::Forward => i,
            Order::Mirrored => count - 1 - i,
        };
        sum_row(&mut out[i * out_stride..][..rows.len], sum);
    }
}

fn scalar(out: &mut [u8], sum: Sum) {
    for (x, out) in out.iter_mut().enumerate() {
        let weights = sum.pairs.iter().flat_map(|pair| pair.weights());
        let products = weights
            .take(sum.taps)
            .enumerate()
            .map(|(i, w)| i32::from(sum.rows[i * sum.stride + x]) * w);
        *out = clip8(HALF + products.sum::<i32>());
    }
}

/// Taps that vectors sum up at most: the low bits of a weight have no sign, so their sum grows with
/// every tap, where that of whole weights does not. 2,048 · 255 · (2¹² − 1) + 2²¹ is below 2³¹.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const MOST_TAPS: usize = 2048;

macro_rules! vectors {
    ($level:ident, $features:literal, $narrow:path) => {
        mod $level {
            use super::*;
            use crate::simd::words::$level::*;

            #[target_feature(enable = $features)]
            pub(super) fn pass(
                out: &mut [u8],
                out_stride: usize,
                rows: Rows,
                table: Coefficients,
                order: Order,
            ) {
                super::pass(out, out_stride, rows, table, order, |out, sum| {
                    row(out, sum)
                });
            }

            #[target_feature(enable = $features)]
            pub(super) fn row(out: &mut [u8], sum: Sum) {
                if out.len() < LANES {
                    return $narrow(out, sum);
                }
                if let Some((rows, weight)) = sum.between() {
                    return between(out, rows, weight);
                }
                // The number of taps, known when compiling, spares the most frequent rows a loop.
                match sum.taps {
                    1 => few::<1, 1>(out, sum),
                    2 => few::<2, 1>(out, sum),
                    3 => few::<3, 2>(out, sum),
                    4 => few::<4, 2>(out, sum),
                    5 => few::<5, 3>(out, sum),
                    6 => few::<6, 3>(out, sum),
                    ..=MOST_TAPS => many(out, sum),
                    _ => scalar(out, sum),
                }
            }

            /// A row between two others.
            #[inline]
            #[target_feature(enable = $features)]
            fn between(out: &mut [u8], [first, second]: [&[u8]; 2], weight: Weight) {
                let n = out.len();
                let columns = |first: &[u8; LANES], second: &[u8; LANES]| {
                    let (first, second) = (load_bytes(first), load_bytes(second));
                    narrowed(moved(first, subtract(second, first), weight))
                };
                let (first, second) = (&first[..n], &second[..n]);
                let rows = first.as_chunks().0.iter().zip(second.as_chunks().0);
                for (out, (first, second)) in out.as_chunks_mut().0.iter_mut().zip(rows) {
                    store_bytes(out, columns(first, second));
                }
                if n % LANES != 0 {
                    store_bytes(last_mut(out), columns(last(first), last(second)));
                }
            }

            /// `T` taps in `P` pairs: the bytes stay in registers between two rounds of products.
            #[inline]
            #[target_feature(enable = $features)]
            fn few<const T: usize, const P: usize>(out: &mut [u8], sum: Sum) {
                let n = out.len();
                let pairs: &[_; P] = sum.pairs.first_chunk().expect("as many pairs as it takes");
                let mut rows = [&[][..]; T];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = &sum.rows[i * sum.stride..][..n];
                }
                for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    let mut columns = [[splat(0); 2]; P];
                    for (tap, row) in rows.iter().enumerate() {
                        columns[tap / 2][tap % 2] = load_bytes(&row.as_chunks().0[i]);
                    }
                    store_bytes(out, saturated(sums(&columns, pairs)));
                }
                if n % LANES != 0 {
                    let mut columns = [[splat(0); 2]; P];
                    for (tap, row) in rows.iter().enumerate() {
                        columns[tap / 2][tap % 2] = load_bytes(last(row));
                    }
                    store_bytes(last_mut(out), saturated(sums(&columns, pairs)));
                }
            }

            /// The weighted sums of few columns; they can exceed a byte at both ends.
            #[inline]
            #[target_feature(enable = $features)]
            fn sums<const P: usize>(columns: &[[Vector; 2]; P], pairs: &[WeightPair; P]) -> Vector {
                // ⌊(rest · 2¹² + low + half) / 2²²⌋, the low bits dropped as soon as nothing depends on them.
                let (mut a, mut b) = (splat_32(HALF), splat_32(HALF));
                for ([first, second], pair) in columns.iter().zip(pairs) {
                    let weights = splat_32(pair.low);
                    a = add_products(a, unpack_low(*first, *second), weights);
                    b = add_products(b, unpack_high(*first, *second), weights);
                }
                (a, b) = (
                    shift_right_signed_32::<LOW_BITS>(a),
                    shift_right_signed_32::<LOW_BITS>(b),
                );
                for ([first, second], pair) in columns.iter().zip(pairs) {
                    let weights = splat_32(pair.rest);
                    a = add_products(a, unpack_low(*first, *second), weights);
                    b = add_products(b, unpack_high(*first, *second), weights);
                }
                pack(
                    shift_right_signed_32::<REST_BITS>(a),
                    shift_right_signed_32::<REST_BITS>(b),
                )
            }

            /// Up to [`MOST_TAPS`] taps: both rounds at once, in sums of their own.
            #[inline]
            #[target_feature(enable = $features)]
            fn many(out: &mut [u8], sum: Sum) {
                let n = out.len();
                let columns = |x: usize| {
                    let tap = |i: usize| {
                        let row = sum.rows[i * sum.stride + x..].first_chunk();
                        load_bytes(row.expect("a vector of columns"))
                    };
                    let mut low = [splat_32(HALF); 2];
                    let mut rest = [splat_32(0); 2];
                    for (i, pair) in sum.pairs.iter().enumerate() {
                        let first = tap(2 * i);
                        let second = if 2 * i + 1 < sum.taps {
                            tap(2 * i + 1)
                        } else {
                            splat(0)
                        };
                        let bytes = [unpack_low(first, second), unpack_high(first, second)];
                        for half in 0..2 {
                            low[half] = add_products(low[half], bytes[half], splat_32(pair.low));
                            rest[half] = add_products(rest[half], bytes[half], splat_32(pair.rest));
                        }
                    }
                    for half in 0..2 {
                        let low = shift_right_signed_32::<LOW_BITS>(low[half]);
                        rest[half] = shift_right_signed_32::<REST_BITS>(add_32(low, rest[half]));
                    }
                    saturated(pack(rest[0], rest[1]))
                };
                for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    store_bytes(out, columns(i * LANES));
                }
                if n % LANES != 0 {
                    store_bytes(last_mut(out), columns(n - LANES));
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
vectors!(avx2, "avx2", scalar);
#[cfg(target_arch = "x86_64")]
vectors!(
    avx512,
    "avx512f,avx512bw,avx512vl,avx512vnni",
    super::avx2::row
);
#[cfg(target_arch = "aarch64")]
vectors!(neon, "neon", scalar);
