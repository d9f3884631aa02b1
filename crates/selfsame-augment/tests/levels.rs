//! Every level of instructions gives the bytes of the scalar one, whatever the size and the values.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside test functions"
)]

use image::RgbImage;
use proptest::prelude::*;
use selfsame_augment::{CropBox, DrawnOp, DrawnView, Interpolation, Level, Workspace, ops};

/// Noise, or where `flat` bits are set, runs of one colour and of extremes.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let data = (0..3 * width * height).map(|i| match (seed >> 8) % 4 {
        0 => (next() >> 9) as u8,
        1 => (i / 7 * 3) as u8,
        2 => [0, 255][(next() >> 20) as usize % 2],
        _ => [0, 1, 127, 128, 254, 255][(next() >> 20) as usize % 6],
    });
    RgbImage::from_raw(width, height, data.collect()).unwrap()
}

fn op() -> impl Strategy<Value = DrawnOp> {
    let factor = prop_oneof![0.0..2.5f64, Just(0.0), Just(1.0), -1.0..30.0f64];
    let radius = prop_oneof![0.01..2.5f64, 0.0..12.0f64, 60.0..200.0f64];
    (0..8, factor, -0.5..=0.5f64, radius, any::<u8>()).prop_map(
        |(which, factor, turns, radius, threshold)| match which {
            0 => DrawnOp::Brightness(factor),
            1 => DrawnOp::Contrast(factor),
            2 => DrawnOp::Saturation(factor),
            3 => DrawnOp::Hue(turns),
            4 => DrawnOp::Grayscale,
            5 => DrawnOp::Solarize(threshold),
            6 => DrawnOp::HorizontalFlip,
            _ => DrawnOp::GaussianBlur(radius),
        },
    )
}

fn filter() -> impl Strategy<Value = Interpolation> {
    prop::sample::select(Interpolation::ALL.to_vec())
}

/// Compares all levels, each with a workspace that was used before.
fn compare(what: &dyn std::fmt::Debug, run: impl Fn(&mut Workspace) -> RgbImage) {
    let expected = run(&mut Workspace::with_level(Level::SCALAR));
    for level in Level::available() {
        let mut workspace = Workspace::with_level(level);
        DrawnOp::GaussianBlur(3.0).render(&picture(90, 33, 5), &mut workspace);
        assert!(run(&mut workspace) == expected, "{level}: {what:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn operations_are_equal(width in 1..300u32, height in 1..40u32, seed: u32, op in op()) {
        let image = picture(width, height, seed);
        compare(&(op, width, height, seed), |workspace| op.render(&image, workspace));
    }

    #[test]
    fn tall_images_are_equal(width in 1..24u32, height in 1..300u32, seed: u32, op in op()) {
        let image = picture(width, height, seed);
        compare(&(op, width, height, seed), |workspace| op.render(&image, workspace));
    }

    #[test]
    fn resizes_are_equal(
        width in 1..300u32, height in 1..120u32, seed: u32,
        to_width in 1..200usize, to_height in 1..100usize, filter in filter(),
    ) {
        let image = picture(width, height, seed);
        compare(&(width, height, to_width, to_height, filter), |workspace| {
            ops::resize(&image, to_width, to_height, filter, workspace)
        });
    }

    #[test]
    fn views_are_equal(
        seed: u32, size in 1..140usize, filter in filter(),
        (width, height) in (1..300usize, 1..200usize), corner in (0.0..1.0f64, 0.0..1.0f64),
        ops in proptest::collection::vec(op(), 0..6),
    ) {
        let (left, top) = ((corner.0 * width as f64) as usize, (corner.1 * height as f64) as usize);
        let view = DrawnView {
            crop: CropBox { left, top, width: width - left, height: height - top },
            size,
            interpolation: filter,
            ops,
        };
        let image = picture(width as u32, height as u32, seed);
        compare(&view, |workspace| view.render(&image, workspace));
    }
}

#[test]
fn every_threshold_of_solarize_is_equal() {
    let image = RgbImage::from_fn(16, 16, |x, y| image::Rgb([(16 * y + x) as u8; 3]));
    for threshold in 0..=255 {
        let op = DrawnOp::Solarize(threshold);
        compare(&op, |workspace| op.render(&image, workspace));
    }
}

#[test]
fn every_shift_of_the_hue_is_equal() {
    let image = picture(257, 3, 0x4321);
    for shift in -127..=127 {
        let op = DrawnOp::Hue(f64::from(shift) / 254.0);
        compare(&op, |workspace| op.render(&image, workspace));
    }
}

#[test]
fn images_larger_than_a_strip_are_equal() {
    let image = picture(1500, 900, 7);
    for filter in Interpolation::ALL {
        // Shorter by more than twice as many rows as columns, and by less.
        for width in [97, 1300] {
            compare(&(filter, width), |workspace| {
                ops::resize(&image, width, 110, filter, workspace)
            });
        }
    }
}
