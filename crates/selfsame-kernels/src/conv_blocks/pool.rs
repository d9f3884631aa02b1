//! Max pooling of images `[B, H, W, C]`.

use crate::host::for_each_chunk;
use crate::max_pool::{Planes, Window};

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

    /// Calls `f(output position, input position)` for each position of each window of an image, in
    /// row-major order within a window.
    fn for_each_pair(&self, mut f: impl FnMut(usize, usize)) {
        let Planes { h, w, h_out, w_out } = self.planes;
        for row in 0..h_out {
            let (y0, y1) = self.window.range(row, h);
            for col in 0..w_out {
                let (x0, x1) = self.window.range(col, w);
                for y in y0..y1 {
                    for x in x0..x1 {
                        f(row * w_out + col, y * w + x);
                    }
                }
            }
        }
    }

    /// The largest value of each window and the position in the image that it has.
    pub(super) fn forward(&self, xs: &[f32], ys: &mut [f32], winners: &mut [u32]) {
        let (len, len_out, c) = (self.input_len(), self.output_len(), self.channels);
        let mut images: Vec<_> = ys
            .chunks_exact_mut(len_out)
            .zip(winners.chunks_exact_mut(len_out))
            .collect();
        for_each_chunk(&mut images, 1, |image, out| {
            let (ys, winners) = &mut out[0];
            let xs = &xs[image * len..][..len];
            ys.fill(f32::NEG_INFINITY);
            winners.fill(u32::MAX);
            self.for_each_pair(|output, input| {
                let x = &xs[input * c..][..c];
                let (y, winner) = (&mut ys[output * c..][..c], &mut winners[output * c..][..c]);
                for j in 0..c {
                    // The first position wins even if all values are −∞.
                    let wins = x[j] > y[j] || x[j].is_nan() || winner[j] == u32::MAX;
                    y[j] = if wins { x[j] } else { y[j] };
                    winner[j] = if wins { input as u32 } else { winner[j] };
                }
            });
        });
    }

    /// Gives each window's gradient to its winner.
    pub(super) fn backward(&self, grad: &[f32], winners: &[u32], dx: &mut [f32]) {
        let (len, len_out, c) = (self.input_len(), self.output_len(), self.channels);
        for_each_chunk(dx, len, |image, dx| {
            let grad = &grad[image * len_out..][..len_out];
            let winners = &winners[image * len_out..][..len_out];
            dx.fill(0.0);
            self.for_each_pair(|output, input| {
                let dx = &mut dx[input * c..][..c];
                let (g, winner) = (&grad[output * c..][..c], &winners[output * c..][..c]);
                for j in 0..c {
                    dx[j] += if winner[j] == input as u32 { g[j] } else { 0.0 };
                }
            });
        });
    }
}
