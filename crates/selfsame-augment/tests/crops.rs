//! From an image to normalised crops: the same bytes on every way there.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside test functions"
)]

use image::{Rgb, RgbImage};
use rayon::prelude::*;
use selfsame_augment::{
    AugmentConfig, AugmentError, EvalCrop, Interpolation, Level, MultiCrop, Normalize, SampleKey,
    StandardCrop, ViewOp, Workspace, ops,
};

fn picture(i: u32) -> RgbImage {
    RgbImage::from_fn(40 + 7 * i, 61 - 3 * i, |x, y| {
        Rgb([(x * 5 + i) as u8, (y * 3) as u8, (x * y + 11 * i) as u8])
    })
}

fn small() -> MultiCrop {
    let config = AugmentConfig {
        global_size: 32,
        local_size: 16,
        local_crops: 3,
        ..AugmentConfig::default()
    };
    MultiCrop::new(config).unwrap()
}

fn key(sample: u64) -> SampleKey {
    SampleKey {
        run_seed: 1,
        epoch: 2,
        sample,
    }
}

/// A whole batch on a pool of so many threads.
fn batch(multi_crop: &MultiCrop, images: &[RgbImage], threads: usize) -> (Vec<f32>, Vec<f32>) {
    let samples: Vec<_> = images
        .iter()
        .zip(0..)
        .map(|(image, i)| (image, key(i)))
        .collect();
    let b = images.len();
    let mut global = vec![f32::NAN; 2 * b * 3 * 32 * 32];
    let mut local = vec![f32::NAN; 3 * b * 3 * 16 * 16];
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    let drawn = pool
        .install(|| multi_crop.write_batch(&samples, &mut global, &mut local))
        .unwrap();
    assert_eq!(drawn.len(), b);
    (global, local)
}

#[test]
fn crops_with_a_used_workspace_are_the_same() {
    let mut workspace = Workspace::new();
    for i in [3, 0, 5] {
        let (image, key) = (picture(i), key(u64::from(i)));
        let views = small().crops_with(&image, key, &mut workspace);
        assert_eq!(views, small().crops(&image, key));
    }
}

#[test]
fn batch_holds_the_same_bytes_at_1_2_and_8_threads() {
    let images: Vec<_> = (0..9).map(picture).collect();
    let one = batch(&small(), &images, 1);
    for threads in [2, 8] {
        assert!(
            batch(&small(), &images, threads) == one,
            "{threads} threads give other bytes"
        );
    }
}

#[test]
fn crops_hold_the_same_bytes_at_every_level_and_number_of_threads() {
    // Sizes that no vector divides, one image smaller than any vector, and one so large that its
    // crops do not share a turned copy.
    let config = AugmentConfig {
        global_size: 61,
        local_size: 27,
        local_crops: 4,
        ..AugmentConfig::default()
    };
    let large = RgbImage::from_fn(1500, 1100, |x, y| {
        Rgb([(x * y) as u8, (x ^ y) as u8, (x / 3 + y / 5) as u8])
    });
    let images: Vec<_> = (0..6)
        .map(picture)
        .chain([RgbImage::from_pixel(3, 2, Rgb([9, 80, 200])), large])
        .collect();
    for interpolation in Interpolation::ALL {
        let config = AugmentConfig {
            interpolation,
            ..config.clone()
        };
        let multi_crop = MultiCrop::new(config).unwrap();
        let crops = |level, threads| -> Vec<Vec<Vec<f32>>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                images
                    .par_iter()
                    .enumerate()
                    .with_max_len(1)
                    .map_init(
                        || Workspace::with_level(level),
                        |workspace, (i, image)| {
                            let mut views: Vec<_> = (0..multi_crop.num_views())
                                .map(|v| vec![f32::NAN; 3 * multi_crop.view_size(v).pow(2)])
                                .collect();
                            let mut out: Vec<_> = views.iter_mut().map(Vec::as_mut_slice).collect();
                            let drawn =
                                multi_crop.write_crops(image, key(i as u64), &mut out, workspace);
                            assert_eq!(drawn.unwrap().len(), 6);
                            views
                        },
                    )
                    .collect()
            })
        };
        let reference = crops(Level::SCALAR, 1);
        for level in Level::available() {
            for threads in [1, 2, 8] {
                assert!(
                    crops(level, threads) == reference,
                    "{level}, {threads} threads, {interpolation:?}"
                );
            }
        }
    }
}

