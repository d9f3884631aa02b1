//! Pillow's antialiased resize in fixed point (Resample.c): horizontal pass first (but see
//! [`vertical_first`]), bytes between the passes.
//!
//! Here stands the scalar way, from interleaved pixels; [`super::turned`] has the way of the vector
//! routines.

use std::ops::Range;

use image::RgbImage;

use super::coefficients::{AxisResize, Coefficients, Tables};
use super::flip;
use super::kernels::{self, Planes};
use super::turned::{self, Turned, TurnedBuffers};
use crate::config::Interpolation;
use crate::drawn::CropBox;
use crate::simd::Level;
use crate::simd::resample::Order;

#[derive(Debug, Clone, Default)]
pub(crate) struct ResizeBuffers {
    tables: Tables,
    scalar: ScalarBuffers,
    turned: TurnedBuffers,
}

#[derive(Debug, Clone, Default)]
struct ScalarBuffers {
    /// What the first pass leaves for the second.
    between: Vec<u8>,
    sums: Vec<i32>,
}

/// An image to cut from, and the part of it that several crops share.
#[derive(Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) image: &'a RgbImage,
    /// Holds every box that is cut out, or nothing.
    pub(crate) shared: &'a Turned,
}

/// A part of a resized image: only these columns and rows of the full result are computed.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) full_width: usize,
    pub(crate) full_height: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// Whether left and right change places.
    pub(crate) order: Order,
}

impl Window {
    /// The whole result.
    pub(crate) fn whole(width: usize, height: usize) -> Self {
        Self {
            full_width: width,
            full_height: height,
            columns: 0..width,
            rows: 0..height,
            order: Order::Forward,
        }
    }
}

/// Cuts a box out of an image and resizes it; the planes take the window's size.
pub(crate) fn resize_box(
    picture: Picture,
    crop: CropBox,
    window: Window,
    interpolation: Interpolation,
    level: Level,
    planes: &mut Planes,
    buffers: &mut ResizeBuffers,
) {
    let image = picture.image;
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
        order,
    } = window;
    let axis = |input, output, window| AxisResize {
        input,
        output,
        window,
        interpolation,
    };
    let horizontal = axis(crop.width, full_width, columns);
    let vertical = axis(crop.height, full_height, rows);
    let tables = buffers.tables.of(level, [horizontal, vertical]);

    let is_vertical_first = vertical_first(interpolation, crop, full_width, full_height);
    if level != Level::SCALAR {
        let turned = &mut buffers.turned;
        let resize = match is_vertical_first {
            true => turned::shortened_then_narrowed,
            false => turned::narrowed_then_shortened,
        };
        return resize(picture, crop, tables, order, level, planes, turned);
    }
    let source = Source {
        rgb: image.as_raw(),
        stride: 3 * image_width,
        crop,
    };
    if is_vertical_first {
        shortened_then_narrowed(source, tables, planes, &mut buffers.scalar);
    } else {
        narrowed_then_shortened(source, tables, planes, &mut buffers.scalar);
    }
    if order == Order::Mirrored {
        flip::horizontal_flip_planes(planes);
    }
}

/// Whether the vertical pass comes first; bytes between the passes make the order visible.
///
/// Pillow before 13 does so when it shrinks a strip more than 100 times as tall as wide
/// (`Image.resize` in Image.py). The rule of 13.0.0 was found by comparing results and holds for
/// 3,000 random shapes.
fn vertical_first(
    interpolation: Interpolation,
    crop: CropBox,
    full_width: usize,
    full_height: usize,
) -> bool {
    match interpolation {
        Interpolation::Bilinear | Interpolation::Bicubic => {
            crop.height > 100 * crop.width && full_height < crop.height
        }
        Interpolation::BilinearPillow13 | Interpolation::BicubicPillow13 => {
            let rows_gone = crop.height as i64 - full_height as i64;
            let columns_gone = crop.width as i64 - full_width as i64;
            rows_gone > 0 && rows_gone > 2 * columns_gone
        }
    }
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
fn narrowed_then_shortened(
    source: Source,
    [horizontal, vertical]: [Coefficients; 2],
    planes: &mut Planes,
    ScalarBuffers { between, sums }: &mut ScalarBuffers,
) {
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

/// Vertical pass, then horizontal pass: where [`vertical_first`] says so.
fn shortened_then_narrowed(
    source: Source,
    [horizontal, vertical]: [Coefficients; 2],
    planes: &mut Planes,
    ScalarBuffers { between, sums }: &mut ScalarBuffers,
) {
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
fn narrow_row(row: &[u8], horizontal: Coefficients, [red, green, blue]: [&mut [u8]; 3]) {
    for (x, (first, count, weights)) in horizontal.iter().enumerate() {
        let taps = &row[3 * first..3 * (first + count)];
        [red[x], green[x], blue[x]] = kernels::resample_pixel(taps, weights);
    }
}
