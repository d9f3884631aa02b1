//! Three stages: tables merged (defaults, preset, file, `--set`), one deserialisation, one check.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use selfsame_train::RunConfig;
use toml::{Table, Value};

use crate::cli::Settings;
use crate::exit::usage;

/// Every preset by name; the text's head comment says what it is for.
pub(crate) const PRESETS: [(&str, &str); 9] = [
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

/// Keys that name pictures, by paths but for `synthetic:`.
const PATHS: [&str; 3] = ["data.train", "data.val", "data.images_root"];

/// A configuration on its way: merged values and where each came from.
pub(crate) struct Merged {
    table: Table,
    sources: BTreeMap<String, String>,
}

impl Merged {
    /// The notebook's values, which hold where nothing else is said.
    pub(crate) fn defaults() -> Self {
        let table = Table::try_from(RunConfig::default()).expect("the defaults are TOML");
        Self {
            table,
            sources: BTreeMap::new(),
        }
    }

    /// Starts from the text of a run's or a capture's `config.toml`.
    pub(crate) fn from_text(text: &str, name: &str) -> anyhow::Result<Self> {
        let mut merged = Self::defaults();
        merged.overlay(text, name)?;
        Ok(merged)
    }

    /// Defaults, then preset, file, flags and `--set`.
    pub(crate) fn from_settings(settings: &Settings) -> anyhow::Result<Self> {
        let mut merged = Self::defaults();
        if let Some(name) = &settings.preset {
            merged.overlay(preset(name)?, &format!("preset {name}"))?;
        }
        if let Some(path) = &settings.config {
            let text = std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--config {}: {error}", path.display())))?;
            merged.overlay(&text, &path.display().to_string())?;
        }
        let flags = [
            ("data.train", settings.data.clone()),
            ("data.val", settings.val.clone()),
            ("data.layout", settings.layout.clone()),
            (
                "data.images_root",
                settings
                    .images_root
                    .as_ref()
                    .map(|dir| dir.to_string_lossy().into_owned()),
            ),
            ("train.device", settings.device.clone()),
            ("train.precision", settings.precision.clone()),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                merged.put(key, Value::String(value), "flag")?;
            }
        }
        if let Some(threads) = settings.threads {
            let threads = i64::try_from(threads)
                .map_err(|_| usage(format!("--threads {threads}: too many")))?;
            merged.put("train.threads", Value::Integer(threads), "flag")?;
        }
        if let Some(mib) = settings.max_memory {
            merged.put("train.max_memory_mib", Value::Integer(mib as i64), "flag")?;
        }
        if settings.allow_outside {
            merged.put("data.allow_outside", Value::Boolean(true), "flag")?;
        }
        merged.set_all(&settings.set)?;
        merged.make_absolute();
        Ok(merged)
    }

    /// Makes paths to pictures absolute, wherever they were said, so that a run does not depend on
    /// where it was started.
    fn make_absolute(&mut self) {
        for key in PATHS {
            let (table, key) = key.split_once('.').expect("keys of a table");
            let value = self
                .table
                .get_mut(table)
                .and_then(|table| table.get_mut(key));
            if let Some(Value::String(spec)) = value {
                *spec = absolute(spec);
            }
        }
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
            self.put(&key, value, name)?;
        }
        Ok(())
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

    /// TOML text with a comment on every value that is not the default: where it came from.
    pub(crate) fn annotated(&self, config: &RunConfig) -> anyhow::Result<String> {
        let mut section = String::new();
        let mut text =
            "# A value without a comment is the default, which is the notebook's.\n".to_owned();
        for line in to_toml(config)?.lines() {
            let mut key = None;
            if let Some(name) = line.strip_prefix("[[").and_then(|l| l.strip_suffix("]]")) {
                key = Some(name.to_owned());
            } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((name, _)) = line.split_once(" = ") {
                key = Some(if section.is_empty() {
                    name.to_owned()
                } else {
                    format!("{section}.{name}")
                });
            }
            text.push_str(line);
            if let Some(source) = key.and_then(|key| self.sources.get(&key)) {
                text.push_str(&format!("  # {source}"));
            }
            text.push('\n');
        }
        Ok(text)
    }
}

