//! Copies of pictures that are no larger than training needs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat, RgbImage};
use rayon::prelude::*;
use selfsame_augment::{EvalCrop, Interpolation, Workspace, ops};

use crate::copies::{Copies, Stamp};
use crate::dataset::{Dataset, picture_of};
use crate::decode::DecodeError;
use crate::error::DataError;
use crate::ledger::LedgerEntry;

/// How large the copies are, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShrinkConfig {
    /// The shorter side of a copy in pixels; what is no larger is copied as it is.
    pub shorter_side: u32,
    /// Quality of JPEG, from 1 to 100.
    pub quality: u8,
}

impl Default for ShrinkConfig {
    fn default() -> Self {
        Self {
            shorter_side: 512,
            quality: 92,
        }
    }
}

/// What [`shrink`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShrinkReport {
    /// Pictures that were made smaller.
    pub shrunk: usize,
    /// Pictures that were small enough and copied byte for byte.
    pub copied: usize,
    /// Pictures whose copy was there from an earlier call.
    pub kept: usize,
    /// Pictures that cannot be used, in the data set's order. They get no copy; one that was made
    /// when they could be used stays.
    pub unusable: Vec<LedgerEntry>,
    /// Bytes of the files that were read or need not be read again.
    pub bytes_before: u64,
    /// Bytes of their copies.
    pub bytes_after: u64,
}

/// The longest side that JPEG has.
const LONGEST_JPEG: u32 = 65_535;

/// What became of one picture.
enum Fate {
    Shrunk(u64, u64),
    Copied(u64, u64),
    Kept(u64, u64),
    Unusable(Box<LedgerEntry>),
    /// Listed once more.
    Again,
}

/// Writes a smaller copy of every picture into `out`, under the name it has in the data set, on
/// rayon's current pool.
///
/// A copy is upright and opaque, shrunk by Pillow's bicubic filter; it is PNG where the name ends
/// so and JPEG everywhere else, as the name stays and a format is told by its content. It has the
/// time of its picture. A journal in `out` keeps from which lengths and times copies were made: where
/// they are as they were and the copy is whole, it is kept, so that a call that was broken off goes
/// on. Copies appear whole or not at all under their names; a loss of power may take the last of
/// them. Only one call may write into a folder at a time. `progress` is called with the number of
/// pictures done so far, from any thread.
///
/// # Errors
/// [`DataError::Setting`] for a setting without sense, or as [`check_names`], before anything is
/// written; [`DataError::Io`] if a copy cannot be written. Copies that were written stay.
pub fn shrink(
    dataset: &dyn Dataset,
    out: &Path,
    config: &ShrinkConfig,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<ShrinkReport, DataError> {
    config.check()?;
    check_names(dataset)?;
    let copies = Copies::open(out).map_err(|error| DataError::io("opening", out, error))?;
    let mut places = HashSet::new();
    let is_first: Vec<bool> = (0..dataset.len())
        .map(|index| places.insert(place_of(dataset.name(index))))
        .collect();
    drop(places);
    let done = AtomicUsize::new(0);
    let fates: Vec<Fate> = (0..dataset.len())
        .into_par_iter()
        .map_init(Workspace::new, |workspace, index| {
            let fate = match is_first[index] {
                false => Fate::Again,
                true => shrink_one(dataset, index, (out, &copies), config, workspace)?,
            };
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            Ok(fate)
        })
        .collect::<Result<_, DataError>>()?;

    let mut report = ShrinkReport::default();
    for fate in fates {
        let (count, before, after) = match fate {
            Fate::Shrunk(before, after) => (&mut report.shrunk, before, after),
            Fate::Copied(before, after) => (&mut report.copied, before, after),
            Fate::Kept(before, after) => (&mut report.kept, before, after),
            Fate::Unusable(entry) => {
                report.unusable.push(*entry);
                continue;
            }
            Fate::Again => continue,
        };
        *count += 1;
        report.bytes_before += before;
        report.bytes_after += after;
    }
    Ok(report)
}

impl ShrinkConfig {
    fn check(&self) -> Result<(), DataError> {
        let problem = match self {
            Self {
                shorter_side: 0, ..
            } => "the shorter side of a copy must have at least 1 pixel",
            Self {
                quality: 0 | 101.., ..
            } => "the quality of JPEG goes from 1 to 100",
            _ => return Ok(()),
        };
        Err(DataError::Setting(problem.to_owned()))
    }
}

/// Whether every picture's name is a place within a folder of copies.
///
/// # Errors
/// [`DataError::Setting`] with the first name that is not.
pub fn check_names(dataset: &dyn Dataset) -> Result<(), DataError> {
    let mut names = (0..dataset.len()).map(|index| dataset.name(index));
    match names.find(|name| place_of(name).is_none()) {
        Some(name) => Err(DataError::Setting(format!(
            "{name:?}: the name leads out of a folder of copies; write an annotation file whose \
             paths go downwards from one folder"
        ))),
        None => Ok(()),
    }
}

/// Where a name lies within a folder, if it is a path downwards.
pub fn place_of(name: &str) -> Option<PathBuf> {
    let mut place = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => place.push(part),
            _ => return None,
        }
    }
    (!place.as_os_str().is_empty()).then_some(place)
}

