//! Bytes to an upright RGB picture: strict (damage is an error) and bounded (size before memory).

mod chunks;
mod flatten;
mod jpeg;

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

/// The largest picture and file that are decoded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most pixels in a picture: 50 million.
    pub max_pixels: u64,
    /// Most pixels on either side: 16,384.
    pub max_side: u32,
    /// Most bytes in a file: 512 MiB, so that a video among the pictures is not read into memory.
    pub max_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pixels: 50_000_000,
            max_side: 16_384,
            max_file_bytes: 512 << 20,
        }
    }
}

impl Limits {
    /// Refuses a size before anything is allocated for it.
    fn check(&self, width: u32, height: u32) -> Result<(), DecodeError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels || width.max(height) > self.max_side {
            return Err(DecodeError::TooLarge {
                width,
                height,
                max_pixels: self.max_pixels,
                max_side: self.max_side,
            });
        }
        if pixels == 0 {
            return Err(DecodeError::Corrupt {
                format: "image",
                problem: format!("{width}x{height} pixels"),
            });
        }
        Ok(())
    }

    /// Bytes a decoder may allocate: four 32-bit channels a pixel, and 16 MiB of tables.
    fn max_alloc(&self) -> u64 {
        self.max_pixels.saturating_mul(16).saturating_add(16 << 20)
    }
}

/// Why one image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file does not exist.
    #[error("no such file")]
    Missing,
    /// It is a folder, a pipe or a device.
    #[error("not a regular file")]
    NotAFile,
    /// The operating system refused to read it.
    #[error("cannot be read")]
    Io(#[source] io::Error),
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// Its first bytes are those of no image format.
    #[error("not an image: unknown first bytes")]
    UnknownFormat,
    /// An image, in a format or a variant that is not supported.
    #[error("unsupported: {what}")]
    Unsupported {
        /// The format or variant.
        what: String,
    },
    /// The picture has more pixels than allowed; nothing was allocated for it.
    #[error(
        "{width}x{height} pixels are more than the limit of {max_pixels} in all and {max_side} \
         a side"
    )]
    TooLarge {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit in pixels.
        max_pixels: u64,
        /// The limit for each side in pixels.
        max_side: u32,
    },
    /// The file has more bytes than allowed, or its decoding would need too much memory.
    #[error("needs more memory than allowed: {what}")]
    TooMuchMemory {
        /// What is too large.
        what: String,
    },
    /// The data end before the picture does.
    #[error("truncated {format}: {problem}")]
    Truncated {
        /// The image format.
        format: &'static str,
        /// The decoder's words.
        problem: String,
    },
    /// The data contradict the format.
    #[error("corrupt {format}: {problem}")]
    Corrupt {
        /// The image format.
        format: &'static str,
        /// The decoder's words.
        problem: String,
    },
    /// The decoder panicked on these bytes.
    #[error("the {format} decoder panicked: {problem}")]
    Panicked {
        /// The image format.
        format: &'static str,
        /// The panic's message.
        problem: String,
    },
}

impl DecodeError {
    /// The kind in a word or two, for counting: the same for every file with the same trouble.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotAFile => "not a file",
            Self::Io(_) => "unreadable",
            Self::Empty => "empty",
            Self::UnknownFormat => "not an image",
            Self::Unsupported { .. } => "unsupported",
            Self::TooLarge { .. } | Self::TooMuchMemory { .. } => "too large",
            Self::Truncated { .. } => "truncated",
            Self::Corrupt { .. } => "corrupt",
            Self::Panicked { .. } => "decoder panicked",
        }
    }
}

/// Reads and decodes one file.
///
/// The format is told from the content; a file of an unknown format is not read to its end.
///
/// # Errors
/// [`DecodeError`], also for what is not a regular file.
pub fn decode_file(path: &Path, limits: &Limits) -> Result<RgbImage, DecodeError> {
    // Asked first, because opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(DecodeError::NotAFile);
    }
    let mut file = File::open(path).map_err(read_error)?;
    let mut bytes = Vec::with_capacity(64);
    (&mut file)
        .take(64)
        .read_to_end(&mut bytes)
        .map_err(DecodeError::Io)?;
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    format_of(&bytes)?;
    if metadata.len() > limits.max_file_bytes {
        return Err(DecodeError::TooMuchMemory {
            what: format!("a file of {} bytes", metadata.len()),
        });
    }
    bytes.reserve(metadata.len() as usize);
    // The file may grow meanwhile: what lies behind the limit is not read.
    file.take(limits.max_file_bytes)
        .read_to_end(&mut bytes)
        .map_err(DecodeError::Io)?;
    decode_bytes(&bytes, limits)
}

