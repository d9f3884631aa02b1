//! What is drawn: pure functions of the key, with torchvision's distributions.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside test functions"
)]

use selfsame_augment::{
    AugmentConfig, DrawnOp, DrawnView, MultiCrop, SampleKey, StandardCrop, random_resized_crop,
};

const KEY: SampleKey = SampleKey {
    run_seed: 42,
    epoch: 0,
    sample: 0,
};

fn notebook() -> MultiCrop {
    MultiCrop::new(AugmentConfig::default()).unwrap()
}

/// Draws of one view for many samples.
fn many(view: usize, count: u64) -> Vec<DrawnView> {
    let multi_crop = notebook();
    (0..count)
        .map(|sample| multi_crop.draw_view(250, 250, SampleKey { sample, ..KEY }, view))
        .collect()
}

/// Pearson's statistic of counts against equal shares.
fn chi_square(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    counts
        .iter()
        .map(|&n| (n as f64 - expected).powi(2) / expected)
        .sum()
}

fn histogram(values: impl Iterator<Item = f64>, low: f64, high: f64, bins: usize) -> Vec<usize> {
    let mut counts = vec![0; bins];
    for value in values {
        let bin = ((value - low) / (high - low) * bins as f64).floor();
        assert!(
            (0.0..=bins as f64).contains(&bin),
            "{value} is outside {low} to {high}"
        );
        counts[(bin as usize).min(bins - 1)] += 1;
    }
    counts
}

#[test]
fn draws_depend_on_seed_epoch_sample_and_view_and_on_nothing_else() {
    let multi_crop = notebook();
    let views = multi_crop.draw(250, 250, KEY);
    assert_eq!(views, multi_crop.draw(250, 250, KEY));
    for other in [
        SampleKey {
            run_seed: 43,
            ..KEY
        },
        SampleKey { epoch: 1, ..KEY },
        SampleKey { sample: 1, ..KEY },
    ] {
        for (view, drawn) in multi_crop.draw(250, 250, other).iter().enumerate() {
            assert_ne!(
                drawn, &views[view],
                "{other:?} draws view {view} as {KEY:?} does"
            );
        }
    }
    for (i, a) in views.iter().enumerate() {
        for b in &views[..i] {
            assert_ne!(
                (a.crop, &a.ops),
                (b.crop, &b.ops),
                "two views draw the same"
            );
        }
    }
}

#[test]
fn what_was_drawn_can_be_written_and_read_back() {
    let mut seen = Vec::new();
    for sample in 0..20 {
        for view in notebook().draw(300, 200, SampleKey { sample, ..KEY }) {
            let text = toml::to_string(&view).unwrap();
            let back: DrawnView = toml::from_str(&text).unwrap();
            assert_eq!(back, view, "{text}");
            seen.extend(view.ops.iter().map(std::mem::discriminant));
        }
    }
    let all = [
        DrawnOp::HorizontalFlip,
        DrawnOp::Brightness(1.0),
        DrawnOp::Contrast(1.0),
        DrawnOp::Saturation(1.0),
        DrawnOp::Hue(0.0),
        DrawnOp::Grayscale,
        DrawnOp::GaussianBlur(1.0),
        DrawnOp::Solarize(128),
    ];
    assert!(
        all.iter()
            .map(std::mem::discriminant)
            .all(|op| seen.contains(&op))
    );
}

#[test]
fn a_view_beyond_the_last_is_one_more_local_one() {
    let multi_crop = notebook();
    let more = MultiCrop::new(AugmentConfig {
        local_crops: 30,
        ..AugmentConfig::default()
    });
    let beyond = multi_crop.draw_view(300, 200, KEY, 20);
    assert_eq!(beyond, more.unwrap().draw_view(300, 200, KEY, 20));
}

