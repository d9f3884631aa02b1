//! A stack of blocks with given statistics: nothing is kept, and a batch norm is part of the
//! convolution before it.

use candle_core::{Result, Tensor, bail};

use super::channels_last::{to_channels_last, to_planes};
use super::plan::{BlockPlan, LayerPlan, Plan};
use super::products::{Finish, NOTHING, Onto, convolve};
use super::{ConvBlock, weights};
use crate::buffers::Buffer;
use crate::conv_block::{Shortcut, Statistics, check_running, conv_block_eval};
use crate::conv2d::Sizes;
use crate::gemm::Precision;
use crate::host::{self, fused, with_slice, with_slices};
use crate::max_pool::max_pool2d;
use crate::simd::{Level, columns};

/// Numbers of the largest map of the images that go through all blocks together (64 MiB).
const GROUP: usize = 1 << 24;

/// All blocks, one after the other, with given statistics in each batch norm: evaluation.
///
/// `running` holds means and variances, `[C]`, in the order in which [`super::conv_blocks_train`]
/// returns them. This is one operation, unless a gradient may be asked for.
///
/// # Shape
/// `xs`: `[B, C, H, W]`; the result is that of the last block.
/// # Errors
/// Those of [`conv_block_eval`] and of [`max_pool2d`].
pub fn conv_blocks_eval(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    running: &[[&Tensor; 2]],
    eps: f64,
    precision: Precision,
) -> Result<Tensor> {
    let layers = || blocks.iter().flat_map(ConvBlock::layers);
    check_running(layers(), running)?;
    let tensors: Vec<&Tensor> = layers()
        .zip(running)
        .flat_map(|(of, [mean, variance])| [of.weight, of.norm[0], of.norm[1], mean, variance])
        .collect();
    let is_plain = |of: &&Tensor| of.is_contiguous() && !of.track_op();
    #[cfg(feature = "cuda")]
    if crate::cuda::ops::has_conv_blocks(xs, blocks)
        && crate::cuda::takes_f32(&tensors)
        && tensors.iter().all(is_plain)
    {
        return crate::cuda::ops::conv_blocks_eval(xs, blocks, running, eps, precision);
    }
    let is_fused = !tensors.is_empty() && tensors.iter().all(is_plain) && fused(&tensors);
    if !is_fused || xs.track_op() || !fused(&[xs]) {
        return one_by_one(xs, blocks, running, eps, precision);
    }
    if precision != Precision::F32 {
        bail!("conv_blocks: {precision:?} is for f32 images on CUDA devices");
    }
    let (batch, channels, h, w) = xs.dims4()?;
    let plan = |images| Plan::new((images, channels, h, w), blocks, Statistics::Given);
    let most = (GROUP / plan(1)?.largest_map).clamp(1, batch);
    let images = batch.div_ceil(batch.div_ceil(most));
    let group = plan(images)?;
    let (_, out, h_out, w_out) = group.output_shape;
    let image = channels * h * w;
    let ys = with_slices(&tensors, |slices| {
        let (layers, _) = slices.as_chunks();
        let layers = group.folded(layers, eps);
        let mut work = Work::new(&group);
        with_slice(&xs.contiguous()?, |xs| {
            let mut ys = vec![0f32; batch * out * h_out * w_out];
            let groups = xs.chunks(images * image);
            for (xs, ys) in groups.zip(ys.chunks_mut(images * out * h_out * w_out)) {
                match xs.len() == images * image {
                    true => group.evaluate(xs, &layers, &mut work, ys),
                    // The last ones.
                    false => plan(xs.len() / image)?.evaluate(xs, &layers, &mut work, ys),
                }
            }
            Ok(ys)
        })
    })?;
    host::tensor(ys, &(batch, out, h_out, w_out).into())
}

/// Out of this crate's other operations.
fn one_by_one(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    mut running: &[[&Tensor; 2]],
    eps: f64,
    precision: Precision,
) -> Result<Tensor> {
    let mut ys = xs.clone();
    for block in blocks {
        let (own, rest) = running.split_at(block.layers().count());
        running = rest;
        ys = conv_block_eval(&ys, &block.branch, block.shortcut, own, eps, precision)?;
        if let Some(pool) = block.pool {
            ys = max_pool2d(&ys, pool.kernel, pool.stride, pool.padding)?;
        }
    }
    Ok(ys)
}

/// A layer's weight, weight and bias of its batch norm, means and variances.
type Layer<'a> = [&'a [f32]; 5];

/// Convolutions that do what their batch norms would do.
struct Folded {
    /// `[kh, kw, C, O]` by layer, one after the other.
    weights: Buffer,
    /// By layer: where its weight ends.
    ends: Vec<usize>,
    biases: Vec<Vec<f32>>,
}

impl Folded {
    fn weight(&self, index: usize) -> &[f32] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.weights[start..self.ends[index]]
    }
}

/// Maps of a group, which change places from one convolution to the next.
struct Work {
    /// What goes into a block.
    input: Buffer,
    /// What the branch's last convolution gave.
    current: Buffer,
    next: Buffer,
    shortcut: Buffer,
    winners: Vec<u32>,
}

