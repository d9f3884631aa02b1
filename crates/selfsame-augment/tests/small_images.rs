//! Every operation on images of a few pixels: nothing is read or written outside them.
//!
//! `cargo +nightly miri test -p selfsame-augment --test small_images` checks that for the scalar
//! level, the only one that Miri has; the levels themselves are compared in `levels.rs`.

use image::RgbImage;
use selfsame_augment::{
    AugmentConfig, CropBox, DrawnOp, DrawnView, Interpolation, Level, MultiCrop, SampleKey,
    Workspace, ops,
};

const SIZES: [(u32, u32); 6] = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (9, 17)];
const FILTERS: [Interpolation; 4] = Interpolation::ALL;

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(29 * x + 7 * y) as u8, (200 - 11 * x) as u8, (90 * y) as u8])
    })
}

fn every_op() -> Vec<DrawnOp> {
    let mut all = vec![DrawnOp::Grayscale, DrawnOp::HorizontalFlip];
    all.extend([0.0, 0.6, 1.0, 1.9].map(DrawnOp::Brightness));
    all.extend([0.0, 0.6, 1.9].map(DrawnOp::Contrast));
    all.extend([0.0, 0.6, 1.9].map(DrawnOp::Saturation));
    all.extend([-0.5, -0.1, 0.1, 0.5].map(DrawnOp::Hue));
    all.extend([0, 128, 255].map(DrawnOp::Solarize));
    all.extend([0.1, 0.9, 2.0, 5.0, 40.0].map(DrawnOp::GaussianBlur));
    all
}

#[test]
fn operations_keep_the_size_and_agree_at_every_level() {
    for (width, height) in SIZES {
        let image = picture(width, height);
        for op in every_op() {
            let expected = op.render(&image, &mut Workspace::with_level(Level::SCALAR));
            assert_eq!(expected.dimensions(), (width, height));
            for level in Level::available() {
                let found = op.render(&image, &mut Workspace::with_level(level));
                assert!(found == expected, "{level}: {op:?} of {width} x {height}");
            }
        }
    }
}

#[test]
fn memory_behind_the_pixels_is_not_looked_at() {
    for (width, height) in SIZES {
        let image = picture(width, height);
        let mut bytes = image.as_raw().clone();
        bytes.extend([7; 50]);
        let longer = RgbImage::from_raw(width, height, bytes).expect("more than enough bytes");
        for level in Level::available() {
            let workspace = &mut Workspace::with_level(level);
            let op = DrawnOp::Brightness(1.9);
            assert!(op.render(&longer, workspace) == op.render(&image, workspace));
            let mut resize = |image| ops::resize(image, 3, 8, Interpolation::Bicubic, workspace);
            assert!(resize(&longer) == resize(&image));
        }
    }
}

#[test]
fn resizes_and_crops_agree_at_every_level() {
    for (width, height) in SIZES {
        let image = picture(width, height);
        for filter in FILTERS {
            for (to_width, to_height) in [(1, 1), (3, 8), (16, 5)] {
                let resize = |level| {
                    let mut workspace = Workspace::with_level(level);
                    ops::resize(&image, to_width, to_height, filter, &mut workspace)
                };
                let expected = resize(Level::SCALAR);
                assert_eq!(expected.dimensions(), (to_width as u32, to_height as u32));
                for level in Level::available() {
                    assert!(resize(level) == expected, "{level}: {width} x {height}");
                }
            }
            let view = DrawnView {
                crop: CropBox {
                    left: width as usize / 2,
                    top: height as usize / 2,
                    width: width as usize - width as usize / 2,
                    height: height as usize - height as usize / 2,
                },
                size: 6,
                interpolation: filter,
                ops: every_op(),
            };
            let render = |level| view.render(&image, &mut Workspace::with_level(level));
            let expected = render(Level::SCALAR);
            for level in Level::available() {
                assert!(render(level) == expected, "{level}: {width} x {height}");
            }
        }
    }
}

#[test]
fn crops_of_a_small_image_are_finite() {
    let multi_crop = MultiCrop::new(AugmentConfig {
        global_size: 7,
        local_size: 3,
        ..AugmentConfig::default()
    })
    .unwrap();
    let mut workspace = Workspace::with_level(Level::SCALAR);
    for (sample, (width, height)) in (0..).zip(SIZES) {
        let mut views: Vec<Vec<f32>> = (0..multi_crop.num_views())
            .map(|view| vec![f32::NAN; 3 * multi_crop.view_size(view).pow(2)])
            .collect();
        let mut out: Vec<&mut [f32]> = views.iter_mut().map(Vec::as_mut_slice).collect();
        let key = SampleKey {
            sample,
            ..SampleKey::default()
        };
        let image = picture(width, height);
        multi_crop
            .write_crops(&image, key, &mut out, &mut workspace)
            .unwrap();
        assert!(views.iter().flatten().all(|x| x.is_finite()));
    }
}
