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
use selfsame_files::{remove, rename};

use crate::copies::{Copies, Stamp};
use crate::dataset::{Dataset, picture_of};
use crate::decode::DecodeError;
use crate::error::DataError;
use crate::ledger::LedgerEntry;

/// How large the copies are, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
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
/// time of its picture. A journal in `out` keeps how copies were made and from which lengths and
/// times: where these are as they were and the copy is whole, it is kept, so that a call that was
/// broken off goes on. Copies appear whole or not at all under their names; a loss of power may take
/// the last of them. `progress` is called with the number of pictures done so far, from any thread.
///
/// Only one call may write into a folder at a time, and only of one data set; nothing here sees to
/// that.
///
/// # Errors
/// [`DataError::Setting`] with every setting without sense, if `out` holds copies that were made with
/// other settings, if copies would take the places of their pictures, or as [`check_names`], before
/// anything is written; [`DataError::Io`] if a copy cannot be written. Copies that were written stay.
pub fn shrink(
    dataset: &dyn Dataset,
    out: &Path,
    config: &ShrinkConfig,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<ShrinkReport, DataError> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(DataError::Setting(problems.join("; ")));
    }
    check_names(dataset)?;
    refuse_originals(dataset, out)?;
    let copies = copies_in(out, config)?;
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
    /// Every problem in words, each text naming its field; empty if there is none.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.shorter_side == 0 {
            let problem = "shorter_side: a copy must have at least 1 pixel";
            problems.push(problem.to_owned());
        }
        if !(1..=100).contains(&self.quality) {
            problems.push(format!(
                "quality: {} is not within 1 and 100, as that of JPEG is",
                self.quality
            ));
        }
        problems
    }
}

/// The journal of a folder of copies that are made in this way.
fn copies_in(out: &Path, config: &ShrinkConfig) -> Result<Copies, DataError> {
    let failed = |error| DataError::io("opening", out, error);
    let mut copies = Copies::open(out).map_err(failed)?;
    let ShrinkConfig {
        shorter_side,
        quality,
    } = config;
    let settings = format!("shorter_side {shorter_side} and quality {quality}");
    match copies.agree(&settings, out).map_err(failed)? {
        None => Ok(copies),
        Some(other) => Err(DataError::Setting(format!(
            "{}: its copies were made with {other}; take these, or another folder",
            out.display()
        ))),
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

/// Refuses to write copies over their pictures.
fn refuse_originals(dataset: &dyn Dataset, out: &Path) -> Result<(), DataError> {
    let targets = (0..dataset.len()).filter_map(|index| place_of(dataset.name(index)));
    let targets = targets.filter_map(|place| out.join(place).canonicalize().ok());
    let targets: HashSet<PathBuf> = targets.collect();
    if targets.is_empty() {
        return Ok(());
    }
    let mut sources = (0..dataset.len()).filter_map(|index| dataset.path(index));
    let is_target = |path: &PathBuf| path.canonicalize().is_ok_and(|at| targets.contains(&at));
    match sources.find(is_target) {
        Some(source) => Err(DataError::Setting(format!(
            "{}: a copy would take its place; name another folder",
            source.display()
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
    let done = written.and_then(|()| rename(&beside, target));
    done.map_err(|error| {
        let _ = remove(&beside);
        failed(error)
    })
}

#[cfg(test)]
mod tests;
