//! JPEG by `zune-jpeg` in strict mode: `image` itself returns a truncated file as a success.

use image::RgbImage;
use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{DecodeError, Limits, upright};

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
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);

    if ends_in_zeros(bytes) {
        return Err(DecodeError::Truncated {
            format: "JPEG",
            problem: "zeros where the picture should go on".to_owned(),
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

/// Whether the last scan runs into zeros instead of a marker: a file whose rest was never written.
///
/// Zeros are valid codes, so a decoder makes a smear of them. They never stand in a row in a
/// picture: an encoder that has nothing more to say ends the block.
fn ends_in_zeros(bytes: &[u8]) -> bool {
    const FEWEST: usize = 32;
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !bytes.last_chunk::<FEWEST>().is_some_and(|end| is_zero(end)) {
        return false;
    }
    // Within a scan 0xff is always followed by 0, so both are what they look like.
    let last_scan = bytes.windows(2).rposition(|pair| pair == START_OF_SCAN);
    last_scan.is_some_and(|at| !bytes[at..].windows(2).any(|pair| pair == END_OF_IMAGE))
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
