use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, GrayImage, Luma, Rgb, Rgba, RgbaImage};

use super::*;

/// 16×8: red above on the left, green above on the right, blue below.
pub(super) fn quarters() -> RgbImage {
    RgbImage::from_fn(16, 8, |x, y| match (x < 8, y < 4) {
        (true, true) => Rgb([250, 10, 10]),
        (false, true) => Rgb([10, 250, 10]),
        _ => Rgb([10, 10, 250]),
    })
}

/// A picture without large flat parts, so that its files have a body.
pub(super) fn busy(size: u32) -> RgbImage {
    RgbImage::from_fn(size, size, |x, y| {
        Rgb([
            (x * 7 + y * 3) as u8,
            (x * y) as u8,
            ((x * 13) ^ (y * 11)) as u8,
        ])
    })
}

pub(super) fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(super) fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (width, height) = picture.dimensions();
    JpegEncoder::new_with_quality(&mut bytes, 95)
        .encode(picture, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// The JPEG with an EXIF segment that holds nothing but the orientation.
pub(super) fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif = [b"Exif\0\0".to_vec(), exif_of(orientation)].concat();
    let mut out = vec![0xff, 0xd8, 0xff, 0xe1];
    out.extend(((exif.len() + 2) as u16).to_be_bytes());
    out.extend(exif);
    out.extend(&jpeg[2..]);
    out
}

/// EXIF that holds nothing but the orientation.
pub(super) fn exif_of(orientation: u8) -> Vec<u8> {
    let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    exif.extend([
        0x01,
        0x12,
        0,
        3,
        0,
        0,
        0,
        1,
        0,
        orientation,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    exif
}

/// An orientation, the size that a picture of 16×8 then has, and where its upper left corner is.
type Corner = (u8, (u32, u32), (u32, u32));

pub(super) const CORNERS: [Corner; 10] = [
    (1, (16, 8), (0, 0)),
    (2, (16, 8), (15, 0)),
    (3, (16, 8), (15, 7)),
    (4, (16, 8), (0, 7)),
    (5, (8, 16), (0, 0)),
    (6, (8, 16), (7, 0)),
    (7, (8, 16), (7, 15)),
    (8, (8, 16), (0, 15)),
    (0, (16, 8), (0, 0)),
    (9, (16, 8), (0, 0)),
];

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_bytes(bytes, &Limits::default())
}

fn is_near(pixel: &Rgb<u8>, color: [u8; 3]) -> bool {
    pixel.0.iter().zip(color).all(|(a, b)| a.abs_diff(b) < 40)
}

#[test]
fn every_format_decodes_to_the_same_picture() {
    let picture = DynamicImage::ImageRgb8(busy(24));
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::WebP,
    ] {
        let decoded = decode(&encoded(&picture, format)).unwrap();
        assert_eq!(decoded, *picture.as_rgb8().unwrap(), "{format:?}");
    }
    let gif = decode(&encoded(
        &DynamicImage::ImageRgb8(quarters()),
        ImageFormat::Gif,
    ))
    .unwrap();
    assert!(is_near(gif.get_pixel(2, 1), [250, 10, 10]));
    let jpeg = decode(&jpeg(&quarters())).unwrap();
    assert!(is_near(jpeg.get_pixel(2, 1), [250, 10, 10]));
    assert!(is_near(jpeg.get_pixel(13, 1), [10, 250, 10]));
}

#[test]
fn the_picture_is_turned_upright_by_its_orientation() {
    const RED: [u8; 3] = [250, 10, 10];
    for (orientation, size, corner) in CORNERS {
        let decoded = decode(&with_orientation(&jpeg(&quarters()), orientation)).unwrap();
        assert_eq!(decoded.dimensions(), size, "orientation {orientation}");
        assert!(
            is_near(decoded.get_pixel(corner.0, corner.1), RED),
            "orientation {orientation}"
        );
    }
}

#[test]
fn alpha_lies_on_white_and_grey_becomes_rgb() {
    let half = RgbaImage::from_pixel(3, 3, Rgba([0, 0, 0, 51]));
    let decoded = decode(&encoded(&half.into(), ImageFormat::Png)).unwrap();
    assert_eq!(decoded.get_pixel(1, 1).0, [204; 3]);
    let grey = GrayImage::from_pixel(3, 3, Luma([77]));
    let decoded = decode(&encoded(&grey.into(), ImageFormat::Png)).unwrap();
    assert_eq!(decoded.get_pixel(1, 1).0, [77; 3]);
}

