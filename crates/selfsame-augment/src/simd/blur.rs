//! The three passes of an extended box along and across a plane.

use crate::ops::kernels::BlurBox;
use crate::simd::level::dispatch;
use crate::simd::{Level, by_level};

/// The largest radius of the box whose sums of bytes fit 16 bits with a sign: 127 · 255.
pub(crate) const MAX_RADIUS: usize = 63;

/// Rows of words that a plane goes through.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlurRows {
    words: Vec<i16>,
}

/// All passes over a plane with a box of `N` whole pixels.
///
/// # Panics
/// If `N` is not 2 · radius + 1, or the radius is above [`MAX_RADIUS`].
pub(crate) fn blur_few<const N: usize>(
    level: Level,
    plane: &mut [u8],
    width: usize,
    kernel: BlurBox,
    rows: &mut BlurRows,
) {
    assert!(N == 2 * kernel.radius + 1 && kernel.radius <= MAX_RADIUS);
    dispatch!(level, {
        scalar: passes::<N>(plane, width, rows, |out, inner, outer| row(out, inner, outer, kernel)),
        avx2: avx2::few::<N>(plane, width, kernel, rows),
        avx512: avx512::few::<N>(plane, width, kernel, rows),
        neon: neon::few::<N>(plane, width, kernel, rows),
    });
}

/// Some rows at a time are widened to words and blurred along themselves. Then each pass across
/// takes a row as soon as the ones below it are there, so that a plane is read and written once.
///
/// `blur_row` writes one row of a pass from its taps, all of them as long as the row.
#[inline(always)]
fn passes<const N: usize>(
    plane: &mut [u8],
    width: usize,
    rows: &mut BlurRows,
    blur_row: impl Fn(&mut [i16], [&[i16]; N], [&[i16]; 2]) + Copy,
) {
    let height = plane.len() / width;
    let border = N / 2 + 1;
    let padded = width.next_multiple_of(PADDING);
    let line_len = padded + 2 * border;
    let (band_len, ring_len) = (BAND * line_len, (N + 2) * padded);
    let needed = 2 * band_len + height * padded + 2 * ring_len;
    rows.words.resize(needed.max(rows.words.len()), 0);
    let (a, rest) = rows.words.split_at_mut(band_len);
    let (b, rest) = rest.split_at_mut(band_len);
    let (along, rest) = rest.split_at_mut(height * padded);
    let (once, rest) = rest.split_at_mut(ring_len);
    let twice = &mut rest[..ring_len];

    let bands = along.chunks_mut(BAND * padded);
    for (bytes, out) in plane.chunks(BAND * width).zip(bands) {
        let count = out.len() / padded;
        let band = count * line_len;
        for (line, bytes) in a.chunks_exact_mut(line_len).zip(bytes.chunks_exact(width)) {
            for (word, &byte) in line[border..].iter_mut().zip(bytes) {
                *word = i16::from(byte);
            }
        }
        let (a, b) = (&mut a[..band], &mut b[..band]);
        pass_along(&mut b[border..], line_len, a, width, blur_row);
        pass_along(&mut a[border..], line_len, b, width, blur_row);
        pass_along(out, padded, a, width, blur_row);
    }
    for step in border..height + 3 * border {
        let row = |passes: usize| step.checked_sub(passes * border).filter(|&y| y < height);
        if let Some(y) = row(1) {
            let out = ring_row_mut::<N>(once, y, padded);
            pass_across(out, |y| &along[y * padded..][..padded], y, height, blur_row);
        }
        if let Some(y) = row(2) {
            let out = ring_row_mut::<N>(twice, y, padded);
            pass_across(out, |y| ring_row::<N>(once, y, padded), y, height, blur_row);
        }
        if let Some(y) = row(3) {
            let row = |y| ring_row::<N>(twice, y, padded);
            pass_across(&mut a[..padded], row, y, height, blur_row);
            for (byte, &word) in plane[y * width..][..width].iter_mut().zip(&*a) {
                *byte = word as u8;
            }
        }
    }
}

/// Rows of words are as long as a multiple of this.
const PADDING: usize = 32;

/// Rows that go through a pass together, so that what one row writes has settled before it is read.
const BAND: usize = 16;

/// Row `y`, which is kept among the last `N` + 2.
#[inline(always)]
fn ring_row<const N: usize>(ring: &[i16], y: usize, padded: usize) -> &[i16] {
    &ring[y % (N + 2) * padded..][..padded]
}

#[inline(always)]
fn ring_row_mut<const N: usize>(ring: &mut [i16], y: usize, padded: usize) -> &mut [i16] {
    &mut ring[y % (N + 2) * padded..][..padded]
}

