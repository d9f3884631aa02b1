use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::{Limits, OpenOptions, decode, open};

/// A slope with a dot, of which every pixel differs from its neighbours.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 2) as u8, (y * 3) as u8, ((x ^ y) * 5) as u8])
    })
}

struct Sets {
    dir: tempfile::TempDir,
}

impl Sets {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("in/cats")).unwrap();
        Self { dir }
    }

    fn source(&self, name: &str) -> PathBuf {
        self.dir.path().join("in").join(name)
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn open(&self) -> Arc<dyn Dataset> {
        let folder = self.dir.path().join("in");
        open(folder.to_str().unwrap(), &OpenOptions::default()).unwrap()
    }

    fn shrink(&self, shorter_side: u32) -> ShrinkReport {
        let config = ShrinkConfig {
            shorter_side,
            ..ShrinkConfig::default()
        };
        shrink(self.open().as_ref(), &self.out(), &config, &|_| ()).unwrap()
    }

    fn copy(&self, name: &str) -> RgbImage {
        decode::decode_file(&self.out().join(name), &Limits::default()).unwrap()
    }
}

#[test]
fn large_pictures_are_shrunk_small_ones_copied_unusable_ones_named() {
    let sets = Sets::new();
    picture(120, 80).save(sets.source("cats/a.png")).unwrap();
    picture(60, 200).save(sets.source("cats/b.jpg")).unwrap();
    picture(39, 300).save(sets.source("c.bmp")).unwrap();
    picture(90, 90).save(sets.source("d.bmp")).unwrap();
    fs::write(sets.source("e.jpg"), "no picture").unwrap();
    let report = sets.shrink(40);
    assert_eq!((report.shrunk, report.copied, report.kept), (3, 1, 0));
    let unusable: Vec<&str> = report.unusable.iter().map(|e| &*e.file).collect();
    assert_eq!(unusable, ["e.jpg"]);
    assert_eq!(sets.copy("cats/a.png").dimensions(), (60, 40));
    assert_eq!(sets.copy("cats/b.jpg").dimensions(), (40, 133));
    assert_eq!(sets.copy("d.bmp").dimensions(), (40, 40));
    let same = |name: &str| {
        fs::read(sets.source(name)).unwrap() == fs::read(sets.out().join(name)).unwrap()
    };
    assert!(same("c.bmp"));
    // Nothing but the copies, unfinished files included.
    let names = |folder: PathBuf| {
        let files = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = files.map(|f| f.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(sets.out()), [".copies", "c.bmp", "cats", "d.bmp"]);
    assert_eq!(names(sets.out().join("cats")), ["a.png", "b.jpg"]);
    // PNG is exact, so it is the resize's picture to the byte.
    let exact = smaller(&picture(120, 80), 40, &mut Workspace::new());
    assert_eq!(sets.copy("cats/a.png"), exact);
    let size = |folder: &Path| {
        ["cats/a.png", "cats/b.jpg", "c.bmp", "d.bmp"]
            .map(|name| fs::metadata(folder.join(name)).unwrap().len())
            .iter()
            .sum::<u64>()
    };
    assert_eq!(report.bytes_before, size(&sets.source("")));
    assert_eq!(report.bytes_after, size(&sets.out()));
}

#[test]
fn a_jpeg_copy_looks_like_its_picture() {
    let sets = Sets::new();
    let smooth = RgbImage::from_fn(256, 128, |x, y| image::Rgb([x as u8, y as u8, 90]));
    smooth.save(sets.source("a.bmp")).unwrap();
    sets.shrink(64);
    let (copy, exact) = (
        sets.copy("a.bmp"),
        smaller(&smooth, 64, &mut Workspace::new()),
    );
    assert_eq!(copy.dimensions(), (128, 64));
    let apart = copy
        .as_raw()
        .iter()
        .zip(exact.as_raw())
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!((1..=6).contains(&apart.unwrap()), "{apart:?}");
}

#[test]
fn a_copy_is_made_again_if_its_picture_changed_or_it_was_cut_short() {
    let sets = Sets::new();
    for name in ["a.jpg", "b.jpg", "c.jpg", "d.jpg"] {
        picture(100, 100).save(sets.source(name)).unwrap();
    }
    assert_eq!(sets.shrink(50).shrunk, 4);
    let again = sets.shrink(50);
    assert_eq!((again.shrunk, again.kept), (0, 4));
    let b = File::options()
        .write(true)
        .open(sets.out().join("b.jpg"))
        .unwrap();
    b.set_len(300).unwrap();
    drop(b); // Windows puts nothing in the place of a file that is open
    let c = File::options()
        .write(true)
        .open(sets.source("c.jpg"))
        .unwrap();
    // An older file may have come in its place too.
    for away in [60, 120] {
        c.set_modified(SystemTime::now() - Duration::from_secs(away))
            .unwrap();
        let again = sets.shrink(50);
        assert_eq!(again.shrunk, if away == 60 { 2 } else { 1 });
        assert_eq!(sets.shrink(50).kept, 4);
    }
    assert_eq!(sets.copy("b.jpg").dimensions(), (50, 50));
    // What can no longer be used keeps the copy it had.
    fs::write(sets.source("d.jpg"), "no picture").unwrap();
    let d = File::options().write(true).open(sets.source("d.jpg"));
    d.unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(300))
        .unwrap();
    let again = sets.shrink(50);
    assert_eq!((again.kept, again.unusable.len()), (3, 1));
    assert_eq!(sets.copy("d.jpg").dimensions(), (50, 50));
}

