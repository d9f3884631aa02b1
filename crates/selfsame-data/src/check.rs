//! Decodes a whole data set and counts what it holds and what cannot be used.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::dataset::{Dataset, picture_of};
use crate::decode::Limits;
use crate::ledger::{Ledger, LedgerEntry};

/// Upper bounds of the buckets of shorter sides, in pixels; one more bucket lies above.
pub const SIDE_BOUNDS: [u32; 6] = [32, 64, 128, 256, 512, 1024];

/// Upper bounds of the buckets of width over height; one more bucket lies above.
pub const ASPECT_BOUNDS: [f64; 4] = [0.5, 0.8, 1.25, 2.0];

/// Values of a label that are counted one by one; a label with more is only said to have more.
const MAX_VALUES: usize = 20;

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CheckReport {
    /// Images that decode.
    pub usable: usize,
    /// Images that do not, in the data set's order.
    pub unusable: Vec<LedgerEntry>,
    /// How many of them there are of each kind.
    pub reasons: BTreeMap<String, usize>,
    /// Names of files with the same bytes, in the data set's order; groups of two and more.
    pub duplicates: Vec<Vec<String>>,
    /// Usable images by shorter side: below each of [`SIDE_BOUNDS`], then the rest.
    pub sides: Vec<usize>,
    /// Usable images by width over height: below each of [`ASPECT_BOUNDS`], then the rest.
    pub aspects: Vec<usize>,
    /// Usable images whose shorter side is below the crop's: their crops are magnified.
    pub smaller_than_crop: usize,
    /// Of each label, how many usable images have which value.
    pub labels: BTreeMap<String, LabelBalance>,
}

/// How a label is spread over the usable images.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LabelBalance {
    /// Different values.
    pub values: usize,
    /// Images with each value; empty if there are more than 20 different ones.
    pub counts: BTreeMap<String, usize>,
    /// Images without this label.
    pub missing: usize,
}

/// What is kept of one image.
enum Seen {
    Usable {
        size: (u32, u32),
        hash: Option<blake3::Hash>,
    },
    Unusable {
        entry: LedgerEntry,
        hash: Option<blake3::Hash>,
    },
}

/// Decodes every image on rayon's current pool; what fails is also entered in `ledger`.
///
/// `crop_size` is the side of the largest crop that training will take, in pixels. `progress` is
/// called with the number of images done so far, from any thread.
pub fn check(
    dataset: &dyn Dataset,
    crop_size: u32,
    ledger: &Ledger,
    progress: &(dyn Fn(usize) + Sync),
) -> CheckReport {
    let done = AtomicUsize::new(0);
    let seen: Vec<Seen> = (0..dataset.len())
        .into_par_iter()
        .map(|index| {
            let seen = look_at(dataset, index);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            seen
        })
        .collect();
    let report = tally(dataset, crop_size, seen);
    for entry in &report.unusable {
        ledger.enter(entry.clone());
    }
    report
}

/// Decodes an image and reads its file once more for its hash.
fn look_at(dataset: &dyn Dataset, index: usize) -> Seen {
    let picture = picture_of(dataset, index);
    // What was decoded is small; a video among the pictures was not read either.
    let most_bytes = match picture {
        Ok(_) => u64::MAX,
        Err(_) => Limits::default().max_file_bytes,
    };
    let path = dataset.path(index);
    let hash = path.and_then(|path| hash_of(&path, most_bytes));
    match picture {
        Ok(image) => Seen::Usable {
            size: image.dimensions(),
            hash,
        },
        Err(error) => {
            let entry = LedgerEntry::of(dataset, index, &error);
            Seen::Unusable { entry, hash }
        }
    }
}

/// Counts what was seen of each image, in the data set's order.
fn tally(dataset: &dyn Dataset, crop_size: u32, seen: Vec<Seen>) -> CheckReport {
    let mut report = CheckReport {
        usable: 0,
        unusable: Vec::new(),
        reasons: BTreeMap::new(),
        duplicates: Vec::new(),
        sides: vec![0; SIDE_BOUNDS.len() + 1],
        aspects: vec![0; ASPECT_BOUNDS.len() + 1],
        smaller_than_crop: 0,
        labels: BTreeMap::new(),
    };
    let mut usable = Vec::new();
    let mut same: BTreeMap<[u8; 32], Vec<usize>> = BTreeMap::new();
    for (index, seen) in seen.into_iter().enumerate() {
        let hash = match seen {
            Seen::Usable { size, hash } => {
                report.count_size(size, crop_size);
                usable.push(index);
                hash
            }
            Seen::Unusable { entry, hash } => {
                *report.reasons.entry(entry.kind.clone()).or_insert(0) += 1;
                report.unusable.push(entry);
                hash
            }
        };
        if let Some(hash) = hash {
            same.entry(*hash.as_bytes()).or_default().push(index);
        }
    }
    report.usable = usable.len();
    let mut groups: Vec<Vec<usize>> = same.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    let name = |index: usize| dataset.name(index).to_owned();
    report.duplicates = groups
        .into_iter()
        .map(|group| group.into_iter().map(name).collect())
        .collect();
    report.labels = dataset
        .label_names()
        .into_iter()
        .map(|label| {
            let balance = balance(dataset, &label, &usable);
            (label, balance)
        })
        .collect();
    report
}

