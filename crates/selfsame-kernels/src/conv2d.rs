//! Two-dimensional convolution as matrix products over gathered patches, with its backward pass.
//!
//! Patches of a few images at a time are gathered ("im2col"), so that the buffer stays within the
//! cache and each product is large enough to be fast.

use crate::composed;
use crate::gemm::{Mat, Precision, Threads, View, multiply_add, multiply_into};
use crate::host::{self, for_each_chunk, fused, slice, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Elements of gathered patches that are held at a time (8 MiB).
const COLUMNS: usize = 1 << 21;

/// Convolution (cross-correlation, as everywhere) without bias, groups or dilation.
///
/// The gradient of the input is computed only where it is needed.
/// On a CUDA device the factors of the products may be rounded to bf16; images, weights, sums and
/// results are f32.
///
/// # Shape
/// `xs`: `[B, C, H, W]`, `weight`: `[O, C, kh, kw]`; the result is
/// `[B, O, (H + 2·padding − kh)/stride + 1, (W + 2·padding − kw)/stride + 1]`.
/// # Errors
/// If the channels differ, the kernel does not fit, or bf16 is asked for elsewhere than on CUDA.
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    precision: Precision,
) -> Result<Tensor> {
    Sizes::new(xs.shape(), weight.shape(), stride, padding)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::takes_f32(&[xs, weight]) {
        return crate::cuda::ops::conv2d(xs, weight, stride, padding, precision);
    }
    if precision != Precision::F32 {
        bail!("conv2d: {precision:?} is for f32 images on CUDA devices");
    }
    if !fused(&[xs, weight]) {
        return composed::conv2d(xs, weight, stride, padding);
    }
    xs.contiguous()?
        .apply_op2(&weight.contiguous()?, Conv2d { stride, padding })
}