#[test]
fn a_picture_that_took_anothers_place_is_not_taken_for_it() {
    let sets = Sets::new();
    let now = SystemTime::now();
    let save = |name: &str, size: u32, later: u64| {
        picture(size, size).save(sets.source(name)).unwrap();
        let file = File::options().write(true).open(sets.source(name));
        let time = now + Duration::from_millis(later);
        file.unwrap().set_modified(time).unwrap();
    };
    // As fast as files are copied, and one that is small enough as it is.
    save("a.png", 100, 0);
    save("b.png", 120, 6);
    save("c.png", 30, 0);
    assert_eq!(sets.shrink(50).shrunk, 2);
    let beside = sets.source("beside");
    fs::rename(sets.source("a.png"), &beside).unwrap();
    fs::rename(sets.source("b.png"), sets.source("a.png")).unwrap();
    fs::rename(&beside, sets.source("b.png")).unwrap();
    save("c.png", 31, 0); // with the time it had
    let again = sets.shrink(50);
    assert_eq!((again.shrunk, again.copied, again.kept), (2, 1, 0));
    let expected = smaller(&picture(120, 120), 50, &mut Workspace::new());
    assert_eq!(sets.copy("a.png"), expected);
    assert_eq!(sets.copy("c.png").dimensions(), (31, 31));
    assert_eq!(sets.shrink(50).kept, 3);
}

