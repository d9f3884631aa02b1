//! `selfsame demo`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::Device;
use selfsame_checkpoint::{CHECKPOINTS, is_empty_run_dir, write_bytes};
use selfsame_data::augment::EvalCrop;
use selfsame_data::{Dataset, EvalTransform};
use selfsame_eval::linear_probe::{ProbeConfig, sgd};
use selfsame_eval::metrics::accuracy;
use selfsame_eval::{Features, KnnConfig, LabelEncoder, knn};
use selfsame_train::{
    CAPTURES, EVAL_BATCH, EmbedOptions, Embedder, Extractor, Learner, METRICS_FILE, Outcome,
    PICTURES_FILE, RunConfig, SKIPPED_FILE, SNAPSHOTS,
};
use toml::Value;

use super::report::REPORT_FILE;
use super::train::{Execution, execute};
use crate::cli::{Demo, Which};
use crate::config::{Merged, PRESETS, to_toml};
use crate::exit::{Done, pasteable, usage};
use crate::progress::duration;
use crate::scores::print_text;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device, run_dir, signals};

/// Marks a directory as a demonstration's, so that the next one may replace it.
const MARKER: &str = "demo.txt";
/// What a demonstration ends with.
const SUMMARY: &str = "summary.txt";
/// The folder for timm.
const EXPORT: &str = "export";
/// Before the names of files that are being written.
const UNFINISHED: &str = ".tmp-";
/// What it leaves in its directory beside both, and what a run does.
const OWN: [&str; 12] = [
    "LOCK",
    run_dir::CONFIG_FILE,
    METRICS_FILE,
    "metrics-unreadable.txt",
    PICTURES_FILE,
    SKIPPED_FILE,
    CHECKPOINTS,
    SNAPSHOTS,
    CAPTURES,
    EXPORT,
    "curves.png",
    REPORT_FILE,
];
/// Portraits learned from, without their labels.
const TRAIN_COUNT: usize = 2000;
/// Portraits of other people, for the scores.
const TEST_COUNT: usize = 1000;
/// Neighbours that vote.
const K: usize = 20;
const LABEL: &str = "gender";

pub(crate) fn run(args: &Demo) -> anyhow::Result<Done> {
    let began = Instant::now();
    let dir = &args.run;
    let merged = configuration(args)?;
    let config = merged.resolve()?;
    let text = to_toml(&config)?;
    clear_earlier(dir, &text)?;
    let train = data::of_run(&config.data.train, &config.data)?;
    let test = data::of_run(&config.data.val, &config.data)?;

    let _lock = run_dir::claim(dir)?;
    write_bytes(
        &dir.join(MARKER),
        b"made by selfsame demo; the next one goes on, or replaces it if it is done\n",
    )?;
    run_dir::write_config(dir, &merged.annotated(&config)?)?;
    let device = device::open("cpu")?;
    let stop = signals::stop_flag()?;

    tell!(
        "Portraits are drawn, {TRAIN_COUNT} to learn from and {TEST_COUNT} of other people to \
         test on; a small vision transformer learns from pixels alone, without labels."
    );
    let outcome = execute(&Execution {
        config: &config,
        config_text: &text,
        run_dir: dir,
        device: &device,
        train: train.clone(),
        val: Some(test.clone()),
        capture_step: None,
        init: None,
        accept_data_change: false,
        stop: &stop,
        report: true,
        go_on: &go_on(args),
    })?;
    if let Outcome::Interrupted(_) = outcome {
        return Ok(outcome.into());
    }

    let trained = Weights::open_at(dir, Which::Teacher, None, &device)?;
    let scores = Portraits::new(&train, &test, &device).compare(&config, &trained)?;
    super::export::timm(trained.backbone()?, &dir.join(EXPORT))?;
    let summary = summary(dir, &scores, began.elapsed());
    write_bytes(&dir.join(SUMMARY), summary.as_bytes())?;
    print_text(&summary);
    print_text(&next_steps());
    Ok(Done::Well)
}

