//! The ends of a block's branches: residual sums with the layer norm behind them, and backwards.

use super::{Arg, Element, Launch, Parts, Source, WARP, size};
use candle_core::{Result, bail};

/// Rows that a block does going forward, a warp for each; and the warps of one going backward.
const WARPS: u32 = 4;

/// The widest row whose columns a warp holds in registers.
const MAX_WIDTH: usize = 1024;

/// Whether there are kernels for rows of this width: columns go by pairs.
#[cfg(feature = "cuda")]
pub(crate) fn has_branch_kernels(width: usize) -> bool {
    width > 0 && width <= MAX_WIDTH && width.is_multiple_of(2)
}

/// Sizes of a branch's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    element: Element,
    rows: u32,
    width: u32,
    /// Rows that share a factor.
    tokens: u32,
    parts: Parts,
}

/// What a branch adds to the residual stream: its product, `[rows, width]`, and its bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Added<P> {
    pub(crate) product: P,
    pub(crate) bias: P,
    /// A factor for each image.
    pub(crate) factors: Option<P>,
    /// The sums, f32 `[rows, width]`.
    pub(crate) sums: P,
}

/// A layer norm of the residual stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normed<P> {
    pub(crate) weight: P,
    pub(crate) bias: P,
    /// Its output, `[rows, width]`.
    pub(crate) normed: P,
    /// Mean and 1/std, `[rows, 2]`.
    pub(crate) stats: P,
    pub(crate) eps: f32,
}

/// The gradient of a layer norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormGrad<P> {
    pub(crate) xs: P,
    pub(crate) stats: P,
    pub(crate) weight: P,
    pub(crate) d_normed: P,
    /// What goes on along the residual stream, f32 `[rows, width]`; may be the residual itself.
    pub(crate) d_sums: P,
}

/// The gradient of a branch's product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductGrad<P> {
    pub(crate) factors: Option<P>,
    pub(crate) d_product: P,
}

impl Branch {
    pub(crate) fn new(
        element: Element,
        rows: usize,
        width: usize,
        tokens: usize,
    ) -> Result<Branch> {
        if width > MAX_WIDTH || !width.is_multiple_of(2) {
            bail!("cuda: no kernel for branches of width {width}");
        }
        Ok(Branch {
            element,
            rows: size(rows)?,
            width: size(width)?,
            tokens: size(tokens)?,
            // Four blocks for each multiprocessor of an H100.
            parts: Parts::new(rows, 528, WARPS)?,
        })
    }

