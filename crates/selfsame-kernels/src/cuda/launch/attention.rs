//! Attention: who owns which rows, and how much memory a block shares.

use super::{Arg, Element, Launch, MAX_GRID_Y, Source, WARP, size};
use candle_core::{Result, bail};

/// Widths of a head that kernels exist for.
pub(crate) const HEAD_DIMS: [usize; 2] = [32, 64];

/// Rows of a warp (`TILE` in attention.cu).
const TILE: u32 = 16;
/// Rows of the other side that a block holds (`OTHER`).
const OTHER: u32 = 32;
/// From row to row of a warp's scores (`SCORES_STRIDE`).
const SCORES_STRIDE: u32 = OTHER + 4;

/// Sizes of an attention over packed queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    element: Element,
    batch: u32,
    tokens: u32,
    heads: u32,
    head_dim: u32,
}

impl Attention {
    pub(crate) fn new(
        element: Element,
        [batch, tokens, heads, head_dim]: [usize; 4],
    ) -> Result<Attention> {
        if !HEAD_DIMS.contains(&head_dim) {
            bail!("cuda: no attention kernel for heads of {head_dim}");
        }
        size(batch * tokens * heads)?;
        let sizes = Attention {
            element,
            batch: size(batch)?,
            tokens: size(tokens)?,
            heads: size(heads)?,
            head_dim: size(head_dim)?,
        };
        if sizes.tiles() > MAX_GRID_Y {
            bail!("cuda: attention over {tokens} tokens is too long for one grid");
        }
        Ok(sizes)
    }

    /// Warps of a block: what fits into 48 KiB with heads of 64.
    fn warps(&self) -> u32 {
        match self.element {
            Element::F32 => 2,
            Element::Bf16 => 4,
        }
    }

    /// Blocks along the tokens.
    fn tiles(&self) -> u32 {
        self.tokens.div_ceil(self.warps() * TILE)
    }

    /// Bytes of `rows` padded rows of a head.
    fn row_bytes(&self, rows: u32) -> u32 {
        rows * (self.head_dim * self.element.bytes() + 16)
    }

    /// Queries, keys and values, and per warp scores and sums.
    fn forward_shared(&self) -> u32 {
        let own = self.warps() * TILE;
        self.row_bytes(own + 2 * OTHER) + 4 * own * (SCORES_STRIDE + self.head_dim + 4)
    }

    /// Two matrices of own and of other rows, per warp two scores, and two numbers per other row.
    fn backward_shared(&self) -> u32 {
        let own = self.warps() * TILE;
        self.row_bytes(2 * own + 2 * OTHER) + 4 * (2 * own * SCORES_STRIDE + 2 * OTHER)
    }

    fn pick(&self, names: [&'static str; 4]) -> &'static str {
        let narrow = self.head_dim == 32;
        match (self.element, narrow) {
            (Element::F32, true) => names[0],
            (Element::F32, false) => names[1],
            (Element::Bf16, true) => names[2],
            (Element::Bf16, false) => names[3],
        }
    }

    fn launch<P>(
        &self,
        kernel: &'static str,
        shared_bytes: u32,
        mut args: Vec<Arg<P>>,
    ) -> Launch<P> {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        args.extend([Arg::U32(self.tokens), Arg::U32(self.heads), Arg::F32(scale)]);
        Launch {
            source: Source::Attention,
            kernel,
            grid: [self.batch * self.heads, self.tiles()],
            block: [self.warps() * WARP, 1],
            shared_bytes,
            args,
        }
    }

    /// `lse`: `[B, H, N]`
    pub(crate) fn forward<P>(&self, qkv: P, ys: P, lse: P) -> Launch<P> {
        let kernel = self.pick([
            "attention_f32_32",
            "attention_f32_64",
            "attention_bf16_32",
            "attention_bf16_64",
        ]);
        let args = [qkv, ys, lse].map(Arg::Pointer).into();
        self.launch(kernel, self.forward_shared(), args)
    }

    /// All of the gradient of `qkv`, in three launches one after the other.
    ///
    /// `delta`: `[B, H, N]`, for them to use.
    pub(crate) fn backward<P: Copy>(
        &self,
        [qkv, ys, lse, grad]: [P; 4],
        delta: P,
        d_qkv: P,
    ) -> [Launch<P>; 3] {
        let keys = self.pick([
            "attention_keys_grad_f32_32",
            "attention_keys_grad_f32_64",
            "attention_keys_grad_bf16_32",
            "attention_keys_grad_bf16_64",
        ]);
        let queries = self.pick([
            "attention_queries_grad_f32_32",
            "attention_queries_grad_f32_64",
            "attention_queries_grad_bf16_32",
            "attention_queries_grad_bf16_64",
        ]);
        let rows = self.batch * self.tokens * self.heads;
        let mut delta_args: Vec<_> = [ys, grad, delta].map(Arg::Pointer).into();
        delta_args.extend([rows, self.tokens, self.heads, self.head_dim].map(Arg::U32));
        let args: Vec<_> = [qkv, lse, delta, grad, d_qkv].map(Arg::Pointer).into();
        [
            Launch {
                source: Source::Attention,
                kernel: self
                    .element
                    .pick("attention_delta_f32", "attention_delta_bf16"),
                grid: [rows.div_ceil(4), 1],
                block: [4 * WARP, 1],
                shared_bytes: 0,
                args: delta_args,
            },
            self.launch(keys, self.backward_shared(), args.clone()),
            self.launch(queries, self.backward_shared(), args),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_shares_more_than_every_device_has() {
        for element in [Element::F32, Element::Bf16] {
            for head_dim in HEAD_DIMS {
                let sizes = Attention::new(element, [2, 197, 6, head_dim]).unwrap();
                let bytes = sizes.forward_shared().max(sizes.backward_shared());
                assert!(bytes <= 48 * 1024, "{element:?} {head_dim}: {bytes}");
            }
        }
    }

    #[test]
    fn every_token_has_a_row_in_the_grid() {
        for (element, rows) in [(Element::F32, 32), (Element::Bf16, 64)] {
            for tokens in [10, 37, 64, 65, 197, 257, 1025] {
                let sizes = Attention::new(element, [3, tokens, 6, 64]).unwrap();
                let launch = sizes.forward(0, 1, 2);
                assert_eq!(launch.grid, [18, tokens.div_ceil(rows) as u32]);
                assert_eq!(launch.block, [2 * rows as u32, 1]);
            }
        }
    }

    #[test]
    fn heads_without_a_kernel_are_refused() {
        assert!(Attention::new(Element::Bf16, [1, 10, 3, 48]).is_err());
    }
}