/// The preset with the portraits of the seed.
fn configuration(args: &Demo) -> anyhow::Result<Merged> {
    // A configuration is TOML, which has no greater numbers; twice that is a seed of portraits.
    let seed = i64::try_from(args.seed).map_err(|_| usage("--seed: at most 2^63 - 1"))?;
    let mut merged = Merged::defaults();
    let (_, preset) = PRESETS
        .iter()
        .find(|(name, _)| *name == "demo")
        .context("no demo preset")?;
    merged.overlay(preset, "preset demo")?;
    let spec = |count: usize, seed: u64| {
        Value::String(format!("synthetic:portraits?count={count}&seed={seed}"))
    };
    merged.put("data.train", spec(TRAIN_COUNT, 2 * args.seed), "demo")?;
    merged.put("data.val", spec(TEST_COUNT, 2 * args.seed + 1), "demo")?;
    merged.put("seed", Value::Integer(seed), "demo")?;
    Ok(merged)
}

/// The command that continues it.
fn go_on(args: &Demo) -> String {
    let seed = match args.seed {
        0 => String::new(),
        seed => format!(" --seed {seed}"),
    };
    format!("selfsame demo --run {}{seed}", pasteable(&args.run))
}

/// What was reached, in how long, and where it lies.
fn summary(dir: &Path, scores: &Comparison, took: Duration) -> String {
    let Comparison {
        pixels,
        before,
        after,
    } = scores;
    format!(
        "\n{LABEL} told from features that never saw a label ({TEST_COUNT} test portraits)\n\
         \x20                        k-NN (k = {K})   linear probe\n\
         \x20 raw pixels               {:5.1} %        {:5.1} %\n\
         \x20 before training          {:5.1} %        {:5.1} %\n\
         \x20 after training           {:5.1} %        {:5.1} %\n\
         \nreport          {} (opens in any browser)\nloss curve      {}\nweights         {} (timm loads this folder)\ntime            {}\n",
        pixels.knn,
        pixels.linear,
        before.knn,
        before.linear,
        after.knn,
        after.linear,
        dir.join(REPORT_FILE).display(),
        dir.join("curves.png").display(),
        dir.join(EXPORT).display(),
        duration(took.as_secs_f64()),
    )
}

fn next_steps() -> String {
    let (preset, time) = match cfg!(feature = "cuda") {
        true => ("gpu-minutes", "six minutes of an H200"),
        false => ("cpu-hour", "an hour of two cores"),
    };
    format!(
        "Next, with your own pictures ({time} for 3,000 of them):\n\
         \x20 selfsame check-data PICTURES                                      # what can be used\n\
         \x20 selfsame plan --data PICTURES --preset {preset}    # how long it takes here, what is odd\n\
         \x20 selfsame train --data PICTURES --preset {preset} --run runs/mine\n\
         \x20 selfsame knn --weights runs/mine --train A --test B --label NAME  # how good it is"
    )
}

/// An earlier demonstration with this configuration that was stopped goes on, another is replaced;
/// anything else is refused.
fn clear_earlier(dir: &Path, config_text: &str) -> anyhow::Result<()> {
    run_dir::refuse_file(dir)?;
    if !dir.exists() || is_empty_run_dir(dir)? {
        return Ok(());
    }
    let refusal = |problem: &str| {
        usage(format!(
            "--run {}: {problem}; name another directory",
            dir.display()
        ))
    };
    if !dir.join(MARKER).exists() {
        return Err(refusal("holds something that is not an earlier demo"));
    }
    let is_own = |name: &str| {
        let is_log_aside = name.starts_with("metrics-before") && name.ends_with(".jsonl");
        name.starts_with(UNFINISHED)
            || name.starts_with("events.out.tfevents.")
            || is_log_aside
            || [MARKER, SUMMARY].contains(&name)
            || OWN.contains(&name)
    };
    // The lock tells whether that demo still runs.
    drop(run_dir::claim(dir)?);
    let exported = dir.join(EXPORT);
    let is_exported = |name: &str| {
        name.starts_with(UNFINISHED) || ["model.safetensors", "config.json"].contains(&name)
    };
    let mut others = names_in(dir)?;
    others.retain(|name| !is_own(name));
    if exported.is_dir() {
        let mut of_export = names_in(&exported)?;
        of_export.retain(|name| !is_exported(name));
        others.extend(of_export.iter().map(|name| format!("{EXPORT}/{name}")));
    }
    if let Some(other) = others.first() {
        return Err(refusal(&format!("holds {other}, which is no demo's")));
    }
    let was_stopped = !dir.join(SUMMARY).exists();
    let is_same = || {
        let config = run_dir::read_config(dir).and_then(|merged| merged.typed());
        config.is_ok_and(|config| to_toml(&config).is_ok_and(|text| text == config_text))
    };
    if was_stopped && is_same() {
        return Ok(());
    }
    std::fs::remove_dir_all(dir).with_context(|| format!("removing the earlier {}", dir.display()))
}

