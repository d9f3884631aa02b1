//! ReLU.

use super::{Arg, Element, Launch, Source, size};
use candle_core::Result;

const THREADS: u32 = 256;
/// Blocks that fill every device; the rest is a loop.
const MAX_BLOCKS: u32 = 4096;

/// `ys = max(xs, 0)`
pub(crate) fn relu<P>(element: Element, len: usize, xs: P, ys: P) -> Result<Launch<P>> {
    launch(element.pick("relu_f32", "relu_bf16"), len, vec![xs, ys])
}

/// The gradient of `xs` from the result and its gradient.
pub(crate) fn relu_grad<P>(
    element: Element,
    len: usize,
    [ys, grad]: [P; 2],
    dx: P,
) -> Result<Launch<P>> {
    let kernel = element.pick("relu_grad_f32", "relu_grad_bf16");
    launch(kernel, len, vec![ys, grad, dx])
}

fn launch<P>(kernel: &'static str, len: usize, places: Vec<P>) -> Result<Launch<P>> {
    let len = size(len)?;
    let mut args: Vec<_> = places.into_iter().map(Arg::Pointer).collect();
    args.push(Arg::U32(len));
    Ok(Launch {
        source: Source::Relu,
        kernel,
        grid: [len.div_ceil(THREADS).min(MAX_BLOCKS), 1],
        block: [THREADS, 1],
        shared_bytes: 0,
        args,
    })
}
