//! Every operation against the bytes of Pillow and torchvision (`golden/make_golden.py`).
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside test functions"
)]

use image::{Rgb, RgbImage};
use selfsame_augment::{
    CropBox, DrawnOp, EvalCrop, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Level, Normalize,
    Workspace, ops,
};

/// Those of Pillow 12, then the resizes of Pillow 13.
const CASES: &str = concat!(
    include_str!("golden/golden.txt"),
    include_str!("golden/pillow13.txt")
);
const BYTES: &[u8] = include_bytes!("golden/golden.bin");

/// The picture that `source` of the script draws.
fn source(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([0, 1, 2].map(|c: u32| {
            let word = x
                .wrapping_mul(73_856_093)
                .wrapping_add(y.wrapping_mul(19_349_663))
                .wrapping_add(c.wrapping_mul(83_492_791))
                .wrapping_add(seed.wrapping_mul(2_654_435_761));
            let word = (word ^ (word >> 15)).wrapping_mul(2_246_822_519);
            let word = (word ^ (word >> 13)).wrapping_mul(3_266_489_917);
            let noise = (word ^ (word >> 16)) as u8;
            let [x, y, c, s] = [x, y, c, seed].map(i64::from);
            let ramp = ((x * (s + 2 * c + 1) + y * (s + 3 - c)) / 2) as u8;
            if seed == 0 || (x + y) % 7 < 3 {
                noise
            } else {
                ramp
            }
        }))
    })
}

fn all_colours() -> RgbImage {
    let data = (0u32..1 << 24)
        .flat_map(|a| [(a >> 16) as u8, (a >> 8) as u8, a as u8])
        .collect();
    RgbImage::from_raw(4096, 4096, data).unwrap()
}

fn crc32(data: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (i, entry) in (0u32..).zip(&mut table) {
        *entry = (0..8).fold(i, |c, _| {
            if c & 1 == 1 {
                0xedb8_8320 ^ (c >> 1)
            } else {
                c >> 1
            }
        });
    }
    !data
        .iter()
        .fold(!0, |c, &byte| table[usize::from(c as u8 ^ byte)] ^ (c >> 8))
}

struct Case<'a> {
    line: &'a str,
    image: (u32, u32, u32),
    params: Vec<&'a str>,
    crc: u32,
    kept: &'a [u8],
}

impl Case<'_> {
    fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, i: usize) -> T {
        self.params[i].parse().unwrap()
    }

    fn filter(&self) -> Interpolation {
        self.number(0)
    }
}

/// Runs every case of an operation at every level of instructions that the machine has and
/// compares checksums, and bytes where the script kept them.
fn compare(op: &str, at_least: usize, run: impl Fn(&Case, RgbImage, &mut Workspace) -> Vec<u8>) {
    for level in Level::available() {
        compare_at(level, op, at_least, &run);
    }
}

/// The same for what is a [`DrawnOp`] of the case's parameters.
fn compare_op(op: &str, at_least: usize, drawn: impl Fn(&Case) -> DrawnOp) {
    compare(op, at_least, |case, image, workspace| {
        drawn(case).render(&image, workspace).into_raw()
    });
}

fn compare_at(
    level: Level,
    op: &str,
    at_least: usize,
    run: impl Fn(&Case, RgbImage, &mut Workspace) -> Vec<u8>,
) {
    let mut workspace = Workspace::with_level(level);
    let mut count = 0;
    for line in CASES.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] != op {
            continue;
        }
        count += 1;
        let n = words.len();
        let [width, height, seed] = [1, 2, 3].map(|i| words[i].parse().unwrap());
        let [offset, length]: [usize; 2] = [n - 2, n - 1].map(|i| words[i].parse().unwrap());
        let case = Case {
            line,
            image: (width, height, seed),
            params: words[4..n - 3].to_vec(),
            crc: u32::from_str_radix(words[n - 3], 16).unwrap(),
            kept: &BYTES[offset..offset + length],
        };
        let image = if op == "hue_of_all_colours" {
            all_colours()
        } else {
            source(case.image.0, case.image.1, case.image.2)
        };
        let got = run(&case, image, &mut workspace);
        if !case.kept.is_empty() {
            assert_eq!(
                got.len(),
                case.kept.len(),
                "length of {} ({level})",
                case.line
            );
            let first = got.iter().zip(case.kept).position(|(a, b)| a != b);
            if let Some(i) = first {
                panic!(
                    "{} ({level}): byte {i} is {} instead of {}",
                    case.line, got[i], case.kept[i]
                );
            }
        }
        assert_eq!(crc32(&got), case.crc, "checksum of {} ({level})", case.line);
    }
    assert!(count >= at_least, "{op}: only {count} cases");
}

#[test]
fn resize_equals_pillow() {
    compare("resize", 300, |case, image, workspace| {
        let (width, height) = (case.number(1), case.number(2));
        ops::resize(&image, width, height, case.filter(), workspace).into_raw()
    });
}

#[test]
fn resized_crop_equals_torchvision() {
    compare("resized_crop", 120, |case, image, workspace| {
        let [left, top, width, height, size] = [1, 2, 3, 4, 5].map(|i| case.number(i));
        let crop = CropBox {
            left,
            top,
            width,
            height,
        };
        ops::resized_crop(&image, crop, size, size, case.filter(), workspace).into_raw()
    });
}

#[test]
fn brightness_equals_torchvision() {
    compare_op("brightness", 24, |case| DrawnOp::Brightness(case.number(0)));
}

#[test]
fn contrast_equals_torchvision() {
    compare_op("contrast", 24, |case| DrawnOp::Contrast(case.number(0)));
}

#[test]
fn saturation_equals_torchvision() {
    compare_op("saturation", 24, |case| DrawnOp::Saturation(case.number(0)));
}

#[test]
fn hue_equals_torchvision() {
    compare_op("hue", 24, |case| DrawnOp::Hue(case.number(0)));
}

#[test]
fn hue_equals_torchvision_for_every_colour_there_is() {
    compare_op("hue_of_all_colours", 1, |case| DrawnOp::Hue(case.number(0)));
}

#[test]
fn grayscale_equals_torchvision() {
    compare_op("grayscale", 6, |_| DrawnOp::Grayscale);
}

#[test]
fn horizontal_flip_equals_torchvision() {
    compare_op("horizontal_flip", 6, |_| DrawnOp::HorizontalFlip);
}

#[test]
fn solarize_equals_pillow() {
    compare_op("solarize", 24, |case| DrawnOp::Solarize(case.number(0)));
}

#[test]
fn gaussian_blur_equals_pillow() {
    compare_op("gaussian_blur", 72, |case| {
        DrawnOp::GaussianBlur(case.number(0))
    });
}

#[test]
fn normalize_equals_torchvision_to_the_last_bit() {
    compare("normalize", 1, |_, image, workspace| {
        let normalize = Normalize::new(IMAGENET_MEAN, IMAGENET_STD);
        let values = ops::normalize(&image, &normalize, workspace);
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    });
}

#[test]
fn eval_crop_equals_torchvision() {
    compare("eval_crop", 200, |case, image, workspace| {
        let crop = EvalCrop {
            image_size: case.number(1),
            resize_ratio: case.number(2),
            interpolation: case.filter(),
            ..EvalCrop::default()
        };
        crop.render(&image, workspace).into_raw()
    });
}
