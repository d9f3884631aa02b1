//! The forward and the backward pass of a stack of blocks over slices.
//!
//! Chunks of images depend on sizes only, never on the number of threads, and are added up in
//! order: every result has the same bits for any number of threads.
#![expect(unsafe_code, reason = "numbers of before are written over")]

use candle_core::Shape;

use super::branch::Branches;
use super::saved::{Parts, Room, Saved};
use super::{BlockOptions, BranchFactors};
use crate::attention;
use crate::buffers::Buffer;
use crate::gemm::{Mat, View, product};
use crate::host::{as_uninit, for_each_chunk, written};
use crate::simd::{Level, activation, norm, reduce};

/// Rows of tokens that a chunk has about.
const CHUNK_ROWS: usize = 520;

/// Rows that go through the MLP at a time, so that its hidden layer stays in the cache.
const FUSED_ROWS: usize = 520;

/// Sizes of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub(super) images: usize,
    pub(super) tokens: usize,
    pub(super) width: usize,
    pub(super) hidden: usize,
    pub(super) options: BlockOptions,
}

/// A linear layer's weight `[outputs, inputs]` and bias.
#[derive(Clone, Copy)]
struct Dense<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    inputs: usize,
    outputs: usize,
}

impl<'a> Dense<'a> {
    fn new(weight: &'a [f32], bias: &'a [f32]) -> Self {
        Self {
            weight,
            bias,
            inputs: weight.len() / bias.len(),
            outputs: bias.len(),
        }
    }
}

/// A block's weights as slices.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    norm1: [&'a [f32]; 2],
    qkv: Dense<'a>,
    proj: Dense<'a>,
    norm2: [&'a [f32]; 2],
    fc1: Dense<'a>,
    fc2: Dense<'a>,
}

impl<'a> Weights<'a> {
    /// From the order of [`super::BlockWeights::tensors`].
    pub(super) fn new([a, b, c, d, e, f, g, h, i, j, k, l]: [&'a [f32]; 12]) -> Self {
        Self {
            norm1: [a, b],
            qkv: Dense::new(c, d),
            proj: Dense::new(e, f),
            norm2: [g, h],
            fc1: Dense::new(i, j),
            fc2: Dense::new(k, l),
        }
    }
}

/// Buffers of one chunk's backward pass.
struct Scratch {
    /// A few rows of the MLP's hidden layer.
    hidden: Buffer,
    /// Gradients of one width of all rows.
    rows: Buffer,
}

/// Gradients of a block's biases and norms over one chunk.
struct Small<'a> {
    norm1: &'a mut [f32],
    qkv: &'a mut [f32],
    proj: &'a mut [f32],
    norm2: &'a mut [f32],
    fc1: &'a mut [f32],
    fc2: &'a mut [f32],
}

impl<'a> Small<'a> {
    /// Norms are weight, then bias.
    fn split(sums: &'a mut [f32], d: usize, f: usize) -> Self {
        let (norm1, rest) = sums.split_at_mut(2 * d);
        let (qkv, rest) = rest.split_at_mut(3 * d);
        let (proj, rest) = rest.split_at_mut(d);
        let (norm2, rest) = rest.split_at_mut(2 * d);
        let (fc1, fc2) = rest.split_at_mut(f);
        Self {
            norm1,
            qkv,
            proj,
            norm2,
            fc1,
            fc2,
        }
    }
}

/// Images of a chunk, and its position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) first: usize,
    pub(super) images: usize,
}

impl Pass {
    pub(super) fn output_shape(&self) -> Shape {
        match self.options.class_token_only {
            true => (self.images, self.width).into(),
            false => (self.images, self.tokens, self.width).into(),
        }
    }

