//! Multi-head self-attention on packed queries, keys and values (Vaswani et al. 2017, Eq. 1).
//!
//! The heads are read and written where they lie: nothing is transposed or copied.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::gemm::{Mat, Threads, View, multiply, multiply_into};
use crate::host::{self, for_each_chunk, fused, slice, with_slice, written_by};
use crate::locked::locked;
use crate::simd::{Level, softmax};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::Mutex;

/// `softmax(q·kᵀ/√D)·v` for each head, heads side by side.
///
/// # Shape
/// `qkv`: `[B, N, 3·H·D]`, per token all of q, then k, then v, each head by head (timm's `attn.qkv`);
/// the result is `[B, N, H·D]`.
/// # Errors
/// If the width does not split into three times `num_heads`.
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let sizes = Sizes::new(qkv.shape(), num_heads)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(qkv) && crate::cuda::ops::has_kernel(sizes.head_dim) {
        return crate::cuda::ops::attention(qkv, num_heads);
    }
    if !fused(&[qkv]) {
        return composed::attention(qkv, num_heads);
    }
    qkv.contiguous()?.apply_op1(Attention {
        heads: sizes.heads,
        keep: qkv.track_op(),
        weights: Mutex::new(None),
    })
}

/// The attention weights `softmax(q·kᵀ/√D)`, for looking at; without a gradient.
///
/// # Shape
/// `qkv` as in [`attention`]; the result is `[B, H, N, N]`, rows (queries) summing to 1.
/// # Errors
/// If the width does not split into three times `num_heads`.
pub fn attention_weights(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let sizes = Sizes::new(qkv.shape(), num_heads)?;
    let qkv = qkv.detach();
    if !fused(&[&qkv]) {
        return composed::attention_weights(&qkv, num_heads);
    }
    let weights = with_slice(&qkv.contiguous()?, |qkv| Ok(sizes.all_weights(qkv)))?;
    let shape = (sizes.batch, sizes.heads, sizes.tokens, sizes.tokens);
    host::tensor(weights, &shape.into())
}

/// The first token's row of [`attention_weights`] alone, without the others in memory.
///
/// # Shape
/// `qkv` as in [`attention`]; the result is `[B, H, N]`, rows summing to 1.
/// # Errors
/// As [`attention_weights`].
pub fn first_token_attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    composed::first_token_attention(&qkv.detach(), num_heads)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
}

