//! Each operation of one crop, at every level of instructions; not run in CI.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use image::RgbImage;
use selfsame_augment::{
    AugmentConfig, CropBox, DrawnOp, DrawnView, Interpolation, Level, MultiCrop, Workspace,
};

fn picture() -> RgbImage {
    RgbImage::from_fn(250, 250, |x, y| {
        let rough = (x * 7919 + y * 104_729) % 61;
        image::Rgb([x as u8, (y + rough) as u8, (x + y) as u8])
    })
}

/// A crop with and without each operation; the difference is the operation's time.
fn operations(c: &mut Criterion) {
    let image = picture();
    let multi_crop = MultiCrop::new(AugmentConfig::default()).expect("the default is valid");
    let lists = [
        ("crop_only", vec![]),
        ("brightness", vec![DrawnOp::Brightness(1.2)]),
        ("contrast", vec![DrawnOp::Contrast(0.8)]),
        ("saturation", vec![DrawnOp::Saturation(1.1)]),
        ("hue", vec![DrawnOp::Hue(0.05)]),
        ("grayscale", vec![DrawnOp::Grayscale]),
        ("blur_0.5", vec![DrawnOp::GaussianBlur(0.5)]),
        ("blur_1.9", vec![DrawnOp::GaussianBlur(1.9)]),
        ("blur_5", vec![DrawnOp::GaussianBlur(5.0)]),
        ("solarize", vec![DrawnOp::Solarize(128)]),
    ];
    let mut group = c.benchmark_group("ops/128");
    group.sample_size(20);
    group.warm_up_time(Duration::from_millis(100));
    group.measurement_time(Duration::from_millis(400));
    for (name, ops) in lists {
        let view = DrawnView {
            crop: CropBox {
                left: 20,
                top: 30,
                width: 110,
                height: 120,
            },
            size: 128,
            interpolation: Interpolation::Bilinear,
            ops,
        };
        let mut out = vec![0.0; 3 * 128 * 128];
        for level in Level::available() {
            let mut workspace = Workspace::with_level(level);
            group.bench_function(BenchmarkId::new(name, level), |b| {
                b.iter(|| {
                    multi_crop
                        .apply(black_box(&view), &image, &mut out, &mut workspace)
                        .expect("the output fits");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
