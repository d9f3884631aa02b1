//! Damaged files of every format: whatever the bytes, the decoder answers, soon and within bounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::tests::{busy, encoded, jpeg, with_orientation};
use super::*;

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

/// xorshift64*: the mutations need no better numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// One to six changes; most hit the first bytes, where headers and sizes stand.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..1 + dice.below(6) {
        let reach = if dice.below(3) > 0 { 80 } else { bytes.len() };
        let at = dice.below(reach.min(bytes.len()));
        let end = (at + 1 + dice.below(24)).min(bytes.len());
        match dice.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            3 => bytes[at..end].fill([0, 0xff][dice.below(2)]),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => bytes.truncate(dice.below(bytes.len() + 1)),
            _ => {
                let from = dice.below(other.len());
                let to = (from + 1 + dice.below(200)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

/// Decodes mutations until `enough` says so; the count of each outcome.
fn fuzz(seed: u64, mut enough: impl FnMut(u64) -> bool) -> BTreeMap<&'static str, u64> {
    let limits = Limits {
        max_pixels: 1 << 20,
        ..Limits::default()
    };
    let files = corpus();
    let mut dice = Dice(seed);
    let mut outcomes = BTreeMap::new();
    let mut done = 0;
    while !enough(done) {
        let mut bytes = files[dice.below(files.len())].clone();
        mutate(&mut bytes, &files[dice.below(files.len())], &mut dice);
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
