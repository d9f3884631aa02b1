//! Weights `[O, C, kh, kw]` in the orders that products of images `[B, H, W, C]` want.

use crate::conv2d::Sizes;
use crate::host::for_each_chunk;

/// Outputs and channels of a tile that is turned within the first-level cache.
const TILE: usize = 16;

/// `[kh, kw, C, O]`: of the convolution itself.
pub(super) fn forward(sizes: &Sizes, weight: &[f32], to: &mut [f32]) {
    let (out, channels, kernel) = (sizes.out, sizes.channels, sizes.kh * sizes.kw);
    let mut tiles = interleaved(to, channels * out, TILE * out);
    for_each_chunk(&mut tiles, 1, |tile, positions| {
        let first = tile * TILE;
        let len = TILE.min(channels - first) * kernel;
        let mut rows = vec![0f32; TILE * len];
        for start in (0..out).step_by(TILE) {
            let count = TILE.min(out - start);
            for (o, row) in (start..).zip(rows.chunks_exact_mut(len)).take(count) {
                row.copy_from_slice(&weight[(o * channels + first) * kernel..][..len]);
            }
            for (position, to) in positions[0].iter_mut().enumerate() {
                for (c, to) in to.chunks_exact_mut(out).enumerate() {
                    let columns = rows[c * kernel + position..].iter().step_by(len);
                    for (to, from) in to[start..start + count].iter_mut().zip(columns) {
                        *to = *from;
                    }
                }
            }
        }
    });
}

/// `[kh, kw, O, C]` with the kernel turned around: of [`super::products::adjoint`].
pub(super) fn adjoint(sizes: &Sizes, weight: &[f32], to: &mut [f32]) {
    let (out, channels, kernel) = (sizes.out, sizes.channels, sizes.kh * sizes.kw);
    let mut tiles = interleaved(to, out * channels, TILE * channels);
    for_each_chunk(&mut tiles, 1, |tile, positions| {
        let first = tile * TILE;
        for (position, to) in positions[0].iter_mut().enumerate() {
            let position = kernel - 1 - position;
            for (o, to) in (first..).zip(to.chunks_exact_mut(channels)) {
                take_position(&weight[o * channels * kernel..], position, kernel, to);
            }
        }
    });
}

/// `[O, kh, kw, C]`: of [`super::products::spread`].
pub(super) fn spread(sizes: &Sizes, weight: &[f32], to: &mut [f32]) {
    let (channels, kernel) = (sizes.channels, sizes.kh * sizes.kw);
    for_each_chunk(to, channels * kernel, |o, to| {
        for (position, to) in to.chunks_exact_mut(channels).enumerate() {
            take_position(&weight[o * channels * kernel..], position, kernel, to);
        }
    });
}

/// One position of the kernel of all channels of an output.
fn take_position(weight: &[f32], position: usize, kernel: usize, to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(weight.chunks_exact(kernel)) {
        *to = from[position];
    }
}

/// The parts of `len` numbers cut into tiles of `tile`, tile by tile: the tiles of equal place of
/// all parts belong together.
fn interleaved(to: &mut [f32], len: usize, tile: usize) -> Vec<Vec<&mut [f32]>> {
    let mut tiles: Vec<Vec<&mut [f32]>> = Vec::new();
    tiles.resize_with(len.div_ceil(tile), Vec::new);
    for part in to.chunks_exact_mut(len) {
        for (tiles, tile) in tiles.iter_mut().zip(part.chunks_mut(tile)) {
            tiles.push(tile);
        }
    }
    tiles
}
