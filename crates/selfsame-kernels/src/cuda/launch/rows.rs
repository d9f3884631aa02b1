//! Layer norm, bias and GELU, and sums over rows.

use super::{Arg, COLUMN_ROWS, Element, Launch, Parts, Source, WARP, size};
use candle_core::Result;

/// Rows that a block of layer norm does, a warp for each.
const ROWS_PER_BLOCK: u32 = 4;
/// Columns of a thread of bias and GELU, if they divide the width (`MANY` in gelu.cu); else 1.
const MANY: u32 = 8;

/// Types of a layer norm's input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    F32,
    Bf16,
    F32ToBf16,
}

impl Norm {
    fn pick(self, names: [&'static str; 3]) -> &'static str {
        match self {
            Norm::F32 => names[0],
            Norm::Bf16 => names[1],
            Norm::F32ToBf16 => names[2],
        }
    }
}

/// Sizes of a layer norm over the rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorm {
    norm: Norm,
    rows: u32,
    width: u32,
    parts: Parts,
}

impl LayerNorm {
    pub(crate) fn new(norm: Norm, rows: usize, width: usize) -> Result<LayerNorm> {
        Ok(LayerNorm {
            norm,
            rows: size(rows)?,
            width: size(width)?,
            parts: Parts::for_sums(rows)?,
        })
    }

    /// Elements of `parts` in [`LayerNorm::weights_grad`], whose sums are `[weight | bias]`.
    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    fn launch<P>(&self, kernel: &'static str, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::LayerNorm,
            kernel,
            grid: [self.rows.div_ceil(ROWS_PER_BLOCK), 1],
            block: [ROWS_PER_BLOCK * WARP, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// `stats`: `[rows, 2]`, mean and 1/std.
    pub(crate) fn forward<P>(
        &self,
        [xs, weight, bias]: [P; 3],
        [ys, stats]: [P; 2],
        eps: f32,
    ) -> Launch<P> {
        let names = ["layer_norm_f32", "layer_norm_bf16", "layer_norm_f32_bf16"];
        let mut args: Vec<_> = [xs, weight, bias, ys, stats].map(Arg::Pointer).into();
        args.extend([Arg::U32(self.rows), Arg::U32(self.width), Arg::F32(eps)]);
        self.launch(self.norm.pick(names), args)
    }

    pub(crate) fn grad<P>(&self, [xs, stats, weight, grad]: [P; 4], dx: P) -> Launch<P> {
        let kernel = self.norm.pick([
            "layer_norm_grad_f32",
            "layer_norm_grad_bf16",
            "layer_norm_grad_f32_bf16",
        ]);
        let mut args: Vec<_> = [xs, stats, weight, grad, dx].map(Arg::Pointer).into();
        args.extend([Arg::U32(self.rows), Arg::U32(self.width)]);
        self.launch(kernel, args)
    }

    /// `parts`: `[num_parts, 2 · width]`.
    pub(crate) fn weights_grad<P>(&self, [xs, stats, grad]: [P; 3], parts: P) -> Launch<P> {
        let kernel = self.norm.pick([
            "layer_norm_weights_grad_f32",
            "layer_norm_weights_grad_bf16",
            "layer_norm_weights_grad_f32_bf16",
        ]);
        let mut args: Vec<_> = [xs, stats, grad, parts].map(Arg::Pointer).into();
        args.extend([self.rows, self.width, self.parts.rows_per_part].map(Arg::U32));
        Launch {
            grid: [self.width.div_ceil(WARP), self.parts.num_parts],
            block: [WARP, COLUMN_ROWS],
            ..self.launch(kernel, args)
        }
    }
}

/// Sizes of bias and GELU over the rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BiasGelu {
    element: Element,
    rows: u32,
    width: u32,
    parts: Parts,
    spread: Parts,
}

impl BiasGelu {
    pub(crate) fn new(element: Element, rows: usize, width: usize) -> Result<BiasGelu> {
        Ok(BiasGelu {
            element,
            rows: size(rows)?,
            width: size(width)?,
            parts: Parts::for_sums(rows)?,
            spread: Parts::for_rows(rows)?,
        })
    }

