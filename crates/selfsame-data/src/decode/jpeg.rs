//! JPEG by `zune-jpeg` in strict mode: `image` itself returns a truncated file as a success.

use image::RgbImage;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{DecodeError, Limits, orientation_of, upright};

/// Decodes grey, YCbCr, RGB, CMYK and YCCK, baseline or progressive.
///
/// Four-channel files are taken as Adobe writes them (0 is full ink), as every viewer does.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    // The size limits are ours, checked below: zune's would come as an untyped text.
    // Cameras leave stray bytes between header segments, which harm nothing: strictness begins
    // with the picture itself.
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(jpeg_error)?;
    let info = decoder
        .info()
        .ok_or_else(|| corrupt("no frame header".to_owned()))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    limits.check(width, height)?;
    let orientation = orientation_of(decoder.exif().map_or(&[], Vec::as_slice));

    // A decoder makes up what a cut took off the last blocks, and a smear of zeros.
    if !has_end(bytes) {
        let problem = match ends_in_zeros(bytes) {
            true => "zeros where the picture should go on",
            false => "the mark of the picture's end is missing",
        };
        return Err(DecodeError::Truncated {
            format: "JPEG",
            problem: problem.to_owned(),
        });
    }
    let mut pixels = vec![0u8; width as usize * height as usize * 3];
    if decoder.output_buffer_size() != Some(pixels.len()) {
        return Err(corrupt("unexpected size of the decoded picture".to_owned()));
    }
    decoder.set_options(options.set_strict_mode(true));
    decoder.decode_into(&mut pixels).map_err(jpeg_error)?;
    let picture = RgbImage::from_raw(width, height, pixels)
        .expect("the buffer was allocated with three bytes a pixel");
    Ok(upright(picture, orientation))
}

/// Whether a picture without an end runs into zeros: a file whose rest was never written.
fn ends_in_zeros(bytes: &[u8]) -> bool {
    const FEWEST: usize = 32;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    bytes.last_chunk::<FEWEST>().is_some_and(|end| is_zero(end))
}

/// Whether the end of the picture is there, or none of its scans. What stands behind the end, such
/// as another picture or a film, is not looked at, nor a small picture within the header.
fn has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    if bytes.ends_with(&[0xff, END_OF_IMAGE]) {
        return true;
    }
    let (mut at, mut has_scan) = (0, false);
    // Within a scan 0xff is followed by 0 or the number of a restart, unless it is a marker.
    while let Some(found) = bytes[at..].windows(2).position(|pair| pair[0] == 0xff) {
        at += found + 1;
        match bytes[at] {
            END_OF_IMAGE => return true,
            // None, the same again, and those without a segment.
            0x00 | 0xff | 0x01 | 0xd0..=0xd8 => {}
            marker => {
                has_scan |= marker == START_OF_SCAN;
                let length = bytes.get(at + 1..at + 3);
                let length = length.map_or(0, |two| u16::from_be_bytes([two[0], two[1]]).into());
                at = (at + 1 + usize::max(length, 2)).min(bytes.len());
            }
        }
    }
    !has_scan
}

fn corrupt(problem: String) -> DecodeError {
    DecodeError::Corrupt {
        format: "JPEG",
        problem,
    }
}

fn jpeg_error(error: DecodeErrors) -> DecodeError {
    let problem = format!("{error:?}").trim().trim_matches('"').to_owned();
    match error {
        DecodeErrors::Unsupported(_) => DecodeError::Unsupported { what: problem },
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => DecodeError::Truncated {
            format: "JPEG",
            problem,
        },
        _ => corrupt(problem),
    }
}
