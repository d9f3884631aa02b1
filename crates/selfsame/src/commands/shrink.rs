//! `selfsame shrink`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use selfsame_checkpoint::write_bytes;
use selfsame_data::{Dataset, ShrinkConfig, ShrinkReport, annotations, open, shrink};
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

/// Says of a folder how its copies were made; data sets pass over it.
const RECORD: &str = "shrink.json";

/// What [`RECORD`] holds.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    config: ShrinkConfig,
}

pub(crate) fn run(args: &Shrink) -> anyhow::Result<Done> {
    let set = open(&args.data, &args.reading.options()?)?;
    if set.path(0).is_none() {
        return Err(usage(format!(
            "{}: these pictures are drawn when they are needed; there is no file to shrink",
            args.data
        )));
    }
    let config = ShrinkConfig {
        shorter_side: u32::try_from(args.side)?,
        quality: args.quality,
    };
    // Copies would be pictures of the folder the next time.
    if lies_within(&args.out, Path::new(&args.data)) {
        return Err(usage(format!(
            "--out {}: that lies in {}, whose pictures are read; name a folder elsewhere",
            args.out.display(),
            args.data
        )));
    }
    set_threads(args.threads)?;
    claim(&args.out, config)?;

    let progress = Mutex::new(CountProgress::new("shrunk", set.len()));
    let report = shrink(set.as_ref(), &args.out, &config, &|done| {
        if let Ok(mut progress) = progress.lock() {
            progress.set(done);
        }
    })
    .context("what is written stays; the same command goes on")?;
    drop(progress);
    let annotations = annotated(set.as_ref(), args, &report)?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["annotations"] = json!(annotations);
        print_json(&value);
    } else {
        print_report(&report, args, annotations.as_deref());
    }
    match report.shrunk + report.copied + report.kept {
        0 => bail!("{}: not one picture can be used", args.data),
        _ => Ok(Done::Well),
    }
}

/// Makes the folder ours, or sees that it is and that its copies were made in the same way.
fn claim(out: &Path, config: ShrinkConfig) -> anyhow::Result<()> {
    let refusal = |problem: String| Err(usage(format!("--out {}: {problem}", out.display())));
    check_folder("--out", out)?;
    let (record_at, ours) = (out.join(RECORD), Record { format: 1, config });
    if record_at.exists() {
        let text = std::fs::read_to_string(&record_at);
        let text = text.with_context(|| format!("reading {}", record_at.display()))?;
        return match serde_json::from_str::<Record>(&text) {
            Ok(record) if record == ours => Ok(()),
            Ok(Record { format: 1, config }) => refusal(format!(
                "its copies were made with --side {} --quality {}; take these, or another folder",
                config.shorter_side, config.quality
            )),
            _ => refusal(format!(
                "its {RECORD} is none of this program; name a new folder"
            )),
        };
    }
    let is_taken = std::fs::read_dir(out).is_ok_and(|mut files| files.next().is_some());
    if is_taken {
        return refusal("there is something else in it; name a new folder".to_owned());
    }
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    write_bytes(&record_at, &serde_json::to_vec_pretty(&ours)?)?;
    Ok(())
}

/// An annotation file beside the copies, if the pictures came by one.
fn annotated(
    set: &dyn Dataset,
    args: &Shrink,
    report: &ShrinkReport,
) -> anyhow::Result<Option<PathBuf>> {
    let spec = Path::new(&args.data);
    let (true, Some(name)) = (spec.is_file(), spec.file_name()) else {
        return Ok(None);
    };
    let unusable: BTreeSet<&str> = report.unusable.iter().map(|entry| &*entry.file).collect();
    let labels = set.label_names();
    let header: Vec<&str> = [annotations::AGEDB_HEADER[0]]
        .into_iter()
        .chain(labels.iter().map(String::as_str))
        .collect();
    let rows: Vec<Vec<String>> = (0..set.len())
        .filter(|index| !unusable.contains(set.name(*index)))
        .map(|index| {
            let mut of_it = set.labels(index);
            let values = labels.iter().map(|l| of_it.remove(l).unwrap_or_default());
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
    print_text(&format!(
        "{} became {}; train on them with --data {}",
        in_words(report.bytes_before),
        in_words(report.bytes_after),
        pasteable(annotations.unwrap_or(&args.out))
    ));
}
