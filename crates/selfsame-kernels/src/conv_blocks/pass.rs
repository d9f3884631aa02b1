//! The forward pass of a stack of blocks.

use std::ops::Range;

use candle_core::Shape;

use super::channels_last::{to_channels_last, to_planes};
use super::norm::{Added, Norm};
use super::plan::{BlockPlan, LayerPlan, Plan};
use super::products::{Finish, Onto, convolve};
use super::weights;
use crate::buffers::Buffer;
use crate::conv_block::Shortcut;
use crate::simd::{Level, columns};

/// Of one convolution and its batch norm: the convolution's weight, the norm's weight and bias.
pub(super) type Weights<'a> = [&'a [f32]; 3];

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(super) struct Kept {
    /// The maps as [`Plan`] divides them; then [`Plan::work`] numbers to work on, held along so that
    /// every pass of a step finds a buffer of its size.
    pub(super) buffer: Buffer,
    /// By layer.
    pub(super) norms: Vec<Norm>,
    /// Where each pooled value comes from within its image.
    pub(super) winners: Vec<u32>,
}

impl Plan {
    /// Numbers that the passes work on: three maps, and [`Plan::room`].
    fn work(&self) -> usize {
        3 * self.largest_map + self.room
    }

    pub(super) fn shape(&self) -> Shape {
        self.output_shape.into()
    }

    /// The result `[B, C, H, W]` of images `[B, C, H, W]`.
    pub(super) fn forward(
        &self,
        xs: &[f32],
        weights: &[Weights<'_>],
        eps: f64,
    ) -> (Vec<f32>, Kept) {
        let mut kept = Kept {
            buffer: Buffer::take(self.len + self.work()),
            norms: Vec::new(),
            winners: vec![0; self.winners],
        };
        kept.norms.resize_with(self.layers, Norm::default);
        let (maps, work) = kept.buffer.split_at_mut(self.len);
        let room = &mut work[..self.room];
        let sizes = &self.blocks[0].branch[0].sizes;
        let input = &mut maps[self.input.clone()];
        to_channels_last(xs, input, sizes.channels, sizes.h * sizes.w);
        for block in &self.blocks {
            let (norms, winners) = (&mut kept.norms, &mut kept.winners);
            block.forward(maps, norms, winners, weights, room, eps);
        }
        let (_, channels, h, w) = self.output_shape;
        let last = &maps[self.blocks[self.blocks.len() - 1].output()];
        let mut ys = vec![0.0; last.len()];
        to_planes(last, &mut ys, channels, h * w);
        (ys, kept)
    }
}

impl BlockPlan {
    fn forward(
        &self,
        maps: &mut [f32],
        norms: &mut [Norm],
        winners: &mut [u32],
        weights: &[Weights<'_>],
        room: &mut [f32],
        eps: f64,
    ) {
        if let Some(layer) = self.shortcut.projection() {
            norms[layer.index] = layer.convolve(self.input.clone(), maps, weights, room, eps);
        }
        let mut input = self.input.clone();
        for (i, layer) in self.branch.iter().enumerate() {
            let norm = layer.convolve(input, maps, weights, room, eps);
            let (done, rest) = maps.split_at_mut(layer.rectified.start);
            let added = match &self.shortcut {
                _ if i + 1 < self.branch.len() => Added::Nothing,
                Shortcut::Nothing => Added::Nothing,
                Shortcut::Input => Added::Rows(&done[self.input.clone()]),
                Shortcut::Projection(of) => {
                    Added::Normalised(&done[of.convolved.clone()], &norms[of.index])
                }
            };
            let rectified = &mut rest[..layer.rectified.len()];
            norm.relu(&done[layer.convolved.clone()], added, rectified);
            norms[layer.index] = norm;
            input = layer.rectified.clone();
        }
        if let Some(pool) = &self.pool {
            let (done, rest) = maps.split_at_mut(pool.pooled.start);
            let winners = &mut winners[pool.winners.clone()];
            let pooled = &mut rest[..pool.pooled.len()];
            pool.pool.forward(&done[input], pooled, winners);
        }
    }
}

impl LayerPlan {
    /// The convolution of what stands at `input`, and the statistics of what it gives.
    fn convolve(
        &self,
        input: Range<usize>,
        maps: &mut [f32],
        weights: &[Weights<'_>],
        room: &mut [f32],
        eps: f64,
    ) -> Norm {
        let [weight, of_norm @ ..] = weights[self.index];
        let ordered = &mut room[..weight.len()];
        weights::forward(&self.sizes, weight, ordered);
        let (done, rest) = maps.split_at_mut(self.convolved.start);
        let zs = (&mut rest[..self.convolved.len()], Onto::Anything);
        let level = Level::best();
        let moments = Finish {
            sums: 2 * self.sizes.out,
            of: &|_, zs, sums| columns::moments(level, zs, sums),
        };
        let sums = convolve(&self.sizes, &done[input], ordered, zs, moments);
        Norm::new(&sums, self.rows(), of_norm, eps)
    }
}
