//! Weighted sums of rows of bytes in 22-bit fixed point: both passes of a resize.

#[cfg(target_arch = "x86_64")]
use crate::ops::coefficients::PRECISION_BITS;
use crate::ops::coefficients::{Coefficients, HALF, clip8};
use crate::simd::Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::lanes::*;
use crate::simd::level::dispatch;
use crate::simd::words::{LOW_BITS, Weight, WeightPair};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

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
    #[cfg(target_arch = "x86_64")]
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
    table: &Coefficients,
    order: Order,
) {
    dispatch!(level, {
        scalar: pass(out, out_stride, rows, table, order, scalar),
        avx2: pass_avx2(out, out_stride, rows, table, order),
        avx512: pass_avx512(out, out_stride, rows, table, order),
    });
}

#[inline(always)]
fn pass(
    out: &mut [u8],
    out_stride: usize,
    rows: Rows,
    table: &Coefficients,
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pass_avx2(out: &mut [u8], out_stride: usize, rows: Rows, table: &Coefficients, order: Order) {
    pass(out, out_stride, rows, table, order, |out, sum| {
        avx2(out, sum)
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pass_avx512(out: &mut [u8], out_stride: usize, rows: Rows, table: &Coefficients, order: Order) {
    pass(out, out_stride, rows, table, order, |out, sum| {
        avx512(out, sum)
    });
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

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn avx2(out: &mut [u8], sum: Sum) {
    if out.len() < 16 {
        return scalar(out, sum);
    }
    if let Some((rows, weight)) = sum.between() {
        return between_avx2(out, rows, weight);
    }
    // The number of pairs, known when compiling, spares the most frequent rows a loop.
    match sum.pairs {
        [a] => row_avx2(out, &sum, |x| few_16(&sum, &[*a], x)),
        [a, b] => row_avx2(out, &sum, |x| few_16(&sum, &[*a, *b], x)),
        _ => row_avx2(out, &sum, |x| many_16(&sum, x)),
    }
}

macro_rules! between {
    ($name:ident, $level:ident, $features:literal) => {
        /// A row between two others, of at least as many columns as a vector has.
        #[cfg(target_arch = "x86_64")]
        #[inline]
        #[target_feature(enable = $features)]
        fn $name(out: &mut [u8], [first, second]: [&[u8]; 2], weight: Weight) {
            use crate::simd::words::$level::*;
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
                let last = |row: &[u8]| *row.last_chunk().expect("a vector of columns");
                let out = out.last_chunk_mut().expect("a vector of columns");
                store_bytes(out, columns(&last(first), &last(second)));
            }
        }
    };
}
between!(between_avx2, avx2, "avx2");
between!(between_avx512, avx512, "avx512f,avx512bw,avx512vl,avx512vnni");

/// A row of at least 16 columns, 16 at a time, each by `sum_16`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn row_avx2(out: &mut [u8], sum: &Sum, sum_16: impl Fn(usize) -> __m128i) {
    assert!((sum.taps - 1) * sum.stride + out.len() <= sum.rows.len());
    for x in blocks(out.len(), 16) {
        store_16(out, x, sum_16(x));
    }
}

/// `pairs` are those of `sum`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn few_16<const P: usize>(sum: &Sum, pairs: &[WeightPair; P], x: usize) -> __m128i {
    let mut rest = [_mm256_setzero_si256(); 2];
    let mut low = [_mm256_set1_epi32(HALF); 2];
    for (i, pair) in pairs.iter().enumerate() {
        add_pair(sum, i, *pair, x, &mut rest, &mut low);
    }
    pack_16(rest, low)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn many_16(sum: &Sum, x: usize) -> __m128i {
    let mut rest = [_mm256_setzero_si256(); 2];
    let mut low = [_mm256_set1_epi32(HALF); 2];
    for (i, pair) in sum.pairs.iter().enumerate() {
        add_pair(sum, i, *pair, x, &mut rest, &mut low);
    }
    pack_16(rest, low)
}

/// Adds the products of the i-th pair of rows, eight columns in each half: those of the weights'
/// rests, and those of their low parts.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn add_pair(
    sum: &Sum,
    i: usize,
    pair: WeightPair,
    x: usize,
    rest: &mut [__m256i; 2],
    low: &mut [__m256i; 2],
) {
    let first = load_16(sum.rows, 2 * i * sum.stride + x);
    let second = if 2 * i + 1 < sum.taps {
        load_16(sum.rows, (2 * i + 1) * sum.stride + x)
    } else {
        _mm_setzero_si128()
    };
    let columns = [
        _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second)),
        _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second)),
    ];
    let (w_rest, w_low) = (_mm256_set1_epi32(pair.rest), _mm256_set1_epi32(pair.low));
    for half in 0..2 {
        rest[half] = _mm256_add_epi32(rest[half], _mm256_madd_epi16(columns[half], w_rest));
        low[half] = _mm256_add_epi32(low[half], _mm256_madd_epi16(columns[half], w_low));
    }
}

/// The sums as bytes, clipped at both ends.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn pack_16(rest: [__m256i; 2], low: [__m256i; 2]) -> __m128i {
    let [a, b] = [sum_8(rest[0], low[0]), sum_8(rest[1], low[1])];
    // Packing works within halves of 128 bits: 0..4 and 8..12, then 4..8 and 12..16.
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
    _mm_packus_epi16(
        _mm256_castsi256_si128(words),
        _mm256_extracti128_si256::<1>(words),
    )
}

