//! A part of an image, its columns laid out like rows: what the vector routines resize from.

use std::ops::Range;

use image::RgbImage;

use super::coefficients::Coefficients;
use super::kernels::Planes;
use super::resize::Picture;
use crate::drawn::CropBox;
use crate::simd::Level;
use crate::simd::resample::{Order, Rows, resample};
use crate::simd::transpose::{transpose, transpose_rgb};

/// Pixels that are turned at a time, about what a core's second cache holds with their results.
const TURNED_AT_ONCE: usize = 1 << 17;

/// Largest part of an image, in pixels, that is turned once for several crops.
const SHARED_PIXELS: usize = 1 << 20;

/// Three planes, each turned on its side: a column of the image is a row of `region.height` bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turned {
    region: Option<CropBox>,
    bytes: Vec<u8>,
}

impl Turned {
    /// Takes in a box of an image.
    pub(crate) fn load(&mut self, image: &RgbImage, region: CropBox, level: Level) {
        let n = region.width * region.height;
        self.bytes.resize((3 * n).max(self.bytes.len()), 0);
        self.region = Some(region);
        let (red, rest) = self.bytes.split_at_mut(n);
        let (green, rest) = rest.split_at_mut(n);
        let blue = &mut rest[..n];
        let stride = 3 * image.width() as usize;
        transpose_rgb(
            level,
            [red, green, blue],
            region.height,
            &image.as_raw()[region.top * stride + 3 * region.left..],
            stride,
            (region.width, region.height),
        );
    }

    /// Takes in the part of an image that holds all of some boxes, unless it is too large.
    ///
    /// The values are those of this image until the next call, or none.
    pub(crate) fn load_shared(
        &mut self,
        image: &RgbImage,
        boxes: impl Iterator<Item = CropBox>,
        level: Level,
    ) {
        let region = boxes.reduce(CropBox::around);
        self.region = None;
        if let Some(region) = region
            && level != Level::SCALAR
            && region.width * region.height <= SHARED_PIXELS
        {
            self.load(image, region, level);
        }
    }

    /// Columns of a channel in a range of rows of the image, from column `left` of the image on.
    fn columns(&self, channel: usize, left: usize, rows: &Range<usize>) -> Option<Rows<'_>> {
        let region = self.region?;
        let n = region.width * region.height;
        let start = (left - region.left) * region.height + rows.start - region.top;
        Some(Rows {
            bytes: &self.bytes[channel * n..][..n][start..],
            stride: region.height,
            len: rows.len(),
        })
    }
}