    /// Of the sums over rows in [`Branch::grad`].
    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    fn pick(&self, names: [[&'static str; 4]; 2]) -> &'static str {
        let names = match self.element {
            Element::F32 => names[0],
            Element::Bf16 => names[1],
        };
        let widths = [192, 384, 768];
        names[widths.iter().filter(|&&width| self.width > width).count()]
    }

    fn launch<P>(&self, kernel: &'static str, blocks: u32, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::Branch,
            kernel,
            grid: [blocks, 1],
            block: [WARPS * WARP, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// The sums of every `every`-th row of `xs` and `added`, and a layer norm of them.
    pub(crate) fn forward<P>(
        &self,
        xs: P,
        every: usize,
        added: Option<Added<P>>,
        normed: Option<Normed<P>>,
    ) -> Result<Launch<P>> {
        let kernel = self.pick([
            [
                "branch_f32_192",
                "branch_f32_384",
                "branch_f32_768",
                "branch_f32_1024",
            ],
            [
                "branch_bf16_192",
                "branch_bf16_384",
                "branch_bf16_768",
                "branch_bf16_1024",
            ],
        ]);
        let (product, bias, factors, sums) = match added {
            None => (None, None, None, None),
            Some(a) => (Some(a.product), Some(a.bias), a.factors, Some(a.sums)),
        };
        let (weight, norm_bias, ys, stats, eps) = match normed {
            None => (None, None, None, None, 0.0),
            Some(n) => (
                Some(n.weight),
                Some(n.bias),
                Some(n.normed),
                Some(n.stats),
                n.eps,
            ),
        };
        let mut args = vec![Arg::Pointer(xs)];
        let places = [product, bias, factors, weight, norm_bias, sums, ys, stats];
        args.extend(places.map(Arg::optional));
        args.extend([self.rows, self.width, size(every)?, self.tokens].map(Arg::U32));
        args.push(Arg::F32(eps));
        Ok(self.launch(kernel, self.rows.div_ceil(WARPS), args))
    }

    /// The way back: the residual's gradient, which rows have that `every` divides, and that of the
    /// layer norm's input become `norm.d_sums` and, times the factor, `product.d_product`.
    ///
    /// `parts`: `[num_parts, 3 · width]`, whose sums are the gradients of the norm's weight and bias
    /// and of the branch's bias.
    pub(crate) fn grad<P>(
        &self,
        residual: Option<P>,
        every: usize,
        norm: Option<NormGrad<P>>,
        product: Option<ProductGrad<P>>,
        parts: P,
    ) -> Result<Launch<P>> {
        let kernel = self.pick([
            [
                "branch_grad_f32_192",
                "branch_grad_f32_384",
                "branch_grad_f32_768",
                "branch_grad_f32_1024",
            ],
            [
                "branch_grad_bf16_192",
                "branch_grad_bf16_384",
                "branch_grad_bf16_768",
                "branch_grad_bf16_1024",
            ],
        ]);
        let (xs, stats, weight, d_normed, d_sums) = match norm {
            None => (None, None, None, None, None),
            Some(n) => (
                Some(n.xs),
                Some(n.stats),
                Some(n.weight),
                Some(n.d_normed),
                Some(n.d_sums),
            ),
        };
        let (factors, d_product) = match product {
            None => (None, None),
            Some(p) => (p.factors, Some(p.d_product)),
        };
        let places = [
            xs, stats, weight, d_normed, residual, factors, d_sums, d_product,
        ];
        let mut args: Vec<_> = places.map(Arg::optional).into();
        args.push(Arg::Pointer(parts));
        let counts = [
            self.rows,
            self.width,
            size(every)?,
            self.tokens,
            self.parts.rows_per_part,
        ];
        args.extend(counts.map(Arg::U32));
        Ok(Launch {
            shared_bytes: WARPS * self.width * 4,
            ..self.launch(kernel, self.parts.num_parts, args)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_kernel_that_holds_a_row_is_taken() {
        let kernel = |element, width| {
            let sizes = Branch::new(element, 10, width, 5).unwrap();
            sizes.forward(0, 1, None, None).unwrap().kernel
        };
        assert_eq!(kernel(Element::F32, 2), "branch_f32_192");
        assert_eq!(kernel(Element::F32, 192), "branch_f32_192");
        assert_eq!(kernel(Element::Bf16, 194), "branch_bf16_384");
        assert_eq!(kernel(Element::Bf16, 768), "branch_bf16_768");
        assert_eq!(kernel(Element::Bf16, 1024), "branch_bf16_1024");
        assert!(Branch::new(Element::F32, 10, 1026, 5).is_err());
        assert!(Branch::new(Element::F32, 10, 37, 5).is_err());
    }

    #[test]
    fn every_row_has_a_warp_and_every_part_a_block() {
        let sizes = Branch::new(Element::Bf16, 88_321, 384, 197).unwrap();
        let launch = sizes.forward(0, 1, None, None).unwrap();
        assert_eq!((launch.grid, launch.block), ([22_081, 1], [128, 1]));
        let launch = sizes.grad(Some(0), 1, None, None, 1).unwrap();
        assert_eq!(launch.grid, [sizes.parts().num_parts, 1]);
        assert_eq!(launch.shared_bytes, 4 * 384 * 4);
        assert!(sizes.parts().num_parts <= 528);
    }
}
