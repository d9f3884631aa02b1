//! Pillow's antialiased resize in fixed point (Resample.c): horizontal pass first (but see
//! [`vertical_first`]), bytes between the passes.

use std::ops::Range;

use image::RgbImage;

use super::kernels::{self, PRECISION_BITS, Planes};
use crate::config::Interpolation;
use crate::drawn::CropBox;

/// Where each output pixel of one axis reads, and with which weights.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coefficients {
    /// First input pixel and number of input pixels, per output pixel.
    spans: Vec<(usize, usize)>,
    /// `stride` fixed-point weights per output pixel, the unused ones 0.
    weights: Vec<i32>,
    stride: usize,
    /// The weights of one pixel before rounding.
    exact: Vec<f64>,
}

impl Coefficients {
    /// Fills the table for the output pixels `window` of a resize from `input` to `output` pixels.
    fn prepare(
        &mut self,
        input: usize,
        output: usize,
        window: Range<usize>,
        interpolation: Interpolation,
    ) {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = interpolation.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.weights.clear();
        for x in window {
            let center = (x as f64 + 0.5) * scale;
            // The casts cut off towards zero, and negative values become 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            self.exact.clear();
            self.exact.extend(
                (first..end).map(|i| interpolation.weight((i as f64 - center + 0.5) * inverse)),
            );
            let sum: f64 = self.exact.iter().sum();
            let start = self.weights.len();
            self.weights.extend(self.exact.iter().map(|weight| {
                let weight = if sum != 0.0 { weight / sum } else { *weight };
                let fixed = weight * f64::from(1u32 << PRECISION_BITS);
                (if weight < 0.0 {
                    fixed - 0.5
                } else {
                    fixed + 0.5
                }) as i32
            }));
            self.weights.resize(start + self.stride, 0);
            self.spans.push((first, end - first));
        }
    }

    /// First input pixel, number of input pixels and weights of each output pixel of the window.
    fn iter(&self) -> impl Iterator<Item = (usize, usize, &[i32])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride))
            .map(|(&(first, count), weights)| (first, count, &weights[..count]))
    }

    /// All input pixels that the window reads.
    fn input_range(&self) -> Range<usize> {
        let first = self.spans.first().map_or(0, |&(first, _)| first);
        let end = self.spans.last().map_or(0, |&(first, count)| first + count);
        first..end
    }
}

impl Interpolation {
    /// Half width of the filter at scale 1, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ResizeBuffers {
    horizontal: Coefficients,
    vertical: Coefficients,
    /// What the first pass leaves for the second.
    between: Vec<u8>,
    sums: Vec<i32>,
}

/// A part of a resized image: only these columns and rows of the full result are computed.
pub(crate) struct Window {
    pub(crate) full_width: usize,
    pub(crate) full_height: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) rows: Range<usize>,
}

/// Cuts a box out of an image and resizes it into `planes`.
pub(crate) fn resize_box(
    image: &RgbImage,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
    planes: &mut Planes,
    buffers: &mut ResizeBuffers,
) {
    let whole = Window {
        full_width: width,
        full_height: height,
        columns: 0..width,
        rows: 0..height,
    };
    resize_part(image, crop, whole, interpolation, planes, buffers);
}

/// Resizes a whole image, but computes only a window of the result.
pub(crate) fn resize_window(
    image: &RgbImage,
    window: Window,
    interpolation: Interpolation,
    planes: &mut Planes,
    buffers: &mut ResizeBuffers,
) {
    let whole = CropBox::whole(image.width() as usize, image.height() as usize);
    resize_part(image, whole, window, interpolation, planes, buffers);
}