/// One pass along rows of `width`, each in a line between two borders, which are filled here.
///
/// That is done for all rows first: a vector that is read right behind a word that was written into
/// it would wait for it.
#[inline(always)]
fn pass_along<const N: usize>(
    out: &mut [i16],
    out_stride: usize,
    lines: &mut [i16],
    width: usize,
    blur_row: impl Fn(&mut [i16], [&[i16]; N], [&[i16]; 2]),
) {
    let border = N / 2 + 1;
    let padded = width.next_multiple_of(PADDING);
    let line_len = padded + 2 * border;
    for line in lines.chunks_exact_mut(line_len) {
        let (first, last) = (line[border], line[border + width - 1]);
        line[..border].fill(first);
        line[border + width..][..border].fill(last);
    }
    for (line, out) in lines.chunks_exact(line_len).zip(out.chunks_mut(out_stride)) {
        let tap = |i: usize| &line[i..i + padded];
        let inner = std::array::from_fn(|i| tap(i + 1));
        blur_row(&mut out[..padded], inner, [tap(0), tap(N + 1)]);
    }
}

/// Row `y` of a pass across rows, of which there are `height`; those beyond repeat the border.
#[inline(always)]
fn pass_across<'a, const N: usize>(
    out: &mut [i16],
    row: impl Fn(usize) -> &'a [i16],
    y: usize,
    height: usize,
    blur_row: impl Fn(&mut [i16], [&[i16]; N], [&[i16]; 2]),
) {
    let tap = |i: usize| row((y + i).saturating_sub(N / 2 + 1).min(height - 1));
    let inner = std::array::from_fn(|i| tap(i + 1));
    blur_row(out, inner, [tap(0), tap(N + 1)]);
}

/// Whether a box of radius 0 gives `pixel + edge · (left + right − 2 · pixel)`, rounded.
///
/// It does if the weights add up to one; they can lack 2⁻²⁴, which counts only where a result is
/// that close to being rounded up: all differences are tried.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn is_by_difference(kernel: BlurBox) -> bool {
    let one = 1 << 24;
    let is_one = kernel.whole + 2 * kernel.edge == one;
    is_one
        || (-510..=510).all(|difference: i32| {
            let sum = difference
                .wrapping_mul(kernel.edge as i32)
                .wrapping_add(1 << 23);
            sum as u32 % one >= 255
        })
}

/// One row of a pass with any radius: `sums` holds the sum of the inner rows of the row before,
/// from which `gone` is taken away and to which `come` is added first.
///
/// # Panics
/// If a row or `sums` is shorter than `out`, or the radius is above [`MAX_RADIUS`].
pub(crate) fn blur_many(
    level: Level,
    out: &mut [u8],
    sums: &mut [i16],
    [gone, come]: [&[u8]; 2],
    outer: [&[u8]; 2],
    kernel: BlurBox,
) {
    assert!(kernel.radius <= MAX_RADIUS, "the sums fit 16 bits");
    move_sums(level, sums, gone, come);
    dispatch!(level, {
        scalar: many(out, sums, outer, kernel),
        avx2: avx2::many(out, sums, outer, kernel),
        avx512: avx512::many(out, sums, outer, kernel),
        neon: neon::many(out, sums, outer, kernel),
    });
}

by_level! {
    /// `sums[x] += come[x] − gone[x]`.
    fn move_sums(sums: &mut [i16], gone: &[u8], come: &[u8]) = move_sums_body;
}

#[inline(always)]
fn move_sums_body(sums: &mut [i16], gone: &[u8], come: &[u8]) {
    for ((sum, &gone), &come) in sums.iter_mut().zip(gone).zip(come) {
        *sum += i16::from(come) - i16::from(gone);
    }
}

/// `out[x] = whole · Σ inner[i][x] + edge · (left[x] + right[x])`, rounded.
fn row<const N: usize>(
    out: &mut [i16],
    inner: [&[i16]; N],
    [left, right]: [&[i16]; 2],
    kernel: BlurBox,
) {
    for (x, out) in out.iter_mut().enumerate() {
        let sum: i16 = inner.iter().map(|row| row[x]).sum();
        *out = i16::from(kernel.weigh(sum as u32, (left[x] + right[x]) as u32));
    }
}

fn many(out: &mut [u8], sums: &[i16], [left, right]: [&[u8]; 2], kernel: BlurBox) {
    for (x, out) in out.iter_mut().enumerate() {
        *out = kernel.weigh(sums[x] as u32, u32::from(left[x]) + u32::from(right[x]));
    }
}

