//! The files of a data set, a few bytes each beside their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::slice::ParallelSliceMut;

/// Names in one text, in the order in which they were added (their rows), and an order of the
/// samples over them. A million names of their own would be allocated and freed one by one.
#[derive(Debug, Default)]
pub(crate) struct FileList {
    text: String,
    /// Where each row's name ends.
    ends: Vec<usize>,
    /// Files that are not the data set's folder and the name.
    paths: BTreeMap<usize, PathBuf>,
    /// The samples' rows.
    order: Vec<u32>,
}

impl FileList {
    /// Adds a sample at the end; with a path, that is the file, not what its name says.
    pub(crate) fn push(&mut self, name: &str, path: Option<PathBuf>) {
        let row = self.ends.len();
        self.text.push_str(name);
        self.ends.push(self.text.len());
        self.paths.extend(path.map(|path| (row, path)));
        self.order
            .push(u32::try_from(row).expect("fewer than 2³² names fit in memory"));
    }

    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// As which row a sample was added.
    pub(crate) fn row(&self, sample: usize) -> usize {
        self.order[sample] as usize
    }

    pub(crate) fn name(&self, sample: usize) -> &str {
        self.name_of_row(self.row(sample))
    }

    /// The file of a sample, for names that start from `folder`.
    pub(crate) fn path(&self, sample: usize, folder: &Path) -> PathBuf {
        match self.paths.get(&self.row(sample)) {
            Some(path) => path.clone(),
            None => folder.join(self.name(sample)),
        }
    }

    fn name_of_row(&self, row: usize) -> &str {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[row]]
    }

    /// Puts the samples into the byte order of their names, equal ones into that of their rows.
    ///
    /// What is sorted are numbers of a name's first twelve bytes and its row: most comparisons end
    /// there, without a look at the text.
    pub(crate) fn sort(&mut self) {
        let name = |row: u32| self.name_of_row(row as usize).as_bytes();
        let key_of = |row: &u32| {
            let name = name(*row);
            let mut start = [0; 16];
            let len = name.len().min(12);
            start[..len].copy_from_slice(&name[..len]);
            u128::from_be_bytes(start) | u128::from(*row)
        };
        let mut keys: Vec<u128> = self.order.iter().map(key_of).collect();
        keys.par_sort_unstable_by(|a, b| {
            let names = || name(*a as u32).cmp(name(*b as u32));
            (a >> 32).cmp(&(b >> 32)).then_with(names).then(a.cmp(b))
        });
        self.order = keys.into_iter().map(|key| key as u32).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &FileList) -> Vec<&str> {
        (0..list.len()).map(|sample| list.name(sample)).collect()
    }

    #[test]
    fn samples_are_sorted_by_bytes_and_keep_their_rows_and_paths() {
        let mut list = FileList::default();
        let long = "a folder with a long name/";
        for name in [
            "b",
            &format!("{long}2"),
            "",
            &format!("{long}10"),
            "b",
            "a\0",
        ] {
            let path = (name == "a\0").then(|| PathBuf::from("elsewhere"));
            list.push(name, path);
        }
        assert_eq!(list.name(5), "a\0");
        list.sort();
        let expected = [
            "",
            "a\0",
            &format!("{long}10"),
            &format!("{long}2"),
            "b",
            "b",
        ];
        assert_eq!(names(&list), expected);
        let rows: Vec<usize> = (0..6).map(|sample| list.row(sample)).collect();
        assert_eq!(rows, [2, 5, 3, 1, 0, 4]);
        assert_eq!(list.path(1, Path::new("x")), Path::new("elsewhere"));
        assert_eq!(list.path(4, Path::new("x")), Path::new("x/b"));
    }
}
