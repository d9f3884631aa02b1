//! The gradients of a block's weights, out of what the backward pass left.

use super::pass::Pass;
use super::saved::{Inputs, Saved};
use crate::gemm::{Mat, View, product};
use crate::host::for_each_chunk;

/// Rows of a weight's gradient that one thread computes at a time.
const ROWS: usize = 288;

/// A weight whose gradient is a product over all rows of tokens.
#[derive(Clone, Copy)]
enum Layer {
    Qkv,
    Proj,
    Fc1,
    Fc2,
}

impl Layer {
    /// The gradient of the layer's output and the layer's input; `out` is the gradient of the
    /// block's output.
    fn operands<'a>(self, saved: &Inputs<'a>, out: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        match self {
            Layer::Qkv => (saved.d_qkv, saved.y1),
            Layer::Proj => (saved.attention_grad.unwrap_or(saved.d_mid), saved.mixed),
            Layer::Fc1 => (saved.d_hidden, saved.y2),
            Layer::Fc2 => (saved.mlp_grad.unwrap_or(out), saved.hidden),
        }
    }
}

/// A few rows of one gradient.
struct Task<'a> {
    block: usize,
    layer: Layer,
    first_row: usize,
    outputs: usize,
    inputs: usize,
    grad: &'a mut [f32],
}

impl Pass {
    /// Adds the gradients of every block to `grads`, in the order of
    /// [`super::BlockWeights::tensors`].
    ///
    /// `saved` and `sums` are what [`Pass::backward`] left, `top` is the gradient of the stack's
    /// output.
    pub(super) fn weight_grads(
        &self,
        saved: &[Vec<Saved>],
        sums: &[Vec<f32>],
        top: &[f32],
        grads: &mut [[Vec<f32>; 12]],
    ) {
        self.add_small(sums, grads);
        let (d, f) = (self.width, self.hidden);
        let mut tasks = Vec::new();
        for (block, grads) in grads.iter_mut().enumerate() {
            let [_, _, qkv, _, proj, _, _, _, fc1, _, fc2, _] = grads;
            for (layer, grad, outputs, inputs) in [
                (Layer::Qkv, qkv, 3 * d, d),
                (Layer::Proj, proj, d, d),
                (Layer::Fc1, fc1, f, d),
                (Layer::Fc2, fc2, d, f),
            ] {
                let rows = outputs.div_ceil(outputs.div_ceil(ROWS).max(2));
                for (piece, grad) in grad.chunks_mut(rows * inputs).enumerate() {
                    tasks.push(Task {
                        block,
                        layer,
                        first_row: piece * rows,
                        outputs,
                        inputs,
                        grad,
                    });
                }
            }
        }
        let (_, image_out) = self.image_lens();
        for_each_chunk(&mut tasks, 1, |_, task| {
            let task = &mut task[0];
            let pieces = task.grad.len() / task.inputs;
            let view = View::row_major(pieces, task.inputs);
            for (i, saved) in saved.iter().enumerate() {
                // The gradient of a block's output is that of the next one's input.
                let out = match saved.get(task.block + 1) {
                    Some(next) => next.inputs().x,
                    None => {
                        let chunk = self.chunk(i);
                        &top[chunk.first * image_out..][..chunk.images * image_out]
                    }
                };
                // dW += dYᵀ · X
                let (d_out, xs) = task.layer.operands(&saved[task.block].inputs(), out);
                let rows = xs.len() / task.inputs;
                if rows == 0 {
                    continue;
                }
                let d_out = &d_out[task.first_row..];
                let d_out = Mat(d_out, View::strided(rows, pieces, task.outputs).t());
                let xs = Mat(xs, View::row_major(rows, task.inputs));
                product(task.grad, view, true, d_out, xs, self.options.precision);
            }
        });
    }

    /// Adds the gradients of biases and norms, chunk by chunk.
    fn add_small(&self, sums: &[Vec<f32>], grads: &mut [[Vec<f32>; 12]]) {
        let (d, f) = (self.width, self.hidden);
        let slots = [
            (0, d),
            (1, d),
            (3, 3 * d),
            (5, d),
            (6, d),
            (7, d),
            (9, f),
            (11, d),
        ];
        for sums in sums {
            for (sums, grads) in sums.chunks_exact(self.small_len()).zip(grads.iter_mut()) {
                let mut sums = sums;
                for (slot, len) in slots {
                    let (part, rest) = sums.split_at(len);
                    for (grad, x) in grads[slot].iter_mut().zip(part) {
                        *grad += x;
                    }
                    sums = rest;
                }
            }
        }
    }
}