#[test]
fn crops_in_bytes_are_the_crops_before_normalisation() {
    let multi_crop = small();
    let image = picture(4);
    let mut bytes: Vec<_> = (0..multi_crop.num_views())
        .map(|v| vec![0u8; 3 * multi_crop.view_size(v).pow(2)])
        .collect();
    let mut out: Vec<_> = bytes.iter_mut().map(Vec::as_mut_slice).collect();
    let mut workspace = Workspace::new();
    let drawn = multi_crop.write_crops_u8(&image, key(0), &mut out, &mut workspace);
    assert_eq!(drawn.unwrap(), multi_crop.draw(68, 49, key(0)));
    let normalize = Normalize::new(multi_crop.config().mean, multi_crop.config().std);
    for (bytes, view) in bytes.iter().zip(multi_crop.crops(&image, key(0))) {
        let n = view.size * view.size;
        let values: Vec<f32> = (0..3 * n)
            .map(|i| normalize.value(i / n, bytes[i]))
            .collect();
        assert_eq!(values, view.data);
    }
    let error = multi_crop.write_crops_u8(&image, key(0), &mut [], &mut workspace);
    assert!(matches!(error, Err(AugmentError::ViewCount { got: 0, .. })));
}

#[test]
fn batch_is_view_major_and_equals_crops_of_single_images() {
    let multi_crop = small();
    let images: Vec<_> = (0..4).map(picture).collect();
    let (global, local) = batch(&multi_crop, &images, 2);
    for (i, image) in images.iter().enumerate() {
        for (v, view) in multi_crop
            .crops(image, key(i as u64))
            .into_iter()
            .enumerate()
        {
            let n = 3 * view.size * view.size;
            let (all, row) = if v < 2 {
                (&global, v * 4 + i)
            } else {
                (&local, (v - 2) * 4 + i)
            };
            assert_eq!(all[row * n..][..n], view.data, "image {i}, view {v}");
        }
    }
}

#[test]
fn workspace_used_before_gives_the_same_crops_as_a_new_one() {
    let multi_crop = small();
    let mut workspace = Workspace::new();
    for i in (0..9).rev() {
        let image = picture(i);
        for view in multi_crop.draw(image.width() as usize, image.height() as usize, key(0)) {
            let used = view.render(&image, &mut workspace);
            assert_eq!(used, view.render(&image, &mut Workspace::new()));
        }
    }
}

#[test]
fn crop_is_the_listed_operations_one_after_the_other_then_normalised() {
    // Another order than the notebook's, and an operation twice.
    let global1 = vec![
        ViewOp::Solarize {
            p: 1.0,
            threshold: 100,
        },
        ViewOp::GaussianBlur {
            p: 1.0,
            radius: [1.5, 1.5],
        },
        ViewOp::HorizontalFlip { p: 1.0 },
        ViewOp::Grayscale { p: 1.0 },
        ViewOp::Solarize {
            p: 1.0,
            threshold: 30,
        },
    ];
    let config = AugmentConfig {
        global_size: 24,
        local_crops: 0,
        interpolation: Interpolation::Bicubic,
        global1,
        ..AugmentConfig::default()
    };
    let multi_crop = MultiCrop::new(config.clone()).unwrap();
    let image = picture(3);
    let drawn = multi_crop.draw(image.width() as usize, image.height() as usize, key(5));
    let mut workspace = Workspace::new();
    let by_hand = ops::resized_crop(
        &image,
        drawn[0].crop,
        24,
        24,
        Interpolation::Bicubic,
        &mut workspace,
    );
    let by_hand = ops::gaussian_blur(&ops::solarize(&by_hand, 100), 1.5);
    let by_hand = ops::grayscale(&ops::horizontal_flip(&by_hand));
    let by_hand = ops::solarize(&by_hand, 30);
    assert_eq!(drawn[0].render(&image, &mut workspace), by_hand);
    let normalize = Normalize::new(config.mean, config.std);
    let values = ops::normalize(&by_hand, &normalize, &mut workspace);
    assert_eq!(multi_crop.crops(&image, key(5))[0].data, values);
    assert!(drawn[0].flipped());
}