fn shrink_one(
    dataset: &dyn Dataset,
    index: usize,
    (out, copies): (&Path, &Copies),
    config: &ShrinkConfig,
    workspace: &mut Workspace,
) -> Result<Fate, DataError> {
    let place = place_of(dataset.name(index)).unwrap_or_default();
    let (source, target) = (dataset.path(index), out.join(&place));
    let name = place.to_string_lossy();
    let before = source.as_deref().and_then(|path| fs::metadata(path).ok());
    let bytes_before = before.as_ref().map_or(0, fs::Metadata::len);
    let stamp = before.as_ref().map(Stamp::of);
    if let Some(after) = stamp.and_then(|stamp| copies.whole(&name, stamp, &target)) {
        return Ok(Fate::Kept(bytes_before, after));
    }
    let unusable = |error| {
        let entry = LedgerEntry::of(dataset, index, &error);
        Ok(Fate::Unusable(Box::new(entry)))
    };
    let picture = match picture_of(dataset, index) {
        Ok(picture) => picture,
        Err(error) => return unusable(error),
    };
    let is_small = picture.width().min(picture.height()) <= config.shorter_side;
    let (bytes, is_copy) = match source.filter(|_| is_small) {
        Some(source) => match fs::read(source) {
            Ok(bytes) => (bytes, true),
            Err(error) => return unusable(DecodeError::Io(error)),
        },
        None => {
            let picture = match is_small {
                true => picture,
                false => smaller(&picture, config.shorter_side, workspace),
            };
            let (width, height) = picture.dimensions();
            if !is_png(&target) && width.max(height) > LONGEST_JPEG {
                let what = format!("{width}x{height} pixels are more than a JPEG has");
                return unusable(DecodeError::Unsupported { what });
            }
            let bytes = encoded(&picture, &target, config.quality)
                .map_err(|error| DataError::io("encoding", &target, error))?;
            (bytes, false)
        }
    };
    let time = before.and_then(|before| before.modified().ok());
    write_copy(&target, index, &bytes, time)?;
    let after = bytes.len() as u64;
    if let Some(stamp) = stamp {
        let noted = copies.note(&name, stamp, after);
        noted.map_err(|error| DataError::io("noting", &target, error))?;
    }
    Ok(match is_copy {
        true => Fate::Copied(bytes_before, after),
        false => Fate::Shrunk(bytes_before, after),
    })
}

/// The picture with a shorter side of so many pixels.
fn smaller(picture: &RgbImage, shorter_side: u32, workspace: &mut Workspace) -> RgbImage {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let to = EvalCrop {
        image_size: shorter_side as usize,
        ..EvalCrop::default()
    };
    let (width, height) = to.resized_dimensions(width, height);
    ops::resize(picture, width, height, Interpolation::Bicubic, workspace)
}

fn is_png(target: &Path) -> bool {
    matches!(ImageFormat::from_path(target), Ok(ImageFormat::Png))
}

fn encoded(picture: &RgbImage, target: &Path, quality: u8) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let done = match is_png(target) {
        true => picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png),
        false => JpegEncoder::new_with_quality(&mut bytes, quality).encode(
            picture.as_raw(),
            picture.width(),
            picture.height(),
            ExtendedColorType::Rgb8,
        ),
    };
    done.map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// Writes beside, then renames. Not waiting for the disk: a copy can be made again.
fn write_copy(
    target: &Path,
    index: usize,
    bytes: &[u8],
    time: Option<SystemTime>,
) -> Result<(), DataError> {
    let failed = |error| DataError::io("writing", target, error);
    let folder = target.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(failed)?;
    // The same when a call that was killed is made again.
    let beside = folder.join(format!(".tmp-shrink-{index}"));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        time.map_or(Ok(()), |time| file.set_modified(time))
    });
    let done = written.and_then(|()| fs::rename(&beside, target));
    done.map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, OpenOptions, decode, open};
    use std::sync::Arc;
    use std::time::Duration;

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
        for (shorter_side, quality) in [(0, 90), (10, 0), (10, 101)] {
            let config = ShrinkConfig {
                shorter_side,
                quality,
            };
            let told = shrink(&Outside("a"), Path::new("none"), &config, &|_| ());
            assert!(told.unwrap_err().is_usage());
        }
    }
}