/// A configuration as TOML text, the form kept in run directories and checkpoints.
pub(crate) fn to_toml(config: &RunConfig) -> anyhow::Result<String> {
    toml::to_string(config).context("writing the configuration as TOML")
}

/// Refuses changes to a run's configuration that would change its bits.
pub(crate) fn refuse_changes(before: &RunConfig, after: &RunConfig) -> anyhow::Result<()> {
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
            differences.push_str(&format!("\n  {key}: {old} in the run, {new} asked for"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "a run that has begun keeps its configuration; refused:{differences}\n  these may change: {}",
        MAY_CHANGE.join(", ")
    )))
}

/// Whether both are the same value, or the same path as earlier versions kept it.
fn is_same(key: &str, old: Option<&Value>, new: &Value) -> bool {
    let as_path = |value: &Value| value.as_str().map(absolute);
    let is_path = PATHS.contains(&key);
    old == Some(new) || is_path && old.is_some_and(|old| as_path(old) == as_path(new))
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

/// A path specification made absolute, from the working directory.
fn absolute(spec: &str) -> String {
    if spec.starts_with("synthetic:") || spec.is_empty() {
        return spec.to_owned();
    }
    std::path::absolute(Path::new(spec)).map_or_else(
        |_| spec.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

fn collect_leaves(table: &Table, prefix: &str, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner) => collect_leaves(inner, &key, leaves),
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
mod tests {
    use std::time::{Duration, Instant};

    use super::mutate::{Dice, Mutations};
    use super::*;

    fn merged(sets: &[&str]) -> anyhow::Result<RunConfig> {
        let mut merged = Merged::defaults();
        merged.set_all(&sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
        merged.resolve()
    }

    #[test]
    fn mistakes_of_type_are_told_without_types_of_rust() {
        for (set, words) in [
            (
                "model.depth=x",
                "a whole number, 0 or more in `model.depth`",
            ),
            ("optim.lr=abc", "expected a number in `optim.lr`"),
            ("model.arch=3", "expected a name in quotes in `model.arch`"),
        ] {
            let error = merged(&[set]).unwrap_err().to_string();
            assert!(error.contains(words), "{set}: {error}");
        }
    }

    #[test]
    fn every_preset_is_a_valid_configuration() {
        for (name, text) in PRESETS {
            let merged = Merged::from_text(text, name).unwrap();
            merged
                .resolve()
                .unwrap_or_else(|error| panic!("preset {name}: {error:#}"));
            assert!(text.starts_with("# "), "preset {name} has no head comment");
        }
    }

    #[test]
    fn a_written_configuration_reads_back_the_same() {
        for (name, text) in PRESETS {
            let config = Merged::from_text(text, name).unwrap().resolve().unwrap();
            let again = Merged::from_text(&to_toml(&config).unwrap(), "file").unwrap();
            assert_eq!(again.resolve().unwrap(), config);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let error = merged(&["optim.learning_rate=1"]).unwrap_err().to_string();
        assert!(error.contains("unknown key optim.learning_rate"), "{error}");
        let error = merged(&["batch_size=8"]).unwrap_err().to_string();
        assert!(error.contains("did you mean train.batch_size?"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_its_source() {
        let error = format!("{:#}", merged(&["train.epochs=many"]).unwrap_err());
        assert!(
            error.contains("--set") && error.contains("epochs"),
            "{error}"
        );
    }

    #[test]
    fn values_of_set_are_toml_and_bare_words_are_text() {
        let config = merged(&[
            "model.arch=vit_tiny",
            "augment.global_scale=[0.3, 1]",
            "optim.lr=1",
        ]);
        let config = config.unwrap();
        assert_eq!(config.augment.global_scale, [0.3, 1.0]);
        assert_eq!(config.optim.lr, 1.0);
    }

    #[test]
    fn a_resumed_run_may_change_its_log_interval_but_not_its_learning_rate() {
        let before = RunConfig::default();
        let mut after = before.clone();
        after.train.log_every_steps = 1;
        assert!(refuse_changes(&before, &after).is_ok());
        (after.data.train, after.optim.lr) = ("somewhere".to_owned(), 1.0);
        let mut before = before;
        // As earlier versions kept it, and now.
        before.data.val = "pictures".to_owned();
        after.data.val = absolute("pictures");
        let error = refuse_changes(&before, &after).unwrap_err().to_string();
        assert!(
            error.contains("optim.lr: 0.0005 in the run, 1.0 asked for"),
            "{error}"
        );
        assert!(
            error.contains("data.train: ") && !error.contains("data.val: "),
            "{error}"
        );
    }

    #[test]
    fn each_changed_value_shows_where_it_came_from() {
        let mut merged = Merged::from_text("[optim]\nlr = 0.1\n", "mine.toml").unwrap();
        merged.set_all(&["train.epochs=20".to_owned()]).unwrap();
        let text = merged.annotated(&merged.typed().unwrap()).unwrap();
        assert!(text.contains("lr = 0.1  # mine.toml"), "{text}");
        assert!(text.contains("epochs = 20  # --set"), "{text}");
        let first = text.lines().next().unwrap();
        assert!(
            first.starts_with("# ") && first.contains("default"),
            "{text}"
        );
    }

    /// Damages configuration files and `--set` texts until `enough` says so; how many were taken.
    fn fuzz(seed: u64, mut enough: impl FnMut(u64) -> bool) -> [u64; 2] {
        let sets: [&[u8]; 5] = [
            b"augment.global_scale=[0.3, 1]",
            b"optim.lr=1e-3",
            b"model.arch=vit_tiny",
            b"augment.local=[{ op = \"grayscale\", p = 0.5 }]",
            b"train.batch_size=64",
        ];
        let files: Vec<&[u8]> = PRESETS.iter().map(|(_, text)| text.as_bytes()).collect();
        let mutations = Mutations {
            telling: b"[]{}=.,\"\"'#\n0999-+e_\\inf\0\xff",
            header: usize::MAX,
        };
        let mut dice = Dice(seed);
        let (mut taken, mut done) = (0, 0);
        while !enough(done) {
            let corpus: &[&[u8]] = if dice.below(2) == 0 { &sets } else { &files };
            let mut bytes = corpus[dice.below(corpus.len())].to_vec();
            let other = corpus[dice.below(corpus.len())];
            mutations.apply(&mut bytes, other, &mut dice);
            let text = String::from_utf8_lossy(&bytes);
            let mut merged = Merged::defaults();
            let put = match corpus.len() == sets.len() {
                true => merged.set_all(&[text.into_owned()]),
                false => merged.overlay(&text, "file"),
            };
            if let Ok(config) = put.and_then(|()| merged.resolve()) {
                merged.annotated(&config).unwrap();
                taken += 1;
            }
            done += 1;
        }
        [done, taken]
    }

    #[test]
    fn damaged_configurations_are_answered() {
        let [done, taken] = fuzz(0x5e1f_5a3e, |done| done == 2000);
        assert!((1..done).contains(&taken), "{taken}");
    }

    /// `cargo test --release -p selfsame --bin selfsame damaged -- --ignored --nocapture`
    #[test]
    #[ignore = "takes half an hour"]
    #[expect(clippy::print_stdout, reason = "its result is to be read")]
    fn damaged_configurations_are_answered_for_half_an_hour() {
        let began = Instant::now();
        let seed = u64::from(std::process::id()) | 1;
        let [done, taken] = fuzz(seed, |_| began.elapsed() > Duration::from_secs(1800));
        println!("seed {seed}: {done} configurations, {taken} of them taken");
    }
}
