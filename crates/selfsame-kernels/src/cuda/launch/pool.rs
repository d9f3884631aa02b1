//! Max pooling.

use super::{Arg, Element, Launch, MAX_GRID_Y, Source, size};
use candle_core::{Result, bail};

/// The largest kernel whose places have numbers of one byte.
pub(crate) const MAX_POOL_KERNEL: usize = 15;
const THREADS: u32 = 256;

/// Sizes of a max pooling: planes of `[h, w]`, of which `[h_out, w_out]` windows are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxPool {
    element: Element,
    planes: u32,
    input: [u32; 2],
    output: [u32; 2],
    kernel: u32,
    stride: u32,
    padding: u32,
}

impl MaxPool {
    pub(crate) fn new(
        element: Element,
        planes: usize,
        input: [usize; 2],
        output: [usize; 2],
        [kernel, stride, padding]: [usize; 3],
    ) -> Result<MaxPool> {
        if kernel > MAX_POOL_KERNEL || padding >= kernel {
            bail!("cuda: no max pooling of kernel {kernel} and padding {padding}");
        }
        let pool = MaxPool {
            element,
            planes: size(planes)?,
            input: [size(input[0])?, size(input[1])?],
            output: [size(output[0])?, size(output[1])?],
            kernel: size(kernel)?,
            stride: size(stride)?,
            padding: padding as u32,
        };
        for [h, w] in [input, output] {
            if size(h * w)?.div_ceil(THREADS) > MAX_GRID_Y {
                bail!("cuda: a plane of {h} x {w} is too large to pool");
            }
        }
        Ok(pool)
    }

    fn launch<P>(&self, kernel: &'static str, plane: [u32; 2], places: [P; 3]) -> Launch<P> {
        let [[h, w], [h_out, w_out]] = [self.input, self.output];
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.extend([h, w, h_out, w_out].map(Arg::U32));
        args.extend([self.kernel, self.stride, self.padding].map(Arg::U32));
        Launch {
            source: Source::Pool,
            kernel,
            grid: [self.planes, (plane[0] * plane[1]).div_ceil(THREADS)],
            block: [THREADS, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// `winners`: a byte for each window, the place of its largest value within it.
    pub(crate) fn forward<P>(&self, xs: P, ys: P, winners: P) -> Launch<P> {
        let kernel = self.element.pick("max_pool_f32", "max_pool_bf16");
        self.launch(kernel, self.output, [xs, ys, winners])
    }

    pub(crate) fn grad<P>(&self, winners: P, grad: P, dx: P) -> Launch<P> {
        let kernel = self.element.pick("max_pool_grad_f32", "max_pool_grad_bf16");
        self.launch(kernel, self.input, [winners, grad, dx])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_for_each_window_and_then_for_each_element() {
        let of = [3, 2, 1];
        let pool = MaxPool::new(Element::F32, 16_384, [112, 112], [56, 56], of).unwrap();
        assert_eq!(pool.forward(0, 1, 2).grid, [16_384, 13]);
        assert_eq!(pool.grad(0, 1, 2).grid, [16_384, 49]);
    }

    #[test]
    fn kernels_whose_places_do_not_fit_a_byte_are_errors() {
        assert!(MaxPool::new(Element::F32, 1, [40, 40], [10, 10], [16, 4, 0]).is_err());
    }
}