#[test]
fn more_local_crops_leave_the_views_before_them_alone() {
    let more = AugmentConfig {
        local_crops: 12,
        ..AugmentConfig::default()
    };
    let more = MultiCrop::new(more).unwrap().draw(200, 180, KEY);
    assert_eq!(more[..10], notebook().draw(200, 180, KEY)[..]);
}

#[test]
fn area_is_uniform_and_ratio_log_uniform() {
    // A huge image, so that rounding to pixels does not show; scales below one half fit always.
    const SIDE: usize = 100_000;
    let (scale, ratio) = ([0.05, 0.4], [0.75, 4.0 / 3.0]);
    let boxes: Vec<_> = (0..4000)
        .map(|sample| {
            let mut stream = SampleKey { sample, ..KEY }.view_stream(0);
            random_resized_crop(&mut stream, SIDE, SIDE, scale, ratio)
        })
        .collect();
    let area = |b: &selfsame_augment::CropBox| (b.width * b.height) as f64 / (SIDE * SIDE) as f64;
    let log_ratio = |b: &selfsame_augment::CropBox| (b.width as f64 / b.height as f64).ln();
    // 19 degrees of freedom: 43.8 has probability 0.001. The seed is fixed, so this never varies.
    let areas = histogram(boxes.iter().map(area), 0.0499, 0.4001, 20);
    assert!(chi_square(&areas) < 43.8, "{areas:?}");
    let bound = (4.0f64 / 3.0).ln() + 1e-4;
    let ratios = histogram(boxes.iter().map(log_ratio), -bound, bound, 20);
    assert!(chi_square(&ratios) < 43.8, "{ratios:?}");
    // Where the box lies, of all places it could have.
    let place = boxes
        .iter()
        .map(|b| b.left as f64 / (SIDE - b.width) as f64);
    let places = histogram(place, 0.0, 1.0, 20);
    assert!(chi_square(&places) < 43.8, "{places:?}");
    let place = boxes
        .iter()
        .map(|b| b.top as f64 / (SIDE - b.height) as f64);
    let places = histogram(place, 0.0, 1.0, 20);
    assert!(chi_square(&places) < 43.8, "{places:?}");
}

#[test]
fn jitter_takes_each_of_the_24_orders_equally_often() {
    let mut counts = [0; 24];
    for view in many(0, 6000) {
        let order: Vec<usize> = view
            .ops
            .iter()
            .filter_map(|op| match op {
                DrawnOp::Brightness(_) => Some(0),
                DrawnOp::Contrast(_) => Some(1),
                DrawnOp::Saturation(_) => Some(2),
                DrawnOp::Hue(_) => Some(3),
                _ => None,
            })
            .collect();
        if order.is_empty() {
            continue;
        }
        assert_eq!(order.iter().sum::<usize>(), 6, "each step once: {order:?}");
        // Rank of the order among all permutations.
        let smaller = |i: usize| order[i + 1..].iter().filter(|&&o| o < order[i]).count();
        counts[smaller(0) * 6 + smaller(1) * 2 + smaller(2)] += 1;
    }
    // 23 degrees of freedom: 49.7 has probability 0.001.
    assert!(chi_square(&counts) < 49.7, "{counts:?}");
}

#[test]
fn values_are_uniform_within_their_limits() {
    let views = many(0, 4000);
    let values = |pick: fn(&DrawnOp) -> Option<f64>| -> Vec<f64> {
        views
            .iter()
            .flat_map(|view| view.ops.iter().filter_map(pick))
            .collect()
    };
    for (name, values, low, high) in [
        (
            "brightness",
            values(|op| {
                if let DrawnOp::Brightness(v) = op {
                    Some(*v)
                } else {
                    None
                }
            }),
            0.6,
            1.4,
        ),
        (
            "contrast",
            values(|op| {
                if let DrawnOp::Contrast(v) = op {
                    Some(*v)
                } else {
                    None
                }
            }),
            0.6,
            1.4,
        ),
        (
            "saturation",
            values(|op| {
                if let DrawnOp::Saturation(v) = op {
                    Some(*v)
                } else {
                    None
                }
            }),
            0.8,
            1.2,
        ),
        (
            "hue",
            values(|op| {
                if let DrawnOp::Hue(v) = op {
                    Some(*v)
                } else {
                    None
                }
            }),
            -0.1,
            0.1,
        ),
        (
            "blur",
            values(|op| {
                if let DrawnOp::GaussianBlur(v) = op {
                    Some(*v)
                } else {
                    None
                }
            }),
            0.1,
            2.0,
        ),
    ] {
        let counts = histogram(values.into_iter(), low, high, 20);
        assert!(chi_square(&counts) < 43.8, "{name}: {counts:?}");
    }
}

