//! The blocks of WebP, PNG and GIF files, walked in memory without decoding anything.
//!
//! The decoders ask for the memory that a chunk claims or a frame within the file has, whatever the
//! size of the picture, and pass over EXIF where it may lie. What is told here is checked before.

use std::borrow::Cow;

use image::ImageFormat;

/// The file without a WebP header's claims of EXIF and XMP that it does not hold, as programs leave
/// that take these out: Pillow passes over the claim, the decoder here would refuse the file.
pub(super) fn without_false_claims(bytes: &[u8], format: ImageFormat) -> Cow<'_, [u8]> {
    const FLAGS_AT: usize = 20;
    let claims = [(0x08, *b"EXIF"), (0x04, *b"XMP ")];
    let is_extended = |chunk: &Chunk<'_>| chunk.name == *b"VP8X" && !chunk.data.is_empty();
    let mut cleared = Cow::Borrowed(bytes);
    let file = webp_file(bytes);
    if format == ImageFormat::WebP && webp_chunks(file).next().is_some_and(|c| is_extended(&c)) {
        for (flag, name) in claims {
            let is_there = || webp_chunks(file).any(|chunk| chunk.name == name);
            if bytes[FLAGS_AT] & flag != 0 && !is_there() {
                cleared.to_mut()[FLAGS_AT] &= !flag;
            }
        }
    }
    cleared
}

/// Width and height of every frame that a decoder may make of the file, beside the picture's own.
pub(super) fn frame_sizes(bytes: &[u8], format: ImageFormat) -> Vec<(u32, u32)> {
    match format {
        ImageFormat::WebP => webp_frames(bytes),
        ImageFormat::Gif => gif_frame(bytes).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// What the file has of EXIF, if it is whole; before or behind the picture. A WebP file must say in
/// its header that there is some, as Pillow asks.
pub(super) fn exif(bytes: &[u8], format: ImageFormat) -> Option<&[u8]> {
    match format {
        ImageFormat::WebP => {
            const HAS_EXIF: u8 = 0x08;
            let mut chunks = webp_chunks(webp_file(bytes));
            // A file that begins with the picture has no other chunks.
            let header = chunks.next().filter(|chunk| chunk.name == *b"VP8X")?;
            if header.data.first()? & HAS_EXIF == 0 {
                return None;
            }
            let mut found = chunks.filter(|chunk| chunk.name == *b"EXIF");
            found.next()?.whole()
        }
        ImageFormat::Png => {
            let chunks = png_chunks(bytes).take_while(|chunk| chunk.name != *b"IEND");
            let mut found = chunks.filter(|chunk| chunk.name == *b"eXIf");
            found.next()?.whole()
        }
        _ => None,
    }
}

/// A chunk as far as it is there.
struct Chunk<'a> {
    name: [u8; 4],
    /// Bytes that it claims to have.
    claimed: u64,
    data: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn whole(self) -> Option<&'a [u8]> {
        (self.data.len() as u64 == self.claimed).then_some(self.data)
    }
}

/// The bytes that a file should have by its own word, where its format has one for it.
pub(super) fn told_length(bytes: &[u8], format: ImageFormat) -> Option<u64> {
    match format {
        ImageFormat::WebP => {
            let length = bytes.get(4..)?.first_chunk()?;
            Some(8 + u64::from(u32::from_le_bytes(*length)))
        }
        _ => None,
    }
}

/// A WebP file as far as it tells its own length: what stands behind that is no part of it.
fn webp_file(bytes: &[u8]) -> &[u8] {
    until(bytes, told_length(bytes, ImageFormat::WebP).unwrap_or(0))
}

/// The chunks of a WebP file, behind `RIFF`, its length and `WEBP`.
fn webp_chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    riff_chunks(bytes.get(12..).unwrap_or_default())
}

fn riff_chunks(mut rest: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (name, after) = rest.split_first_chunk()?;
        let (length, after) = after.split_first_chunk()?;
        let claimed = u64::from(u32::from_le_bytes(*length));
        rest = from(after, claimed + claimed % 2);
        let data = until(after, claimed);
        Some(Chunk {
            name: *name,
            claimed,
            data,
        })
    })
}

/// The chunks of a PNG file, behind its signature.
fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_first_chunk()?;
        let claimed = u64::from(u32::from_be_bytes(*length));
        rest = from(after, claimed + 4); // a checksum ends it
        let data = until(after, claimed);
        Some(Chunk {
            name: *name,
            claimed,
            data,
        })
    })
}

