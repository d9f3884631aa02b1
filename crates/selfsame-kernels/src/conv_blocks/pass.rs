//! The forward and the backward pass of a stack of blocks.

use candle_core::Shape;

use super::channels_last::{to_channels_last, to_planes};
use super::norm::{Added, Norm, NormGrads, mask};
use super::plan::{BlockPlan, Join, LayerPlan, Plan};
use super::products::{self, Finish, Onto, convolve, nothing};
use super::weight_grads::add_weight_grad;
use super::weights;
use crate::buffers::Buffer;
use crate::conv2d::Sizes;
use crate::simd::{Level, columns};

/// Of one convolution and its batch norm: the convolution's weight, the norm's weight and bias.
pub(super) type Weights<'a> = [&'a [f32]; 3];

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(super) struct Kept {
    /// As [`Plan`] divides it.
    maps: Buffer,
    /// By layer.
    pub(super) norms: Vec<Norm>,
    /// Where each pooled value comes from within its image.
    winners: Vec<u32>,
}

/// Room for gradients of maps, and for a weight in another order.
struct Work<'a> {
    /// Of a block's result, then of its input.
    top: &'a mut [f32],
    /// Of the result of the convolution at hand.
    own: &'a mut [f32],
    /// Of its input.
    next: &'a mut [f32],
    room: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(buffer: &'a mut [f32], plan: &Plan) -> Self {
        let (top, rest) = buffer.split_at_mut(plan.largest_map);
        let (own, rest) = rest.split_at_mut(plan.largest_map);
        let (next, room) = rest.split_at_mut(plan.largest_map);
        Self {
            top,
            own,
            next,
            room,
        }
    }
}

