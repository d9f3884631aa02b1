//! `selfsame shrink`

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use candle_core::Device;
use selfsame_checkpoint::write_bytes;
use selfsame_data::{
    Dataset, ShrinkConfig, ShrinkReport, annotations, check_names, open, place_of, shrink,
};
use selfsame_models::keep_freed_memory;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::Shrink;
use crate::device::set_threads;
use crate::exit::{Done, pasteable, usage};
use crate::memory::in_words;
use crate::out::check_folder;
use crate::overwriting::lies_within;
use crate::progress::CountProgress;
use crate::scores::{print_json, print_text, printable};

/// Says of a folder how its copies were made, and of what; data sets pass over it.
const RECORD: &str = "shrink.json";
/// Locked while a call writes; data sets pass over it too.
const LOCK: &str = ".lock";

/// What [`RECORD`] holds.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    config: ShrinkConfig,
    /// The folder that names start from: another one's pictures may have the same names.
    root: String,
    /// Annotation files that were written, by name, and what each was made from.
    annotations: BTreeMap<String, String>,
}

pub(crate) fn run(args: &Shrink) -> anyhow::Result<Done> {
    // Decoded pictures are large blocks that come and go.
    keep_freed_memory(&Device::Cpu).context("setting up memory")?;
    let set = open(&args.data, &args.reading.options()?)?;
    let set = set.as_ref();
    let config = ShrinkConfig {
        shorter_side: u32::try_from(args.side)?,
        quality: args.quality,
    };
    check_names(set)?;
    refuse_within(args, set)?;
    set_threads(args.threads)?;
    let _lock = claim(args, set, config)?;

    let progress = Mutex::new(CountProgress::new("shrunk", set.len()));
    let report = shrink(set, &args.out, &config, &|done| {
        if let Ok(mut progress) = progress.lock() {
            progress.set(done);
        }
    })
    .context("what is written stays; the same command goes on")?;
    drop(progress);
    let annotations = annotated(set, args, &report)?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["annotations"] = json!(annotations.as_deref().map(Path::to_string_lossy));
        print_json(&value);
    } else {
        print_report(&report, args, annotations.as_deref());
    }
    match report.shrunk + report.copied + report.kept {
        0 => bail!("{}: not one picture can be used", args.data),
        _ => Ok(Done::Well),
    }
}

/// Refuses copies among the pictures: they would be pictures the next time.
fn refuse_within(args: &Shrink, set: &dyn Dataset) -> anyhow::Result<()> {
    let refusal = |folder: &Path| {
        usage(format!(
            "--out {}: pictures that are read lie in {}; name a folder elsewhere",
            args.out.display(),
            folder.display()
        ))
    };
    let data = Path::new(&args.data);
    if lies_within(&args.out, data) {
        return Err(refusal(data));
    }
    // By links or by an annotation file.
    let paths = (0..set.len()).filter_map(|index| set.path(index));
    let folders: BTreeSet<PathBuf> = paths
        .filter_map(|path| Some(path.parent()?.to_owned()))
        .collect();
    let is_among =
        |folder: &&PathBuf| lies_within(folder, &args.out) || lies_within(&args.out, folder);
    match folders.iter().find(is_among) {
        Some(folder) => Err(refusal(folder)),
        None => Ok(()),
    }
}

/// The folder that names start from, as far as one picture tells.
fn root_of(args: &Shrink, set: &dyn Dataset) -> Option<String> {
    let of_picture = (0..set.len()).find_map(|index| {
        let (path, place) = (set.path(index)?, place_of(set.name(index))?);
        let mut above = path.ends_with(&place).then(|| path.ancestors())?;
        above.nth(place.components().count())?.canonicalize().ok()
    });
    // Names that are not UTF-8 are no paths.
    let of_data = || Path::new(&args.data).canonicalize().ok();
    Some(of_picture.or_else(of_data)?.display().to_string())
}