/// What stands before a place that may lie behind the end.
fn until(bytes: &[u8], at: u64) -> &[u8] {
    &bytes[..bytes.len().min(usize::try_from(at).unwrap_or(usize::MAX))]
}

/// What stands from there on.
fn from(bytes: &[u8], at: u64) -> &[u8] {
    &bytes[until(bytes, at).len()..]
}

/// Sizes of the lossy frames of a WebP file: those of lossless ones are compared before they are
/// decoded.
fn webp_frames(bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut frames = Vec::new();
    for chunk in webp_chunks(bytes) {
        match &chunk.name {
            b"VP8 " => frames.extend(vp8_size(chunk.data)),
            b"ANMF" => {
                // Place, size and duration of the frame; then its chunks, of which the decoder takes
                // one for a picture by where it stands.
                let parts = riff_chunks(from(chunk.data, 16));
                frames.extend(parts.filter_map(|part| vp8_size(part.data)));
            }
            _ => {}
        }
    }
    frames
}

/// The size in the header of a VP8 key frame (RFC 6386, 9.1).
fn vp8_size(frame: &[u8]) -> Option<(u32, u32)> {
    let size: &[u8; 4] = frame
        .get(3..)?
        .strip_prefix(&[0x9d, 0x01, 0x2a])?
        .first_chunk()?;
    let [width, height] = two(*size);
    Some((width & 0x3fff, height & 0x3fff))
}

/// The size of a GIF file's first picture, which may be larger than the screen it is drawn on.
fn gif_frame(bytes: &[u8]) -> Option<(u32, u32)> {
    const EXTENSION: u8 = 0x21;
    const IMAGE: u8 = 0x2c;
    let packed = *bytes.get(10)?;
    let colors = match packed & 0x80 {
        0 => 0,
        _ => 3 << ((packed & 7) + 1),
    };
    let mut at = 13 + colors;
    while *bytes.get(at)? == EXTENSION {
        at += 2;
        while *bytes.get(at)? != 0 {
            at += 1 + usize::from(bytes[at]);
        }
        at += 1;
    }
    let descriptor = bytes.get(at..)?.strip_prefix(&[IMAGE])?;
    let [width, height] = two(*descriptor.get(4..)?.first_chunk()?);
    Some((width, height))
}

