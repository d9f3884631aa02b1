//! The pictures of a data set as they were once, so that what has changed since can be named.

use std::collections::BTreeMap;
use std::path::Path;

use crate::csv_text::{put_rows, read_own};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::fingerprint::{head_hash, sampled};

const HEADER: [&str; 3] = ["file", "bytes", "blake3_of_start"];

/// Names, sizes and samples of content: what [`Dataset::fingerprint`] hashes, spelled out.
///
/// Empty for a data set that is drawn and not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PictureList(BTreeMap<String, Picture>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    /// `None` if the file is not there.
    bytes: Option<u64>,
    /// Of the first 64 KiB, for up to 64 files.
    head: Option<String>,
}

impl PictureList {
    /// Asks the file system about every file and reads the start of some.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let paths: Vec<_> = (0..dataset.len())
            .map(|index| dataset.path(index))
            .collect();
        let sampled: Vec<usize> = sampled(dataset.len()).collect();
        let pictures = paths.into_iter().enumerate().filter_map(|(index, path)| {
            let path = path?;
            let bytes = std::fs::metadata(&path).ok().map(|metadata| metadata.len());
            let head = sampled
                .binary_search(&index)
                .is_ok()
                .then(|| head_hash(&path));
            Some((dataset.name(index).to_owned(), Picture { bytes, head }))
        });
        Self(pictures.collect())
    }

    /// True if there is nothing to compare.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is otherwise in `now`, a line for each picture in the order of names.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let size = |bytes: Option<u64>| {
            bytes.map_or("no file".to_owned(), |bytes| format!("{bytes} bytes"))
        };
        let mut lines = BTreeMap::new();
        for (name, then) in &self.0 {
            let line = match now.0.get(name) {
                None => format!("{name}: gone"),
                Some(now) if then.bytes != now.bytes => {
                    format!("{name}: {} then, {} now", size(then.bytes), size(now.bytes))
                }
                Some(now) if now.head.is_some() && then.head.is_some() && now.head != then.head => {
                    format!("{name}: other content of the same size")
                }
                Some(_) => continue,
            };
            lines.insert(name, line);
        }
        for name in now.0.keys().filter(|name| !self.0.contains_key(*name)) {
            lines.insert(name, format!("{name}: new"));
        }
        lines.into_values().collect()
    }

    /// Writes the list as CSV, whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`] if it cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<(), DataError> {
        let failed = |error: csv::Error| DataError::io("writing", path, error.into());
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(HEADER).map_err(failed)?;
        for (name, picture) in &self.0 {
            let bytes = picture
                .bytes
                .map_or(String::new(), |bytes| bytes.to_string());
            let head = picture.head.clone().unwrap_or_default();
            writer.write_record([name, &bytes, &head]).map_err(failed)?;
        }
        put_rows(path, writer)
    }

    /// Reads what [`write_csv`](Self::write_csv) wrote.
    ///
    /// # Errors
    /// [`DataError::Annotation`] with the line if it is not such a file, [`DataError::Io`] if it
    /// cannot be read.
    pub fn read_csv(path: &Path) -> Result<Self, DataError> {
        let text = std::fs::read(path).map_err(|error| DataError::io("reading", path, error))?;
        let mut list = BTreeMap::new();
        read_own(path, &text, ("pictures", &HEADER), |record| {
            let cell = |column: usize| Some(&record[column]).filter(|text| !text.is_empty());
            let bytes = match cell(1).map(str::parse) {
                None => None,
                Some(Ok(bytes)) => Some(bytes),
                Some(Err(_)) => return Err("a size is not a number".to_owned()),
            };
            let head = cell(2).map(str::to_owned);
            list.insert(record[0].to_owned(), Picture { bytes, head });
            Ok(())
        })?;
        Ok(Self(list))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{OpenOptions, open};

    fn list(folder: &Path) -> PictureList {
        let dataset = open(folder.to_str().unwrap(), &OpenOptions::default()).unwrap();
        PictureList::of(dataset.as_ref())
    }

    #[test]
    fn each_change_is_named_and_moving_the_folder_is_none() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, content) in [
            ("a, b.jpg", "1"),
            ("c.jpg", "22"),
            ("d.jpg", "3"),
            ("e.jpg", ""),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
            fs::write(other.path().join(name), content).unwrap();
        }
        let then = list(folder.path());
        assert_eq!(then.differences(&list(other.path())), Vec::<String>::new());

        fs::remove_file(folder.path().join("a, b.jpg")).unwrap();
        fs::write(folder.path().join("c.jpg"), "222").unwrap();
        fs::write(folder.path().join("d.jpg"), "4").unwrap();
        fs::write(folder.path().join("b.jpg"), "").unwrap();
        let expected = [
            "a, b.jpg: gone",
            "b.jpg: new",
            "c.jpg: 2 bytes then, 3 bytes now",
            "d.jpg: other content of the same size",
        ];
        assert_eq!(then.differences(&list(folder.path())), expected);
    }

    #[test]
    fn a_written_list_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let first = match cfg!(windows) {
            true => "a,b.jpg", // which has no others
            false => "a,\"b\"\n.jpg",
        };
        for name in [first, "c.jpg"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let path = folder.path().join("list.csv");
        let before = list(folder.path());
        before.write_csv(&path).unwrap();
        assert_eq!(PictureList::read_csv(&path).unwrap(), before);
        fs::write(&path, "file,bytes,blake3_of_start\nx.jpg,many,\n").unwrap();
        let problem = PictureList::read_csv(&path).unwrap_err().to_string();
        assert!(problem.contains("list.csv:2: "), "{problem}");
        fs::write(&path, "file,bytes\nx.jpg,1\n").unwrap();
        let problem = PictureList::read_csv(&path).unwrap_err().to_string();
        assert!(
            problem.contains("list.csv:1: no list of pictures"),
            "{problem}"
        );
        for unreadable in [folder.path(), &folder.path().join("none.csv")] {
            let error = PictureList::read_csv(unreadable).unwrap_err();
            assert!(matches!(error, DataError::Io { .. }), "{error}");
        }
    }

    #[test]
    fn drawn_pictures_have_no_list() {
        let drawn = open("synthetic:portraits?count=4", &OpenOptions::default()).unwrap();
        assert!(PictureList::of(drawn.as_ref()).is_empty());
    }
}
