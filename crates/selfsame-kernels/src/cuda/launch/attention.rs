//! Attention: who owns which rows, and how much memory a block shares.

use super::{Arg, Element, Launch, MAX_GRID_Y, Source, WARP, size};
use candle_core::{Result, bail};

/// Widths of a head that kernels exist for.
pub(crate) const HEAD_DIMS: [usize; 2] = [32, 64];

/// Rows of a warp (`TILE` in attention.cu).
const TILE: u32 = 16;
/// Rows of the other side that a block holds in f32 (`OTHER`).
const OTHER: u32 = 32;
/// Tiles of the other side that a block holds at most in bf16: with heads of 64 three blocks find
/// room beside one another.
const HELD_TILES: u32 = 13;
/// Most warps of a block in bf16 (`MAX_THREADS` in attention_bf16.cu).
const MAX_WARPS: u32 = 7;
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

    /// Warps of a block: in f32 what fits into 48 KiB with heads of 64; in bf16 so that as few as
    /// possible have no row.
    fn warps(&self) -> u32 {
        match self.element {
            Element::F32 => 2,
            Element::Bf16 => self.even_share(MAX_WARPS),
        }
    }

    /// Rows of the other side that a block holds at a time in bf16.
    fn held(&self) -> u32 {
        TILE * self.even_share(HELD_TILES)
    }

    /// Tiles that each of as few as possible gets, at most `most`.
    fn even_share(&self, most: u32) -> u32 {
        let tiles = self.tokens.div_ceil(TILE);
        tiles.div_ceil(tiles.div_ceil(most))
    }

    /// Blocks along the tokens.
    fn tiles(&self) -> u32 {
        self.tokens.div_ceil(self.warps() * TILE)
    }

    /// Bytes of `rows` padded rows of a head.
    fn row_bytes(&self, rows: u32) -> u32 {
        rows * (self.head_dim * self.element.bytes() + 16)
    }

    /// In f32 queries, keys and values, and per warp scores and sums; in bf16 keys and values.
    fn forward_shared(&self) -> u32 {
        if self.element == Element::Bf16 {
            return self.row_bytes(2 * self.held());
        }
        let own = self.warps() * TILE;
        self.row_bytes(own + 2 * OTHER) + 4 * own * (SCORES_STRIDE + self.head_dim + 4)
    }

    /// In f32 two matrices of own and of other rows, per warp two scores, and two numbers per other
    /// row; in bf16 two matrices of other rows and, where those are queries, their numbers.
    fn backward_shared(&self) -> u32 {
        if self.element == Element::Bf16 {
            return self.row_bytes(2 * self.held()) + 4 * 2 * self.held();
        }
        let own = self.warps() * TILE;
        self.row_bytes(2 * own + 2 * OTHER) + 4 * (2 * own * SCORES_STRIDE + 2 * OTHER)
    }

    fn source(&self) -> Source {
        match self.element {
            Element::F32 => Source::Attention,
            Element::Bf16 => Source::AttentionBf16,
        }
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
        args.extend([self.tokens, self.heads].map(Arg::U32));
        if self.element == Element::Bf16 {
            args.push(Arg::U32(self.held()));
        }
        args.push(Arg::F32(scale));
        Launch {
            source: self.source(),
            kernel,
            grid: [self.batch * self.heads, self.tiles()],
            block: [self.warps() * WARP, 1],
            shared_bytes,
            args,
        }
    }

    /// `bias`: of `qkv`, f32; in bf16 the queries get theirs in place. `lse`: `[B, H, N]`, in bf16 to
    /// the base 2.
    pub(crate) fn forward<P>(&self, qkv: P, bias: Option<P>, ys: P, lse: P) -> Launch<P> {
        let kernel = self.pick([
            "attention_f32_32",
            "attention_f32_64",
            "attention_bf16_32",
            "attention_bf16_64",
        ]);
        let args = vec![
            Arg::Pointer(qkv),
            Arg::optional(bias),
            Arg::Pointer(ys),
            Arg::Pointer(lse),
        ];
        self.launch(kernel, self.forward_shared(), args)
    }

    /// All of the gradient of `qkv`, in launches one after the other.
    ///
    /// `delta`: `[B, H, N]`, for them to use.
    pub(crate) fn backward<P: Copy>(
        &self,
        [qkv, ys, lse, grad]: [P; 4],
        bias: Option<P>,
        delta: P,
        d_qkv: P,
    ) -> Vec<Launch<P>> {
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
        let shared = self.backward_shared();
        let args_of = |places: &[P]| {
            let mut args = vec![Arg::Pointer(qkv), Arg::optional(bias)];
            args.extend(places.iter().copied().map(Arg::Pointer));
            args
        };
        if self.element == Element::Bf16 {
            // The first one computes delta; by then the queries have their bias.
            let args = args_of(&[ys, lse, grad, delta, d_qkv]);
            let of_queries = self.launch(queries, shared, args);
            let args = [qkv, lse, delta, grad, d_qkv].map(Arg::Pointer).into();
            return vec![of_queries, self.launch(keys, shared, args)];
        }
        let of_keys = self.launch(keys, shared, args_of(&[lse, delta, grad, d_qkv]));
        let of_queries = self.launch(queries, shared, args_of(&[lse, delta, grad, d_qkv]));
        let rows = self.batch * self.tokens * self.heads;
        let mut args: Vec<_> = [ys, grad, delta].map(Arg::Pointer).into();
        args.extend([rows, self.tokens, self.heads, self.head_dim].map(Arg::U32));
        let products = Launch {
            source: Source::Attention,
            kernel: "attention_delta_f32",
            grid: [rows.div_ceil(4), 1],
            block: [4 * WARP, 1],
            shared_bytes: 0,
            args,
        };
        vec![products, of_keys, of_queries]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_shares_more_than_every_device_has() {
        for element in [Element::F32, Element::Bf16] {
            for head_dim in HEAD_DIMS {
                let sizes = Attention::new(element, [2, 1025, 6, head_dim]).unwrap();
                let bytes = sizes.forward_shared().max(sizes.backward_shared());
                let most = match element {
                    Element::F32 => 48 * 1024,
                    // What compute capability 8.6 has for those who ask.
                    Element::Bf16 => 99 * 1024,
                };
                assert!(bytes <= most, "{element:?} {head_dim}: {bytes}");
            }
        }
    }

    #[test]
    fn every_token_has_a_row_in_the_grid() {
        for element in [Element::F32, Element::Bf16] {
            for tokens in [1, 10, 37, 64, 65, 197, 257, 1025] {
                let sizes = Attention::new(element, [3, tokens, 6, 64]).unwrap();
                let launch = sizes.forward(0, None, 1, 2);
                let rows = launch.block[0] / 2;
                assert_eq!(launch.grid, [18, tokens.div_ceil(rows as usize) as u32]);
                assert!(launch.block[0] <= 224, "{tokens}");
            }
        }
        let block = |tokens| {
            let sizes = Attention::new(Element::Bf16, [3, tokens, 6, 64]).unwrap();
            sizes.forward(0, None, 1, 2).block[0] / WARP
        };
        assert_eq!([1, 37, 197, 1025].map(block), [1, 3, 7, 7]);
        let held = |tokens| {
            let sizes = Attention::new(Element::Bf16, [3, tokens, 6, 64]).unwrap();
            sizes.held()
        };
        assert_eq!([1, 37, 197, 257, 1025].map(held), [16, 48, 208, 144, 208]);
    }

    #[test]
    fn heads_without_a_kernel_are_refused() {
        assert!(Attention::new(Element::Bf16, [1, 10, 3, 48]).is_err());
    }
}
