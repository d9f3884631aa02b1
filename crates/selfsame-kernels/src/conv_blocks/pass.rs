//! The forward pass of a stack of blocks.

use std::ops::Range;

use candle_core::Shape;

use super::channels_last::{to_channels_last, to_planes};
use super::norm::{Added, Norm};
use super::plan::{BlockPlan, Join, LayerPlan, Plan};
use super::products::{Finish, Onto, convolve};
use super::weights;
use crate::buffers::Buffer;
use crate::simd::{Level, columns};

/// Of one convolution and its batch norm: the convolution's weight, the norm's weight and bias.
pub(super) type Weights<'a> = [&'a [f32]; 3];

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(super) struct Kept {
    /// As [`Plan`] divides it.
    pub(super) maps: Buffer,
    /// By layer.
    pub(super) norms: Vec<Norm>,
    /// Where each pooled value comes from within its image.
    pub(super) winners: Vec<u32>,
}

impl Plan {
    /// Room for three maps and for [`Plan::room`] more numbers; the forward pass needs the latter
    /// alone, but both shall find the same buffer.
    pub(super) fn work(&self) -> Buffer {
        Buffer::take(3 * self.largest_map + self.room)
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
            maps: Buffer::take(self.len),
            norms: Vec::new(),
            winners: vec![0; self.winners],
        };
        kept.norms.resize_with(self.layers, Norm::default);
        let mut work = self.work();
        let room = &mut work[..self.room];
        let sizes = &self.blocks[0].branch[0].sizes;
        let input = &mut kept.maps[self.input.clone()];
        to_channels_last(xs, input, sizes.channels, sizes.h * sizes.w);
        for block in &self.blocks {
            block.forward(&mut kept, weights, room, eps);
        }
        let (_, channels, h, w) = self.output_shape;
        let last = &kept.maps[self.blocks[self.blocks.len() - 1].output()];
        let mut ys = vec![0.0; last.len()];
        to_planes(last, &mut ys, channels, h * w);
        (ys, kept)
    }
}

impl BlockPlan {
    fn forward(&self, kept: &mut Kept, weights: &[Weights<'_>], room: &mut [f32], eps: f64) {
        let Kept {
            maps,
            norms,
            winners,
        } = kept;
        if let Join::Projection(layer) = &self.join {
            norms[layer.index] = layer.convolve(self.input.clone(), maps, weights, room, eps);
        }
        let mut input = self.input.clone();
        for (i, layer) in self.branch.iter().enumerate() {
            let norm = layer.convolve(input, maps, weights, room, eps);
            let (done, rest) = maps.split_at_mut(layer.rectified.start);
            let added = match &self.join {
                _ if i + 1 < self.branch.len() => Added::Nothing,
                Join::Nothing => Added::Nothing,
                Join::Input => Added::Rows(&done[self.input.clone()]),
                Join::Projection(of) => {
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