impl Sizes {
    fn new(shape: &Shape, heads: usize) -> Result<Sizes> {
        let (batch, tokens, packed) = shape.dims3()?;
        if heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
            bail!("attention: a width of {packed} does not split into q, k, v of {heads} heads");
        }
        Ok(Sizes {
            batch,
            tokens,
            heads,
            head_dim: packed / (3 * heads),
        })
    }

    /// Width of the output.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Attention weights of one image.
    fn weights_len(&self) -> usize {
        self.heads * self.tokens * self.tokens
    }

    /// Packed values of one image.
    fn packed_len(&self) -> usize {
        self.tokens * 3 * self.width()
    }

    /// Where q (0), k (1) or v (2) of a head starts within an image.
    fn start(&self, part: usize, head: usize) -> usize {
        part * self.width() + head * self.head_dim
    }

    /// One head's q, k or v, from where it starts.
    fn packed_view(&self) -> View {
        View::strided(self.tokens, self.head_dim, 3 * self.width())
    }

    /// One head's output, from where it starts.
    fn output_view(&self) -> View {
        View::strided(self.tokens, self.head_dim, self.width())
    }

    fn part<'a>(&self, image: &'a [f32], part: usize, head: usize) -> Mat<'a> {
        Mat(&image[self.start(part, head)..], self.packed_view())
    }

    /// With few images the products themselves use the pool.
    fn threads(&self) -> Threads {
        if self.batch == 1 {
            Threads::Pool
        } else {
            Threads::One
        }
    }

    fn square(&self) -> View {
        View::row_major(self.tokens, self.tokens)
    }

    /// The attention weights of one image, head by head.
    fn image_weights(&self, level: Level, image: &[f32]) -> Vec<f32> {
        let size = self.tokens * self.tokens;
        // SAFETY: each head's product writes all of its chunk, and there is a head per chunk.
        let mut weights = unsafe {
            written_by(self.weights_len(), |weights| {
                for (head, out) in weights.chunks_exact_mut(size).enumerate() {
                    let (q, k) = (self.part(image, 0, head), self.part(image, 1, head));
                    multiply(out, self.square(), q, Mat(k.0, k.1.t()), self.threads());
                }
            })
        };
        softmax::softmax_rows(level, &mut weights, self.tokens, self.scale());
        weights
    }

    /// The attention weights of all images.
    fn all_weights(&self, qkv: &[f32]) -> Vec<f32> {
        let level = Level::best();
        let mut weights = vec![0f32; self.batch * self.weights_len()];
        for_each_chunk(&mut weights, self.weights_len(), |i, out| {
            let image = &qkv[i * self.packed_len()..][..self.packed_len()];
            out.copy_from_slice(&self.image_weights(level, image));
        });
        weights
    }

    /// The output and, per image, the attention weights if they are to be kept.
    fn forward(&self, qkv: &[f32], keep: bool) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (level, size) = (Level::best(), self.tokens * self.tokens);
        let mut kept = vec![Vec::new(); self.batch];
        let output_len = self.tokens * self.width();
        // SAFETY: chunks of one image cover the output, and in each the heads' products write
        // every column of every token.
        let ys = unsafe {
            written_by(self.batch * output_len, |ys| {
                let mut chunks: Vec<_> = ys.chunks_mut(output_len).zip(&mut kept).collect();
                for_each_chunk(&mut chunks, 1, |i, chunk| {
                    let (ys, kept) = &mut chunk[0];
                    let image = &qkv[i * self.packed_len()..][..self.packed_len()];
                    let weights = self.image_weights(level, image);
                    for (head, weights) in weights.chunks_exact(size).enumerate() {
                        let out = &mut ys[self.start(0, head)..];
                        let (p, v) = (Mat(weights, self.square()), self.part(image, 2, head));
                        multiply(out, self.output_view(), p, v, self.threads());
                    }
                    if keep {
                        **kept = weights;
                    }
                });
            })
        };
        (ys, kept)
    }

    fn backward(&self, qkv: &[f32], weights: &[Vec<f32>], grad: &[f32]) -> Vec<f32> {
        let level = Level::best();
        // SAFETY: chunks of one image cover the output; in each, for every head, three products
        // write all columns of q, k and v of every token.
        unsafe {
            written_by(qkv.len(), |d_qkv| {
                for_each_chunk(d_qkv, self.packed_len(), |i, d_image| {
                    let image = &qkv[i * self.packed_len()..][..self.packed_len()];
                    let output_len = self.tokens * self.width();
                    let grad = &grad[i * output_len..][..output_len];
                    self.image_backward(level, image, &weights[i], grad, d_image);
                });
            })
        }
    }

    /// Writes every element of `d_image`.
    fn image_backward(
        &self,
        level: Level,
        image: &[f32],
        weights: &[f32],
        grad: &[f32],
        d_image: &mut [std::mem::MaybeUninit<f32>],
    ) {
        let (size, view, threads) = (
            self.tokens * self.tokens,
            self.packed_view(),
            self.threads(),
        );
        let transposed = |m: Mat<'_>| View::t(m.1);
        for (head, weights) in weights.chunks_exact(size).enumerate() {
            let p = Mat(weights, self.square());
            let [q, k, v] = [0, 1, 2].map(|part| self.part(image, part, head));
            let d_out = Mat(&grad[self.start(0, head)..], self.output_view());
            // dV = Pᵀ·dO
            let out = &mut d_image[self.start(2, head)..];
            multiply(out, view, Mat(p.0, transposed(p)), d_out, threads);
            // dP = dO·Vᵀ, then dS by the softmax
            // SAFETY: the product writes every element.
            let mut d_scores = unsafe {
                written_by(size, |out| {
                    multiply(out, self.square(), d_out, Mat(v.0, transposed(v)), threads);
                })
            };
            softmax::softmax_rows_grad(level, weights, &mut d_scores, self.tokens, self.scale());
            let ds = Mat(&d_scores, self.square());
            // dQ = dS·K, dK = dSᵀ·Q
            multiply(&mut d_image[self.start(0, head)..], view, ds, k, threads);
            let out = &mut d_image[self.start(1, head)..];
            multiply(out, view, Mat(ds.0, transposed(ds)), q, threads);
        }
    }
}