    /// Images of a chunk; of about [`CHUNK_ROWS`] rows at any number of tokens, so that the buffers
    /// of one resolution serve the other.
    pub(super) fn chunk_images(&self) -> usize {
        // The nearest even number of chunks, which two threads can share.
        let pairs = (self.images * self.tokens + CHUNK_ROWS) / (2 * CHUNK_ROWS);
        let chunks = (2 * pairs).clamp(2, self.images.next_multiple_of(2).max(2));
        // A few more if all are then of equal size.
        let chunks = (chunks..=chunks + chunks / 4)
            .step_by(2)
            .find(|chunks| self.images.is_multiple_of(*chunks))
            .unwrap_or(chunks);
        self.images.div_ceil(chunks).max(1)
    }

    pub(super) fn chunk(&self, index: usize) -> Chunk {
        let first = index * self.chunk_images();
        Chunk {
            first,
            images: self.chunk_images().min(self.images - first),
        }
    }

    /// Elements of an image that go in, and that come out.
    pub(super) fn image_lens(&self) -> (usize, usize) {
        let image = self.tokens * self.width;
        match self.options.class_token_only {
            true => (image, self.width),
            false => (image, image),
        }
    }

    fn is_class_only(&self, block: usize, blocks: usize) -> bool {
        self.options.class_token_only && block + 1 == blocks
    }