/// Decodes JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF, whatever the file was called.
///
/// EXIF orientation is applied, alpha is flattened on white, 16-bit channels are scaled to 8, CMYK
/// becomes RGB. A JPEG that ends early is an error, not a picture with a grey rest.
///
/// # Errors
/// [`DecodeError::TooLarge`] before anything is allocated; else what is wrong with the bytes.
pub fn decode_bytes(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = format_of(bytes)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        other => decode_with_image(bytes, other, limits),
    }));
    decoded.unwrap_or_else(|panic| {
        Err(DecodeError::Panicked {
            format: name_of(format),
            problem: panic_message(&*panic),
        })
    })
}

fn decode_with_image(
    bytes: &[u8],
    format: ImageFormat,
    limits: &Limits,
) -> Result<RgbImage, DecodeError> {
    let failed = |error| match (
        image_error(error, name_of(format)),
        chunks::told_length(bytes, format),
    ) {
        // The decoder does not tell one from the other.
        (DecodeError::Corrupt { format, .. }, Some(told)) if told > bytes.len() as u64 => {
            let problem = format!("it tells of {told} bytes and has {}", bytes.len());
            DecodeError::Truncated { format, problem }
        }
        (error, _) => error,
    };
    for (width, height) in chunks::frame_sizes(bytes, format) {
        limits.check(width, height)?;
    }
    let readable = chunks::without_false_claims(bytes, format);
    let mut reader = ImageReader::new(Cursor::new(&*readable));
    reader.set_format(format);
    let mut bound = image::Limits::no_limits();
    bound.max_alloc = Some(limits.max_alloc());
    reader.limits(bound);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let orientation = match format {
        ImageFormat::WebP | ImageFormat::Png => {
            orientation_of(chunks::exif(bytes, format).unwrap_or_default())
        }
        _ => decoder.orientation().unwrap_or(Orientation::NoTransforms),
    };
    let picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
    Ok(upright(flatten::to_rgb(picture), orientation))
}

/// The orientation that EXIF tells. Some programs write its name before it where it has no place;
/// Pillow passes over that too.
fn orientation_of(mut exif: &[u8]) -> Orientation {
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms)
}

/// Turns and mirrors the stored picture into the one to be looked at.
fn upright(picture: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(orientation);
    picture.into_rgb8()
}

/// The format by its first bytes, if it is one of the six.
fn format_of(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Gif
            | ImageFormat::Tiff),
        ) => Ok(format),
        Ok(other) => Err(DecodeError::Unsupported {
            what: format!("{other:?} images"),
        }),
        Err(_) => Err(DecodeError::UnknownFormat),
    }
}

fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Tiff => "TIFF",
        _ => "image",
    }
}

fn read_error(error: io::Error) -> DecodeError {
    match error.kind() {
        io::ErrorKind::NotFound => DecodeError::Missing,
        _ => DecodeError::Io(error),
    }
}

fn image_error(error: ImageError, format: &'static str) -> DecodeError {
    let problem = chunks_by_name(&error.to_string());
    // The decoders wrap this in errors of their own, not all of which can be taken apart.
    if problem.to_lowercase().contains("unexpected end of file") {
        return DecodeError::Truncated { format, problem };
    }
    match error {
        ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let problem = "unexpected end of file".to_owned();
            DecodeError::Truncated { format, problem }
        }
        ImageError::Limits(error) => DecodeError::TooMuchMemory {
            what: error.to_string(),
        },
        ImageError::Unsupported(error) => DecodeError::Unsupported {
            what: error.to_string(),
        },
        _ => DecodeError::Corrupt { format, problem },
    }
}

/// The PNG decoder's text with `IDAT` for its `ChunkType { type: IDAT, … }`.
fn chunks_by_name(problem: &str) -> String {
    let mut parts = problem.split("ChunkType { type: ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (chunk, rest) = part.split_once(" }").unwrap_or((part, ""));
        text.push_str(chunk.split(',').next().unwrap_or_default());
        text.push_str(rest);
    }
    text
}

/// The text of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod mutated;
#[cfg(test)]
mod tests;