/// One image's attention over buffers that somebody else owns, for [`crate::transformer_blocks`].
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    fn sizes(&self) -> Sizes {
        Sizes {
            batch: 1,
            tokens: self.tokens,
            heads: self.heads,
            head_dim: self.head_dim,
        }
    }

    /// How many of the first tokens ask, from the length of the output.
    fn queries(&self, out: &[f32]) -> usize {
        out.len() / (self.heads * self.head_dim)
    }

    /// Writes the output `[queries, H·D]` and the attention weights `[H, queries, N]`.
    ///
    /// `probs` may have room for fewer queries: these are then taken that many at a time, and the
    /// weights of the last ones stay.
    pub(crate) fn forward(&self, level: Level, qkv: &[f32], probs: &mut [f32], out: &mut [f32]) {
        let of_a_query = self.heads * self.tokens;
        let some = (probs.len() / of_a_query).max(1);
        let width = self.heads * self.head_dim;
        for (index, out) in out.chunks_mut(some * width).enumerate() {
            let asking = &qkv[index * some * 3 * width..];
            let probs = &mut probs[..self.queries(out) * of_a_query];
            self.some_forward(level, [asking, qkv], probs, out);
        }
    }

    /// The same for the queries with which `asking` starts.
    fn some_forward(
        &self,
        level: Level,
        [asking, qkv]: [&[f32]; 2],
        probs: &mut [f32],
        out: &mut [f32],
    ) {
        let (sizes, queries) = (self.sizes(), self.queries(out));
        let square = View::row_major(queries, self.tokens);
        let size = queries * self.tokens;
        for (head, probs) in probs.chunks_exact_mut(size).enumerate() {
            let (q, k) = (sizes.part(asking, 0, head), sizes.part(qkv, 1, head));
            let q = Mat(q.0, View::strided(queries, self.head_dim, q.1.row_stride));
            multiply_into(probs, square, q, Mat(k.0, k.1.t()), Threads::One);
        }
        softmax::softmax_rows(level, probs, self.tokens, sizes.scale());
        for (head, probs) in probs.chunks_exact(size).enumerate() {
            let out = &mut out[sizes.start(0, head)..];
            let view = View::strided(queries, self.head_dim, sizes.width());
            multiply_into(
                out,
                view,
                Mat(probs, square),
                sizes.part(qkv, 2, head),
                Threads::One,
            );
        }
    }

    /// Replaces queries, keys and values by their gradients; `probs` are used up.
    pub(crate) fn backward(&self, level: Level, qkv: &mut [f32], probs: &mut [f32], grad: &[f32]) {
        let (sizes, queries) = (self.sizes(), self.queries(grad));
        let square = View::row_major(queries, self.tokens);
        let (size, head_len) = (queries * self.tokens, self.tokens * self.head_dim);
        let packed = View::row_major(self.tokens, self.head_dim);
        let asked = View::row_major(queries, self.head_dim);
        let mut d_scores = vec![0f32; size];
        let mut d_parts = vec![0f32; 3 * head_len];
        for (head, probs) in probs.chunks_exact_mut(size).enumerate() {
            let [q, k, v] = [0, 1, 2].map(|part| sizes.part(qkv, part, head));
            let q = Mat(q.0, View::strided(queries, self.head_dim, q.1.row_stride));
            let d_out = View::strided(queries, self.head_dim, sizes.width());
            let d_out = Mat(&grad[sizes.start(0, head)..], d_out);
            let (d_q, rest) = d_parts.split_at_mut(head_len);
            let (d_k, d_v) = rest.split_at_mut(head_len);
            // dV = Pᵀ·dO; dP = dO·Vᵀ, then dS by the softmax; dQ = dS·K, dK = dSᵀ·Q
            multiply_into(d_v, packed, Mat(probs, square.t()), d_out, Threads::One);
            multiply_into(
                &mut d_scores,
                square,
                d_out,
                Mat(v.0, v.1.t()),
                Threads::One,
            );
            softmax::softmax_rows_grad(level, probs, &mut d_scores, self.tokens, sizes.scale());
            let ds = Mat(&d_scores, square);
            multiply_into(d_q, asked, ds, k, Threads::One);
            multiply_into(d_k, packed, Mat(ds.0, square.t()), q, Threads::One);
            // Tokens that do not ask have queries without a gradient: these stay zero.
            for (part, from) in d_parts.chunks_exact(head_len).enumerate() {
                let start = sizes.start(part, head);
                let rows = qkv.chunks_exact_mut(3 * sizes.width());
                for (row, from) in rows.zip(from.chunks_exact(self.head_dim)) {
                    row[start..start + self.head_dim].copy_from_slice(from);
                }
            }
        }
    }
}

struct Attention {
    heads: usize,
    keep: bool,
    /// Attention weights per image, taken by the first backward pass.
    weights: Mutex<Option<Vec<Vec<f32>>>>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(layout.shape(), self.heads)?;
        let (ys, weights) = sizes.forward(slice(qkv, layout)?, self.keep);
        if self.keep {
            *locked(&self.weights) = Some(weights);
        }
        Ok((
            CpuStorage::F32(ys),
            (sizes.batch, sizes.tokens, sizes.width()).into(),
        ))
    }

    fn bwd(&self, qkv: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = Sizes::new(qkv.shape(), self.heads)?;
        let grad = grad.contiguous()?;
        let kept = locked(&self.weights).take();
        let d_qkv = with_slice(qkv, |qkv| {
            // Computed again for a second backward pass through the same graph.
            let weights = kept.unwrap_or_else(|| sizes.forward(qkv, true).1);
            with_slice(&grad, |grad| Ok(sizes.backward(qkv, &weights, grad)))
        })?;
        Ok(Some(host::tensor(d_qkv, qkv.shape())?))
    }
}
