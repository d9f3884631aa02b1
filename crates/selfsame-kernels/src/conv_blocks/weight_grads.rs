//! The gradient of a convolution's weight: a product over all positions of all images.

use std::ops::Range;

use super::channels_last::{Column, gather_column};
use super::products::{lines_per_band, with_patches};
use crate::buffers::with_scratch;
use crate::conv2d::Sizes;
use crate::gemm::{Mat, Threads, View, multiply_add};
use crate::host::for_each_chunk;

/// Sums over parts of the positions, for gradients so small that adding them up costs nothing.
const PARTS: usize = 8;
/// Length of a weight from which on threads share the weight instead of the positions.
const LARGE: usize = 1 << 18;
/// Pieces that a large weight is cut into, if they do not get too narrow for fast products.
const PIECES: usize = 16;
/// Channels of the narrowest piece.
const NARROWEST: usize = 64;

/// Adds the gradient of the weight `[O, C, kh, kw]`, given that of the convolution's result, to
/// `sum`. `room` holds at least [`room`] numbers of any value.
pub(super) fn add_weight_grad(
    sizes: &Sizes,
    xs: &[f32],
    grad: &[f32],
    sum: &mut [f32],
    room: &mut [f32],
) {
    match is_large(sizes) {
        false => add_by_parts(sizes, xs, grad, sum, room),
        true => add_by_columns(sizes, xs, grad, sum, room),
    }
}

/// Numbers that [`add_weight_grad`] needs room for.
pub(super) fn room(sizes: &Sizes) -> usize {
    match is_large(sizes) {
        false => PARTS * sizes.out * sizes.window_len(),
        true => {
            let width = column_width(sizes);
            sizes.kh * sizes.kw * sizes.channels.div_ceil(width) * width * sizes.out
        }
    }
}

fn is_large(sizes: &Sizes) -> bool {
    sizes.out * sizes.window_len() >= LARGE
}

/// Channels of a column.
fn column_width(sizes: &Sizes) -> usize {
    let pieces = PIECES.div_ceil(sizes.kh * sizes.kw);
    let width = sizes.channels.div_ceil(pieces);
    width.next_multiple_of(NARROWEST).min(sizes.channels)
}

/// The gradients at some output lines.
fn grad_rows<'a>(sizes: &Sizes, grad: &'a [f32], lines: &Range<usize>) -> Mat<'a> {
    let line_len = sizes.w_out * sizes.out;
    let rows = lines.len() * sizes.w_out;
    let grad = &grad[lines.start * line_len..lines.end * line_len];
    Mat(grad, View::row_major(rows, sizes.out).t())
}

/// The lines of `lines`, `step` at a time.
fn bands(lines: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = lines.end;
    lines
        .step_by(step)
        .map(move |first| first..end.min(first + step))
}

/// Each task takes a part of the positions and all of the weight.
fn add_by_parts(sizes: &Sizes, xs: &[f32], grad: &[f32], sum: &mut [f32], room: &mut [f32]) {
    let lines = sizes.batch * sizes.h_out;
    let per_part = lines.div_ceil(PARTS);
    let len = sizes.out * sizes.window_len();
    let partial = &mut room[..lines.div_ceil(per_part) * len];
    for_each_chunk(partial, len, |part, out| {
        out.fill(0.0);
        let first = part * per_part;
        let lines = first..lines.min(first + per_part);
        for band in bands(lines.clone(), lines_per_band(sizes, lines.len())) {
            with_patches(sizes, xs, band.clone(), |patches| {
                let rows = band.len() * sizes.w_out;
                let patches = Mat(patches, View::row_major(rows, sizes.window_len()));
                let view = View::row_major(sizes.out, sizes.window_len());
                let grad = grad_rows(sizes, grad, &band);
                multiply_add(out, view, grad, patches, Threads::One);
            });
        }
    });
    let (channels, kernel) = (sizes.channels, sizes.kh * sizes.kw);
    for_each_chunk(sum, channels * kernel, |o, sum| {
        for part in partial.chunks_exact(len) {
            let part = &part[o * sizes.window_len()..][..sizes.window_len()];
            for (position, part) in part.chunks_exact(channels).enumerate() {
                for (sum, x) in sum.iter_mut().skip(position).step_by(kernel).zip(part) {
                    *sum += x;
                }
            }
        }
    });
}

/// Each task takes all positions and some channels at one place of the kernel.
fn add_by_columns(sizes: &Sizes, xs: &[f32], grad: &[f32], sum: &mut [f32], room: &mut [f32]) {
    let kernel = sizes.kh * sizes.kw;
    let width = column_width(sizes);
    let per_place = sizes.channels.div_ceil(width);
    let len = sizes.out * width;
    let columns = &mut room[..kernel * per_place * len];
    for_each_chunk(columns, len, |task, out| {
        let (place, first) = (task / per_place, task % per_place * width);
        let column = Column {
            i: place / sizes.kw,
            j: place % sizes.kw,
            channels: first..sizes.channels.min(first + width),
        };
        let out = &mut out[..sizes.out * column.channels.len()];
        out.fill(0.0);
        add_column(sizes, xs, grad, &column, out);
    });
    for_each_chunk(sum, sizes.channels * kernel, |o, sum| {
        for (task, column) in columns.chunks_exact(len).enumerate() {
            let (place, first) = (task / per_place, task % per_place * width);
            let width = width.min(sizes.channels - first);
            let sum = sum[first * kernel + place..].iter_mut().step_by(kernel);
            for (sum, x) in sum.zip(&column[o * width..][..width]) {
                *sum += x;
            }
        }
    });
}

/// Adds to `out [O, channels of the column]`.
fn add_column(sizes: &Sizes, xs: &[f32], grad: &[f32], column: &Column, out: &mut [f32]) {
    let width = column.channels.len();
    let view = View::row_major(sizes.out, width);
    let lines = 0..sizes.batch * sizes.h_out;
    if sizes.is_pointwise() {
        let rows = sizes.batch * sizes.windows();
        let xs = &xs[column.channels.start..];
        let xs = Mat(xs, View::strided(rows, width, sizes.channels));
        multiply_add(out, view, grad_rows(sizes, grad, &lines), xs, Threads::One);
        return;
    }
    let step = (COLUMN_ROWS / sizes.w_out).max(1);
    for band in bands(lines, step) {
        let rows = band.len() * sizes.w_out;
        with_scratch(rows * width, |patches| {
            gather_column(sizes, xs, band.clone(), column, patches);
            let patches = Mat(patches, View::row_major(rows, width));
            multiply_add(
                out,
                view,
                grad_rows(sizes, grad, &band),
                patches,
                Threads::One,
            );
        });
    }
}

/// Positions of a column that are gathered at a time.
const COLUMN_ROWS: usize = 1024;