#[test]
fn a_truncated_jpeg_is_an_error_wherever_it_is_cut() {
    let whole = jpeg(&busy(64));
    assert!(decode(&whole).is_ok());
    for percent in [3, 10, 30, 50, 70, 90, 97] {
        let cut = &whole[..whole.len() * percent / 100];
        let error = decode(cut).expect_err("a cut file");
        assert!(
            matches!(error.reason(), "truncated" | "corrupt"),
            "{percent} %: {error}"
        );
    }
    // What a decoder makes up of the last blocks goes unnoticed by it.
    for taken in 1..=128 {
        let error = decode(&whole[..whole.len() - taken]).expect_err("a cut file");
        assert!(
            matches!(error.reason(), "truncated" | "corrupt"),
            "{taken} bytes: {error}"
        );
    }
}

#[test]
fn a_jpeg_whose_rest_was_never_written_is_truncated_and_padding_does_no_harm() {
    let whole = jpeg(&busy(64));
    let mut cut = whole.clone();
    let from = cut.len() / 2;
    cut[from..].fill(0);
    assert_eq!(decode(&cut).unwrap_err().reason(), "truncated");
    let mut padded = whole.clone();
    padded.extend([0; 4096]);
    assert_eq!(decode(&padded).unwrap(), decode(&whole).unwrap());
}

#[test]
fn what_stands_behind_the_end_of_a_jpeg_is_not_part_of_it() {
    let whole = jpeg(&busy(64));
    for trailer in [&b"\xff\xda"[..], b"film \xff\xda\0\x08 of a phone"] {
        let mut longer = whole.clone();
        longer.extend(trailer);
        longer.extend([0; 64]);
        assert_eq!(decode(&longer).unwrap(), decode(&whole).unwrap());
        // A small picture within the header has an end that is not the picture's.
        let mut cut = whole[..2].to_vec();
        cut.extend(b"\xff\xe5\0\x08\xff\xda\0\0\xff\xd9");
        cut.extend(&whole[2..whole.len() * 3 / 4]);
        cut.extend([0; 64]);
        assert_eq!(decode(&cut).unwrap_err().reason(), "truncated");
    }
}

#[test]
fn stray_bytes_between_header_segments_do_no_harm() {
    let whole = jpeg(&busy(16));
    let mut stray = whole[..2].to_vec();
    stray.extend([0xff, 0xe5, 0, 4, 1, 2, 7, 7, 7]);
    stray.extend(&whole[2..]);
    assert_eq!(decode(&stray).unwrap(), decode(&whole).unwrap());
    assert!(
        decode(&stray[..stray.len() / 2]).is_err(),
        "and the rest stays strict"
    );
}

#[test]
fn truncated_files_of_other_formats_are_told_from_corrupt_ones() {
    let picture = DynamicImage::ImageRgb8(busy(48));
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Tiff,
        ImageFormat::WebP,
    ] {
        let whole = encoded(&picture, format);
        for percent in [1, 20, 60, 98] {
            let error = decode(&whole[..whole.len() * percent / 100]).expect_err("a cut file");
            assert_eq!(
                error.reason(),
                "truncated",
                "{format:?} {percent} %: {error}"
            );
        }
    }
    let mut webp = encoded(&picture, ImageFormat::WebP);
    let end = webp.len();
    webp[end / 2..].fill(0xff);
    assert_eq!(decode(&webp).unwrap_err().reason(), "corrupt");
}

