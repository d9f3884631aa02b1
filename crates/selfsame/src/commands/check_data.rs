//! `selfsame check-data`

use std::sync::Mutex;

use selfsame_data::{Ledger, check};
use serde_json::json;

use crate::cli::CheckData;
use crate::data;
use crate::exit::Done;
use crate::progress::CountProgress;
use crate::scores::{print_json, print_text};

pub(crate) fn run(args: &CheckData) -> anyhow::Result<Done> {
    let set = data::with(
        &args.data,
        args.layout.parse()?,
        args.allow_outside,
        args.images_root.clone(),
    )?;
    let progress = Mutex::new(CountProgress::new("decoded", set.len()));
    let report = check(set.as_ref(), &Ledger::default(), &|done| {
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
        }));
    } else {
        for entry in &report.unusable {
            print_text(&format!("{}: {}", entry.file, entry.reason));
        }
        print_text(&format!(
            "{} usable, {} unusable",
            report.usable,
            report.unusable.len()
        ));
        for (reason, count) in &report.reasons {
            print_text(&format!("  {count} × {reason}"));
        }
    }
    Ok(if report.unusable.is_empty() {
        Done::Well
    } else {
        Done::No
    })
}
