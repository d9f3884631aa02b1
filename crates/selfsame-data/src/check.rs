//! Decodes a whole data set and counts what cannot be used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::dataset::Dataset;
use crate::ledger::{Ledger, LedgerEntry};

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckReport {
    /// Images that decode.
    pub usable: usize,
    /// Images that do not, in the data set's order.
    pub unusable: Vec<LedgerEntry>,
    /// How many of them there are of each kind.
    pub reasons: BTreeMap<String, usize>,
}

/// Decodes every image on rayon's current pool; what fails is also entered in `ledger`.
///
/// `progress` is called with the number of images done so far, from any thread.
pub fn check(
    dataset: &dyn Dataset,
    ledger: &Ledger,
    progress: &(dyn Fn(usize) + Sync),
) -> CheckReport {
    let done = AtomicUsize::new(0);
    let unusable: Vec<LedgerEntry> = (0..dataset.len())
        .into_par_iter()
        .filter_map(|index| {
            let error = dataset.decode(index).err();
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            error.map(|error| LedgerEntry::new(dataset.name(index), &error))
        })
        .collect();
    let mut reasons = BTreeMap::new();
    for entry in &unusable {
        ledger.enter(entry.clone());
        *reasons.entry(entry.kind.clone()).or_insert(0) += 1;
    }
    CheckReport {
        usable: dataset.len() - unusable.len(),
        unusable,
        reasons,
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
        let report = check(&*dataset, &ledger, &|done| {
            most.fetch_max(done, Ordering::Relaxed);
        });
        assert_eq!(report.usable, 1);
        let files: Vec<&str> = report.unusable.iter().map(|entry| &*entry.file).collect();
        assert_eq!(files, ["a.jpg", "b.jpg", "c.jpg"]);
        assert_eq!(report.reasons["not an image"], 2);
        assert_eq!(ledger.counts(), report.reasons);
        assert_eq!(most.into_inner(), 4);
    }
}
