//! Images whose channels lie side by side, `[B, H, W, C]`, and the patches of a convolution in them.
//!
//! Rows are positions; a patch is a row `[kh, kw, C]`, of which a line of the kernel is one run of
//! the image.

use std::ops::Range;

use crate::conv2d::Sizes;
use crate::host::for_each_chunk;

/// `[B, C, P]` to `[B, P, C]`.
pub(super) fn to_channels_last(from: &[f32], to: &mut [f32], channels: usize, positions: usize) {
    swap_last(from, to, channels, positions);
}

/// `[B, P, C]` to `[B, C, P]`.
pub(super) fn to_planes(from: &[f32], to: &mut [f32], channels: usize, positions: usize) {
    swap_last(from, to, positions, channels);
}

/// `[B, rows, cols]` to `[B, cols, rows]`.
fn swap_last(from: &[f32], to: &mut [f32], rows: usize, cols: usize) {
    let len = rows * cols;
    for_each_chunk(to, len, |image, to| {
        let from = &from[image * len..][..len];
        for (col, to) in to.chunks_exact_mut(rows).enumerate() {
            for (row, to) in to.iter_mut().enumerate() {
                *to = from[row * cols + col];
            }
        }
    });
}

/// One position within the kernel and some channels there.
#[derive(Clone)]
pub(super) struct Column {
    pub(super) i: usize,
    pub(super) j: usize,
    pub(super) channels: Range<usize>,
}

/// Kernel columns of output column `x` that lie within the image, and the image column of the first.
fn valid(sizes: &Sizes, x: usize) -> (Range<usize>, usize) {
    let left = x * sizes.stride;
    let start = sizes.padding.saturating_sub(left).min(sizes.kw);
    let end = (sizes.w + sizes.padding)
        .saturating_sub(left)
        .clamp(start, sizes.kw);
    (start..end, (left + start).saturating_sub(sizes.padding))
}

/// Calls `f(row, start, from)` for each run of the patches of the output lines `lines`, which are
/// numbered through the batch: where it lies in `xs`, and where in row `row` of the patches it
/// starts; `None` if that part of a row is padding.
fn for_each_run(
    sizes: &Sizes,
    lines: Range<usize>,
    mut f: impl FnMut(usize, Range<usize>, Option<usize>),
) {
    let (channels, line_len) = (sizes.channels, sizes.kw * sizes.channels);
    for (index, line) in lines.enumerate() {
        let (image, y) = (line / sizes.h_out, line % sizes.h_out);
        for x in 0..sizes.w_out {
            let row = index * sizes.w_out + x;
            let (valid, column) = valid(sizes, x);
            for i in 0..sizes.kh {
                let start = i * line_len;
                let run = start + valid.start * channels..start + valid.end * channels;
                match sizes.input_row(y, i) {
                    Some(input) if !run.is_empty() => {
                        let from = ((image * sizes.h + input) * sizes.w + column) * channels;
                        f(row, start..run.start, None);
                        f(row, run.clone(), Some(from));
                        f(row, run.end..start + line_len, None);
                    }
                    _ => f(row, start..start + line_len, None),
                }
            }
        }
    }
}

/// Writes the patches of some output lines, `[lines·w_out, kh·kw·C]`.
pub(super) fn gather(sizes: &Sizes, xs: &[f32], lines: Range<usize>, patches: &mut [f32]) {
    let len = sizes.window_len();
    for_each_run(sizes, lines, |row, to, from| {
        let to = &mut patches[row * len..][to];
        match from {
            Some(from) => to.copy_from_slice(&xs[from..from + to.len()]),
            None => to.fill(0.0),
        }
    });
}

/// Adds gradients of the patches of whole images onto `dx`, which holds these images alone.
pub(super) fn scatter(sizes: &Sizes, patches: &[f32], dx: &mut [f32]) {
    let len = sizes.window_len();
    let lines = dx.len() / sizes.image_len() * sizes.h_out;
    for_each_run(sizes, 0..lines, |row, run, to| {
        let Some(to) = to else { return };
        let run = &patches[row * len..][run];
        for (to, from) in dx[to..to + run.len()].iter_mut().zip(run) {
            *to += from;
        }
    });
}

/// Writes one column of the patches of some output lines, `[lines·w_out, channels]`.
pub(super) fn gather_column(
    sizes: &Sizes,
    xs: &[f32],
    lines: Range<usize>,
    column: &Column,
    to: &mut [f32],
) {
    let width = column.channels.len();
    let mut rows = to.chunks_exact_mut(width);
    for line in lines {
        let (image, y) = (line / sizes.h_out, line % sizes.h_out);
        let input = sizes.input_row(y, column.i);
        for (x, to) in (0..sizes.w_out).zip(&mut rows) {
            let (valid, first) = valid(sizes, x);
            match input {
                Some(input) if valid.contains(&column.j) => {
                    let at = (image * sizes.h + input) * sizes.w + first + column.j - valid.start;
                    let from = &xs[at * sizes.channels..][column.channels.clone()];
                    to.copy_from_slice(from);
                }
                _ => to.fill(0.0),
            }
        }
    }
}
