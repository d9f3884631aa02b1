//! Three stages: tables merged (defaults, preset, file, `--set`), one deserialisation, one check.

mod settings;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use selfsame_train::RunConfig;
use toml::{Table, Value};

use crate::exit::usage;
use crate::scores::printable;
pub(crate) use settings::OwnFlag;

/// Every preset by name; the text's head comment says what it is for.
pub(crate) const PRESETS: [(&str, &str); 10] = [
    ("notebook", include_str!("presets/notebook.toml")),
    ("official", include_str!("presets/official.toml")),
    (
        "official-boost",
        include_str!("presets/official-boost.toml"),
    ),
    (
        "official-resnet50",
        include_str!("presets/official-resnet50.toml"),
    ),
    ("no-multicrop", include_str!("presets/no-multicrop.toml")),
    ("small", include_str!("presets/small.toml")),
    ("cpu", include_str!("presets/cpu.toml")),
    ("cpu-hour", include_str!("presets/cpu-hour.toml")),
    ("gpu-minutes", include_str!("presets/gpu-minutes.toml")),
    ("demo", include_str!("presets/demo.toml")),
];

/// Keys that a resumed run may change; all others decide its bits.
const MAY_CHANGE: [&str; 12] = [
    "train.max_steps",
    "train.device",
    "train.threads",
    "train.max_memory_mib",
    "train.log_every_steps",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.knn_every_epochs",
    "data.workers",
    "data.prefetch_batches",
    "data.cache_mib",
];

/// Keys that name pictures or weights, by paths but for `synthetic:` and baselines.
const PATHS: [&str; 4] = ["data.train", "data.val", "data.images_root", "train.init"];

/// A configuration on its way: merged values and where each came from.
pub(crate) struct Merged {
    table: Table,
    sources: BTreeMap<String, String>,
    /// The file of a run that it began with, and what is said there of where values came from.
    run: Option<(String, BTreeMap<String, String>)>,
}

impl Merged {
    /// The notebook's values, which hold where nothing else is said.
    pub(crate) fn defaults() -> Self {
        let table = Table::try_from(RunConfig::default()).expect("the defaults are TOML");
        Self {
            table,
            sources: BTreeMap::new(),
            run: None,
        }
    }

    /// Starts from the text of a run's or a capture's `config.toml`, with the comments that
    /// [`Self::annotated`] wrote there.
    pub(crate) fn from_text(text: &str, name: &str) -> anyhow::Result<Self> {
        let mut merged = Self::defaults();
        merged.overlay(text, name)?;
        let comments = keyed_lines(text).into_iter().filter_map(|(line, key)| {
            let (_, comment) = line.rsplit_once(COMMENT)?;
            Some((key?, comment.to_owned()))
        });
        merged.run = Some((name.to_owned(), comments.collect()));
        Ok(merged)
    }

