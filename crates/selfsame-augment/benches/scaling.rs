//! How much faster two threads are than one, beside a loop that only calculates; not run in CI.
//!
//! Both are done in turns, so that what else the machine does slows both alike.
#![expect(clippy::print_stdout, reason = "what was measured is its output")]

use std::hint::black_box;
use std::time::Instant;

use image::RgbImage;
use rayon::prelude::*;
use selfsame_augment::{AugmentConfig, MultiCrop, SampleKey};

const IMAGES: usize = 64;

fn main() {
    let image = RgbImage::from_fn(250, 250, |x, y| {
        let rough = (x * 7919 + y * 104_729) % 61;
        image::Rgb([x as u8, (y + rough) as u8, (x + y) as u8])
    });
    let multi_crop = MultiCrop::new(AugmentConfig::default()).expect("the default is valid");
    let samples: Vec<_> = (0..IMAGES as u64)
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
    let mut global = vec![0.0; 2 * IMAGES * 3 * 128 * 128];
    let mut local = vec![0.0; 8 * IMAGES * 3 * 128 * 128];
    let mut crop = || {
        let drawn = multi_crop.write_batch(&samples, &mut global, &mut local);
        black_box(drawn.expect("the buffers fit").len());
    };
    let mut calculate = || {
        let sum = (0..IMAGES).into_par_iter().with_max_len(1).map(|seed| {
            (0..400_000u64).fold(seed as u64, |state, i| {
                state.wrapping_mul(6_364_136_223_846_793_005).rotate_left(7) ^ i
            })
        });
        black_box(sum.reduce(|| 0, |a, b| a ^ b));
    };
    let pools = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads start")
    });
    let seconds = |pool: &rayon::ThreadPool, work: &mut (dyn FnMut() + Send)| {
        let start = Instant::now();
        pool.install(work);
        start.elapsed().as_secs_f64()
    };
    let (mut crops, mut loops) = (Vec::new(), Vec::new());
    for _ in 0..41 {
        let [one, two] = [0, 1].map(|i| seconds(&pools[i], &mut crop));
        crops.push(one / two);
        let [one, two] = [0, 1].map(|i| seconds(&pools[i], &mut calculate));
        loops.push(one / two);
    }
    let median = |ratios: &mut Vec<f64>| {
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let (crops, loops) = (median(&mut crops), median(&mut loops));
    println!(
        "two threads: crops {crops:.2} times as fast as one, a calculation {loops:.2}; {:.2} of it",
        crops / loops
    );
}
