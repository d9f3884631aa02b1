//! Whether two data sets hold the same pictures, however their specifications are spelled.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::dataset::Dataset;

/// What two data sets have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The same pictures in the same order.
    Same,
    /// So many samples of the second set are pictures that the first one has too.
    Shared(usize),
}

impl Overlap {
    /// Compares samples by the real paths of their files, drawn ones by name and labels.
    ///
    /// Asks the file system about every file. Copies of a file are other pictures to it.
    pub fn of(first: &dyn Dataset, second: &dyn Dataset) -> Self {
        let mut folders = RealFolders::default();
        let (first, second) = (
            pictures(first, &mut folders),
            pictures(second, &mut folders),
        );
        if first == second {
            return Self::Same;
        }
        let first: HashSet<u64> = first.into_iter().collect();
        let shared = second.iter().filter(|&picture| first.contains(picture));
        Self::Shared(shared.count())
    }

    /// How many samples of the second set, which has `len`, are pictures of the first.
    pub fn shared(self, len: usize) -> usize {
        match self {
            Self::Same => len,
            Self::Shared(shared) => shared,
        }
    }
}

/// Those of the samples whose picture is that of a sample before them, told as [`Overlap::of`] tells
/// pictures.
pub fn repeated(set: &dyn Dataset, samples: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let (mut folders, mut before) = (RealFolders::default(), HashSet::new());
    let samples = samples.into_iter();
    samples
        .filter(|index| !before.insert(picture(set, *index, &mut folders)))
        .collect()
}

/// Those of the samples of `set` whose picture is one of these samples of `other`, told as
/// [`Overlap::of`] tells pictures.
pub fn shared(
    set: &dyn Dataset,
    samples: impl IntoIterator<Item = usize>,
    (other, others): (&dyn Dataset, impl IntoIterator<Item = usize>),
) -> Vec<usize> {
    let mut folders = RealFolders::default();
    let others = others.into_iter();
    let others: HashSet<u64> = others.map(|i| picture(other, i, &mut folders)).collect();
    let samples = samples.into_iter();
    samples
        .filter(|index| others.contains(&picture(set, *index, &mut folders)))
        .collect()
}

/// A number for the picture of each sample.
fn pictures(set: &dyn Dataset, folders: &mut RealFolders) -> Vec<u64> {
    (0..set.len())
        .map(|index| picture(set, index, folders))
        .collect()
}

fn picture(set: &dyn Dataset, index: usize, folders: &mut RealFolders) -> u64 {
    let mut hasher = DefaultHasher::new();
    match set.path(index) {
        Some(path) => folders.real_path(path).hash(&mut hasher),
        None => (set.name(index), set.labels(index)).hash(&mut hasher),
    }
    hasher.finish()
}

/// Folders that were asked about, so that a million files of one cost one question each.
#[derive(Default)]
struct RealFolders(HashMap<PathBuf, PathBuf>);

impl RealFolders {
    /// The path without links, or as it is if there is no such file.
    fn real_path(&mut self, path: PathBuf) -> PathBuf {
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|file| file.is_symlink());
        let (false, Some(name), Some(folder)) = (is_link, path.file_name(), path.parent()) else {
            return std::fs::canonicalize(&path).unwrap_or(path);
        };
        if let Some(real) = self.0.get(folder) {
            return real.join(name);
        }
        // The parent of a bare name is an empty path.
        let asked = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let real = std::fs::canonicalize(asked).unwrap_or_else(|_| folder.to_owned());
        let joined = real.join(name);
        self.0.insert(folder.to_owned(), real);
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{OpenOptions, open};

    fn overlap(first: &str, second: &str) -> Overlap {
        let set = |spec| open(spec, &OpenOptions::default()).unwrap();
        Overlap::of(set(first).as_ref(), set(second).as_ref())
    }

    #[test]
    fn drawn_pictures_are_compared_by_what_is_drawn() {
        let spec = |query: &str| format!("synthetic:portraits?{query}");
        for (first, second, expected) in [
            ("count=8", "seed=0&count=8", Overlap::Same),
            ("count=8", "count=12", Overlap::Shared(8)),
            ("count=8", "count=4", Overlap::Shared(4)),
            ("count=8", "count=8&seed=1", Overlap::Shared(0)),
        ] {
            assert_eq!(overlap(&spec(first), &spec(second)), expected, "{second}");
        }
    }

    #[test]
    fn files_are_compared_by_their_real_paths() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("faces")).unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            write(&format!("faces/{name}"), name);
        }
        write("all.csv", "Images\nfaces/b.png\nfaces/a.png\nfaces/c.png\n");
        write("some.csv", "Images\nfaces/b.png\nfaces/a.png\n");
        write("twice.csv", "Images\nfaces/b.png\nfaces/b.png\n");
        let spec = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (first, second, expected) in [
            ("faces", "faces/../faces/.", Overlap::Same),
            ("all.csv", "faces", Overlap::Same),
            ("some.csv", "all.csv", Overlap::Shared(2)),
            ("all.csv", "some.csv", Overlap::Shared(2)),
            ("some.csv", "twice.csv", Overlap::Shared(2)),
        ] {
            assert_eq!(overlap(&spec(first), &spec(second)), expected, "{second}");
        }
    }

    #[test]
    fn pictures_that_stand_twice_are_found_behind_the_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let csv = dir.path().join("some.csv");
        std::fs::write(
            &csv,
            "Images
b.png
a.png
b.png
c.png
a.png
",
        )
        .unwrap();
        let set = open(csv.to_str().unwrap(), &OpenOptions::default()).unwrap();
        assert_eq!(repeated(set.as_ref(), 0..5), [1, 3]);
        assert_eq!(repeated(set.as_ref(), [1, 3, 4]), []);
        let drawn = open("synthetic:portraits?count=9", &OpenOptions::default()).unwrap();
        assert_eq!(repeated(drawn.as_ref(), 0..9), []);
        let fewer = open("synthetic:portraits?count=4", &OpenOptions::default()).unwrap();
        let both = |samples, of| shared(drawn.as_ref(), samples, (fewer.as_ref(), of));
        assert_eq!(both(2..9, 0..4), [2, 3]);
        assert_eq!(both(0..9, 1..2), [1]);
        assert_eq!(shared(drawn.as_ref(), 0..9, (set.as_ref(), 0..5)), []);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_the_pictures_they_lead_to() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["faces", "links"] {
            std::fs::create_dir(path(folder)).unwrap();
        }
        for name in ["a.png", "b.png"] {
            std::fs::write(path("faces").join(name), name).unwrap();
        }
        symlink(path("faces/b.png"), path("links/first.png")).unwrap();
        symlink(path("faces"), path("all")).unwrap();
        let spec = |name: &str| path(name).to_str().unwrap().to_owned();
        assert_eq!(overlap(&spec("faces"), &spec("all")), Overlap::Same);
        assert_eq!(overlap(&spec("faces"), &spec("links")), Overlap::Shared(1));
    }
}