    /// Makes paths to pictures and weights absolute, wherever they were said, so that a run does not depend on
    /// where it was started.
    ///
    /// # Errors
    /// A usage error if the path from the root is no UTF-8.
    pub(crate) fn make_absolute(&mut self) -> anyhow::Result<()> {
        for whole_key in PATHS {
            let (table, key) = whole_key.split_once('.').expect("keys of a table");
            let value = self
                .table
                .get_mut(table)
                .and_then(|table| table.get_mut(key));
            if let Some(Value::String(spec)) = value {
                let absolute = match key {
                    "init" => absolute_weights(spec),
                    _ => absolute(spec),
                };
                *spec = absolute.ok_or_else(|| {
                    usage(format!(
                        "{whole_key} {spec}: the working directory is no UTF-8, so that its path \
                         cannot be kept in a configuration"
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// Applies `--set key=value` texts.
    pub(crate) fn set_all(&mut self, sets: &[String]) -> anyhow::Result<()> {
        for text in sets {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| usage(format!("--set {text}: write it as --set KEY=VALUE")))?;
            let (key, value) = (key.trim(), value.trim());
            let value = format!("v = {value}")
                .parse::<Table>()
                .ok()
                .and_then(|mut table| table.remove("v"))
                .unwrap_or_else(|| Value::String(value.to_owned()));
            self.put(key, value, "--set")?;
        }
        Ok(())
    }

    /// Overwrites one value; the key must exist.
    pub(crate) fn put(&mut self, key: &str, value: Value, source: &str) -> anyhow::Result<()> {
        let unknown = unknown_key(&self.table, key, source);
        let mut at = &mut self.table;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let Some(entry) = at.get_mut(part) else {
                return Err(unknown);
            };
            if parts.peek().is_none() {
                if entry.is_table() {
                    return Err(usage(format!(
                        "{source}: {key} is a table; name one of its keys, e.g. {key}.{}",
                        entry
                            .as_table()
                            .and_then(|t| t.keys().next())
                            .map_or("…", String::as_str)
                    )));
                }
                *entry = value;
                self.sources.insert(key.to_owned(), source.to_owned());
                return Ok(());
            }
            let Value::Table(table) = entry else {
                return Err(unknown);
            };
            at = table;
        }
        Err(unknown)
    }

    /// Applies the values of a TOML text; every key must exist.
    pub(crate) fn overlay(&mut self, text: &str, name: &str) -> anyhow::Result<()> {
        let table: Table = text
            .parse()
            .map_err(|error| usage(format!("{name} is not TOML: {error}")))?;
        let mut leaves = Vec::new();
        collect_leaves(&table, "", &mut leaves);
        for (key, value) in leaves {
            // An empty table says nothing, if there is such a one.
            let is_empty = value.as_table().is_some_and(Table::is_empty);
            if !(is_empty && self.is_table(&key)) {
                self.put(&key, value, name)?;
            }
        }
        Ok(())
    }

    fn is_table(&self, key: &str) -> bool {
        let mut parts = key.split('.');
        let found = parts.try_fold(&self.table, |at, part| at.get(part)?.as_table());
        found.is_some()
    }

    /// The typed configuration, checked.
    pub(crate) fn resolve(&self) -> anyhow::Result<RunConfig> {
        let config = self.typed()?;
        let problems = config.check();
        if problems.is_empty() {
            return Ok(config);
        }
        let with_sources: Vec<String> = problems
            .into_iter()
            .map(|problem| match self.source_of(&problem) {
                Some(source) => format!("{problem} (from {source})"),
                None => problem,
            })
            .collect();
        Err(selfsame_train::TrainError::Config(with_sources).into())
    }

    /// The typed configuration as it stands.
    pub(crate) fn typed(&self) -> anyhow::Result<RunConfig> {
        self.table
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| {
                let text = in_words(&error.to_string());
                let source = self
                    .sources
                    .iter()
                    .find(|(key, _)| text.contains(key.as_str()));
                usage(match source {
                    Some((_, source)) => format!("configuration, from {source}: {text}"),
                    None => format!("configuration: {text}"),
                })
            })
    }

    fn source_of(&self, problem: &str) -> Option<&str> {
        self.sources
            .get(problem.split(':').next()?)
            .map(String::as_str)
    }

    /// Where a value came from, in words; nothing for a default.
    fn origin(&self, key: &str) -> Option<&str> {
        let source = self.sources.get(key)?;
        match &self.run {
            Some((name, comments)) if name == source => comments.get(key).map(String::as_str),
            _ => Some(source),
        }
    }

    /// TOML text with a comment on every value that is not the default: where it came from.
    pub(crate) fn annotated(&self, config: &RunConfig) -> anyhow::Result<String> {
        let mut text =
            "# A value without a comment is the default, which is the notebook's.\n".to_owned();
        for (line, key) in keyed_lines(&to_toml(config)?) {
            text.push_str(line);
            if let Some(origin) = key.and_then(|key| self.origin(&key).map(str::to_owned)) {
                text.push_str(COMMENT);
                text.push_str(&printable(&origin));
            }
            text.push('\n');
        }
        let again = Self::from_text(&text, "what would be written")?;
        anyhow::ensure!(
            again.typed()? == *config,
            "the configuration cannot be written: it does not read back the same"
        );
        Ok(text)
    }
}

/// Before the comment of a value.
pub(crate) const COMMENT: &str = "  # ";

/// The lines of a configuration as [`to_toml`] writes it, with the key that each sets or begins.
pub(crate) fn keyed_lines(text: &str) -> Vec<(&str, Option<String>)> {
    let mut section = "";
    let keyed = text.lines().map(|line| {
        let bare = line.split(COMMENT).next().unwrap_or(line);
        let within = |open, close| bare.strip_prefix(open)?.strip_suffix(close);
        let key = if let Some(list) = within("[[", "]]") {
            Some(list.to_owned())
        } else if let Some(name) = within("[", "]") {
            section = name;
            None
        } else {
            line.split_once(" = ").map(|(name, _)| match section {
                "" => name.to_owned(),
                section => format!("{section}.{name}"),
            })
        };
        (line, key)
    });
    keyed.collect()
}

/// A configuration as TOML text, the form kept in run directories and checkpoints: a line a value.
pub(crate) fn to_toml(config: &RunConfig) -> anyhow::Result<String> {
    const WRITING: &str = "writing the configuration as TOML";
    let text = toml::to_string(config).context(WRITING)?;
    let (mut lines, mut line) = (String::new(), String::new());
    for part in text.split_inclusive('\n') {
        line.push_str(part);
        // A text with ends of lines is written over several, none of which is TOML alone.
        let Ok(table) = line.parse::<Table>() else {
            continue;
        };
        match table.iter().next() {
            Some((key, Value::String(text))) if text.contains('\n') => {
                // JSON escapes what TOML wants escaped, but for one character.
                let text = serde_json::to_string(text)?.replace('\u{7f}', "\\u007f");
                lines.push_str(&format!("{key} = {text}\n"));
            }
            _ => lines.push_str(&line),
        }
        line.clear();
    }
    anyhow::ensure!(line.is_empty(), "{WRITING}: {line:?} is none");
    Ok(lines)
}

/// Refuses changes to a run's configuration that would change its bits.
pub(crate) fn refuse_changes(before: &RunConfig, after: &RunConfig) -> anyhow::Result<()> {
    let differences = differences(before, after, ["in the run", "asked for"])?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "a run that has begun keeps its configuration; refused:{differences}\n  these may change: {}",
        MAY_CHANGE.join(", ")
    )))
}

/// Refuses a run's `config.toml` that was edited since `checkpoint` was written, but for what may
/// change and for where the pictures are.
pub(crate) fn refuse_edits(
    checkpoint: &RunConfig,
    edited: &RunConfig,
    file: &Path,
) -> anyhow::Result<()> {
    let mut edited = edited.clone();
    // Whether they are the same pictures is asked of the pictures.
    edited.data.train.clone_from(&checkpoint.data.train);
    edited.data.val.clone_from(&checkpoint.data.val);
    edited
        .data
        .images_root
        .clone_from(&checkpoint.data.images_root);
    let differences = differences(
        checkpoint,
        &edited,
        ["in the newest checkpoint", "in the file"],
    )?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "{} is not what the run began with, which it keeps; write back:{differences}\n  these may \
         change: {}, data.train, data.val, data.images_root",
        file.display(),
        MAY_CHANGE.join(", ")
    )))
}