#[test]
fn operations_come_as_often_as_their_probability_says() {
    let is_flip = |op: &DrawnOp| matches!(op, DrawnOp::HorizontalFlip);
    let is_jitter = |op: &DrawnOp| matches!(op, DrawnOp::Hue(_));
    let is_gray = |op: &DrawnOp| matches!(op, DrawnOp::Grayscale);
    let is_blur = |op: &DrawnOp| matches!(op, DrawnOp::GaussianBlur(_));
    let is_solarize = |op: &DrawnOp| matches!(op, DrawnOp::Solarize(128));
    type Is = fn(&DrawnOp) -> bool;
    let operations: [Is; 5] = [is_flip, is_jitter, is_gray, is_blur, is_solarize];
    for (view, expected) in [
        (0, [0.5, 0.8, 0.2, 1.0, 0.0]),
        (1, [0.5, 0.8, 0.2, 0.1, 0.2]),
        (2, [0.5, 0.8, 0.2, 0.5, 0.0]),
        (9, [0.5, 0.8, 0.2, 0.5, 0.0]),
    ] {
        let views = many(view, 3000);
        for (is, p) in operations.into_iter().zip(expected) {
            let share = views.iter().filter(|v| v.ops.iter().any(is)).count() as f64 / 3000.0;
            // Four standard deviations; 0 and 1 must be met exactly.
            let margin = 4.0 * (p * (1.0f64 - p) / 3000.0).sqrt();
            assert!(
                (share - p).abs() <= margin,
                "view {view}: {share} instead of {p}"
            );
        }
    }
}

#[test]
fn standard_crop_has_its_own_stream_and_flips_half_the_time() {
    let standard = StandardCrop::default();
    assert_eq!(standard.check(), [""; 0]);
    assert_ne!(
        standard.draw(250, 250, KEY).crop,
        notebook().draw_view(250, 250, KEY, 0).crop
    );
    let flips = (0..2000)
        .filter(|&sample| {
            standard
                .draw(250, 250, SampleKey { sample, ..KEY })
                .flipped()
        })
        .count();
    assert!((900..1100).contains(&flips), "{flips}");
}

#[test]
fn standard_and_evaluation_crop_name_every_problem() {
    let standard = StandardCrop {
        image_size: 0,
        scale: [0.5, 0.1],
        ratio: [2.0, 1.0],
        flip_p: -1.0,
        std: [0.0, 1.0, 1.0],
        ..StandardCrop::default()
    };
    let keys = |problems: Vec<String>| -> Vec<String> {
        let key = |problem: &String| problem.split_once(':').unwrap().0.to_owned();
        problems.iter().map(key).collect()
    };
    let expected = ["image_size", "scale", "ratio", "flip_p", "std[0]"];
    assert_eq!(
        keys(standard.check()),
        expected.map(|key| format!("standard_crop.{key}"))
    );
    let evaluation = selfsame_augment::EvalCrop {
        image_size: 0,
        resize_ratio: f64::NAN,
        mean: [f64::INFINITY, 0.0, 0.0],
        ..Default::default()
    };
    let expected = ["image_size", "resize_ratio", "mean[0]"];
    assert_eq!(
        keys(evaluation.check()),
        expected.map(|key| format!("eval_crop.{key}"))
    );
}
