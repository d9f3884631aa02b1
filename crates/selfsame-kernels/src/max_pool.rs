//! Max pooling for any kernel, stride and padding.

use crate::composed;
use crate::conv2d::output_len;
use crate::host::{self, for_each_chunk, fused, slice, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// Largest value of each window, the padding being −∞; of equal values the first one in row-major
/// order gets the gradient, as in PyTorch.
///
/// candle's own backward pass fails unless the kernel equals the stride, and is wrong if it does.
///
/// # Shape
/// `xs`: `[B, C, H, W]`; the result is `[B, C, (H + 2·padding − kernel)/stride + 1, …]`.
/// # Errors
/// If the padding is more than half the kernel, or no window fits.
pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let window = Window::new(kernel, stride, padding)?;
    window.planes(xs.shape())?;
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(xs) && crate::cuda::ops::pools(kernel) {
        return crate::cuda::ops::max_pool2d(xs, kernel, stride, padding);
    }
    if !fused(&[xs]) {
        return composed::max_pool2d(xs, kernel, stride, padding);
    }
    let op = MaxPool {
        window,
        keep: xs.track_op(),
        winners: OnceLock::new(),
    };
    xs.contiguous()?.apply_op1(op)
}

/// Of which the largest value is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// Heights and widths of an input and an output plane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes {
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) h_out: usize,
    pub(crate) w_out: usize,
}

impl Window {
    /// Windows of `kernel` positions a side.
    pub(crate) fn new(kernel: usize, stride: usize, padding: usize) -> Result<Window> {
        if padding * 2 > kernel {
            bail!("max_pool2d: a padding of {padding} is more than half the kernel {kernel}");
        }
        Ok(Window {
            kernel,
            stride,
            padding,
        })
    }

    fn planes(&self, shape: &Shape) -> Result<Planes> {
        let (_, _, h, w) = shape.dims4()?;
        self.planes_of(h, w)
    }

    /// Of planes of this height and width.
    pub(crate) fn planes_of(&self, h: usize, w: usize) -> Result<Planes> {
        let len = |n| output_len("max_pool2d", n, self.kernel, self.stride, self.padding);
        Ok(Planes {
            h,
            w,
            h_out: len(h)?,
            w_out: len(w)?,
        })
    }

    /// First index of window `i` and the index after its last, within `0..len`.
    pub(crate) fn range(&self, i: usize, len: usize) -> (usize, usize) {
        let start = i * self.stride;
        (
            start.saturating_sub(self.padding),
            (start + self.kernel - self.padding).min(len),
        )
    }

    /// The largest values of all windows, and where they stand in their input plane.
    fn forward(&self, xs: &[f32], planes: Planes) -> (Vec<f32>, Vec<u32>) {
        let Planes { h, w, h_out, w_out } = planes;
        let (size, size_out) = (h * w, h_out * w_out);
        let outputs = xs.len() / size * size_out;
        let (mut ys, mut winners) = (vec![0f32; outputs], vec![0u32; outputs]);
        let mut chunks: Vec<_> = ys
            .chunks_exact_mut(size_out)
            .zip(winners.chunks_exact_mut(size_out))
            .collect();
        for_each_chunk(&mut chunks, host::rows_per_chunk(size), |first, chunks| {
            let first = first * host::rows_per_chunk(size);
            for (i, (ys, winners)) in chunks.iter_mut().enumerate() {
                let plane = &xs[(first + i) * size..][..size];
                for row in 0..h_out {
                    let (y0, y1) = self.range(row, h);
                    for col in 0..w_out {
                        let (x0, x1) = self.range(col, w);
                        let (mut best, mut winner) = (f32::NEG_INFINITY, y0 * w + x0);
                        for y in y0..y1 {
                            for (j, x) in plane[y * w + x0..y * w + x1].iter().enumerate() {
                                if *x > best || x.is_nan() {
                                    (best, winner) = (*x, y * w + x0 + j);
                                }
                            }
                        }
                        ys[row * w_out + col] = best;
                        winners[row * w_out + col] = winner as u32;
                    }
                }
            }
        });
        (ys, winners)
    }
}

struct MaxPool {
    window: Window,
    keep: bool,
    /// Where each output comes from within its input plane, from the forward pass.
    winners: OnceLock<Vec<u32>>,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, _, _) = layout.shape().dims4()?;
        let planes = self.window.planes(layout.shape())?;
        let (ys, winners) = self.window.forward(slice(xs, layout)?, planes);
        if self.keep {
            // The op is used for one forward pass only.
            let _ = self.winners.set(winners);
        }
        Ok((
            CpuStorage::F32(ys),
            (b, c, planes.h_out, planes.w_out).into(),
        ))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else {
            bail!("max_pool2d: backward without a tracked forward")
        };
        let planes = self.window.planes(xs.shape())?;
        let (size, size_out) = (planes.h * planes.w, planes.h_out * planes.w_out);
        let mut dx = vec![0f32; xs.elem_count()];
        with_slice(&grad.contiguous()?, |grad| {
            let step = host::rows_per_chunk(size);
            for_each_chunk(&mut dx, step * size, |first, dx| {
                for (i, dx) in dx.chunks_exact_mut(size).enumerate() {
                    let start = (first * step + i) * size_out;
                    let winners = &winners[start..][..size_out];
                    for (winner, g) in winners.iter().zip(&grad[start..]) {
                        dx[*winner as usize] += g;
                    }
                }
            });
            Ok(())
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}