/// Makes the folder ours, or sees that it is, that its copies are of the same pictures, and that they
/// were made in the same way. Nobody else may write there until the lock is dropped.
fn claim(args: &Shrink, set: &dyn Dataset, config: ShrinkConfig) -> anyhow::Result<File> {
    let out = &args.out;
    let refusal = |problem: String| usage(format!("--out {}: {problem}", out.display()));
    let Some(root) = root_of(args, set) else {
        return Err(usage(format!(
            "{}: there is no file to shrink; drawn pictures are made when they are needed",
            args.data
        )));
    };
    check_folder("--out", out)?;
    let record_at = out.join(RECORD);
    let mut files = std::fs::read_dir(out).into_iter().flatten().flatten();
    let is_seen = |file: &DirEntry| !file.file_name().as_encoded_bytes().starts_with(b".");
    if !record_at.exists() && files.any(|file| is_seen(&file)) {
        let problem = "there is something else in it; name a new folder";
        return Err(refusal(problem.to_owned()));
    }
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let lock_at = out.join(LOCK);
    let lock = File::create(&lock_at).with_context(|| format!("making {}", lock_at.display()))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        return Err(refusal("another call is writing there".to_owned()));
    }
    let mut ours = Record {
        format: 1,
        config,
        root,
        annotations: BTreeMap::new(),
    };
    if record_at.exists() {
        let text = std::fs::read_to_string(&record_at);
        let text = text.with_context(|| format!("reading {}", record_at.display()))?;
        let record = serde_json::from_str::<Record>(&text).ok();
        let Some(record) = record.filter(|record| record.format == 1) else {
            let problem = format!("its {RECORD} is none of this program; name a new folder");
            return Err(refusal(problem));
        };
        if record.config != ours.config {
            return Err(refusal(format!(
                "its copies were made with --side {} --quality {}; take these, or another folder",
                record.config.shorter_side, record.config.quality
            )));
        }
        if record.root != ours.root {
            return Err(refusal(format!(
                "its copies are of the pictures in {}; name another folder",
                record.root
            )));
        }
        ours.annotations = record.annotations;
    }
    if let Some((name, from)) = annotation_file(args) {
        let before = ours.annotations.insert(name.clone(), from.clone());
        let is_ours = before.as_ref().is_some_and(|before| *before == from);
        if !is_ours && (before.is_some() || out.join(&name).exists()) {
            return Err(refusal(format!(
                "its {name} was not made from {}; name another folder",
                args.data
            )));
        }
    }
    write_bytes(&record_at, &serde_json::to_vec_pretty(&ours)?)?;
    Ok(lock)
}

/// The annotation file that the pictures came by: its name, and where it really is.
fn annotation_file(args: &Shrink) -> Option<(String, String)> {
    let spec = Path::new(&args.data);
    let name = spec.file_name()?.to_string_lossy().into_owned();
    let at = spec.is_file().then(|| spec.canonicalize().ok())??;
    Some((name, at.display().to_string()))
}

/// An annotation file beside the copies, if the pictures came by one: a row for each that has a copy.
fn annotated(
    set: &dyn Dataset,
    args: &Shrink,
    report: &ShrinkReport,
) -> anyhow::Result<Option<PathBuf>> {
    let Some((name, _)) = annotation_file(args) else {
        return Ok(None);
    };
    let unusable = report.unusable.iter().map(|entry| place_of(&entry.file));
    let unusable: BTreeSet<Option<PathBuf>> = unusable.collect();
    let has_copy = |name: &str| {
        let place = place_of(name);
        !unusable.contains(&place) || place.is_some_and(|place| args.out.join(place).is_file())
    };
    let labels = set.label_names();
    let header: Vec<&str> = [annotations::AGEDB_HEADER[0]]
        .into_iter()
        .chain(labels.iter().map(String::as_str))
        .collect();
    let rows: Vec<Vec<String>> = (0..set.len())
        .filter(|index| has_copy(set.name(*index)))
        .map(|index| {
            let mut of_it = set.labels(index);
            let values = labels
                .iter()
                .map(|label| of_it.remove(label).unwrap_or_default());
            [set.name(index).to_owned()]
                .into_iter()
                .chain(values)
                .collect()
        })
        .collect();
    let path = args.out.join(name);
    annotations::write(&path, &header, &rows)?;
    Ok(Some(path))
}

fn print_report(report: &ShrinkReport, args: &Shrink, annotations: Option<&Path>) {
    for entry in &report.unusable {
        let file = printable(&entry.file);
        print_text(&format!("{file}: {}", printable(&entry.reason)));
    }
    let kept = match report.kept {
        0 => String::new(),
        kept => format!(", {kept} there already"),
    };
    print_text(&format!(
        "{} made smaller, {} small enough and copied{kept}, {} left out",
        report.shrunk,
        report.copied,
        report.unusable.len()
    ));
    if report.shrunk + report.copied + report.kept == 0 {
        return;
    }
    print_text(&format!(
        "{} became {}; train on them with --data {}",
        in_words(report.bytes_before),
        in_words(report.bytes_after),
        pasteable(annotations.unwrap_or(&args.out))
    ));
}
