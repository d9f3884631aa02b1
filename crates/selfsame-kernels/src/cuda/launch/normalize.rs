//! Rows brought to a length.

use super::{Arg, Element, Launch, Source, WARP, size};
use candle_core::Result;

/// Rows that a block does, a warp for each.
const ROWS_PER_BLOCK: u32 = 4;

/// Sizes of a matrix of f32 rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalize {
    rows: u32,
    width: u32,
    eps: f32,
}

impl Normalize {
    pub(crate) fn new(rows: usize, width: usize, eps: f64) -> Result<Normalize> {
        Ok(Normalize {
            rows: size(rows)?,
            width: size(width)?,
            eps: eps as f32,
        })
    }

    fn launch<P>(&self, kernel: &'static str, mut args: Vec<Arg<P>>) -> Launch<P> {
        args.extend([self.rows, self.width].map(Arg::U32));
        args.push(Arg::F32(self.eps));
        Launch {
            source: Source::Normalize,
            kernel,
            grid: [self.rows.div_ceil(ROWS_PER_BLOCK), 1],
            block: [ROWS_PER_BLOCK * WARP, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// `ys = length · xs / max(|xs|, eps)` row by row, of this type; without lengths they are 1.
    pub(crate) fn forward<P>(
        &self,
        element: Element,
        xs: P,
        lengths: Option<P>,
        ys: P,
    ) -> Launch<P> {
        let kernel = element.pick("normalize_f32", "normalize_bf16");
        let args = vec![Arg::Pointer(xs), Arg::optional(lengths), Arg::Pointer(ys)];
        self.launch(kernel, args)
    }

    /// `dx` by the gradient of `ys`, f32.
    pub(crate) fn grad<P>(&self, xs: P, lengths: Option<P>, grad: P, dx: P) -> Launch<P> {
        let args = vec![
            Arg::Pointer(xs),
            Arg::optional(lengths),
            Arg::Pointer(grad),
            Arg::Pointer(dx),
        ];
        self.launch("normalize_grad", args)
    }
}