/// The keys that may not change and do, a line each, with the values of both.
fn differences(
    before: &RunConfig,
    after: &RunConfig,
    [of_before, of_after]: [&str; 2],
) -> anyhow::Result<String> {
    let leaves = |config: &RunConfig| -> anyhow::Result<BTreeMap<String, Value>> {
        let mut leaves = Vec::new();
        collect_leaves(&Table::try_from(config)?, "", &mut leaves);
        Ok(leaves.into_iter().collect())
    };
    let (before, after) = (leaves(before)?, leaves(after)?);
    let mut differences = String::new();
    for (key, new) in &after {
        let old = before.get(key);
        if !is_same(key, old, new) && !MAY_CHANGE.contains(&key.as_str()) {
            let old = old.map_or("nothing".to_owned(), Value::to_string);
            differences.push_str(&format!("\n  {key}: {old} {of_before}, {new} {of_after}"));
        }
    }
    Ok(differences)
}

/// Whether both are the same value, or the same path as earlier versions kept it.
fn is_same(key: &str, old: Option<&Value>, new: &Value) -> bool {
    let as_path = |value: &Value| value.as_str().and_then(absolute);
    let is_path = PATHS.contains(&key);
    let old_path = old.and_then(as_path);
    old == Some(new) || is_path && old_path.is_some() && old_path == as_path(new)
}