impl Work {
    fn new(group: &Plan) -> Self {
        let map = || Buffer::take(group.largest_map);
        Self {
            input: map(),
            current: map(),
            next: map(),
            shortcut: map(),
            winners: vec![0; group.winners],
        }
    }
}

impl Plan {
    fn folded(&self, layers: &[Layer<'_>], eps: f64) -> Folded {
        let mut folded = Folded {
            weights: Buffer::take(layers.iter().map(|[weight, ..]| weight.len()).sum()),
            ends: Vec::with_capacity(layers.len()),
            biases: Vec::with_capacity(layers.len()),
        };
        let mut rest: &mut [f32] = &mut folded.weights;
        for block in &self.blocks {
            let projection = block.shortcut.projection();
            // In the order of their indices.
            for layer in block.branch.iter().chain(projection) {
                let given = layers[layer.index];
                let (weight, after) = std::mem::take(&mut rest).split_at_mut(given[0].len());
                rest = after;
                folded.biases.push(fold(&layer.sizes, given, eps, weight));
                let before = folded.ends.last().copied().unwrap_or(0);
                folded.ends.push(before + weight.len());
            }
            if let Some(layer) = projection {
                let of_shortcut = std::mem::take(&mut folded.biases[layer.index]);
                let last = &mut folded.biases[block.last().index];
                for (bias, of_shortcut) in last.iter_mut().zip(of_shortcut) {
                    *bias += of_shortcut;
                }
            }
        }
        folded
    }

    /// The result `[B, C, H, W]` of a group's images.
    fn evaluate(&self, xs: &[f32], layers: &Folded, work: &mut Work, ys: &mut [f32]) {
        let sizes = &self.blocks[0].branch[0].sizes;
        let input = &mut work.input[..xs.len()];
        to_channels_last(xs, input, sizes.channels, sizes.h * sizes.w);
        for block in &self.blocks {
            block.evaluate(layers, work);
        }
        let (_, channels, h, w) = self.output_shape;
        to_planes(&work.input[..ys.len()], ys, channels, h * w);
    }
}

impl BlockPlan {
    /// From `work.input` to `work.input`.
    fn evaluate(&self, layers: &Folded, work: &mut Work) {
        if let Some(layer) = self.shortcut.projection() {
            // Its bias is part of the last convolution's.
            layer.convolve_folded(&work.input, layers, &mut work.shortcut, NOTHING);
        }
        let level = Level::best();
        for (i, layer) in self.branch.iter().enumerate() {
            let bias = &layers.biases[layer.index];
            let added = match &self.shortcut {
                _ if i + 1 < self.branch.len() => None,
                Shortcut::Nothing => None,
                Shortcut::Input => Some(&work.input),
                Shortcut::Projection(_) => Some(&work.shortcut),
            };
            let end = |first: usize, ys: &mut [f32], _: &mut [f64]| match added {
                None => columns::bias_relu(level, ys, bias),
                Some(added) => {
                    let added = &added[first..first + ys.len()];
                    columns::bias_add_relu(level, ys, bias, added);
                }
            };
            let end = Finish { sums: 0, of: &end };
            let from = if i == 0 { &work.input } else { &work.current };
            layer.convolve_folded(from, layers, &mut work.next, end);
            std::mem::swap(&mut work.current, &mut work.next);
        }
        if let Some(pool) = &self.pool {
            let xs = &work.current[..self.last().rectified.len()];
            let ys = &mut work.next[..pool.pooled.len()];
            let winners = &mut work.winners[..pool.winners.len()];
            pool.pool.forward(xs, ys, winners);
            std::mem::swap(&mut work.current, &mut work.next);
        }
        std::mem::swap(&mut work.input, &mut work.current);
    }
}

impl LayerPlan {
    fn convolve_folded(&self, from: &[f32], layers: &Folded, to: &mut [f32], finish: Finish<'_>) {
        let sizes = &self.sizes;
        let from = &from[..sizes.batch * sizes.image_len()];
        let to = &mut to[..self.convolved.len()];
        let weight = layers.weight(self.index);
        convolve(sizes, from, weight, (to, Onto::Anything), finish);
    }
}

/// Writes a convolution's weight times the scale of its batch norm, and returns the bias.
fn fold(
    sizes: &Sizes,
    [weight, scale, bias, mean, variance]: Layer<'_>,
    eps: f64,
    to: &mut [f32],
) -> Vec<f32> {
    let scales = scale.iter().zip(variance).map(|(scale, variance)| {
        let std = (f64::from(*variance) + eps).sqrt();
        (f64::from(*scale) / std) as f32
    });
    let scales: Vec<f32> = scales.collect();
    weights::forward(sizes, weight, to);
    for row in to.chunks_exact_mut(scales.len()) {
        for (x, scale) in row.iter_mut().zip(&scales) {
            *x *= scale;
        }
    }
    let biases = bias.iter().zip(mean).zip(&scales);
    biases
        .map(|((bias, mean), scale)| bias - mean * scale)
        .collect()
}