#[test]
fn one_place_is_written_once_however_it_is_spelled() {
    let sets = Sets::new();
    picture(100, 100).save(sets.source("a.jpg")).unwrap();
    picture(90, 90).save(sets.source("b.jpg")).unwrap();
    let list = sets.source("list.csv");
    fs::write(&list, "path\n./a.jpg\na.jpg\nb.jpg\n./b.jpg\n").unwrap();
    let set = open(list.to_str().unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!(set.len(), 4);
    let config = ShrinkConfig {
        shorter_side: 50,
        ..ShrinkConfig::default()
    };
    let report = shrink(set.as_ref(), &sets.out(), &config, &|_| ()).unwrap();
    assert_eq!((report.shrunk, report.kept), (2, 0));
}

#[test]
fn a_strip_that_jpeg_does_not_hold_is_left_out() {
    let sets = Sets::new();
    let strip = RgbImage::new(4, 90_000);
    let format = ImageFormat::Png; // by a name that would give JPEG
    strip
        .save_with_format(sets.source("a.jpg"), format)
        .unwrap();
    picture(100, 100).save(sets.source("b.jpg")).unwrap();
    let options = OpenOptions {
        limits: Limits {
            max_side: 100_000,
            ..Limits::default()
        },
        ..OpenOptions::default()
    };
    let set = open(sets.source("").to_str().unwrap(), &options).unwrap();
    let config = ShrinkConfig {
        shorter_side: 3,
        ..ShrinkConfig::default()
    };
    let report = shrink(set.as_ref(), &sets.out(), &config, &|_| ()).unwrap();
    assert_eq!(report.shrunk, 1, "{report:?}");
    assert!(
        report.unusable[0].reason.contains("than a JPEG has"),
        "{report:?}"
    );
    // As it is it needs no encoding.
    let report = shrink(
        set.as_ref(),
        &sets.out().join("4"),
        &ShrinkConfig::default(),
        &|_| (),
    );
    assert_eq!(report.unwrap().copied, 2);
}

#[test]
fn a_file_in_the_way_is_told_and_without_it_the_call_goes_on() {
    let sets = Sets::new();
    picture(100, 100).save(sets.source("cats/a.jpg")).unwrap();
    picture(100, 100).save(sets.source("b.jpg")).unwrap();
    fs::create_dir_all(sets.out()).unwrap();
    fs::write(sets.out().join("cats"), "a file").unwrap();
    let config = ShrinkConfig::default();
    let told = shrink(sets.open().as_ref(), &sets.out(), &config, &|_| ());
    let told = told.unwrap_err();
    assert!(
        !told.is_usage() && told.to_string().contains("cats"),
        "{told}"
    );
    fs::remove_file(sets.out().join("cats")).unwrap();
    let report = shrink(sets.open().as_ref(), &sets.out(), &config, &|_| ()).unwrap();
    assert_eq!(report.copied + report.kept, 2);
}

/// A set whose names lead anywhere.
#[derive(Debug)]
struct Outside(&'static str);

impl Dataset for Outside {
    fn len(&self) -> usize {
        1
    }
    fn name(&self, _: usize) -> &str {
        self.0
    }
    fn labels(&self, _: usize) -> std::collections::BTreeMap<String, String> {
        std::collections::BTreeMap::new()
    }
    fn label_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn decode(&self, _: usize) -> Result<RgbImage, DecodeError> {
        Ok(picture(9, 9))
    }
    fn path(&self, _: usize) -> Option<PathBuf> {
        None
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

#[test]
fn a_name_that_leads_elsewhere_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["../a.jpg", "/a.jpg", "b/../../a.jpg", "", "."] {
        let told = shrink(
            &Outside(name),
            dir.path(),
            &ShrinkConfig::default(),
            &|_| (),
        );
        let told = told.unwrap_err();
        assert!(
            told.is_usage() && told.to_string().contains("downwards"),
            "{told}"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(place_of("./b/./a.jpg"), Some(PathBuf::from("b/a.jpg")));
    // Without a file there is nothing to copy; the picture itself is written.
    let report = shrink(
        &Outside("a.jpg"),
        dir.path(),
        &ShrinkConfig::default(),
        &|_| (),
    );
    assert_eq!(report.unwrap().shrunk, 1);
    assert!(dir.path().join("a.jpg").is_file());
}

#[test]
fn settings_without_sense_are_refused() {
    for (shorter_side, quality, problems) in [(0, 90, 1), (10, 0, 1), (10, 101, 1), (0, 101, 2)] {
        let config = ShrinkConfig {
            shorter_side,
            quality,
        };
        assert_eq!(config.check().len(), problems);
        let told = shrink(&Outside("a"), Path::new("none"), &config, &|_| ()).unwrap_err();
        let told = (told.is_usage(), told.to_string());
        assert_eq!(told, (true, config.check().join("; ")));
    }
    assert_eq!(ShrinkConfig::default().check(), Vec::<String>::new());
}

#[test]
fn copies_that_were_made_otherwise_are_not_kept_for_those_asked_for() {
    let sets = Sets::new();
    picture(100, 100).save(sets.source("a.jpg")).unwrap();
    let config = |shorter_side, quality| ShrinkConfig {
        shorter_side,
        quality,
    };
    let call = |config| shrink(sets.open().as_ref(), &sets.out(), &config, &|_| ());
    assert_eq!(call(config(50, 90)).unwrap().shrunk, 1);
    for other in [config(40, 90), config(50, 80)] {
        let error = call(other).unwrap_err();
        let words = "out: its copies were made with shorter_side 50 and quality 90; take these";
        assert!(
            error.is_usage() && error.to_string().contains(words),
            "{error}"
        );
    }
    assert_eq!(call(config(50, 90)).unwrap().kept, 1);

    // A journal from before it kept that, and one whose last line was broken off.
    let journal = sets.out().join(".copies");
    let text = fs::read_to_string(&journal).unwrap();
    let older: String = text.split_inclusive('\n').skip(1).collect();
    for older in [older.clone(), older + "made with shorter_side 5"] {
        fs::write(&journal, older).unwrap();
        assert_eq!(call(config(50, 90)).unwrap().kept, 1);
        assert!(call(config(40, 90)).is_err());
    }

    // Copies that are gone are made in any way.
    fs::remove_file(sets.out().join("a.jpg")).unwrap();
    assert_eq!(call(config(40, 90)).unwrap().shrunk, 1);
    assert_eq!(sets.copy("a.jpg").dimensions(), (40, 40));
    assert!(call(config(50, 90)).is_err());
}

#[test]
fn pictures_are_not_overwritten_by_their_copies() {
    let sets = Sets::new();
    picture(100, 100).save(sets.source("a.png")).unwrap();
    let before = fs::read(sets.source("a.png")).unwrap();
    let config = ShrinkConfig {
        shorter_side: 50,
        ..ShrinkConfig::default()
    };
    // Nor by those of others.
    fs::create_dir_all(sets.source("deep")).unwrap();
    picture(90, 90).save(sets.source("deep/a.png")).unwrap();
    let told = shrink(sets.open().as_ref(), &sets.source("deep"), &config, &|_| ());
    let told = told.unwrap_err().to_string();
    assert!(told.contains("deep"), "{told}");
    let told = shrink(
        sets.open().as_ref(),
        &sets.source("cats/.."),
        &config,
        &|_| (),
    );
    let told = told.unwrap_err();
    assert!(
        told.is_usage() && told.to_string().contains("a.png"),
        "{told}"
    );
    assert_eq!(fs::read(sets.source("a.png")).unwrap(), before);
    assert!(!sets.source(".copies").exists());
}