/// A mistake of type in one line, without names of Rust's types.
fn in_words(error: &str) -> String {
    let mut text = error.trim_end().replace('\n', " ");
    for (of_rust, in_words) in [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        (
            "invalid type: unit variant, expected string only",
            "expected a name in quotes",
        ),
    ] {
        text = text.replace(of_rust, in_words);
    }
    text
}

fn preset(name: &str) -> anyhow::Result<&'static str> {
    PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
        .ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            let near =
                nearest(name, &names).map_or(String::new(), |n| format!("; did you mean {n}?"));
            usage(format!(
                "unknown preset {name:?}{near} There are: {}",
                names.join(", ")
            ))
        })
}

/// A path to weights from the root; a baseline or a hub's name as it is.
fn absolute_weights(spec: &str) -> Option<String> {
    match Path::new(spec).exists() {
        true => absolute(spec),
        false => Some(spec.to_owned()),
    }
}

/// A path specification made absolute, from the working directory; `None` if that is no UTF-8.
fn absolute(spec: &str) -> Option<String> {
    if spec.starts_with("synthetic:") || spec.is_empty() {
        return Some(spec.to_owned());
    }
    match std::path::absolute(Path::new(spec)) {
        Ok(path) => path.into_os_string().into_string().ok(),
        Err(_) => Some(spec.to_owned()),
    }
}

fn collect_leaves(table: &Table, prefix: &str, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner) if !inner.is_empty() => collect_leaves(inner, &key, leaves),
            leaf => leaves.push((key, leaf.clone())),
        }
    }
}

fn unknown_key(table: &Table, key: &str, source: &str) -> anyhow::Error {
    let mut leaves = Vec::new();
    collect_leaves(table, "", &mut leaves);
    let known: Vec<&str> = leaves.iter().map(|(key, _)| key.as_str()).collect();
    let near = nearest(key, &known).map_or(String::new(), |near| format!("; did you mean {near}?"));
    usage(format!("{source}: unknown key {key}{near}"))
}

/// The keys that are this name, or end in it or in one that is hardly different.
pub(crate) fn keys_like(name: &str) -> Vec<String> {
    let mut leaves = Vec::new();
    collect_leaves(&Merged::defaults().table, "", &mut leaves);
    let keys = leaves.into_iter().map(|(key, _)| key);
    let is_like = |key: &String| {
        let last = key.rsplit('.').next().unwrap_or(key);
        key == name || strsim::jaro_winkler(name, last) > 0.95
    };
    keys.filter(is_like).collect()
}

/// The most similar of `known`: by whole key, or by the last part if the section was forgotten.
fn nearest<'a>(wanted: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |key: &&&str| {
        let last = key.rsplit('.').next().unwrap_or(key);
        let own = wanted.rsplit('.').next().unwrap_or(wanted);
        strsim::jaro_winkler(wanted, key).max(0.99 * strsim::jaro_winkler(own, last))
    };
    known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .copied()
}

#[cfg(test)]
#[path = "../../../tests/common/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests;
