//! Convolutions of images `[B, H, W, C]` as products over bands of output lines.
//!
//! The patches of a band stay in the cache; what has to be done with its results is done while they
//! are there, too. Where patches are the images themselves, nothing is copied.

use std::ops::Range;

use super::channels_last::{gather, scatter};
use crate::buffers::with_scratch;
use crate::conv2d::Sizes;
use crate::gemm::{Mat, Threads, View, multiply_add, multiply_into};
use crate::host::for_each_chunk;

/// Numbers of a band's patches that should lie in the second-level cache (1 MiB).
const BAND: usize = 1 << 18;
/// Rows below and above which products get slow, or the bands too few.
const ROWS: Range<usize> = 128..512;
/// A number of bands that two or four threads can share.
const BANDS: usize = 4;

/// Output lines of a band; depends on sizes only.
pub(super) fn lines_per_band(sizes: &Sizes, lines: usize) -> usize {
    let width = sizes.window_len() + sizes.out;
    let rows = (BAND / width).clamp(ROWS.start, ROWS.end);
    let bands = lines.div_ceil((rows / sizes.w_out).max(1));
    lines.div_ceil(bands.next_multiple_of(BANDS))
}

/// Runs `f` on the patches of some output lines.
pub(super) fn with_patches<R>(
    sizes: &Sizes,
    xs: &[f32],
    lines: Range<usize>,
    f: impl FnOnce(&[f32]) -> R,
) -> R {
    let len = sizes.w_out * sizes.window_len();
    if sizes.is_pointwise() {
        return f(&xs[lines.start * len..lines.end * len]);
    }
    with_scratch(lines.len() * len, |patches| {
        gather(sizes, xs, lines, patches);
        f(patches)
    })
}

/// Whether a product is written or added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// Whatever stood there.
    Anything,
    /// What is added to.
    Sum,
}

impl Onto {
    fn product(self, out: &mut [f32], view: View, a: Mat<'_>, b: Mat<'_>) {
        match self {
            Onto::Anything => multiply_into(out, view, a, b, Threads::One),
            Onto::Sum => multiply_add(out, view, a, b, Threads::One),
        }
    }
}

/// Called with the index of a band's first number, the band, and zeroed sums.
type OfBand<'a> = dyn Fn(usize, &mut [f32], &mut [f64]) + Sync + 'a;

/// What is done with a band of results while it is in the cache.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Numbers of sums.
    pub(super) sums: usize,
    pub(super) of: &'a OfBand<'a>,
}

/// For results that nothing is done with.
pub(super) const NOTHING: Finish<'static> = Finish {
    sums: 0,
    of: &|_, _, _| {},
};

/// Runs `work(i, chunk, sums)` on chunks of `len` numbers in parallel; the `width` sums of all are
/// added in the order of the chunks.
pub(super) fn summed_chunks(
    out: &mut [f32],
    len: usize,
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f64]) + Sync + Send,
) -> Vec<f64> {
    let mut partial = vec![vec![0f64; width]; out.len().div_ceil(len)];
    let mut tasks: Vec<_> = out.chunks_mut(len).zip(&mut partial).collect();
    for_each_chunk(&mut tasks, 1, |i, task| {
        let (out, sums) = &mut task[0];
        work(i, out, sums);
    });
    let mut sums = vec![0f64; width];
    for part in partial {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sums
}

/// The convolution of `xs` by weights `[kh, kw, C, O]`, and the sums of `finish`.
pub(super) fn convolve(
    sizes: &Sizes,
    xs: &[f32],
    weight: &[f32],
    (out, onto): (&mut [f32], Onto),
    finish: Finish<'_>,
) -> Vec<f64> {
    let lines = sizes.batch * sizes.h_out;
    let per_band = lines_per_band(sizes, lines);
    let line_len = sizes.w_out * sizes.out;
    summed_chunks(out, per_band * line_len, finish.sums, |band, out, sums| {
        let first = band * per_band;
        let count = out.len() / line_len;
        let rows = count * sizes.w_out;
        with_patches(sizes, xs, first..first + count, |patches| {
            let patches = Mat(patches, View::row_major(rows, sizes.window_len()));
            let weight = Mat(weight, View::row_major(sizes.window_len(), sizes.out));
            onto.product(out, View::row_major(rows, sizes.out), patches, weight);
        });
        (finish.of)(first * line_len, out, sums);
    })
}

/// The convolution that gives the gradient of a convolution's input, by the kernel turned around;
/// `None` if there is none, as for strides, whose gradients [`spread`] makes.
pub(super) fn adjoint(sizes: &Sizes) -> Option<Sizes> {
    if sizes.stride != 1 || sizes.kh != sizes.kw || sizes.padding >= sizes.kh {
        return None;
    }
    Some(Sizes {
        batch: sizes.batch,
        channels: sizes.out,
        h: sizes.h_out,
        w: sizes.w_out,
        out: sizes.channels,
        kh: sizes.kh,
        kw: sizes.kw,
        h_out: sizes.h,
        w_out: sizes.w,
        stride: 1,
        padding: sizes.kh - 1 - sizes.padding,
    })
}

/// The gradient of the input of any convolution by weights `[O, kh, kw, C]`: gradients of patches,
/// added up image by image; and the sums of `finish`.
pub(super) fn spread(
    sizes: &Sizes,
    grad: &[f32],
    weight: &[f32],
    (dx, onto): (&mut [f32], Onto),
    finish: Finish<'_>,
) -> Vec<f64> {
    let (windows, len) = (sizes.windows(), sizes.window_len());
    let images = (BAND / (windows * len)).max(ROWS.start / windows).max(1);
    let images = sizes.batch.div_ceil(images).next_multiple_of(BANDS);
    let images = sizes.batch.div_ceil(images);
    let image_len = sizes.image_len();
    summed_chunks(dx, images * image_len, finish.sums, |chunk, dx, sums| {
        let first = chunk * images;
        let rows = dx.len() / image_len * windows;
        let grad = &grad[first * windows * sizes.out..][..rows * sizes.out];
        if onto == Onto::Anything {
            dx.fill(0.0);
        }
        with_scratch(rows * len, |patches| {
            let grad = Mat(grad, View::row_major(rows, sizes.out));
            let weight = Mat(weight, View::row_major(sizes.out, len));
            let view = View::row_major(rows, len);
            multiply_into(patches, view, grad, weight, Threads::One);
            scatter(sizes, patches, dx);
        });
        (finish.of)(first * image_len, dx, sums);
    })
}