/// Two little-endian numbers of 16 bits.
fn two([a, b, c, d]: [u8; 4]) -> [u32; 2] {
    [[a, b], [c, d]].map(|bytes| u16::from_le_bytes(bytes).into())
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Rgb, RgbImage};

    use super::super::tests::{decode, encoded, exif_of, quarters};
    use super::super::*;
    use super::exif;

    fn riff(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut chunk = name.to_vec();
        chunk.extend((data.len() as u32).to_le_bytes());
        chunk.extend(data);
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    }

    /// A WebP file with a canvas of a size and these chunks.
    fn extended(flags: u8, (width, height): (u32, u32), chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut header = vec![flags, 0, 0, 0];
        header.extend(&(width - 1).to_le_bytes()[..3]);
        header.extend(&(height - 1).to_le_bytes()[..3]);
        let mut body = b"WEBP".to_vec();
        body.extend(riff(b"VP8X", &header));
        body.extend(chunks.concat());
        riff(b"RIFF", &body)
    }

    /// The `VP8L` chunk of a picture.
    fn lossless(picture: &RgbImage) -> Vec<u8> {
        let file = encoded(&DynamicImage::ImageRgb8(picture.clone()), ImageFormat::WebP);
        file[12..].to_vec()
    }

    /// A `VP8 ` frame that declares a size and has nothing else.
    fn lossy(width: u16, height: u16) -> Vec<u8> {
        let mut frame = vec![0x10, 0, 0, 0x9d, 0x01, 0x2a];
        frame.extend(width.to_le_bytes());
        frame.extend(height.to_le_bytes());
        frame.resize(64, 0);
        riff(b"VP8 ", &frame)
    }

    #[test]
    fn a_frame_that_is_larger_than_its_picture_is_refused() {
        let mut place = vec![0; 16];
        place.extend(lossy(16_383, 16_383));
        let anim = riff(b"ANIM", &[0; 6]);
        let mut behind_alpha = vec![0; 16];
        behind_alpha.extend(riff(b"ALPH", &[0, 0]));
        behind_alpha.extend(lossy(16_383, 16_383));
        behind_alpha[26..30].copy_from_slice(b"some");
        let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
        gif.extend(b"\x21\xf9\x04\0\0\0\0\0\x21\xfe\x03abc\x02de\0");
        gif.extend(b"\x2c\0\0\0\0\xb0\x36\xb0\x36\0\x02\x02\x44\x01\0\x3b");
        for bytes in [
            extended(0, (1, 1), &[lossy(16_383, 16_383)]),
            extended(2, (1, 1), &[anim.clone(), riff(b"ANMF", &place)]),
            extended(2, (1, 1), &[anim, riff(b"ANMF", &behind_alpha)]),
            gif,
        ] {
            let error = decode(&bytes).unwrap_err();
            assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn a_chunk_that_claims_gigabytes_is_passed_over() {
        let mut chunk = riff(b"EXIF", b"MM\0\x2a");
        chunk[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let bytes = extended(8, (16, 8), &[lossless(&quarters()), chunk]);
        assert_eq!(exif(&bytes, ImageFormat::WebP), None);
        assert_eq!(decode(&bytes).unwrap(), quarters());
    }

    #[test]
    fn a_webp_is_turned_upright_with_and_without_the_name_of_exif() {
        for (orientation, size, corner) in super::super::tests::CORNERS {
            let plain = exif_of(orientation);
            for exif in [[b"Exif\0\0".to_vec(), plain.clone()].concat(), plain] {
                let bytes = extended(8, (16, 8), &[lossless(&quarters()), riff(b"EXIF", &exif)]);
                let decoded = decode(&bytes).unwrap();
                assert_eq!(decoded.dimensions(), size, "orientation {orientation}");
                let red = decoded.get_pixel(corner.0, corner.1);
                assert_eq!(*red, Rgb([250, 10, 10]), "orientation {orientation}");
            }
        }
        // Without the extended header there is no EXIF.
        let mut body = b"WEBP".to_vec();
        body.extend(lossless(&quarters()));
        body.extend(riff(b"EXIF", &exif_of(6)));
        assert_eq!(decode(&riff(b"RIFF", &body)).unwrap(), quarters());
    }

    #[test]
    fn a_webp_that_announces_exif_and_xmp_and_holds_neither_is_decoded() {
        for flags in [0x08, 0x04, 0x0c, 0x2c] {
            let bytes = extended(flags, (16, 8), &[lossless(&quarters())]);
            assert_eq!(decode(&bytes).unwrap(), quarters(), "flags {flags}");
        }
        // An animation without frames stays none.
        assert!(decode(&extended(0x02, (16, 8), &[lossless(&quarters())])).is_err());
        let exif = riff(b"EXIF", &exif_of(6));
        let junk = riff(b"JUNK", &[0; 40]);
        let file = extended(8, (16, 8), &[lossless(&quarters())]);
        let behind = [file, junk, exif.clone()].concat();
        assert_eq!(decode(&behind).unwrap(), quarters());
        let turned = decode(&extended(0x0c, (16, 8), &[lossless(&quarters()), exif])).unwrap();
        assert_eq!(turned.dimensions(), (8, 16), "what is there still counts");
    }

    #[test]
    fn exif_that_a_webp_does_not_announce_or_hold_is_passed_over() {
        let exif = riff(b"EXIF", &exif_of(6));
        // None, and those of a profile and of alpha.
        for flags in [0, 0x30] {
            let bytes = extended(flags, (16, 8), &[lossless(&quarters()), exif.clone()]);
            assert_eq!(decode(&bytes).unwrap(), quarters(), "flags {flags}");
        }
        let behind = [extended(8, (16, 8), &[lossless(&quarters())]), exif].concat();
        assert_eq!(decode(&behind).unwrap(), quarters());
    }

    #[test]
    fn a_png_is_turned_upright_by_exif_before_and_behind_the_picture() {
        for (orientation, size, corner) in super::super::tests::CORNERS {
            let png = encoded(&DynamicImage::ImageRgb8(quarters()), ImageFormat::Png);
            let mut chunk = b"eXIf".to_vec();
            chunk.extend(exif_of(orientation));
            let sum = crc32(&chunk);
            let length = (chunk.len() - 4) as u32;
            let chunk = [&length.to_be_bytes()[..], &chunk, &sum.to_be_bytes()].concat();
            // Behind IHDR and before IEND.
            for at in [8 + 25, png.len() - 12] {
                let bytes = [&png[..at], &chunk, &png[at..]].concat();
                let decoded = decode(&bytes).unwrap();
                assert_eq!(decoded.dimensions(), size, "orientation {orientation}");
                let red = decoded.get_pixel(corner.0, corner.1);
                assert_eq!(*red, Rgb([250, 10, 10]), "orientation {orientation}");
            }
        }
    }

    /// The checksum of PNG (ISO 3309).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0xedb8_8320 * (sum & 1))
            })
        })
    }
}
