//! Every image that could not be used, once, with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::csv_text::{put_rows, read_own};
use crate::dataset::Dataset;
use crate::decode::DecodeError;
use crate::error::DataError;

const HEADER: [&str; 2] = ["file", "reason"];

/// An entry: which image, and why not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LedgerEntry {
    /// The image's name in its data set.
    pub file: String,
    /// The whole reason, [`DecodeError`](crate::DecodeError)'s text.
    pub reason: String,
    /// Its kind, [`DecodeError::reason`](crate::DecodeError::reason).
    pub kind: String,
    /// Where the file is, if the image is one and that is known: two data sets may have images of
    /// the same name.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

impl LedgerEntry {
    /// An entry for an image that failed to decode, of the only data set or of one without files.
    pub fn new(file: &str, error: &DecodeError) -> Self {
        let (reason, kind) = (reason_text(error), error.reason().to_owned());
        Self {
            file: file.to_owned(),
            reason,
            kind,
            path: None,
        }
    }

    /// An entry for an image of a data set that failed to decode.
    pub fn of(dataset: &dyn Dataset, index: usize, error: &DecodeError) -> Self {
        Self {
            path: path_of(dataset, index),
            ..Self::new(dataset.name(index), error)
        }
    }

    fn key(&self) -> Key {
        (self.file.clone(), self.path.clone())
    }
}

/// Name, and file if it is known.
type Key = (String, Option<PathBuf>);