fn resize_part(
    image: &RgbImage,
    crop: CropBox,
    window: Window,
    interpolation: Interpolation,
    planes: &mut Planes,
    buffers: &mut ResizeBuffers,
) {
    let (image_width, image_height) = (image.width() as usize, image.height() as usize);
    assert!(
        crop.width > 0
            && crop.height > 0
            && crop.left + crop.width <= image_width
            && crop.top + crop.height <= image_height,
        "{crop:?} is not a box of pixels within {image_width} x {image_height}"
    );
    let (width, height) = (window.columns.len(), window.rows.len());
    planes.reset(width, height);
    if width == 0 || height == 0 {
        return;
    }
    let Window {
        full_width,
        full_height,
        columns,
        rows,
    } = window;
    buffers
        .horizontal
        .prepare(crop.width, full_width, columns, interpolation);
    buffers
        .vertical
        .prepare(crop.height, full_height, rows, interpolation);

    let source = Source {
        rgb: image.as_raw(),
        stride: 3 * image_width,
        crop,
    };
    if vertical_first(crop, full_height) {
        shortened_then_narrowed(source, planes, buffers);
    } else {
        narrowed_then_shortened(source, planes, buffers);
    }
}

/// Pillow before 13 takes the vertical pass first when it shrinks a strip more than 100 times as
/// tall as wide (`Image.resize` in Image.py); bytes between the passes make the order visible.
fn vertical_first(crop: CropBox, full_height: usize) -> bool {
    crop.height > 100 * crop.width && full_height < crop.height
}

/// A box of an image of interleaved bytes.
#[derive(Clone, Copy)]
struct Source<'a> {
    rgb: &'a [u8],
    /// Bytes from one row to the next.
    stride: usize,
    crop: CropBox,
}

impl<'a> Source<'a> {
    /// A row of the box.
    fn row(self, y: usize) -> &'a [u8] {
        let start = (self.crop.top + y) * self.stride + 3 * self.crop.left;
        &self.rgb[start..start + 3 * self.crop.width]
    }

    /// The rest of the image from the first pixel of a row of the box.
    fn rows_from(self, y: usize) -> &'a [u8] {
        &self.rgb[(self.crop.top + y) * self.stride + 3 * self.crop.left..]
    }
}

/// Horizontal pass, then vertical pass: the usual way.
fn narrowed_then_shortened(source: Source, planes: &mut Planes, buffers: &mut ResizeBuffers) {
    let ResizeBuffers {
        horizontal,
        vertical,
        between,
        sums,
    } = buffers;
    let width = planes.width;
    // Rows that the vertical pass will read, narrowed to the window's columns, in three planes.
    let rows = vertical.input_range();
    let plane_len = rows.len() * width;
    between.resize(3 * plane_len, 0);
    let (red, rest) = between.split_at_mut(plane_len);
    let (green, blue) = rest.split_at_mut(plane_len);
    for (i, y) in rows.clone().enumerate() {
        let out = [&mut *red, &mut *green, &mut *blue].map(|p| &mut p[i * width..][..width]);
        narrow_row(source.row(y), horizontal, out);
    }
    for (out, plane) in planes
        .channels_mut()
        .into_iter()
        .zip([&*red, &*green, &*blue])
    {
        let spans = out.chunks_exact_mut(width).zip(vertical.iter());
        for (out, (first, count, weights)) in spans {
            let taps = &plane[(first - rows.start) * width..][..count * width];
            kernels::resample_rows(out, taps, width, weights, sums);
        }
    }
}

/// Vertical pass, then horizontal pass: for the strips of [`vertical_first`].
fn shortened_then_narrowed(source: Source, planes: &mut Planes, buffers: &mut ResizeBuffers) {
    let ResizeBuffers {
        horizontal,
        vertical,
        between,
        sums,
    } = buffers;
    let width = planes.width;
    between.resize(3 * source.crop.width, 0);
    for (i, (first, _, weights)) in vertical.iter().enumerate() {
        let taps = source.rows_from(first);
        kernels::resample_rows(between, taps, source.stride, weights, sums);
        let out = planes.channels_mut().map(|p| &mut p[i * width..][..width]);
        narrow_row(between, horizontal, out);
    }
}

/// The horizontal pass of one row of interleaved bytes.
fn narrow_row(row: &[u8], horizontal: &Coefficients, [red, green, blue]: [&mut [u8]; 3]) {
    for (x, (first, count, weights)) in horizontal.iter().enumerate() {
        let taps = &row[3 * first..3 * (first + count)];
        [red[x], green[x], blue[x]] = kernels::resample_pixel(taps, weights);
    }
}
