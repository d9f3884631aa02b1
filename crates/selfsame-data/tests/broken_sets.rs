//! Folders in which none to half of the files are broken, in the ways that folders in the wild
//! are: exact counts by reason, and nothing but pictures in the batches.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::{ImageFormat, Rgb, RgbImage};
use selfsame_data::augment::{AugmentConfig, MultiCrop};
use selfsame_data::{DataError, Dataset, Ledger, Loader, LoaderConfig, OpenOptions, check, open};

/// Candidates in each folder.
const FILES: usize = 200;

/// What is done to a file, and the reason that stands for it.
const DAMAGE: [(&str, &str); 9] = [
    ("cut", "truncated"),
    ("zero-tailed", "truncated"),
    ("flipped checksum", "corrupt"),
    ("another format", "not an image"),
    ("empty", "empty"),
    ("text", "not an image"),
    ("bomb", "too large"),
    ("deleted", "missing"),
    ("became a folder", "not a file"),
];

/// A picture with structure everywhere, so that no crop of it is flat.
fn picture(seed: usize) -> RgbImage {
    RgbImage::from_fn(48, 40, |x, y| {
        let cell = (x / 2 + 3 * (y / 2)) as usize + seed;
        Rgb([37, 91, 53].map(|factor| (cell * factor % 251) as u8))
    })
}

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The bytes of file `index` after such damage.
fn damaged(kind: &str, index: usize) -> Vec<u8> {
    let jpeg = encoded(&picture(index), ImageFormat::Jpeg);
    let mut png = encoded(&picture(index), ImageFormat::Png);
    match kind {
        "cut" => jpeg[..jpeg.len() / 2].to_vec(),
        "zero-tailed" => {
            let mut bytes = jpeg;
            let from = bytes.len() * 2 / 3;
            bytes[from..].fill(0);
            bytes
        }
        "flipped checksum" => {
            // Of the header: eight bytes of signature, length and name, 13 bytes of content.
            png[8 + 8 + 13] ^= 1;
            png
        }
        "another format" => b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n".to_vec(),
        "empty" => Vec::new(),
        "text" => b"404 Not Found".to_vec(),
        "bomb" => {
            // 60,000 by 60,000 pixels of 24 bits, in a header of 54 bytes.
            let mut bytes = b"BM".to_vec();
            for field in [54_u32, 0, 54, 40, 60_000, 60_000] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.extend([1, 0, 24, 0]);
            bytes.extend([0; 24]);
            bytes
        }
        _ => jpeg,
    }
}

/// What befalls file `index` if `broken` files, evenly spread, are broken.
fn fate(index: usize, broken: usize) -> Option<(&'static str, &'static str)> {
    let before = |index: usize| (index * broken).div_ceil(FILES);
    (before(index + 1) > before(index)).then(|| DAMAGE[before(index) % DAMAGE.len()])
}

/// Fills a folder; the count of files by the reason that will stand for them.
fn fill(folder: &Path, broken: usize) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for index in 0..FILES {
        let path = folder.join(format!("{index:03}.jpg"));
        let bytes = match fate(index, broken) {
            Some((kind, reason)) => {
                *reasons.entry(reason.to_owned()).or_insert(0) += 1;
                damaged(kind, index)
            }
            None if index.is_multiple_of(3) => encoded(&picture(index), ImageFormat::Png),
            None => encoded(&picture(index), ImageFormat::Jpeg),
        };
        std::fs::write(path, bytes).unwrap();
    }
    // None of these is a candidate.
    std::fs::create_dir(folder.join("folder.jpg")).unwrap();
    std::fs::write(folder.join("notes.txt"), "none").unwrap();
    #[cfg(unix)]
    for (name, target) in [("circle", "."), ("itself.jpg", "itself.jpg")] {
        std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
    }
    reasons
}

/// Does what happens between listing and reading.
fn vanish(folder: &Path, broken: usize) {
    for index in 0..FILES {
        let path = folder.join(format!("{index:03}.jpg"));
        match fate(index, broken) {
            Some(("deleted", _)) => std::fs::remove_file(path).unwrap(),
            Some(("became a folder", _)) => {
                std::fs::remove_file(&path).unwrap();
                std::fs::create_dir(path).unwrap();
            }
            _ => (),
        }
    }
}

fn loader_of(set: &Arc<dyn Dataset>, max_bad_fraction: f64, ledger: &Arc<Ledger>) -> Loader {
    let crops = AugmentConfig {
        global_size: 16,
        local_size: 8,
        local_crops: 2,
        local_scale: [0.3, 0.4],
        ..AugmentConfig::default()
    };
    let config = LoaderConfig {
        batch_size: 8,
        max_bad_fraction,
        ..LoaderConfig::default()
    };
    let crops = MultiCrop::new(crops).unwrap();
    Loader::new(set.clone(), crops, config, ledger.clone()).unwrap()
}

#[test]
fn broken_files_are_counted_by_reason_and_never_reach_a_batch() {
    for broken in [0, 2, 10, 100] {
        let folder = tempfile::tempdir().unwrap();
        let reasons = fill(folder.path(), broken);
        let set = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        assert_eq!(set.len(), FILES, "{broken} broken");
        vanish(folder.path(), broken);

        let report = check(set.as_ref(), 16, &Ledger::default(), &|_| ());
        assert_eq!(report.reasons, reasons, "{broken} broken");
        assert_eq!(report.usable, FILES - broken);

        let ledger = Arc::new(Ledger::default());
        let loader = loader_of(&set, 1.0, &ledger);
        let mut batches = 0;
        for batch in loader.epoch(0, 0) {
            let batch = batch.unwrap();
            let pixels = [(&batch.global, 3 * 16 * 16), (&batch.local, 3 * 8 * 8)];
            let crops = pixels
                .iter()
                .flat_map(|(all, size)| all.normalized().unwrap().chunks(*size));
            for crop in crops {
                let mean = crop.iter().sum::<f32>() / crop.len() as f32;
                let squares = crop.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
                let spread = (squares / crop.len() as f32).sqrt();
                assert!(spread > 0.02, "a flat crop in a batch: {spread}");
            }
            batches += 1;
        }
        assert_eq!(batches, FILES / 8);
        assert_eq!(ledger.counts(), reasons, "{broken} broken");
    }
}

#[test]
fn above_the_limit_the_epoch_ends_with_the_list() {
    for (broken, allowed) in [(2, true), (10, true), (12, false), (100, false)] {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), broken);
        let set = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        vanish(folder.path(), broken);
        let ledger = Arc::new(Ledger::default());
        let loader = loader_of(&set, 0.05, &ledger);
        let failed = loader.epoch(0, 0).find_map(Result::err);
        match failed {
            None => assert!(allowed, "{broken} of {FILES} went through"),
            Some(DataError::TooManyBad { bad, len, .. }) => {
                assert!(!allowed, "{broken} of {FILES} were refused");
                assert_eq!((bad, len), (11, FILES), "one above five in a hundred");
                assert_eq!(ledger.len(), 11);
            }
            Some(other) => panic!("{other}"),
        }
    }
}
