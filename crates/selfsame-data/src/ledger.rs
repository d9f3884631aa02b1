//! Every image that could not be used, once, with the reason.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::annotations::write_whole;
use crate::error::DataError;

/// An entry: which image, and why not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LedgerEntry {
    /// The image's name in its data set.
    pub file: String,
    /// The whole reason, [`DecodeError`](crate::DecodeError)'s text.
    pub reason: String,
    /// Its kind, [`DecodeError::reason`](crate::DecodeError::reason).
    pub kind: String,
}

impl LedgerEntry {
    /// An entry for an image that failed to decode.
    pub fn new(file: &str, error: &crate::DecodeError) -> Self {
        let (reason, kind) = (reason_text(error), error.reason().to_owned());
        Self {
            file: file.to_owned(),
            reason,
            kind,
        }
    }
}

/// Thread-safe list of unusable images, in the order of their names.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<String, LedgerEntry>>);

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an image; true if it was not there yet. The first reason stays.
    pub fn record(&self, file: &str, error: &crate::DecodeError) -> bool {
        self.enter(LedgerEntry::new(file, error))
    }

    /// Enters an image with a reason in words.
    pub fn enter(&self, entry: LedgerEntry) -> bool {
        let mut entries = self.lock();
        if entries.contains_key(&entry.file) {
            return false;
        }
        entries.insert(entry.file.clone(), entry);
        true
    }

    /// How many images are in it.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True if every image was usable so far.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// All entries in the byte order of names.
    pub fn entries(&self) -> Vec<LedgerEntry> {
        self.lock().values().cloned().collect()
    }

    /// How many images there are of each kind of trouble.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.lock().values() {
            *counts.entry(entry.kind.clone()).or_insert(0) += 1;
        }
        counts
    }

    /// Writes `file,reason`, a line for each image, whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`] if it cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<(), DataError> {
        let failed = |error: csv::Error| DataError::io("writing", path, error.into());
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["file", "reason"]).map_err(failed)?;
        for entry in self.entries() {
            writer
                .write_record([&entry.file, &entry.reason])
                .map_err(failed)?;
        }
        let bytes = writer
            .into_inner()
            .map_err(|e| DataError::io("writing", path, e.into_error()))?;
        write_whole(path, &bytes)
    }

    /// Takes over what an earlier part of the same run wrote; a missing file has no entries.
    ///
    /// # Errors
    /// [`DataError::Annotation`] if the file is not one that [`write_csv`](Self::write_csv) wrote.
    pub fn read_csv(&self, path: &Path) -> Result<(), DataError> {
        if !path.exists() {
            return Ok(());
        }
        let wrong = |error: csv::Error| DataError::Annotation {
            path: path.to_path_buf(),
            line: error.position().map_or(1, csv::Position::line),
            problem: error.to_string(),
        };
        for record in csv::Reader::from_path(path).map_err(wrong)?.records() {
            let record = record.map_err(wrong)?;
            let cell = |column| record.get(column).unwrap_or_default().to_owned();
            let (file, reason) = (cell(0), cell(1));
            let kind = "earlier".to_owned();
            self.enter(LedgerEntry { file, reason, kind });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LedgerEntry>> {
        // A thread that panicked while holding it left a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error with its causes, on one line.
fn reason_text(error: &crate::DecodeError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(now) = cause {
        text = format!("{text}: {now}");
        cause = now.source();
    }
    text.replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DecodeError;

    #[test]
    fn an_image_is_entered_once_and_keeps_its_first_reason() {
        let ledger = Ledger::new();
        assert!(ledger.record("b.jpg", &DecodeError::Empty));
        assert!(!ledger.record("b.jpg", &DecodeError::UnknownFormat));
        assert!(ledger.record("a.jpg", &DecodeError::Empty));
        assert_eq!(ledger.len(), 2);
        assert_eq!(ledger.entries()[0].file, "a.jpg");
        assert_eq!(ledger.counts(), BTreeMap::from([("empty".to_owned(), 2)]));
    }

    #[test]
    fn the_csv_quotes_what_needs_it_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("skipped.csv");
        let ledger = Ledger::new();
        ledger.record("a,\"1\".jpg", &DecodeError::UnknownFormat);
        ledger.record(
            "b.jpg",
            &DecodeError::Io(std::io::Error::other("disk\non fire")),
        );
        ledger.write_csv(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "file,reason\n\"a,\"\"1\"\".jpg\",not an image: unknown first bytes\n\
             b.jpg,cannot be read: disk on fire\n"
        );
        let again = Ledger::new();
        again.read_csv(&path).unwrap();
        again.write_csv(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        again.read_csv(&folder.path().join("none.csv")).unwrap();
    }

    #[test]
    fn threads_may_write_at_once() {
        let ledger = Ledger::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..50 {
                        ledger.record(&format!("{i}"), &DecodeError::Empty);
                    }
                });
            }
        });
        assert_eq!(ledger.len(), 50);
    }
}
