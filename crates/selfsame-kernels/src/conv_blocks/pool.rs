//! Max pooling of images `[B, H, W, C]`.

use crate::host::for_each_chunk;
use crate::max_pool::{Planes, Window};
use crate::simd::{Level, columns};

/// A pooling of images of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool {
    pub(super) window: Window,
    pub(super) planes: Planes,
    pub(super) channels: usize,
}

impl Pool {
    fn input_len(&self) -> usize {
        self.planes.h * self.planes.w * self.channels
    }

    fn output_len(&self) -> usize {
        self.planes.h_out * self.planes.w_out * self.channels
    }

    /// Calls `f(output position, positions of its window)` for all windows of an image.
    fn for_each_window(&self, mut f: impl FnMut(usize, &[u32])) {
        let Planes { h, w, h_out, w_out } = self.planes;
        let mut positions = Vec::new();
        for row in 0..h_out {
            let (y0, y1) = self.window.range(row, h);
            for col in 0..w_out {
                let (x0, x1) = self.window.range(col, w);
                positions.clear();
                for y in y0..y1 {
                    positions.extend((y * w + x0..y * w + x1).map(|at| at as u32));
                }
                f(row * w_out + col, &positions);
            }
        }
    }

    /// The largest value of each window and the position in the image that it has.
    pub(super) fn forward(&self, xs: &[f32], ys: &mut [f32], winners: &mut [u32]) {
        let (len, len_out, c) = (self.input_len(), self.output_len(), self.channels);
        let level = Level::best();
        let mut images: Vec<_> = ys
            .chunks_exact_mut(len_out)
            .zip(winners.chunks_exact_mut(len_out))
            .collect();
        for_each_chunk(&mut images, 1, |image, out| {
            let (ys, winners) = &mut out[0];
            let xs = &xs[image * len..][..len];
            self.for_each_window(|output, positions| {
                let range = output * c..(output + 1) * c;
                let (y, winner) = (&mut ys[range.clone()], &mut winners[range]);
                columns::largest(level, xs, positions, y, winner);
            });
        });
    }

    /// Gives each window's gradient to its winner.
    pub(super) fn backward(&self, grad: &[f32], winners: &[u32], dx: &mut [f32]) {
        let (len, len_out, c) = (self.input_len(), self.output_len(), self.channels);
        let level = Level::best();
        for_each_chunk(dx, len, |image, dx| {
            let grad = &grad[image * len_out..][..len_out];
            let winners = &winners[image * len_out..][..len_out];
            dx.fill(0.0);
            self.for_each_window(|output, positions| {
                let range = output * c..(output + 1) * c;
                let (g, winner) = (&grad[range.clone()], &winners[range]);
                columns::add_to_winners(level, g, winner, positions, dx);
            });
        });
    }
}
