//! The backward pass of a stack of blocks.

use super::channels_last::{to_channels_last, to_planes};
use super::norm::{Norm, NormGrads};
use super::pass::{Kept, Weights};
use super::plan::{BlockPlan, LayerPlan, Plan};
use super::products::{self, Finish, NOTHING, Onto, convolve, summed_chunks};
use super::weight_grads::add_weight_grad;
use super::weights;
use crate::conv_block::Shortcut;
use crate::conv2d::Sizes;
use crate::host::{rows_per_chunk, rows_per_sum};
use crate::simd::{Level, columns};

/// What the backward pass works on.
struct Work<'a> {
    /// What the forward pass left.
    maps: &'a [f32],
    norms: &'a [Norm],
    winners: &'a [u32],
    weights: &'a [Weights<'a>],
    /// Sums of gradients by layer, of the weights that [`Weights`] has.
    grads: &'a mut [[Vec<f32>; 3]],
    /// The gradient of a block's result, then of its input.
    top: &'a mut [f32],
    /// Of the result of the convolution at hand.
    own: &'a mut [f32],
    /// Of its input.
    next: &'a mut [f32],
    /// For a weight in another order and parts of its gradient.
    room: &'a mut [f32],
}

impl Plan {
    /// The gradient of the images, if it is asked for; those of the weights are added to `grads`.
    pub(super) fn backward(
        &self,
        kept: &mut Kept,
        weights: &[Weights<'_>],
        grad: &[f32],
        grads: &mut [[Vec<f32>; 3]],
        need_dx: bool,
    ) -> Option<Vec<f32>> {
        let (maps, work) = kept.buffer.split_at_mut(self.len);
        let maps = &*maps;
        let (room, rest) = work.split_at_mut(self.room);
        let (top, rest) = rest.split_at_mut(self.largest_map);
        let (own, next) = rest.split_at_mut(self.largest_map);
        let mut work = Work {
            maps,
            norms: &kept.norms,
            winners: &kept.winners,
            weights,
            grads,
            top,
            own,
            next,
            room,
        };
        let (_, channels, h, w) = self.output_shape;
        to_channels_last(grad, &mut work.top[..grad.len()], channels, h * w);
        let mut sums = Vec::new();
        for (index, block) in self.blocks.iter().enumerate().rev() {
            if sums.is_empty() {
                sums = block.end_backward(&mut work);
            }
            // Done while the gradient of the block's input is in the cache, unless it is pooled.
            let before = index.checked_sub(1).map(|index| &self.blocks[index]);
            let masked = before.filter(|before| before.pool.is_none());
            let mask = |first: usize, grad: &mut [f32], sums: &mut [f64]| {
                if let Some(before) = masked {
                    before.mask(maps, first, grad, sums);
                }
            };
            let finish = Finish {
                sums: masked.map_or(0, BlockPlan::sums),
                of: &mask,
            };
            let finish = (before.is_some() || need_dx).then_some(finish);
            sums = block.backward(&mut work, &sums, finish);
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
    /// Sums that the norms before the last ReLU need.
    fn sums(&self) -> usize {
        let norms = match self.shortcut {
            Shortcut::Nothing | Shortcut::Input => 1,
            Shortcut::Projection(_) => 2,
        };
        norms * 2 * self.last().sizes.out
    }

    /// From a part of the gradient of the last ReLU's result to that of what goes into it, and the
    /// share of the sums: those of the branch's norm, then those of the shortcut's.
    fn mask(&self, maps: &[f32], first: usize, grad: &mut [f32], sums: &mut [f64]) {
        let (level, last) = (Level::best(), self.last());
        let range = first..first + grad.len();
        let part = |of: &std::ops::Range<usize>| &maps[of.clone()][range.clone()];
        let (own, of_shortcut) = sums.split_at_mut(2 * last.sizes.out);
        let (ys, zs) = (part(&last.rectified), part(&last.convolved));
        columns::masked_grad_sums(level, grad, ys, zs, own);
        if let Some(layer) = self.shortcut.projection() {
            columns::grad_sums(level, grad, part(&layer.convolved), of_shortcut);
        }
    }

    /// From the gradient of the block's result to that of what goes into the last ReLU, and the
    /// sums of the norms there.
    fn end_backward(&self, work: &mut Work<'_>) -> Vec<f64> {
        let (maps, last) = (work.maps, self.last());
        let len = last.rectified.len();
        if let Some(pool) = &self.pool {
            let winners = &work.winners[pool.winners.clone()];
            let grad = &work.top[..pool.pooled.len()];
            pool.pool.backward(grad, winners, &mut work.own[..len]);
            std::mem::swap(&mut work.top, &mut work.own);
        }
        let channels = last.sizes.out;
        let chunk = rows_per_sum(last.rows(), channels) * channels;
        let step = rows_per_chunk(channels) * channels;
        summed_chunks(&mut work.top[..len], chunk, self.sums(), |i, grad, sums| {
            for (j, grad) in grad.chunks_mut(step).enumerate() {
                self.mask(maps, i * chunk + j * step, grad, sums);
            }
        })
    }

    /// From the gradient of what goes into the last ReLU, whose sums are `sums`, to that of the
    /// block's input with `finish`, if it is asked for; the sums of `finish`.
    fn backward(&self, work: &mut Work<'_>, sums: &[f64], finish: Option<Finish<'_>>) -> Vec<f64> {
        let (sums, of_shortcut) = sums.split_at(2 * self.last().sizes.out);
        self.branch_backward(work, sums);
        let maps = work.maps;
        let onto = match &self.shortcut {
            Shortcut::Nothing => Onto::Anything,
            Shortcut::Input => Onto::Sum,
            Shortcut::Projection(layer) => {
                let norm = &work.norms[layer.index];
                let norm_grads = norm.grads(of_shortcut, layer.rows());
                let len = layer.convolved.len();
                let (grad, dz) = (&work.top[..len], &mut work.next[..len]);
                norm.grad(&norm_grads, grad, &maps[layer.convolved.clone()], dz);
                let xs = &maps[self.input.clone()];
                let grads = &mut work.grads[layer.index];
                layer.add_grads(xs, dz, &norm_grads, grads, work.room);
                if finish.is_some() {
                    let dx = (&mut work.top[..self.input.len()], Onto::Anything);
                    let weight = work.weights[layer.index][0];
                    input_grad(&layer.sizes, dz, weight, dx, NOTHING, work.room);
                }
                Onto::Sum
            }
        };
        let Some(finish) = finish else {
            return Vec::new();
        };
        let first = &self.branch[0];
        let dz = &work.own[..first.convolved.len()];
        let dx = (&mut work.top[..self.input.len()], onto);
        let weight = work.weights[first.index][0];
        input_grad(&first.sizes, dz, weight, dx, finish, work.room)
    }

    /// From the gradient of what goes into the last ReLU to that of the first convolution's result,
    /// which is left in `work.own`. `sums` are those of the last norm.
    fn branch_backward(&self, work: &mut Work<'_>, sums: &[f64]) {
        let (maps, level) = (work.maps, Level::best());
        let mut sums = sums.to_vec();
        for (i, layer) in self.branch.iter().enumerate().rev() {
            let len = layer.convolved.len();
            let zs = &maps[layer.convolved.clone()];
            let norm = &work.norms[layer.index];
            let norm_grads = norm.grads(&sums, layer.rows());
            let dz = &mut work.own[..len];
            match i + 1 == self.branch.len() {
                // The shortcut needs the gradient, too.
                true => norm.grad(&norm_grads, &work.top[..len], zs, dz),
                false => norm.grad_replace(&norm_grads, dz, zs),
            }
            let before = i.checked_sub(1).map(|i| &self.branch[i]);
            let input = before.map_or(&self.input, |before| &before.rectified);
            let xs = &maps[input.clone()];
            let grads = &mut work.grads[layer.index];
            layer.add_grads(xs, dz, &norm_grads, grads, work.room);
            let Some(before) = before else { return };
            let zs = &maps[before.convolved.clone()];
            let mask = |first: usize, dx: &mut [f32], sums: &mut [f64]| {
                let range = first..first + dx.len();
                columns::masked_grad_sums(level, dx, &xs[range.clone()], &zs[range], sums);
            };
            let finish = Finish {
                sums: 2 * before.sizes.out,
                of: &mask,
            };
            let dx = (&mut work.next[..xs.len()], Onto::Anything);
            let weight = work.weights[layer.index][0];
            sums = input_grad(&layer.sizes, dz, weight, dx, finish, work.room);
            std::mem::swap(&mut work.own, &mut work.next);
        }
    }
}

impl LayerPlan {
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