#[test]
fn image_of_one_pixel_gives_crops_of_its_colour() {
    let config = AugmentConfig {
        global1: vec![],
        ..small().config().clone()
    };
    let multi_crop = MultiCrop::new(config).unwrap();
    let image = RgbImage::from_pixel(1, 1, Rgb([10, 128, 250]));
    let views = multi_crop.crops(&image, key(0));
    let normalize = Normalize::new(multi_crop.config().mean, multi_crop.config().std);
    for (channel, byte) in [10, 128, 250].into_iter().enumerate() {
        let plane = &views[0].data[channel * 1024..(channel + 1) * 1024];
        assert!(plane.iter().all(|&v| v == normalize.value(channel, byte)));
    }
    assert!(
        views
            .iter()
            .all(|view| view.data.iter().all(|v| v.is_finite()))
    );
}

#[test]
fn outputs_of_the_wrong_shape_and_empty_images_are_refused() {
    let multi_crop = small();
    let mut workspace = Workspace::new();
    let mut buffers = vec![vec![0.0; 3 * 32 * 32]; 5];
    let mut out: Vec<&mut [f32]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    let error = multi_crop
        .write_crops(&picture(0), key(0), &mut out, &mut workspace)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the output for view 2 holds 3072 values instead of 768"
    );
    let error = multi_crop
        .write_crops(&picture(0), key(0), &mut out[..4], &mut workspace)
        .unwrap_err();
    assert_eq!(
        error,
        AugmentError::ViewCount {
            expected: 5,
            got: 4
        }
    );
    let empty = RgbImage::new(0, 7);
    let error = multi_crop
        .write_crops(&empty, key(0), &mut out, &mut workspace)
        .unwrap_err();
    assert_eq!(
        error,
        AugmentError::EmptyImage {
            width: 0,
            height: 7
        }
    );
    let error = multi_crop
        .write_batch(&[(&picture(0), key(0))], &mut [], &mut [])
        .unwrap_err();
    assert!(
        matches!(error, AugmentError::OutputLength { got: 0, .. }),
        "{error}"
    );
    assert_eq!(multi_crop.write_batch(&[], &mut [], &mut []), Ok(vec![]));
}

#[test]
fn evaluation_of_a_long_thin_image_touches_only_its_centre() {
    let image = RgbImage::from_fn(60_000, 1, |x, _| Rgb([(x / 300) as u8; 3]));
    let crop = EvalCrop {
        image_size: 16,
        ..EvalCrop::default()
    };
    assert_eq!(crop.resized_dimensions(60_000, 1), (960_000, 16));
    let view = crop.apply(&image);
    assert_eq!(view.data.len(), 3 * 16 * 16);
    let centre = Normalize::new(crop.mean, crop.std).value(0, 100);
    assert!(
        view.data[15] == centre,
        "{} instead of {centre}",
        view.data[15]
    );
}

#[test]
fn a_resize_far_beyond_any_picture_is_a_problem_and_no_overflow() {
    for (resize_ratio, is_well) in [
        (256.0 / 224.0, true),
        (73.0, true),
        (74.0, false),
        (1e9, false),
        (f64::MAX, false),
    ] {
        let crop = EvalCrop {
            resize_ratio,
            ..EvalCrop::default()
        };
        assert_eq!(crop.check().is_empty(), is_well, "{resize_ratio}");
        crop.resized_dimensions(16_384, 1);
    }
}

#[test]
fn standard_crop_is_a_function_of_its_key() {
    let crop = StandardCrop {
        image_size: 16,
        ..StandardCrop::default()
    };
    let image = picture(2);
    let view = crop.apply(&image, key(1));
    assert_eq!(view, crop.apply(&image, key(1)));
    assert_ne!(view, crop.apply(&image, key(2)));
    let drawn = crop.draw(image.width() as usize, image.height() as usize, key(1));
    let mut workspace = Workspace::new();
    let bytes = drawn.render(&image, &mut workspace);
    let normalize = Normalize::new(crop.mean, crop.std);
    assert_eq!(
        view.data,
        ops::normalize(&bytes, &normalize, &mut workspace)
    );
}

#[test]
#[should_panic(expected = "eval_crop.resize_ratio")]
fn an_evaluation_crop_that_cannot_be_is_refused_before_it_gives_black_pixels() {
    let crop = EvalCrop {
        resize_ratio: f64::NAN,
        ..EvalCrop::default()
    };
    crop.apply(&image::RgbImage::new(4, 4));
}

#[test]
#[should_panic(expected = "standard_crop.std")]
fn a_training_crop_that_cannot_be_is_refused_too() {
    let crop = StandardCrop {
        std: [0.0; 3],
        ..StandardCrop::default()
    };
    crop.apply(&image::RgbImage::new(4, 4), SampleKey::default());
}