impl CheckReport {
    /// Enters the size of a usable image into the buckets.
    fn count_size(&mut self, (width, height): (u32, u32), crop_size: u32) {
        let side = width.min(height);
        let aspect = f64::from(width) / f64::from(height);
        let not_above = SIDE_BOUNDS.iter().filter(|bound| **bound <= side);
        self.sides[not_above.count()] += 1;
        let not_above = ASPECT_BOUNDS.iter().filter(|bound| **bound <= aspect);
        self.aspects[not_above.count()] += 1;
        self.smaller_than_crop += usize::from(side < crop_size);
    }
}

fn balance(dataset: &dyn Dataset, label: &str, usable: &[usize]) -> LabelBalance {
    let mut counts = BTreeMap::new();
    let mut missing = 0;
    for &index in usable {
        match dataset.label(index, label) {
            Some(value) => *counts.entry(value).or_insert(0) += 1,
            None => missing += 1,
        }
    }
    let values = counts.len();
    if values > MAX_VALUES {
        counts.clear();
    }
    LabelBalance {
        values,
        counts,
        missing,
    }
}

/// BLAKE3 of a regular file, read in pieces; an empty file is like no other, and a longer one than
/// `most_bytes` is not read.
fn hash_of(path: &Path, most_bytes: u64) -> Option<blake3::Hash> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() == 0 || metadata.len() > most_bytes {
        return None;
    }
    let mut file = std::fs::File::open(path).ok()?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece).ok()? {
            0 => return Some(hasher.finalize()),
            read => hasher.update(&piece[..read]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn usable_and_unusable_images_are_counted_by_reason() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
        put("a.jpg", b"").unwrap();
        put("b.jpg", b"text").unwrap();
        put("c.jpg", b"more text").unwrap();
        image::RgbImage::new(4, 4)
            .save(folder.path().join("d.png"))
            .unwrap();
        let dataset = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let (ledger, most) = (Ledger::new(), AtomicUsize::new(0));
        let report = check(&*dataset, 32, &ledger, &|done| {
            most.fetch_max(done, Ordering::Relaxed);
        });
        assert_eq!(report.usable, 1);
        let files: Vec<&str> = report.unusable.iter().map(|entry| &*entry.file).collect();
        assert_eq!(files, ["a.jpg", "b.jpg", "c.jpg"]);
        assert_eq!(report.reasons["not an image"], 2);
        assert_eq!(ledger.counts(), report.reasons);
        assert_eq!(most.into_inner(), 4);
    }

    #[test]
    fn a_file_that_is_too_long_to_decode_is_not_read_for_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.jpg", "b.jpg"] {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            file.set_len(Limits::default().max_file_bytes + 1).unwrap();
        }
        let dataset = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let report = check(&*dataset, 64, &Ledger::new(), &|_| ());
        assert_eq!(report.unusable.len(), 2);
        assert!(report.duplicates.is_empty(), "{:?}", report.duplicates);
    }

    #[test]
    fn sizes_duplicates_and_labels_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str, width, height, grey| {
            let picture = image::RgbImage::from_pixel(width, height, image::Rgb([grey; 3]));
            picture.save(folder.path().join(name)).unwrap();
        };
        save("0_ann_30_f.png", 40, 31, 1);
        save("1_bob_31_m.png", 130, 64, 1);
        save("2_cat_30_f.png", 40, 31, 1);
        save("3_dan_30_f.png", 63, 200, 2);
        save("other.png", 128, 128, 3);
        let dataset = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let report = check(&*dataset, 64, &Ledger::new(), &|_| ());
        assert_eq!(report.duplicates, [["0_ann_30_f.png", "2_cat_30_f.png"]]);
        assert_eq!(report.sides, [2, 1, 1, 1, 0, 0, 0]);
        assert_eq!(report.aspects, [1, 0, 1, 2, 1]);
        assert_eq!(report.smaller_than_crop, 3);
        let gender = &report.labels["gender"];
        assert_eq!(
            (gender.counts["f"], gender.counts["m"], gender.missing),
            (3, 1, 1)
        );
        assert_eq!(report.labels["name"].values, 4);
    }
}