macro_rules! rows {
    ($level:ident, $features:literal) => {
        mod $level {
            use super::*;
            use crate::simd::words::{Weight, WeightPair, $level::*};

            fn vectors(row: &[i16]) -> std::slice::Iter<'_, [i16; LANES]> {
                row.as_chunks().0.iter()
            }

            fn vectors_mut(row: &mut [i16]) -> std::slice::IterMut<'_, [i16; LANES]> {
                row.as_chunks_mut().0.iter_mut()
            }

            #[target_feature(enable = $features)]
            pub(super) fn few<const N: usize>(
                plane: &mut [u8],
                width: usize,
                kernel: BlurBox,
                rows: &mut BlurRows,
            ) {
                let weights = WeightPair::new(kernel.whole as i32, kernel.edge as i32);
                if N == 1 && is_by_difference(kernel) {
                    let edge = Weight::new(kernel.edge);
                    passes::<N>(plane, width, rows, |out, inner, outer| {
                        row_by_difference(out, inner[0], outer, edge);
                    });
                } else {
                    passes::<N>(plane, width, rows, |out, inner, outer| {
                        row(out, inner, outer, weights);
                    });
                }
            }

            /// `out[x] = inner[x] + edge · (left[x] + right[x] − 2 · inner[x])`, rounded.
            #[inline]
            #[target_feature(enable = $features)]
            fn row_by_difference(
                out: &mut [i16],
                inner: &[i16],
                [left, right]: [&[i16]; 2],
                edge: Weight,
            ) {
                let taps = vectors(inner).zip(vectors(left)).zip(vectors(right));
                for (out, ((inner, left), right)) in vectors_mut(out).zip(taps) {
                    let pixel = load(inner);
                    let outer = add(load(left), load(right));
                    let difference = subtract(outer, add(pixel, pixel));
                    store(out, moved(pixel, difference, edge));
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn row<const N: usize>(
                out: &mut [i16],
                inner: [&[i16]; N],
                [left, right]: [&[i16]; 2],
                weights: WeightPair,
            ) {
                let count = out.len() / LANES;
                let mut rows = [&[][..]; N];
                for (vectors, row) in rows.iter_mut().zip(inner) {
                    *vectors = &row.as_chunks::<LANES>().0[..count];
                }
                let outer = vectors(left).zip(vectors(right));
                for ((i, out), (left, right)) in vectors_mut(out).enumerate().zip(outer) {
                    let mut sum = load(&rows[0][i]);
                    for row in &rows[1..] {
                        sum = add(sum, load(&row[i]));
                    }
                    let outer = add(load(left), load(right));
                    store(out, weighted_sum(sum, outer, weights));
                }
            }

            #[target_feature(enable = $features)]
            pub(super) fn many(
                out: &mut [u8],
                sums: &[i16],
                [left, right]: [&[u8]; 2],
                kernel: BlurBox,
            ) {
                if out.len() < LANES {
                    return super::many(out, sums, [left, right], kernel);
                }
                let weights = WeightPair::new(kernel.whole as i32, kernel.edge as i32);
                let n = out.len();
                let columns = |sums: &[i16; LANES], left: &[u8; LANES], right: &[u8; LANES]| {
                    let outer = add(load_bytes(left), load_bytes(right));
                    narrowed(weighted_sum(load(sums), outer, weights))
                };
                let (sums, left, right) = (&sums[..n], &left[..n], &right[..n]);
                let outer = left.as_chunks().0.iter().zip(right.as_chunks().0);
                let rows = vectors(sums).zip(outer);
                for (out, (sums, (left, right))) in out.as_chunks_mut().0.iter_mut().zip(rows) {
                    store_bytes(out, columns(sums, left, right));
                }
                if n % LANES != 0 {
                    store_bytes(last_mut(out), columns(last(sums), last(left), last(right)));
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
rows!(avx2, "avx2");
#[cfg(target_arch = "x86_64")]
rows!(avx512, "avx512f,avx512bw,avx512vl,avx512vnni");
#[cfg(target_arch = "aarch64")]
rows!(neon, "neon");

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;
    use crate::ops::gaussian_blur::blur_box;

    #[test]
    fn boxes_by_difference_weigh_every_pixel_alike() {
        let mut counts = [0, 0];
        // Not by thousandths: results of fractions with small denominators are often in the middle.
        for step in 1..500 {
            let kernel = blur_box(step as f32 * 1.000_37e-3);
            let is_by_difference = is_by_difference(kernel);
            counts[usize::from(is_by_difference)] += 1;
            if !is_by_difference || step % 20 != 0 {
                continue;
            }
            for pixel in 0..=255u32 {
                for outer in 0..=510u32 {
                    let difference = outer as i32 - 2 * pixel as i32;
                    let moved = i64::from(difference) * i64::from(kernel.edge) + (1 << 23);
                    let expected = i64::from(kernel.weigh(pixel, outer));
                    assert_eq!(i64::from(pixel) + (moved >> 24), expected, "{kernel:?}");
                }
            }
        }
        assert!(counts[0] > 0 && counts[1] > 10 * counts[0], "{counts:?}");
    }
}