    /// The output and, with `keep`, what the backward pass needs by chunk and block.
    pub(super) fn forward(
        &self,
        xs: &[f32],
        weights: &[Weights<'_>],
        factors: &[BranchFactors],
        keep: bool,
    ) -> (Vec<f32>, Vec<Vec<Saved>>) {
        let (image_in, image_out) = self.image_lens();
        let size = self.chunk_images();
        let mut kept: Vec<Vec<Saved>> = Vec::new();
        kept.resize_with(self.images.div_ceil(size), Vec::new);
        let ys = written(self.images * image_out, |ys| {
            let mut chunks: Vec<_> = ys.chunks_mut(size * image_out).zip(&mut kept).collect();
            for_each_chunk(&mut chunks, 1, |i, chunk| {
                let (ys, kept) = &mut chunk[0];
                let chunk = self.chunk(i);
                let xs = &xs[chunk.first * image_in..][..chunk.images * image_in];
                let saved = self.chunk_forward(chunk, xs, weights, factors, keep, ys);
                **kept = saved;
            });
        });
        (ys, kept)
    }

    fn chunk_forward(
        &self,
        chunk: Chunk,
        xs: &[f32],
        weights: &[Weights<'_>],
        factors: &[BranchFactors],
        keep: bool,
        ys: &mut [f32],
    ) -> Vec<Saved> {
        let branches = Branches::of_blocks(chunk, weights.len(), factors);
        let new = |block: usize| {
            let room = Room {
                class_only: self.is_class_only(block, weights.len()),
                attention: branches[block].attention.scaled(),
                mlp: branches[block].mlp.scaled(),
                keep,
            };
            Saved::new(self, chunk.images, room)
        };
        let mut saved: Vec<Saved> = Vec::with_capacity(if keep { weights.len() } else { 1 });
        let mut current = new(0);
        current.parts().x.copy_from_slice(xs);
        for (index, (block, branches)) in weights.iter().zip(&branches).enumerate() {
            let is_last = index + 1 == weights.len();
            let class_only = self.is_class_only(index, weights.len());
            let mut parts = current.parts();
            self.block_forward(&mut parts, block, branches, class_only);
            if is_last {
                self.mlp_out(&parts, block, branches, ys);
            } else if keep
                // Room that was made for this block need not fit the next one.
                || !factors.is_empty()
                || self.is_class_only(index + 1, weights.len())
            {
                let mut next = new(index + 1);
                self.mlp_out(&parts, block, branches, next.parts().x);
                let done = std::mem::replace(&mut current, next);
                if keep {
                    saved.push(done);
                }
            } else {
                // The input is not needed any more.
                let x = std::mem::take(&mut parts.x);
                self.mlp_out(&parts, block, branches, x);
            }
        }
        if keep {
            saved.push(current);
        }
        saved
    }

    /// Everything of a block but its last product.
    fn block_forward(
        &self,
        parts: &mut Parts<'_>,
        weights: &Weights<'_>,
        Branches { attention, mlp }: &Branches<'_>,
        class_only: bool,
    ) {
        let (level, d, eps) = (Level::best(), self.width, self.options.eps as f32);
        let [gamma, beta] = weights.norm1;
        for run in attention.runs() {
            // SAFETY: the norm writes numbers only.
            let y1 = unsafe { as_uninit(&mut parts.y1[run.inside(self.tokens * d)]) };
            norm::layer_norm(
                level,
                &parts.x[run.outside(self.tokens * d)],
                gamma,
                beta,
                eps,
                y1,
                &mut parts.stats1[run.inside(self.tokens * 2)],
            );
        }
        self.dense(parts.qkv, parts.y1, weights.qkv);
        let heads = self.heads();
        let kept = attention.kept();
        for image in 0..kept {
            heads.forward(
                level,
                part(parts.qkv, image, kept),
                part_mut(parts.probs, image, kept),
                part_mut(parts.mixed, image, kept),
            );
        }
        if attention.scaled().is_some() {
            self.dense(
                &mut parts.mid[..parts.mixed.len()],
                parts.mixed,
                weights.proj,
            );
            attention.spread(parts.mid, parts.x);
        } else {
            self.residual(parts.mid, parts.x, weights.proj.bias, class_only);
            self.multiply(parts.mid, parts.mixed, weights.proj, true);
        }
        let [gamma, beta] = weights.norm2;
        let tokens = self.out_tokens(class_only);
        for run in mlp.runs() {
            // SAFETY: the norm writes numbers only.
            let y2 = unsafe { as_uninit(&mut parts.y2[run.inside(tokens * d)]) };
            norm::layer_norm(
                level,
                &parts.mid[run.outside(tokens * d)],
                gamma,
                beta,
                eps,
                y2,
                &mut parts.stats2[run.inside(tokens * 2)],
            );
        }
        let bias = weights.fc1.bias;
        // A few rows at a time, so that the GELU finds them in the cache.
        let rows = parts.y2.len() / d;
        let step = FUSED_ROWS.min(rows.max(1));
        let chunks = parts.y2.chunks(step * d);
        let outputs = parts
            .slope
            .chunks_mut(step * self.hidden)
            .zip(parts.hidden.chunks_mut(step * self.hidden));
        for (y2, (slope, hidden)) in chunks.zip(outputs) {
            self.multiply(slope, y2, weights.fc1, false);
            // SAFETY: the GELU writes numbers only.
            let hidden = unsafe { as_uninit(hidden) };
            activation::bias_gelu_keep_slope(level, slope, bias, hidden);
        }
    }

    /// The last product of a block: its output.
    fn mlp_out(
        &self,
        parts: &Parts<'_>,
        weights: &Weights<'_>,
        Branches { mlp, .. }: &Branches<'_>,
        ys: &mut [f32],
    ) {
        if mlp.scaled().is_some() {
            self.dense(&mut ys[..parts.y2.len()], parts.hidden, weights.fc2);
            mlp.spread(ys, parts.mid);
        } else {
            self.residual(ys, parts.mid, weights.fc2.bias, false);
            self.multiply(ys, parts.hidden, weights.fc2, true);
        }
    }

    /// The gradient of the input and, by chunk, those of all biases and norms.
    pub(super) fn backward(
        &self,
        saved: &mut [Vec<Saved>],
        weights: &[Weights<'_>],
        factors: &[BranchFactors],
        grad: &[f32],
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (image_in, image_out) = self.image_lens();
        let size = self.chunk_images();
        let mut sums = vec![Vec::new(); saved.len()];
        let dx = written(self.images * image_in, |dx| {
            let mut chunks: Vec<_> = dx
                .chunks_mut(size * image_in)
                .zip(saved.iter_mut().zip(&mut sums))
                .collect();
            for_each_chunk(&mut chunks, 1, |i, chunk| {
                let (dx, (saved, sums)) = &mut chunk[0];
                let chunk = self.chunk(i);
                let grad = &grad[chunk.first * image_out..][..chunk.images * image_out];
                **sums = self.chunk_backward(chunk, saved, weights, factors, grad);
                dx.copy_from_slice(saved[0].parts().x);
            });
        });
        (dx, sums)
    }

    /// Gradients of biases and norms of one block, as [`Small`] lays them out.
    pub(super) fn small_len(&self) -> usize {
        9 * self.width + self.hidden
    }

    fn chunk_backward(
        &self,
        chunk: Chunk,
        saved: &mut [Saved],
        weights: &[Weights<'_>],
        factors: &[BranchFactors],
        grad: &[f32],
    ) -> Vec<f32> {
        let blocks = saved.len();
        let branches = Branches::of_blocks(chunk, blocks, factors);
        let mut sums = vec![0f32; blocks * self.small_len()];
        let rows = chunk.images * self.tokens;
        let mut scratch = Scratch {
            hidden: Buffer::take(FUSED_ROWS.min(rows) * self.hidden),
            rows: Buffer::take(rows * self.width),
        };
        let mut later: &[f32] = grad;
        let mut rest = saved;
        for index in (0..blocks).rev() {
            let (earlier, after) = rest.split_at_mut(index);
            let this = &mut after[0];
            let class_only = self.is_class_only(index, blocks);
            let sums = &mut sums[index * self.small_len()..][..self.small_len()];
            self.block_backward(
                &mut this.parts(),
                &weights[index],
                &branches[index],
                class_only,
                later,
                &mut scratch,
                sums,
            );
            later = this.inputs().x;
            rest = earlier;
        }
        sums
    }

    /// Turns the marked parts into gradients and adds those of biases and norms to `sums`.
    #[expect(clippy::too_many_arguments, reason = "one step of the loop above")]
    fn block_backward(
        &self,
        parts: &mut Parts<'_>,
        weights: &Weights<'_>,
        Branches { attention, mlp }: &Branches<'_>,
        class_only: bool,
        grad: &[f32],
        scratch: &mut Scratch,
        sums: &mut [f32],
    ) {
        let (level, d) = (Level::best(), self.width);
        let small = Small::split(sums, d, self.hidden);

        // The MLP branch: dH = (dY · W2) ∘ gelu', dY2 = dH · W1.
        let branch = mlp.gradient(grad, parts.mlp_grad);
        reduce::sum_columns(level, branch, small.fc2);
        let out_rows = branch.len() / d;
        let step = FUSED_ROWS.min(out_rows.max(1));
        let d_y2 = &mut scratch.rows[..out_rows * d];
        for ((branch, slope), d_y2) in branch
            .chunks(step * d)
            .zip(parts.slope.chunks_mut(step * self.hidden))
            .zip(d_y2.chunks_mut(step * d))
        {
            let d_hidden = &mut scratch.hidden[..slope.len()];
            self.multiply_grad(d_hidden, branch, weights.fc2);
            activation::multiply_and_sum_columns(level, slope, d_hidden, small.fc1);
            self.multiply_grad(d_y2, slope, weights.fc1);
        }
        let tokens = self.out_tokens(class_only);
        for run in mlp.runs() {
            norm::layer_norm_grad_replace(
                level,
                &mut parts.mid[run.outside(tokens * d)],
                &parts.stats2[run.inside(tokens * 2)],
                weights.norm2[0],
                &d_y2[run.inside(tokens * d)],
                &grad[run.outside(tokens * d)],
                small.norm2,
            );
        }
        mlp.copy_dropped(parts.mid, grad);

        // The attention branch.
        let branch = attention.gradient(parts.mid, parts.attention_grad);
        reduce::sum_columns(level, branch, small.proj);
        let d_mixed = &mut scratch.rows[..branch.len()];
        self.multiply_grad(d_mixed, branch, weights.proj);
        let heads = self.heads();
        let kept = attention.kept();
        for image in 0..kept {
            heads.backward(
                level,
                part_mut(parts.qkv, image, kept),
                part_mut(parts.probs, image, kept),
                part(d_mixed, image, kept),
            );
        }
        reduce::sum_columns(level, parts.qkv, small.qkv);
        let d_y1 = &mut scratch.rows[..parts.y1.len()];
        self.multiply_grad(d_y1, parts.qkv, weights.qkv);
        // y1 is an input of the weights' gradients; its gradient joins the residual's here.
        let image = self.tokens * d;
        let mut class_tokens = Vec::new();
        if class_only {
            class_tokens.resize(parts.x.len(), 0f32);
            let rows = parts.mid.chunks_exact(d);
            for (residual, row) in class_tokens.chunks_exact_mut(image).zip(rows) {
                residual[..d].copy_from_slice(row);
            }
        }
        let residual: &[f32] = match class_only {
            true => &class_tokens,
            false => parts.mid,
        };
        for run in attention.runs() {
            norm::layer_norm_grad_replace(
                level,
                &mut parts.x[run.outside(image)],
                &parts.stats1[run.inside(self.tokens * 2)],
                weights.norm1[0],
                &d_y1[run.inside(image)],
                &residual[run.outside(image)],
                small.norm1,
            );
        }
        attention.copy_dropped(parts.x, residual);
    }

    /// Tokens of an image that come out of a block.
    fn out_tokens(&self, class_only: bool) -> usize {
        if class_only { 1 } else { self.tokens }
    }

    fn heads(&self) -> attention::Heads {
        attention::Heads {
            tokens: self.tokens,
            heads: self.options.num_heads,
            head_dim: self.width / self.options.num_heads,
        }
    }

    /// `ys = xs · weightᵀ + bias`.
    fn dense(&self, ys: &mut [f32], xs: &[f32], layer: Dense<'_>) {
        for row in ys.chunks_exact_mut(layer.outputs) {
            row.copy_from_slice(layer.bias);
        }
        self.multiply(ys, xs, layer, true);
    }

    /// `ys (+)= xs · weightᵀ`.
    fn multiply(&self, ys: &mut [f32], xs: &[f32], layer: Dense<'_>, add: bool) {
        let rows = xs.len() / layer.inputs;
        if rows == 0 {
            return;
        }
        let view = View::row_major(rows, layer.outputs);
        let xs = Mat(xs, View::row_major(rows, layer.inputs));
        let weight = View::row_major(layer.outputs, layer.inputs).t();
        let weight = Mat(layer.weight, weight);
        product(ys, view, add, xs, weight, self.options.precision);
    }

    /// `dx = dy · weight`.
    fn multiply_grad(&self, dx: &mut [f32], dy: &[f32], layer: Dense<'_>) {
        let rows = dy.len() / layer.outputs;
        if rows == 0 {
            return;
        }
        let view = View::row_major(rows, layer.inputs);
        let dy = Mat(dy, View::row_major(rows, layer.outputs));
        let weight = View::row_major(layer.outputs, layer.inputs);
        let weight = Mat(layer.weight, weight);
        product(dx, view, false, dy, weight, self.options.precision);
    }

    /// `ys = residual + bias`, row by row; of the residual only class tokens with `class_only`.
    fn residual(&self, ys: &mut [f32], xs: &[f32], bias: &[f32], class_only: bool) {
        let stride = if class_only { self.tokens } else { 1 };
        for (y, x) in ys
            .chunks_exact_mut(self.width)
            .zip(xs.chunks_exact(self.width).step_by(stride))
        {
            for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                *y = x + b;
            }
        }
    }
}

/// One image's share of a chunk's values.
fn part(xs: &[f32], image: usize, images: usize) -> &[f32] {
    let len = xs.len() / images;
    &xs[image * len..][..len]
}

fn part_mut(xs: &mut [f32], image: usize, images: usize) -> &mut [f32] {
    let len = xs.len() / images;
    &mut xs[image * len..][..len]
}