fn names_in(dir: &Path) -> anyhow::Result<Vec<String>> {
    let reading = || format!("reading {}", dir.display());
    let entries = std::fs::read_dir(dir).with_context(reading)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<std::io::Result<_>>().with_context(reading)
}

/// Accuracies in per cent.
struct Scores {
    knn: f64,
    linear: f64,
}

/// What training is to be held against, and what it reached.
struct Comparison {
    pixels: Scores,
    before: Scores,
    after: Scores,
}

/// Those to learn from and those to test on, with the classes of their label.
struct Portraits<'a> {
    train: &'a Arc<dyn Dataset>,
    test: &'a Arc<dyn Dataset>,
    encoder: LabelEncoder,
    device: &'a Device,
}

impl<'a> Portraits<'a> {
    fn new(train: &'a Arc<dyn Dataset>, test: &'a Arc<dyn Dataset>, device: &'a Device) -> Self {
        let labels = (0..train.len()).filter_map(|i| train.label(i, LABEL));
        Self {
            train,
            test,
            encoder: LabelEncoder::fit(labels),
            device,
        }
    }

    fn compare(&self, config: &RunConfig, trained: &Weights) -> anyhow::Result<Comparison> {
        let untrained = Learner::new(config, self.device)?;
        let crop = config.eval_crop();
        let raw = EvalCrop {
            mean: [0.0; 3],
            std: [1.0; 3],
            ..crop.clone()
        };
        Ok(Comparison {
            before: self.score(Extractor::Backbone(untrained.teacher.backbone()), &crop)?,
            pixels: self.score(Extractor::Pixels, &raw)?,
            after: self.score(trained.extractor(), &crop)?,
        })
    }

    fn score(&self, extractor: Extractor<'_>, crop: &EvalCrop) -> anyhow::Result<Scores> {
        let options = EmbedOptions {
            batch_size: EVAL_BATCH,
            workers: 2,
            transform: EvalTransform::Center(crop.clone()),
        };
        let embedder = Embedder {
            extractor,
            options,
            device: self.device,
            ledger: Arc::default(),
        };
        let (x, y) = self.features(self.train, &embedder)?;
        let (test_x, truth) = self.features(self.test, &embedder)?;
        let config = KnnConfig {
            ks: vec![K],
            ..KnnConfig::default()
        };
        let answers = knn(&x, &y, &test_x, &config)?;
        let knn = accuracy(&truth, &answers[0].predictions)?;
        let probe = ProbeConfig {
            epochs: 30,
            ..ProbeConfig::default()
        };
        let linear = sgd(
            (&x, &y),
            (&test_x, &truth),
            self.encoder.num_classes(),
            &probe,
            &mut |_| (),
        )?;
        Ok(Scores {
            knn: 100.0 * knn,
            linear: 100.0 * linear.accuracy,
        })
    }

    fn features(
        &self,
        set: &Arc<dyn Dataset>,
        embedder: &Embedder<'_>,
    ) -> anyhow::Result<(Features, Vec<usize>)> {
        let all: Vec<usize> = (0..set.len()).collect();
        let done = embedder.embed(set, &all, |_| ())?;
        let labels = done.samples.iter().filter_map(|i| set.label(*i, LABEL));
        let classes = labels
            .filter_map(|label| self.encoder.encode(&label))
            .collect();
        Ok((done.features.l2_normalized(), classes))
    }
}
