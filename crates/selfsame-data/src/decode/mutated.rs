//! Damaged files of every format: whatever the bytes, the decoder answers, soon and within bounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::tests::{busy, encoded, jpeg, with_orientation};
use super::*;

#[path = "../../../../tests/common/mutate.rs"]
mod mutate;

use mutate::{BOUNDS, Dice, Mutations};

/// Far above what any of these small files needs; a decoder that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Valid files, one or more of each format.
fn corpus() -> Vec<Vec<u8>> {
    let picture = busy(24);
    let dynamic = DynamicImage::ImageRgb8(picture.clone());
    let grey = DynamicImage::ImageLuma8(dynamic.to_luma8());
    let deep = DynamicImage::ImageRgba16(dynamic.to_rgba16());
    let mut files = vec![
        jpeg(&picture),
        with_orientation(&jpeg(&picture), 6),
        encoded(&grey, ImageFormat::Jpeg),
        encoded(&deep, ImageFormat::Png),
        encoded(&deep, ImageFormat::Tiff),
    ];
    for format in [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Tiff,
    ] {
        files.push(encoded(&dynamic, format));
    }
    files
}

/// Decodes mutations until `enough` says so; the count of each outcome.
fn fuzz(seed: u64, mut enough: impl FnMut(u64) -> bool) -> BTreeMap<&'static str, u64> {
    let limits = Limits {
        max_pixels: 1 << 20,
        ..Limits::default()
    };
    let files = corpus();
    let mutations = Mutations {
        telling: BOUNDS,
        header: 80,
    };
    let mut dice = Dice(seed);
    let mut outcomes = BTreeMap::new();
    let mut done = 0;
    while !enough(done) {
        let mut bytes = files[dice.below(files.len())].clone();
        let other = &files[dice.below(files.len())];
        mutations.apply(&mut bytes, other, &mut dice);
        let began = Instant::now();
        let outcome = match decode_bytes(&bytes, &limits) {
            Ok(picture) => {
                let (width, height) = picture.dimensions();
                assert!(
                    width > 0 && height > 0,
                    "case {done} of seed {seed}: no pixels"
                );
                assert!(
                    u64::from(width) * u64::from(height) <= limits.max_pixels,
                    "case {done} of seed {seed}: {width}x{height} is over the limit"
                );
                "decoded"
            }
            Err(error) => error.reason(),
        };
        let mut took = began.elapsed();
        if took >= PATIENCE {
            // A process can be suspended; a file that is slow by itself is slow again.
            let again = Instant::now();
            let _ = decode_bytes(&bytes, &limits);
            took = again.elapsed();
        }
        assert!(took < PATIENCE, "case {done} of seed {seed} took {took:?}");
        *outcomes.entry(outcome).or_insert(0) += 1;
        done += 1;
    }
    outcomes
}

#[test]
fn damaged_files_are_answered_within_bounds() {
    let outcomes = fuzz(0x5e1f_5a3e, |done| done == 3000);
    // Not all the same answer: the mutations reach behind the first bytes.
    for outcome in ["decoded", "truncated", "corrupt", "not an image"] {
        assert!(outcomes.contains_key(outcome), "{outcomes:?}");
    }
    assert!(!outcomes.contains_key("decoder panicked"), "{outcomes:?}");
}

/// `cargo test --release -p selfsame-data mutated -- --ignored --nocapture`
#[test]
#[ignore = "takes half an hour"]
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn damaged_files_are_answered_for_half_an_hour() {
    let began = Instant::now();
    let seed = std::process::id().into();
    let outcomes = fuzz(seed, |_| began.elapsed() > Duration::from_secs(1800));
    println!("seed {seed}: {outcomes:?}");
}