#[test]
fn what_is_no_image_is_told_from_what_is_damaged() {
    for (bytes, reason) in [
        (&b""[..], "empty"),
        (b"I am a text file.", "not an image"),
        (b"<html><body>404</body></html>", "not an image"),
        (b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0", "unsupported"),
    ] {
        assert_eq!(decode(bytes).unwrap_err().reason(), reason);
    }
    assert!(decode(b"\xff\xd8\xff\xe0").is_err());
    assert!(decode(b"\x89PNG\r\n\x1a\n").is_err());
    assert!(decode(b"GIF89a").is_err());
}

#[test]
fn flipped_bytes_never_panic() {
    let picture = DynamicImage::ImageRgb8(busy(20));
    let mut files = vec![jpeg(&busy(20))];
    for format in [
        ImageFormat::Png,
        ImageFormat::Gif,
        ImageFormat::Tiff,
        ImageFormat::WebP,
    ] {
        files.push(encoded(&picture, format));
    }
    for file in files {
        for at in (0..file.len()).step_by(3) {
            let mut damaged = file.clone();
            damaged[at] ^= 0x5a;
            if let Err(DecodeError::Panicked { format, problem }) = decode(&damaged) {
                panic!("{format}, byte {at}: {problem}");
            }
        }
    }
}

#[test]
fn size_is_refused_before_memory_is_taken() {
    // Headers only, each declaring 60,000 by 60,000 pixels.
    let side = 60_000u32;
    let mut large_jpeg = b"\xff\xd8\xff\xc0\x00\x11\x08".to_vec();
    large_jpeg.extend([(side >> 8) as u8, side as u8, (side >> 8) as u8, side as u8]);
    large_jpeg.extend(b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00");
    let tables = jpeg(&busy(8));
    let scan = tables
        .windows(2)
        .position(|pair| pair == [0xff, 0xda])
        .unwrap();
    let frame = tables
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    let mut whole = tables[..frame].to_vec();
    whole.extend(&large_jpeg[2..]);
    let frame_length = usize::from(tables[frame + 3]);
    whole.extend(&tables[frame + 2 + frame_length..scan]);
    whole.extend(&tables[scan..]);

    let mut gif = b"GIF89a".to_vec();
    gif.extend([
        (side & 255) as u8,
        (side >> 8) as u8,
        (side & 255) as u8,
        (side >> 8) as u8,
    ]);
    gif.extend(b"\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0\x3b");
    for bytes in [whole, gif] {
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn both_limits_can_be_set() {
    let bytes = jpeg(&quarters());
    let pixels = |max_pixels| Limits {
        max_pixels,
        ..Limits::default()
    };
    assert!(decode_bytes(&bytes, &pixels(128)).is_ok());
    assert_eq!(
        decode_bytes(&bytes, &pixels(127)).unwrap_err().reason(),
        "too large"
    );
    let side = |max_side| Limits {
        max_side,
        ..Limits::default()
    };
    assert!(decode_bytes(&bytes, &side(16)).is_ok());
    assert_eq!(
        decode_bytes(&bytes, &side(15)).unwrap_err().reason(),
        "too large"
    );
}

#[test]
fn files_are_read_by_content_and_odd_ones_have_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let png = encoded(&DynamicImage::ImageRgb8(quarters()), ImageFormat::Png);
    std::fs::write(path("png.jpg"), &png).unwrap();
    std::fs::write(path("empty.jpg"), b"").unwrap();
    std::fs::write(path("text.jpg"), b"hello").unwrap();
    let limits = Limits {
        max_file_bytes: png.len() as u64,
        ..Limits::default()
    };
    assert_eq!(decode_file(&path("png.jpg"), &limits).unwrap(), quarters());
    let reason = |name: &str| decode_file(&path(name), &limits).unwrap_err().reason();
    assert_eq!(reason("empty.jpg"), "empty");
    assert_eq!(reason("text.jpg"), "not an image");
    assert_eq!(reason("none.jpg"), "missing");
    assert_eq!(reason("."), "not a file");
    let tight = Limits {
        max_file_bytes: png.len() as u64 - 1,
        ..limits.clone()
    };
    assert_eq!(
        decode_file(&path("png.jpg"), &tight).unwrap_err().reason(),
        "too large"
    );
}

#[test]
fn a_damaged_chunk_of_a_png_is_told_by_its_name() {
    let mut png = encoded(&DynamicImage::ImageRgb8(quarters()), ImageFormat::Png);
    // The last byte of IDAT's checksum; IEND has twelve.
    let at = png.len() - 13;
    png[at] ^= 1;
    let error = decode(&png).unwrap_err().to_string();
    assert!(error.contains(" IDAT chunk"), "{error}");
    assert!(!error.contains('{'), "{error}");
}
