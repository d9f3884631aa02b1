//! Patches of images and the tokens they become.

use super::{Arg, Element, Launch, Source, WARP, size};
use candle_core::{Result, bail};

const THREADS: u32 = 256;

/// Sizes of images, their patches and tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    element: Element,
    images: u32,
    channels: u32,
    height: u32,
    width: u32,
    patch: u32,
    /// Of a token; even.
    dim: u32,
}

impl Patches {
    pub(crate) fn new(
        element: Element,
        [images, channels, height, width]: [usize; 4],
        patch: usize,
        dim: usize,
    ) -> Result<Patches> {
        if patch == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            bail!("patches: {height}x{width} is not a multiple of the patch size {patch}");
        }
        if !dim.is_multiple_of(2) {
            bail!("cuda: no kernel for tokens of width {dim}");
        }
        size(images * channels * height * width)?;
        let sizes = Patches {
            element,
            images: size(images)?,
            channels: size(channels)?,
            height: size(height)?,
            width: size(width)?,
            patch: size(patch)?,
            dim: size(dim)?,
        };
        size(images * sizes.num_tokens() as usize * dim)?;
        Ok(sizes)
    }

    /// Patches of an image and a class token.
    pub(crate) fn num_tokens(&self) -> u32 {
        1 + (self.height / self.patch) * (self.width / self.patch)
    }

    fn launch<P>(&self, kernel: &'static str, threads: u32, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::Patches,
            kernel,
            grid: [threads.div_ceil(THREADS), 1],
            block: [THREADS, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// `ys`: `[B, N, C·P·P]` of `xs`, f32 `[B, C, H, W]`.
    pub(crate) fn cut<P>(&self, xs: P, ys: P) -> Launch<P> {
        let kernel = self.element.pick("patches_f32", "patches_bf16");
        let mut args: Vec<_> = [xs, ys].map(Arg::Pointer).into();
        args.extend([self.channels, self.height, self.width, self.patch].map(Arg::U32));
        // A warp for each line of an image.
        Launch {
            grid: [self.images * self.channels * self.height, 1],
            block: [WARP, 1],
            ..self.launch(kernel, 1, args)
        }
    }

    /// `tokens`: `[B, 1 + N, D]` of `product` `[B, N, D]` and `offsets` `[1 + N, D]`.
    pub(crate) fn assemble<P>(&self, product: P, offsets: P, tokens: P) -> Launch<P> {
        let kernel = self.element.pick("tokens_f32", "tokens_bf16");
        let len = self.images * self.num_tokens() * self.dim;
        let mut args: Vec<_> = [product, offsets, tokens].map(Arg::Pointer).into();
        args.extend([len, self.num_tokens(), self.dim].map(Arg::U32));
        self.launch(kernel, len / 2, args)
    }

    /// The gradient of `product` by that of `tokens`.
    pub(crate) fn product_grad<P>(&self, d_tokens: P, d_product: P) -> Launch<P> {
        let kernel = self.element.pick("tokens_grad_f32", "tokens_grad_bf16");
        let len = self.images * (self.num_tokens() - 1) * self.dim;
        let mut args: Vec<_> = [d_tokens, d_product].map(Arg::Pointer).into();
        args.extend([len, self.num_tokens(), self.dim].map(Arg::U32));
        self.launch(kernel, len / 2, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_and_every_pair_of_a_token_has_its_threads() {
        let sizes = Patches::new(Element::Bf16, [256, 3, 224, 224], 16, 384).unwrap();
        assert_eq!(sizes.num_tokens(), 197);
        assert_eq!(sizes.cut(0, 1).grid, [256 * 3 * 224, 1]);
        assert_eq!(sizes.assemble(0, 1, 2).grid, [197 * 384 / 2, 1]);
        assert_eq!(sizes.product_grad(0, 1).grid, [196 * 384 / 2, 1]);
        assert!(Patches::new(Element::F32, [1, 3, 20, 16], 16, 64).is_err());
        assert!(Patches::new(Element::F32, [1, 3, 16, 16], 16, 63).is_err());
    }
}