/// ⌊(rest · 2¹² + low) / 2²²⌋, the low bits dropped as soon as nothing depends on them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sum_8(rest: __m256i, low: __m256i) -> __m256i {
    let low = _mm256_srai_epi32::<{ LOW_BITS as i32 }>(low);
    _mm256_srai_epi32::<{ (PRECISION_BITS - LOW_BITS) as i32 }>(_mm256_add_epi32(rest, low))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn avx512(out: &mut [u8], sum: Sum) {
    if out.len() >= 32
        && let Some((rows, weight)) = sum.between()
    {
        return between_avx512(out, rows, weight);
    }
    match sum.pairs {
        [a] => row_avx512(out, sum.rows, sum.stride, |rows| {
            few_32(&[*a], sum.taps, rows)
        }),
        [a, b] => row_avx512(out, sum.rows, sum.stride, |rows| {
            few_32(&[*a, *b], sum.taps, rows)
        }),
        pairs => row_avx512(out, sum.rows, sum.stride, |rows| {
            many_32(pairs, sum.taps, rows)
        }),
    }
}

/// Loads up to 32 columns of an input row.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Columns<'a> {
    rows: &'a [u8],
    stride: usize,
    x: usize,
    len: usize,
}

#[cfg(target_arch = "x86_64")]
impl Columns<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn row(self, i: usize) -> __m512i {
        let start = i * self.stride + self.x;
        _mm512_cvtepu8_epi16(if self.len < 32 {
            load_up_to_32(&self.rows[start..start + self.len])
        } else {
            load_32(self.rows, start)
        })
    }
}

/// A row, 32 columns at a time, each by `sum_32`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_avx512(out: &mut [u8], rows: &[u8], stride: usize, sum_32: impl Fn(Columns) -> __m256i) {
    let len = out.len();
    if len < 32 {
        let columns = Columns {
            rows,
            stride,
            x: 0,
            len,
        };
        return store_up_to_32(out, sum_32(columns));
    }
    for x in blocks(len, 32) {
        let columns = Columns {
            rows,
            stride,
            x,
            len: 32,
        };
        store_32(out, x, sum_32(columns));
    }
}

/// Few pairs, which most crops have: the bytes stay in registers between two rounds of products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn few_32<const P: usize>(pairs: &[WeightPair; P], taps: usize, rows: Columns) -> __m256i {
    let mut columns = [[_mm512_setzero_si512(); 2]; P];
    // ⌊(rest · 2¹² + low + half) / 2²²⌋, the low bits dropped as soon as nothing depends on them.
    let mut sum = [_mm512_set1_epi32(HALF); 2];
    for i in 0..P {
        columns[i] = columns_32(i, taps, rows);
        let weights = _mm512_set1_epi32(pairs[i].low);
        sum[0] = _mm512_dpwssd_epi32(sum[0], columns[i][0], weights);
        sum[1] = _mm512_dpwssd_epi32(sum[1], columns[i][1], weights);
    }
    sum[0] = _mm512_srai_epi32::<LOW_BITS>(sum[0]);
    sum[1] = _mm512_srai_epi32::<LOW_BITS>(sum[1]);
    for i in 0..P {
        let weights = _mm512_set1_epi32(pairs[i].rest);
        sum[0] = _mm512_dpwssd_epi32(sum[0], columns[i][0], weights);
        sum[1] = _mm512_dpwssd_epi32(sum[1], columns[i][1], weights);
    }
    pack_32(sum)
}

/// Any number of pairs: both rounds at once, in sums of their own.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn many_32(pairs: &[WeightPair], taps: usize, rows: Columns) -> __m256i {
    let mut rest = [_mm512_setzero_si512(); 2];
    let mut low = [_mm512_set1_epi32(HALF); 2];
    for (i, pair) in pairs.iter().enumerate() {
        let columns = columns_32(i, taps, rows);
        let (w_rest, w_low) = (_mm512_set1_epi32(pair.rest), _mm512_set1_epi32(pair.low));
        for half in 0..2 {
            rest[half] = _mm512_dpwssd_epi32(rest[half], columns[half], w_rest);
            low[half] = _mm512_dpwssd_epi32(low[half], columns[half], w_low);
        }
    }
    for half in 0..2 {
        low[half] = _mm512_srai_epi32::<LOW_BITS>(low[half]);
        low[half] = _mm512_add_epi32(low[half], rest[half]);
    }
    pack_32(low)
}

/// Sums in units of 2⁻¹⁰ as bytes, clipped at both ends.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pack_32(sum: [__m512i; 2]) -> __m256i {
    let a = _mm512_srai_epi32::<{ PRECISION_BITS - LOW_BITS }>(sum[0]);
    let b = _mm512_srai_epi32::<{ PRECISION_BITS - LOW_BITS }>(sum[1]);
    _mm512_cvtusepi16_epi8(_mm512_packus_epi32(a, b))
}

/// The i-th pair of rows, byte beside byte as words: columns 0..4, 8..12, … and 4..8, 12..16, …,
/// which the packing of the sums puts in order again.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn columns_32(i: usize, taps: usize, rows: Columns) -> [__m512i; 2] {
    let first = rows.row(2 * i);
    let second = if 2 * i + 1 < taps {
        rows.row(2 * i + 1)
    } else {
        _mm512_setzero_si512()
    };
    [
        _mm512_unpacklo_epi16(first, second),
        _mm512_unpackhi_epi16(first, second),
    ]
}