impl<'a> Picture<'a> {
    /// What holds at least a box of the image: what is shared, or a strip that takes it in.
    fn part(self, region: CropBox, strip: &'a mut Turned, level: Level) -> &'a Turned {
        if self.shared.region.is_none() {
            strip.load(self.image, region, level);
            return strip;
        }
        self.shared
    }
}

/// Buffers of both resizes.
#[derive(Debug, Clone, Default)]
pub(crate) struct TurnedBuffers {
    /// The part of the image that is being resized, where it is not shared.
    strip: Turned,
    /// Columns of a strip after the horizontal pass.
    narrowed: Vec<u8>,
    /// What lies between the passes, the three channels one after the other.
    between: Vec<u8>,
    /// Rows of a strip, and those rows after the vertical pass.
    upright: Vec<u8>,
    shortened: Vec<u8>,
}

/// Horizontal pass, then vertical pass; the tables count from the corner of `crop`.
///
/// What the picture shares holds at least the crop, or nothing.
pub(crate) fn narrowed_then_shortened(
    picture: Picture,
    crop: CropBox,
    [horizontal, vertical]: [Coefficients; 2],
    order: Order,
    level: Level,
    planes: &mut Planes,
    buffers: &mut TurnedBuffers,
) {
    let TurnedBuffers {
        strip,
        narrowed,
        between,
        ..
    } = buffers;
    let width = planes.width;
    let (columns, rows) = (horizontal.input_range(), vertical.input_range());
    let (left, top) = (crop.left + columns.start, crop.top + rows.start);
    let plane_len = rows.len() * width;
    between.resize((3 * plane_len).max(between.len()), 0);

    let strip_height = if picture.shared.region.is_some() {
        rows.len()
    } else {
        (TURNED_AT_ONCE / columns.len()).clamp(16, rows.len().max(16))
    };
    for start in (0..rows.len()).step_by(strip_height) {
        let height = strip_height.min(rows.len() - start);
        let image_rows = top + start..top + start + height;
        let region = CropBox {
            left,
            top: image_rows.start,
            width: columns.len(),
            height,
        };
        let source = picture.part(region, strip, level);
        narrowed.resize((width * height).max(narrowed.len()), 0);
        for (channel, between) in between[..3 * plane_len]
            .chunks_exact_mut(plane_len)
            .enumerate()
        {
            let columns = source
                .columns(channel, left, &image_rows)
                .expect("a region was loaded or shared");
            resample(level, narrowed, height, columns, horizontal, order);
            transpose(
                level,
                &mut between[start * width..],
                width,
                narrowed,
                height,
                (height, width),
            );
        }
    }
    let channels = between.chunks_exact(plane_len.max(1));
    for (out, bytes) in planes.channels_mut().into_iter().zip(channels) {
        let rows = Rows {
            bytes,
            stride: width,
            len: width,
        };
        resample(level, out, width, rows, vertical, Order::Forward);
    }
}

/// Vertical pass, then horizontal pass, otherwise like [`narrowed_then_shortened`].
pub(crate) fn shortened_then_narrowed(
    picture: Picture,
    crop: CropBox,
    [horizontal, vertical]: [Coefficients; 2],
    order: Order,
    level: Level,
    planes: &mut Planes,
    buffers: &mut TurnedBuffers,
) {
    let TurnedBuffers {
        strip,
        narrowed,
        between,
        upright,
        shortened,
    } = buffers;
    let (width, height) = (planes.width, planes.height);
    let (columns, rows) = (horizontal.input_range(), vertical.input_range());
    let (left, top) = (crop.left + columns.start, crop.top + rows.start);
    let image_rows = top..top + rows.len();
    // Columns between the passes, turned.
    let plane_len = columns.len() * height;
    between.resize((3 * plane_len).max(between.len()), 0);

    let strip_width = (TURNED_AT_ONCE / rows.len()).clamp(16, columns.len().max(16));
    for start in (0..columns.len()).step_by(strip_width) {
        let strip_width = strip_width.min(columns.len() - start);
        let region = CropBox {
            left: left + start,
            top,
            width: strip_width,
            height: rows.len(),
        };
        let source = picture.part(region, strip, level);
        upright.resize((strip_width * rows.len()).max(upright.len()), 0);
        shortened.resize((strip_width * height).max(shortened.len()), 0);
        for (channel, between) in between[..3 * plane_len]
            .chunks_exact_mut(plane_len)
            .enumerate()
        {
            let turned = source
                .columns(channel, left + start, &image_rows)
                .expect("a region was loaded or shared");
            let shape = (rows.len(), strip_width);
            transpose(
                level,
                upright,
                strip_width,
                turned.bytes,
                turned.stride,
                shape,
            );
            let source = Rows {
                bytes: upright,
                stride: strip_width,
                len: strip_width,
            };
            resample(
                level,
                shortened,
                strip_width,
                source,
                vertical,
                Order::Forward,
            );
            let out = &mut between[start * height..];
            transpose(
                level,
                out,
                height,
                shortened,
                strip_width,
                (strip_width, height),
            );
        }
    }
    narrowed.resize((width * height).max(narrowed.len()), 0);
    let channels = between.chunks_exact(plane_len.max(1));
    for (out, bytes) in planes.channels_mut().into_iter().zip(channels) {
        let source = Rows {
            bytes,
            stride: height,
            len: height,
        };
        resample(level, narrowed, height, source, horizontal, order);
        transpose(level, out, width, narrowed, height, (height, width));
    }
}
