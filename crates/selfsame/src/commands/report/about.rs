//! Data, configuration, environment, and how to do it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use selfsame_data::{Dataset, Ledger};
use selfsame_report::{Cell, Page};
use selfsame_train::SKIPPED_FILE;

use super::Facts;
use crate::config::{COMMENT, keyed_lines};
use crate::run_dir::CONFIG_FILE;

/// Values of a label that are counted one by one.
const MAX_VALUES: usize = 12;
/// Unusable files named.
const MAX_SKIPPED: usize = 50;

pub(super) fn add(page: &mut Page, facts: &Facts<'_>) -> anyhow::Result<()> {
    data(page, facts)?;
    configuration(page, facts)?;
    page.section("Environment and how to do it again");
    page.code(
        None,
        &format!("selfsame train --config {CONFIG_FILE} --run NEW-DIRECTORY"),
    );
    page.text(
        "in this run's directory begins the same run again; on the same machine it gives the \
         same bits, at any number of threads.",
    );
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut rows = vec![
        ("program", format!("selfsame {}", env!("CARGO_PKG_VERSION"))),
        (
            "system",
            format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
        ("cores where this page was made", cores.to_string()),
    ];
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some((_, name)) = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
    {
        rows.push(("processor", name.trim().to_owned()));
    }
    let row = |(name, value): (&str, String)| vec![Cell::Text(name.to_owned()), Cell::Text(value)];
    let rows: Vec<Vec<Cell>> = rows.into_iter().map(row).collect();
    page.table("Made with", &[], &rows);
    Ok(())
}

fn data(page: &mut Page, facts: &Facts<'_>) -> anyhow::Result<()> {
    page.section("Data");
    let sides = [
        ("trained on", &facts.config.data.train, &facts.train),
        ("held out", &facts.config.data.val, &facts.val),
    ];
    let mut rows = Vec::new();
    for (name, spec, set) in &sides {
        if spec.is_empty() {
            continue;
        }
        let count = set
            .as_ref()
            .map_or("cannot be opened".to_owned(), |set| set.len().to_string());
        rows.push(vec![
            Cell::Text((*name).to_owned()),
            Cell::Text((*spec).clone()),
            Cell::Figure(count),
        ]);
    }
    page.table("Pictures", &["", "specification", "pictures"], &rows);
    for (name, _, set) in &sides {
        if let Some(set) = set {
            let rows: Vec<Vec<Cell>> = set
                .label_names()
                .iter()
                .map(|label| summary(set, label))
                .collect();
            if !rows.is_empty() {
                page.table(
                    &format!("Labels, {name}"),
                    &["label", "values", "without"],
                    &rows,
                );
            }
        }
    }
    let ledger = Ledger::default();
    if let Err(error) = ledger.read_csv(&facts.dir.join(SKIPPED_FILE)) {
        page.text(&format!(
            "Which pictures could not be used is not known: {error}"
        ));
        return Ok(());
    }
    let entries = ledger.entries();
    if entries.is_empty() {
        page.text("Every picture that was asked for could be used.");
        return Ok(());
    }
    let row = |entry: &selfsame_data::LedgerEntry| {
        vec![
            Cell::Text(entry.file.clone()),
            Cell::Text(entry.reason.clone()),
        ]
    };
    let rows: Vec<Vec<Cell>> = entries.iter().take(MAX_SKIPPED).map(row).collect();
    let caption = match entries.len() {
        n if n > MAX_SKIPPED => {
            format!("{n} pictures could not be used; the first {MAX_SKIPPED}, all in skipped.csv")
        }
        n => format!("{n} pictures could not be used"),
    };
    page.table(&caption, &["file", "reason"], &rows);
    Ok(())
}

/// How often each value occurs, or the range of numbers.
fn summary(set: &Arc<dyn Dataset>, label: &str) -> Vec<Cell> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in (0..set.len()).filter_map(|i| set.label(i, label)) {
        *counts.entry(text).or_insert(0) += 1;
    }
    let with: usize = counts.values().sum();
    let numbers: Option<Vec<f64>> = counts
        .keys()
        .map(|text| selfsame_eval::number(text))
        .collect();
    let values = match numbers {
        _ if counts.len() <= MAX_VALUES => {
            let each = counts.iter().map(|(text, n)| format!("{text}: {n}"));
            each.collect::<Vec<_>>().join(", ")
        }
        Some(numbers) => {
            let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
            let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = numbers
                .iter()
                .zip(counts.values())
                .map(|(x, n)| x * *n as f64)
                .sum();
            format!("{low} to {high}, mean {:.1}", sum / with.max(1) as f64)
        }
        None => format!("{} different", counts.len()),
    };
    vec![
        Cell::Text(label.to_owned()),
        Cell::Text(values),
        Cell::Figure((set.len() - with).to_string()),
    ]
}

/// The whole configuration, and above it what is not the default and where it came from.
fn configuration(page: &mut Page, facts: &Facts<'_>) -> anyhow::Result<()> {
    let path = facts.dir.join(CONFIG_FILE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    page.section("Configuration");
    let mut rows = Vec::new();
    for (line, key) in keyed_lines(&text) {
        if let (Some(key), Some((setting, source))) = (key, line.rsplit_once(COMMENT)) {
            let value = setting.split_once(" = ").map(|(_, value)| value);
            let value = value.unwrap_or("a list of operations, below");
            let row = [&key, value, source].map(|text| Cell::Text(text.to_owned()));
            // Each entry of a list says where the list is from.
            if !rows.contains(&row.to_vec()) {
                rows.push(row.to_vec());
            }
        }
    }
    if rows.is_empty() {
        page.text("Where its values came from was not written down.");
    } else {
        page.table(
            "Values that were set; all others are the notebook's",
            &["key", "value", "from"],
            &rows,
        );
    }
    page.code(Some("All of config.toml"), &text);
    Ok(())
}
