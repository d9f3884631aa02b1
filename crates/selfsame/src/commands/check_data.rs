//! `selfsame check-data`

use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use candle_core::Device;
use selfsame_data::check::{ASPECT_BOUNDS, SIDE_BOUNDS};
use selfsame_data::walk::{PassedOver, passed_over};
use selfsame_data::{CheckReport, Ledger, check, open};
use selfsame_models::keep_freed_memory;
use serde_json::json;

use crate::cli::CheckData;
use crate::exit::Done;
use crate::progress::{CountProgress, counted};
use crate::scores::{print_json, print_text, printable};

pub(crate) fn run(args: &CheckData) -> anyhow::Result<Done> {
    // Decoded pictures are large blocks that come and go.
    keep_freed_memory(&Device::Cpu).context("setting up memory")?;
    let set = open(&args.data, &args.reading.options()?)?;
    // An annotation file names what there is.
    let folder = Path::new(&args.data);
    let passed = match folder.is_dir() {
        true => passed_over(folder)?,
        false => PassedOver::default(),
    };
    let progress = Mutex::new(CountProgress::new("decoded", set.len()));
    let report = check(set.as_ref(), args.crop_size, &Ledger::default(), &|done| {
        if let Ok(mut progress) = progress.lock() {
            progress.set(done);
        }
    });
    if args.json {
        let files: Vec<_> = report
            .unusable
            .iter()
            .map(|entry| json!({"file": entry.file, "reason": entry.reason}))
            .collect();
        print_json(&json!({
            "usable": report.usable,
            "unusable": files.len(),
            "reasons": report.reasons,
            "files": files,
            "passed_over": passed,
            "duplicates": report.duplicates,
            "shorter_side": buckets(&SIDE_BOUNDS, &report.sides),
            "aspect": buckets(&ASPECT_BOUNDS, &report.aspects),
            "smaller_than_crop": {"crop_size": args.crop_size, "images": report.smaller_than_crop},
            "labels": report.labels,
        }));
    } else {
        print_report(&report, &passed, args.crop_size);
    }
    Ok(if report.unusable.is_empty() {
        Done::Well
    } else {
        Done::No
    })
}

fn print_report(report: &CheckReport, passed: &PassedOver, crop_size: u32) {
    for entry in &report.unusable {
        let file = printable(&entry.file);
        print_text(&format!("{file}: {}", printable(&entry.reason)));
    }
    for group in &report.duplicates {
        print_text(&format!("same bytes: {}", printable(&group.join(", "))));
    }
    print_text(&format!(
        "{} usable, {} unusable",
        report.usable,
        report.unusable.len()
    ));
    for (reason, count) in &report.reasons {
        print_text(&format!("  {count} × {}", printable(reason)));
    }
    if *passed != PassedOver::default() {
        print_text(&format!("passed over: {passed}"));
    }
    let copies: usize = report.duplicates.iter().map(|group| group.len() - 1).sum();
    let told = counted(copies, "copy of another file", "copies of other files");
    print_text(&told);
    print_text("shorter side in pixels:");
    print_buckets(&SIDE_BOUNDS, &report.sides);
    print_text("width over height:");
    print_buckets(&ASPECT_BOUNDS, &report.aspects);
    print_text(&format!(
        "{} smaller than a crop of {crop_size} pixels: their crops are magnified",
        report.smaller_than_crop
    ));
    for (label, balance) in &report.labels {
        let values = counted(balance.values, "value", "values");
        let without = match balance.missing {
            0 => String::new(),
            missing => format!(", {missing} without"),
        };
        let counts: Vec<String> = balance
            .counts
            .iter()
            .map(|(value, count)| format!("{value} {count}"))
            .collect();
        let counts = match counts.is_empty() {
            true => String::new(),
            false => format!(": {}", counts.join(", ")),
        };
        let line = format!("label {label}: {values}{without}{counts}");
        print_text(&printable(&line));
    }
}

/// "below 32", …, "1024 and more" with their counts; empty ones too.
fn buckets<T: std::fmt::Display>(bounds: &[T], counts: &[usize]) -> Vec<(String, usize)> {
    let mut names: Vec<String> = bounds
        .iter()
        .map(|bound| format!("below {bound}"))
        .collect();
    if let Some(last) = bounds.last() {
        names.push(format!("{last} and more"));
    }
    names.into_iter().zip(counts.iter().copied()).collect()
}

fn print_buckets<T: std::fmt::Display>(bounds: &[T], counts: &[usize]) {
    for (name, count) in buckets(bounds, counts) {
        if count > 0 {
            print_text(&format!("  {name}: {count}"));
        }
    }
}