/// Windows that fit into a padded length.
pub(crate) fn output_len(
    op: &str,
    len: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<usize> {
    if kernel == 0 || stride == 0 || len + 2 * padding < kernel {
        bail!("{op}: kernel {kernel}, stride {stride}, padding {padding} on a length of {len}");
    }
    Ok((len + 2 * padding - kernel) / stride + 1)
}

/// Sizes of a convolution, its input and its output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) out: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
    pub(crate) h_out: usize,
    pub(crate) w_out: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl Sizes {
    fn new(xs: &Shape, weight: &Shape, stride: usize, padding: usize) -> Result<Sizes> {
        Sizes::of(xs.dims4()?, weight.dims4()?, stride, padding)
    }

    /// Of images `[B, C, H, W]` and a weight `[O, C, kh, kw]`, whatever the order in memory.
    pub(crate) fn of(
        (batch, channels, h, w): (usize, usize, usize, usize),
        (out, weight_channels, kh, kw): (usize, usize, usize, usize),
        stride: usize,
        padding: usize,
    ) -> Result<Sizes> {
        if channels != weight_channels {
            bail!("conv2d: the input has {channels} channels, the weight {weight_channels}");
        }
        let h_out = output_len("conv2d", h, kh, stride, padding)?;
        let w_out = output_len("conv2d", w, kw, stride, padding)?;
        Ok(Sizes {
            batch,
            channels,
            h,
            w,
            out,
            kh,
            kw,
            h_out,
            w_out,
            stride,
            padding,
        })
    }

    /// Values per image of the input.
    pub(crate) fn image_len(&self) -> usize {
        self.channels * self.h * self.w
    }

    /// Windows per image.
    pub(crate) fn windows(&self) -> usize {
        self.h_out * self.w_out
    }

    /// Values per window.
    pub(crate) fn window_len(&self) -> usize {
        self.channels * self.kh * self.kw
    }

    fn weight_view(&self) -> View {
        View::row_major(self.out, self.window_len())
    }

    /// Images whose patches are gathered at a time.
    fn images_per_group(&self) -> usize {
        (COLUMNS / (self.windows() * self.window_len())).clamp(1, self.batch)
    }

    /// Images of each group, as (first, count).
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (batch, step) = (self.batch, self.images_per_group());
        (0..batch)
            .step_by(step)
            .map(move |first| (first, step.min(batch - first)))
    }

    /// Output columns whose window's column `j` lies within the image, and where the first reads.
    fn valid_columns(&self, j: usize) -> (usize, usize, usize) {
        let start = self.padding.saturating_sub(j).div_ceil(self.stride);
        // x·stride + j − padding < w
        let end = (self.w + self.padding)
            .saturating_sub(j)
            .div_ceil(self.stride)
            .min(self.w_out);
        let start = start.min(end);
        (
            start,
            end,
            (start * self.stride + j).saturating_sub(self.padding),
        )
    }

    /// Input row that window row `i` of output row `y` reads, if it is not padding.
    pub(crate) fn input_row(&self, y: usize, i: usize) -> Option<usize> {
        (y * self.stride + i)
            .checked_sub(self.padding)
            .filter(|row| *row < self.h)
    }

    /// Gathers patches: `columns [C·kh·kw, images·windows]`.
    fn gather(&self, images: &[f32], columns: &mut [f32]) {
        let (count, windows) = (images.len() / self.image_len(), self.windows());
        for_each_chunk(columns, count * windows, |index, row| {
            let (channel, i, j) = self.kernel_position(index);
            let (start, end, first) = self.valid_columns(j);
            for (image, row) in images
                .chunks_exact(self.image_len())
                .zip(row.chunks_mut(windows))
            {
                let plane = &image[channel * self.h * self.w..][..self.h * self.w];
                for (y, line) in row.chunks_exact_mut(self.w_out).enumerate() {
                    let Some(input) = self.input_row(y, i) else {
                        line.fill(0.0);
                        continue;
                    };
                    line[..start].fill(0.0);
                    line[end..].fill(0.0);
                    let line = &mut line[start..end];
                    if line.is_empty() {
                        continue;
                    }
                    let source = &plane[input * self.w + first..(input + 1) * self.w];
                    if self.stride == 1 {
                        line.copy_from_slice(&source[..line.len()]);
                    } else {
                        for (to, from) in line.iter_mut().zip(source.iter().step_by(self.stride)) {
                            *to = *from;
                        }
                    }
                }
            }
        });
    }

    /// Channel and position within the kernel of a row of columns.
    fn kernel_position(&self, index: usize) -> (usize, usize, usize) {
        let (channel, position) = (index / (self.kh * self.kw), index % (self.kh * self.kw));
        (channel, position / self.kw, position % self.kw)
    }

    /// Adds gathered gradients back onto zeroed images: the transpose of [`Sizes::gather`].
    fn scatter(&self, columns: &[f32], images: &mut [f32]) {
        let count = images.len() / self.image_len();
        let (windows, plane) = (self.windows(), self.h * self.w);
        for_each_chunk(images, plane, |index, plane| {
            let (image, channel) = (index / self.channels, index % self.channels);
            for position in 0..self.kh * self.kw {
                let (i, j) = (position / self.kw, position % self.kw);
                let row = (channel * self.kh * self.kw + position) * count + image;
                let (start, end, first) = self.valid_columns(j);
                if start == end {
                    continue;
                }
                let lines = columns[row * windows..][..windows].chunks_exact(self.w_out);
                for (y, line) in lines.enumerate() {
                    let Some(input) = self.input_row(y, i) else {
                        continue;
                    };
                    let target = &mut plane[input * self.w + first..(input + 1) * self.w];
                    if self.stride == 1 {
                        for (to, from) in target.iter_mut().zip(&line[start..end]) {
                            *to += from;
                        }
                    } else {
                        let targets = target.iter_mut().step_by(self.stride);
                        for (to, from) in targets.zip(&line[start..end]) {
                            *to += from;
                        }
                    }
                }
            }
        });
    }

    /// Whether the patches of an image are the image itself.
    pub(crate) fn is_pointwise(&self) -> bool {
        (self.kh, self.kw, self.stride, self.padding) == (1, 1, 1, 0)
    }
}

/// Copies `[outer, inner]` blocks of `run` elements to `[inner, outer]`.
fn swap_blocks(from: &[f32], to: &mut [f32], outer: usize, inner: usize, run: usize) {
    for_each_chunk(to, outer * run, |j, to| {
        for (i, to) in to.chunks_exact_mut(run).enumerate() {
            to.copy_from_slice(&from[(i * inner + j) * run..][..run]);
        }
    });
}

/// Patches of a group, or the image itself where that is the same.
fn columns<'a>(sizes: &Sizes, images: &'a [f32], buffer: &'a mut [f32]) -> &'a [f32] {
    let count = images.len() / sizes.image_len();
    if sizes.is_pointwise() && count == 1 {
        return images;
    }
    let buffer = &mut buffer[..sizes.window_len() * count * sizes.windows()];
    if sizes.is_pointwise() {
        swap_blocks(images, buffer, count, sizes.channels, sizes.windows());
    } else {
        sizes.gather(images, buffer);
    }
    buffer
}

fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32]) -> Vec<f32> {
    let (windows, step) = (sizes.windows(), sizes.images_per_group());
    let mut ys = vec![0f32; sizes.batch * sizes.out * windows];
    let mut buffer = vec![0f32; sizes.window_len() * step * windows];
    let mut product = vec![
        0f32;
        if step > 1 {
            sizes.out * step * windows
        } else {
            0
        }
    ];
    for (first, count) in sizes.groups() {
        let images = &xs[first * sizes.image_len()..][..count * sizes.image_len()];
        let patches = columns(sizes, images, &mut buffer);
        let patches = Mat(
            patches,
            View::row_major(sizes.window_len(), count * windows),
        );
        let view = View::row_major(sizes.out, count * windows);
        let ys = &mut ys[first * sizes.out * windows..][..count * sizes.out * windows];
        let weight = Mat(weight, sizes.weight_view());
        if count == 1 {
            multiply_into(ys, view, weight, patches, Threads::Pool);
        } else {
            let product = &mut product[..sizes.out * count * windows];
            multiply_into(product, view, weight, patches, Threads::Pool);
            swap_blocks(product, ys, sizes.out, count, windows);
        }
    }
    ys
}

/// `(dx, dw)`, each only if it is asked for.
fn backward(
    sizes: &Sizes,
    xs: Option<&[f32]>,
    weight: Option<&[f32]>,
    grad: &[f32],
) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
    let (windows, step) = (sizes.windows(), sizes.images_per_group());
    let mut dx = weight.map(|_| vec![0f32; sizes.batch * sizes.image_len()]);
    let mut dw = xs.map(|_| vec![0f32; sizes.out * sizes.window_len()]);
    let mut buffer = vec![0f32; sizes.window_len() * step * windows];
    let mut swapped = vec![
        0f32;
        if step > 1 {
            sizes.out * step * windows
        } else {
            0
        }
    ];
    for (first, count) in sizes.groups() {
        let len = count * sizes.out * windows;
        let grad = &grad[first * sizes.out * windows..][..len];
        let grad = if count == 1 {
            grad
        } else {
            swap_blocks(grad, &mut swapped[..len], count, sizes.out, windows);
            &swapped[..len]
        };
        let grad = Mat(grad, View::row_major(sizes.out, count * windows));
        let patch_view = View::row_major(sizes.window_len(), count * windows);
        let range = first * sizes.image_len()..(first + count) * sizes.image_len();
        if let (Some(xs), Some(dw)) = (xs, &mut dw) {
            let patches = Mat(
                columns(sizes, &xs[range.clone()], &mut buffer),
                patch_view.t(),
            );
            multiply_add(dw, sizes.weight_view(), grad, patches, Threads::Pool);
        }
        if let (Some(weight), Some(dx)) = (weight, &mut dx) {
            let weight = Mat(weight, sizes.weight_view().t());
            let images = &mut dx[range];
            if sizes.is_pointwise() && count == 1 {
                multiply_into(images, patch_view, weight, grad, Threads::Pool);
                continue;
            }
            let patches = &mut buffer[..sizes.window_len() * count * windows];
            multiply_into(patches, patch_view, weight, grad, Threads::Pool);
            if sizes.is_pointwise() {
                swap_blocks(patches, images, sizes.channels, count, windows);
            } else {
                sizes.scatter(patches, images);
            }
        }
    }
    (dx, dw)
}

struct Conv2d {
    stride: usize,
    padding: usize,
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d-im2col"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(
            xs_layout.shape(),
            weight_layout.shape(),
            self.stride,
            self.padding,
        )?;
        let ys = forward(&sizes, slice(xs, xs_layout)?, slice(weight, weight_layout)?);
        let shape = (sizes.batch, sizes.out, sizes.h_out, sizes.w_out);
        Ok((CpuStorage::F32(ys), shape.into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(xs.shape(), weight.shape(), self.stride, self.padding)?;
        let (need_dx, need_dw) = (xs.track_op(), weight.track_op());
        let (dx, dw) = with_slice(&grad.contiguous()?, |grad| {
            with_slice(xs, |xs| {
                with_slice(weight, |weight| {
                    let (xs, weight) = (need_dw.then_some(xs), need_dx.then_some(weight));
                    Ok(backward(&sizes, xs, weight, grad))
                })
            })
        })?;
        let dx = dx.map(|dx| host::tensor(dx, xs.shape())).transpose()?;
        let dw = dw.map(|dw| host::tensor(dw, weight.shape())).transpose()?;
        Ok((dx, dw))
    }
}