/// Thread-safe list of unusable images, in the order of their names.
///
/// Images of several data sets may be in one: those of the same name are told apart by their files.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<Key, LedgerEntry>>);

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an image; true if it was not there yet. The first reason stays.
    pub fn record(&self, file: &str, error: &DecodeError) -> bool {
        self.enter(LedgerEntry::new(file, error))
    }

    /// Enters an image with a reason in words; true if it was not there yet. The first reason stays.
    pub fn enter(&self, entry: LedgerEntry) -> bool {
        let mut entries = self.lock();
        let path = &entry.path;
        // An earlier part of the run may have written its path for its name, or left that out.
        let as_path = path
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        for name in as_path.into_iter().chain([entry.file.clone()]) {
            if entries.contains_key(&(name.clone(), path.clone())) {
                return false;
            }
            if let Some(earlier) = entries.remove(&(name, None)) {
                let path = path.clone();
                let earlier = LedgerEntry { path, ..earlier };
                entries.insert(earlier.key(), earlier);
                return false;
            }
        }
        entries.insert(entry.key(), entry);
        true
    }

    /// Whether an image of a data set is in it; of what was read from a file, [`place`](Self::place)
    /// tells the data set first.
    pub fn has(&self, dataset: &dyn Dataset, index: usize) -> bool {
        let name = dataset.name(index);
        let entries = self.lock();
        let first = (name.to_owned(), None);
        let mut of_name = entries
            .range(&first..)
            .take_while(|((file, _), _)| file == name)
            .peekable();
        // Few have an entry, and where links lead takes long for a million files.
        if of_name.peek().is_none() {
            return false;
        }
        let path = path_of(dataset, index);
        of_name.any(|((_, entered), _)| entered.is_none() || *entered == path)
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

    /// Writes `file,reason`, a line for each image, whole or not at all. Images of the same name
    /// are written with their paths.
    ///
    /// # Errors
    /// [`DataError::Io`] if it cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<(), DataError> {
        let failed = |error: csv::Error| DataError::io("writing", path, error.into());
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(HEADER).map_err(failed)?;
        let entries = self.entries();
        let same = |a: &LedgerEntry, b: Option<&LedgerEntry>| b.is_some_and(|b| a.file == b.file);
        for (i, entry) in entries.iter().enumerate() {
            let before = i.checked_sub(1).and_then(|i| entries.get(i));
            let shared = same(entry, before) || same(entry, entries.get(i + 1));
            let path = entry.path.as_ref().filter(|_| shared);
            let path = path.map(|path| path.to_string_lossy());
            let file = path.as_deref().unwrap_or(&entry.file);
            writer.write_record([file, &entry.reason]).map_err(failed)?;
        }
        put_rows(path, writer)
    }

    /// Takes over what an earlier part of the same run wrote, all of it or nothing; a missing file has
    /// no entries.
    ///
    /// # Errors
    /// [`DataError::Annotation`] with the line if the file is not one that
    /// [`write_csv`](Self::write_csv) wrote, [`DataError::Io`] if it cannot be read.
    pub fn read_csv(&self, path: &Path) -> Result<(), DataError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(DataError::io("reading", path, error)),
        };
        let mut entries = Vec::new();
        read_own(path, &text, ("unusable images", &HEADER), |record| {
            entries.push(LedgerEntry {
                file: record[0].to_owned(),
                reason: record[1].to_owned(),
                kind: "earlier".to_owned(),
                path: None,
            });
            Ok(())
        })?;
        for entry in entries {
            self.enter(entry);
        }
        Ok(())
    }

    /// Takes entries without a path, as [`read_csv`](Self::read_csv) makes them, for those of the
    /// images of this data set that have their names.
    pub fn place(&self, dataset: &dyn Dataset) {
        for index in 0..dataset.len() {
            let mut entries = self.lock();
            let written = entries.remove(&(dataset.name(index).to_owned(), None));
            if let Some(mut entry) = written {
                entry.path = path_of(dataset, index);
                entries.insert(entry.key(), entry);
            }
        }
    }

    /// Forgets images that were missing and are there again in all of these data sets that have them,
    /// as after a share of the network came back.
    pub fn forget_returned(&self, sets: &[&dyn Dataset]) {
        let reason = DecodeError::Missing.to_string();
        // Of each missing image, by name or path: whether it is there wherever it belongs.
        let mut missing: BTreeMap<String, Option<bool>> = {
            let entries = self.lock();
            let missing = entries.values().filter(|entry| entry.reason == reason);
            missing.map(|entry| (entry.file.clone(), None)).collect()
        };
        if missing.is_empty() {
            return;
        }
        // Those of one name in two sets are written by their paths.
        let by_path = missing.keys().any(|file| Path::new(file).is_absolute());
        for (set, index) in sets
            .iter()
            .flat_map(|set| (0..set.len()).map(move |index| (set, index)))
        {
            let Some(path) = set.path(index) else {
                continue;
            };
            let mut names = vec![set.name(index).to_owned()];
            if by_path {
                names.push(path.to_string_lossy().into_owned());
                names.extend(
                    dunce::canonicalize(&path).map(|path| path.to_string_lossy().into_owned()),
                );
            }
            for name in names {
                if let Some(is_there) = missing.get_mut(&name) {
                    *is_there = Some(is_there.unwrap_or(true) && path.exists());
                }
            }
        }
        let returned = |file: &String| missing.get(file) == Some(&Some(true));
        self.lock()
            .retain(|_, entry| entry.reason != reason || !returned(&entry.file));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, LedgerEntry>> {
        // A thread that panicked while holding it left a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an image's file is, the same for every way to write its path.
fn path_of(dataset: &dyn Dataset, index: usize) -> Option<PathBuf> {
    let path = dataset.path(index)?;
    Some(dunce::canonicalize(&path).unwrap_or(path))
}

/// The error with its causes, on one line.
fn reason_text(error: &DecodeError) -> String {
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
    fn what_is_no_list_is_told_with_its_line_and_what_cannot_be_read_is_no_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("skipped.csv");
        for (text, words) in [
            (
                "image,reason\na.jpg,gone\n",
                "skipped.csv:1: no list of unusable",
            ),
            (
                "file,reason\r\n\r\na.jpg,gone\r\nb.jpg\r\n",
                "skipped.csv:4: 1 cells",
            ),
            (
                "file,reason\n\"a\nb.jpg\",gone\nc.jpg\n",
                "skipped.csv:4: 1 cells",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Ledger::new().read_csv(&path).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains(words),
                "{error}"
            );
        }
        std::fs::write(&path, b"file,reason\na.jpg,gone\n\xff,gone\n").unwrap();
        let error = Ledger::new().read_csv(&path).unwrap_err().to_string();
        assert!(error.contains("skipped.csv:3: not UTF-8"), "{error}");
        let error = Ledger::new().read_csv(folder.path()).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
    }

    /// A folder of two broken pictures of the same name.
    fn twins() -> (tempfile::TempDir, [std::sync::Arc<dyn Dataset>; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let sets = ["train", "val"].map(|side| {
            let dir = folder.path().join(side);
            std::fs::create_dir_all(dir.join("cat")).unwrap();
            for name in ["1.jpg", "2.jpg"] {
                std::fs::write(dir.join("cat").join(name), "text").unwrap();
            }
            crate::open(dir.to_str().unwrap(), &crate::OpenOptions::default()).unwrap()
        });
        (folder, sets)
    }

    #[test]
    fn images_of_one_name_in_two_sets_are_two() {
        let (folder, [train, val]) = twins();
        let of = |set: &std::sync::Arc<dyn Dataset>, index| {
            LedgerEntry::of(set.as_ref(), index, &DecodeError::UnknownFormat)
        };
        let ledger = Ledger::new();
        assert!(ledger.enter(of(&train, 0)) && ledger.enter(of(&val, 0)));
        assert!(!ledger.enter(of(&train, 0)) && !ledger.enter(of(&val, 0)));
        assert!(ledger.enter(of(&val, 1)));
        assert_eq!(ledger.len(), 3);
        assert!(ledger.has(train.as_ref(), 0) && ledger.has(val.as_ref(), 0));
        assert!(!ledger.has(train.as_ref(), 1) && ledger.has(val.as_ref(), 1));

        let path = folder.path().join("skipped.csv");
        ledger.write_csv(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        let whole = |side: &str| {
            let file = folder.path().join(side).join("cat/1.jpg");
            dunce::canonicalize(file).unwrap().display().to_string()
        };
        assert!(lines[1].starts_with(&whole("train")), "{text}");
        assert!(lines[2].starts_with(&whole("val")), "{text}");
        assert!(lines[3].starts_with("cat/2.jpg,"), "{text}");

        // What goes on knows them again.
        let again = Ledger::new();
        again.read_csv(&path).unwrap();
        for (set, index) in [(&val, 1), (&train, 0), (&val, 0)] {
            assert!(!again.enter(of(set, index)));
        }
        assert!(again.enter(of(&train, 1)));
        assert_eq!(again.len(), 4);

        let one = Ledger::new();
        one.enter(of(&train, 0));
        one.write_csv(&path).unwrap();
        let placed = Ledger::new();
        placed.read_csv(&path).unwrap();
        placed.place(train.as_ref());
        assert!(placed.has(train.as_ref(), 0) && !placed.has(val.as_ref(), 0));
    }

    #[test]
    fn what_was_missing_and_is_there_again_is_forgotten() {
        let (folder, [train, val]) = twins();
        let ledger = Ledger::new();
        let enter = |index, error: &DecodeError| {
            ledger.enter(LedgerEntry::of(train.as_ref(), index, error));
        };
        let first = folder.path().join("train/cat/1.jpg");
        std::fs::remove_file(&first).unwrap();
        enter(0, &DecodeError::Missing);
        enter(1, &DecodeError::UnknownFormat);
        // As the next part of the run reads it.
        let path = folder.path().join("skipped.csv");
        ledger.write_csv(&path).unwrap();
        let read = Ledger::new();
        read.read_csv(&path).unwrap();
        for ledger in [&ledger, &read] {
            ledger.forget_returned(&[train.as_ref()]);
            assert_eq!(ledger.len(), 2, "it is still missing");
        }
        std::fs::write(&first, "text").unwrap();
        for ledger in [&ledger, &read] {
            ledger.forget_returned(&[train.as_ref()]);
            assert_eq!(ledger.entries().len(), 1);
            assert_eq!(ledger.entries()[0].file, "cat/2.jpg");
        }

        // One name in two sets: it is there again when both are, and by its path when that is.
        let enter = |ledger: &Ledger, set: &std::sync::Arc<dyn Dataset>| {
            ledger.enter(LedgerEntry::of(set.as_ref(), 0, &DecodeError::Missing));
        };
        let both = [train.as_ref(), val.as_ref()];
        let second = folder.path().join("val/cat/1.jpg");
        std::fs::remove_file(&second).unwrap();
        let by_name = Ledger::new();
        by_name.record("cat/1.jpg", &DecodeError::Missing);
        by_name.forget_returned(&both);
        assert_eq!(by_name.len(), 1);
        let by_path = Ledger::new();
        enter(&by_path, &train);
        enter(&by_path, &val);
        by_path.write_csv(&path).unwrap();
        let read = Ledger::new();
        read.read_csv(&path).unwrap();
        read.forget_returned(&both);
        assert_eq!(read.len(), 1);
        assert!(Path::new(&read.entries()[0].file).ends_with("val/cat/1.jpg"));
        std::fs::write(&second, "text").unwrap();
        for ledger in [by_name, read] {
            ledger.forget_returned(&both);
            assert!(ledger.is_empty());
        }
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