    /// Of the sums over rows in [`BiasGelu::grad`] and [`BiasGelu::column_sums`].
    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    /// Of a thread.
    fn columns(&self) -> u32 {
        match self.width.is_multiple_of(MANY) {
            true => MANY,
            false => 1,
        }
    }

    fn launch<P>(&self, kernel: &'static str, parts: Parts, mut args: Vec<Arg<P>>) -> Launch<P> {
        args.extend([self.rows, self.width, parts.rows_per_part].map(Arg::U32));
        Launch {
            source: Source::Gelu,
            kernel,
            grid: [self.width.div_ceil(WARP * self.columns()), parts.num_parts],
            block: [WARP, COLUMN_ROWS],
            shared_bytes: 0,
            args,
        }
    }

    /// `ys = gelu(xs + bias)`; without a bias it is 0.
    pub(crate) fn forward<P>(&self, xs: P, bias: Option<P>, ys: P) -> Launch<P> {
        let kernel = self.element.pick("bias_gelu_f32", "bias_gelu_bf16");
        let args = vec![Arg::Pointer(xs), Arg::optional(bias), Arg::Pointer(ys)];
        self.launch(kernel, self.spread, args)
    }

    /// `ys = xs + bias`
    pub(crate) fn add_bias<P>(&self, xs: P, bias: P, ys: P) -> Launch<P> {
        let kernel = self.element.pick("add_bias_f32", "add_bias_bf16");
        self.launch(kernel, self.spread, [xs, bias, ys].map(Arg::Pointer).into())
    }

    /// `parts`: `[num_parts, width]`, whose sums are the gradient of the bias.
    pub(crate) fn grad<P>(
        &self,
        xs: P,
        bias: Option<P>,
        grad: P,
        dx: P,
        parts: Option<P>,
    ) -> Launch<P> {
        let kernel = self
            .element
            .pick("bias_gelu_grad_f32", "bias_gelu_grad_bf16");
        let args = vec![
            Arg::Pointer(xs),
            Arg::optional(bias),
            Arg::Pointer(grad),
            Arg::Pointer(dx),
            Arg::optional(parts),
        ];
        self.launch(kernel, self.parts, args)
    }

    /// `parts`: `[num_parts, width]`, sums of the columns of `xs`.
    pub(crate) fn column_sums<P>(&self, xs: P, parts: P) -> Launch<P> {
        let kernel = self.element.pick("column_sums_f32", "column_sums_bf16");
        self.launch(kernel, self.parts, [xs, parts].map(Arg::Pointer).into())
    }
}

/// `sums[width]` of `parts[num_parts, width]`.
pub(crate) fn sum_parts<P>(parts: P, sums: P, num_parts: u32, width: usize) -> Result<Launch<P>> {
    let width = size(width)?;
    let mut args: Vec<_> = [parts, sums].map(Arg::Pointer).into();
    args.extend([num_parts, width].map(Arg::U32));
    Ok(Launch {
        source: Source::Sums,
        kernel: "sum_parts",
        grid: [width.div_ceil(WARP), 1],
        block: [WARP, COLUMN_ROWS],
        shared_bytes: 0,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warp_for_each_row_and_a_thread_for_each_column_or_eight() {
        let norm = LayerNorm::new(Norm::F32ToBf16, 394, 384).unwrap();
        let launch = norm.forward([0, 1, 2], [3, 4], 1e-6);
        assert_eq!((launch.grid, launch.block), ([99, 1], [128, 1]));
        assert_eq!(launch.kernel, "layer_norm_f32_bf16");
        let launch = norm.weights_grad([0, 1, 2], 3);
        assert_eq!((launch.grid, launch.block), ([12, 13], [32, 8]));
        let gelu = BiasGelu::new(Element::Bf16, 25_216, 1536).unwrap();
        assert_eq!(gelu.forward(0, None, 1).grid, [6, 788]);
        assert_eq!(gelu.grad(0, Some(1), 2, 3, Some(4)).grid, [6, 128]);
        let narrow = BiasGelu::new(Element::Bf16, 25_216, 37).unwrap();
        assert_eq!(narrow.forward(0, None, 1).grid, [2, 788]);
        assert_eq!(gelu.forward(0, None, 1).args[1], Arg::Null);
    }
}
