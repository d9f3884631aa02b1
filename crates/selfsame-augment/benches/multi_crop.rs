//! Crops per image on one thread and batches on several; not run in CI.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use image::RgbImage;
use selfsame_augment::{AugmentConfig, Interpolation, MultiCrop, SampleKey, Workspace};
use std::hint::black_box;

/// A picture with smooth and rough parts, of the size of an AgeDB face.
fn picture() -> RgbImage {
    RgbImage::from_fn(250, 250, |x, y| {
        let rough = (x * 7919 + y * 104_729) % 61;
        image::Rgb([x as u8, (y + rough) as u8, (x + y) as u8])
    })
}

/// All ten views of one image: the notebook at 128, and 224 with local crops of 96.
fn one_image(c: &mut Criterion) {
    let image = picture();
    let mut group = c.benchmark_group("multi_crop");
    for (global_size, local_size, interpolation) in [
        (128, 128, Interpolation::Bilinear),
        (224, 96, Interpolation::Bicubic),
    ] {
        let config = AugmentConfig {
            global_size,
            local_size,
            interpolation,
            ..AugmentConfig::default()
        };
        let multi_crop = MultiCrop::new(config).expect("the configuration is valid");
        let mut buffers: Vec<Vec<f32>> = (0..multi_crop.num_views())
            .map(|view| vec![0.0; 3 * multi_crop.view_size(view).pow(2)])
            .collect();
        let mut workspace = Workspace::new();
        let mut sample = 0;
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new(global_size.to_string(), 1), |b| {
            b.iter(|| {
                let mut out: Vec<&mut [f32]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
                sample += 1;
                let key = SampleKey {
                    run_seed: 0,
                    epoch: 0,
                    sample,
                };
                let drawn = multi_crop.write_crops(&image, key, &mut out, &mut workspace);
                black_box(drawn.expect("buffers fit").len())
            });
        });
    }
    group.finish();
}

/// A batch of 64 images on 1 and 2 threads.
fn batch(c: &mut Criterion) {
    let image = picture();
    let multi_crop = MultiCrop::new(AugmentConfig::default()).expect("the default is valid");
    let samples: Vec<_> = (0..64)
        .map(|sample| {
            (
                &image,
                SampleKey {
                    sample,
                    ..SampleKey::default()
                },
            )
        })
        .collect();
    let mut global = vec![0.0; 2 * 64 * 3 * 128 * 128];
    let mut local = vec![0.0; 8 * 64 * 3 * 128 * 128];
    let mut group = c.benchmark_group("multi_crop/128");
    group.sample_size(10).throughput(Throughput::Elements(64));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("threads start");
        group.bench_function(BenchmarkId::new("b64", format!("{threads}threads")), |b| {
            b.iter(|| {
                pool.install(|| multi_crop.write_batch(&samples, &mut global, &mut local))
                    .expect("buffers fit")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_image, batch);
criterion_main!(benches);