impl Plan {
    /// Also for the forward pass, so that both find the same buffer.
    fn work(&self) -> Buffer {
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
        let room = Work::new(&mut work, self).room;
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

    /// The gradient of the images, if it is asked for; those of the weights are added to `grads`.
    pub(super) fn backward(
        &self,
        kept: &Kept,
        weights: &[Weights<'_>],
        grad: &[f32],
        grads: &mut [[Vec<f32>; 3]],
        need_dx: bool,
    ) -> Option<Vec<f32>> {
        let mut work = self.work();
        let mut work = Work::new(&mut work, self);
        let (_, channels, h, w) = self.output_shape;
        to_channels_last(grad, &mut work.top[..grad.len()], channels, h * w);
        for (index, block) in self.blocks.iter().enumerate().rev() {
            block.backward(kept, weights, &mut work, grads, index > 0 || need_dx);
        }
        need_dx.then(|| {
            let mut dx = vec![0.0; self.input.len()];
            let sizes = &self.blocks[0].branch[0].sizes;
            let from = &work.top[..dx.len()];
            to_planes(from, &mut dx, sizes.channels, sizes.h * sizes.w);
            dx
        })
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

    /// Turns the gradient of the block's result into that of its input, if it is asked for.
    fn backward(
        &self,
        kept: &Kept,
        weights: &[Weights<'_>],
        work: &mut Work<'_>,
        grads: &mut [[Vec<f32>; 3]],
        need_dx: bool,
    ) {
        let (maps, last) = (&kept.maps, self.last());
        if let Some(pool) = &self.pool {
            let winners = &kept.winners[pool.winners.clone()];
            let dx = &mut work.own[..last.rectified.len()];
            pool.pool
                .backward(&work.top[..pool.pooled.len()], winners, dx);
            std::mem::swap(&mut work.top, &mut work.own);
        }
        let projected = match &self.join {
            Join::Projection(layer) => Some(&maps[layer.convolved.clone()]),
            Join::Nothing | Join::Input => None,
        };
        let (sums, sums_projected) = mask(
            &mut work.top[..last.rectified.len()],
            &maps[last.rectified.clone()],
            &maps[last.convolved.clone()],
            projected,
            last.sizes.out,
        );
        self.branch_backward(kept, weights, work, grads, sums);
        let onto = match &self.join {
            Join::Nothing => Onto::Anything,
            Join::Input => Onto::Sum,
            Join::Projection(layer) => {
                let norm_grads = kept.norms[layer.index].grads(&sums_projected, layer.rows());
                let len = layer.convolved.len();
                let (grad, dz) = (&work.top[..len], &mut work.next[..len]);
                let zs = &maps[layer.convolved.clone()];
                kept.norms[layer.index].grad(&norm_grads, grad, zs, dz);
                let xs = &maps[self.input.clone()];
                layer.add_grads(xs, dz, &norm_grads, &mut grads[layer.index], work.room);
                if need_dx {
                    let dx = (&mut work.top[..self.input.len()], Onto::Anything);
                    let weight = weights[layer.index][0];
                    input_grad(&layer.sizes, dz, weight, dx, &nothing, work.room);
                }
                Onto::Sum
            }
        };
        if need_dx {
            let first = &self.branch[0];
            let dz = &work.own[..first.convolved.len()];
            let dx = (&mut work.top[..self.input.len()], onto);
            let weight = weights[first.index][0];
            input_grad(&first.sizes, dz, weight, dx, &nothing, work.room);
        }
    }

    /// From the masked gradient of the block's result to that of the first convolution's result,
    /// which is left in `work.own`. `sums` are those of the last norm.
    fn branch_backward(
        &self,
        kept: &Kept,
        weights: &[Weights<'_>],
        work: &mut Work<'_>,
        grads: &mut [[Vec<f32>; 3]],
        mut sums: Vec<f64>,
    ) {
        let (maps, level) = (&kept.maps, Level::best());
        for (i, layer) in self.branch.iter().enumerate().rev() {
            let len = layer.convolved.len();
            let (zs, norm) = (&maps[layer.convolved.clone()], &kept.norms[layer.index]);
            let norm_grads = norm.grads(&sums, layer.rows());
            let dz = &mut work.own[..len];
            match i + 1 == self.branch.len() {
                // The shortcut needs the gradient, too.
                true => norm.grad(&norm_grads, &work.top[..len], zs, dz),
                false => norm.grad_replace(&norm_grads, dz, zs),
            }
            let before = i.checked_sub(1).map(|i| &self.branch[i]);
            let input = match before {
                Some(before) => before.rectified.clone(),
                None => self.input.clone(),
            };
            let xs = &maps[input.clone()];
            layer.add_grads(xs, dz, &norm_grads, &mut grads[layer.index], work.room);
            let Some(before) = before else { return };
            let zs = &maps[before.convolved.clone()];
            let finish = |first: usize, dx: &mut [f32], sums: &mut [f64]| {
                let range = first..first + dx.len();
                columns::masked_grad_sums(level, dx, &xs[range.clone()], &zs[range], sums);
            };
            let dx = (&mut work.next[..input.len()], Onto::Anything);
            let weight = weights[layer.index][0];
            sums = input_grad(&layer.sizes, dz, weight, dx, &finish, work.room);
            std::mem::swap(&mut work.own, &mut work.next);
        }
    }
}

impl LayerPlan {
    /// The convolution of what stands at `input`, and the statistics of what it gives.
    fn convolve(
        &self,
        input: std::ops::Range<usize>,
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
        let sums = convolve(&self.sizes, &done[input], ordered, zs, &|_, zs, sums| {
            columns::moments(level, zs, sums);
        });
        Norm::new(&sums, self.rows(), of_norm, eps)
    }

    /// Adds the gradients of the weights, given the gradient `dz` of the convolution's result.
    fn add_grads(
        &self,
        xs: &[f32],
        dz: &[f32],
        of_norm: &NormGrads,
        [weight, norm_weight, norm_bias]: &mut [Vec<f32>; 3],
        room: &mut [f32],
    ) {
        add_weight_grad(&self.sizes, xs, dz, weight, room);
        for (sum, grad) in [(norm_weight, &of_norm.weight), (norm_bias, &of_norm.bias)] {
            for (sum, x) in sum.iter_mut().zip(grad) {
                *sum += x;
            }
        }
    }
}

/// The gradient of a convolution's input, and the sums of `finish`.
fn input_grad(
    sizes: &Sizes,
    dz: &[f32],
    weight: &[f32],
    dx: (&mut [f32], Onto),
    finish: Finish<'_>,
    room: &mut [f32],
) -> Vec<f64> {
    let ordered = &mut room[..weight.len()];
    let is_one = sizes.kh * sizes.kw == 1;
    match products::adjoint(sizes) {
        // The order of a 1×1 kernel is right for both.
        Some(adjoint) if is_one => convolve(&adjoint, dz, weight, dx, finish),
        None if is_one => products::spread(sizes, dz, weight, dx, finish),
        Some(adjoint) => {
            weights::adjoint(sizes, weight, ordered);
            convolve(&adjoint, dz, ordered, dx, finish)
        }
        None => {
            weights::spread(sizes, weight, ordered);
            products::spread(sizes, dz, ordered, dx, finish)
        }
    }
}
