//! Whether two data sets hold the same pictures, however their specifications are spelled.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use selfsame_data::Dataset;

/// What two data sets have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// The same pictures in the same order.
    Same,
    /// So many samples of the second set are pictures that the first one has too.
    Shared(usize),
}

impl Overlap {
    /// How many samples of the second set, which has so many, are pictures of the first.
    pub(crate) fn shared(self, all: usize) -> usize {
        match self {
            Self::Same => all,
            Self::Shared(shared) => shared,
        }
    }

    /// Compares samples by the real paths of their files, drawn ones by name and labels.
    ///
    /// Asks the file system about every file. Copies of a file are other pictures to it.
    pub(crate) fn of(first: &dyn Dataset, second: &dyn Dataset) -> Self {
        let (first, second) = (pictures(first), pictures(second));
        if first == second {
            return Self::Same;
        }
        let first: HashSet<u64> = first.into_iter().collect();
        let shared = second.iter().filter(|&picture| first.contains(picture));
        Self::Shared(shared.count())
    }
}

/// A number for the picture of each sample.
fn pictures(set: &dyn Dataset) -> Vec<u64> {
    let number = |index| {
        let mut hasher = DefaultHasher::new();
        match set.path(index) {
            Some(path) => std::fs::canonicalize(&path)
                .unwrap_or(path)
                .hash(&mut hasher),
            None => (set.name(index), set.labels(index)).hash(&mut hasher),
        }
        hasher.finish()
    };
    (0..set.len()).map(number).collect()
}

#[cfg(test)]
mod tests {
    use selfsame_data::{OpenOptions, open};

    use super::*;

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
}
