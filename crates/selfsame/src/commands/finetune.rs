//! `selfsame finetune`

use std::cmp::Reverse;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use selfsame_checkpoint::{
    CHECKPOINTS, CheckpointError, list, load_newest, write_bytes, write_tensors,
};
use selfsame_data::augment::{EvalCrop, StandardCrop};
use selfsame_eval::metrics::{ClassificationReport, ConfusionMatrix, ReportOptions, accuracy};
use selfsame_models::{InputConfig, keep_freed_memory};
use selfsame_train::{
    FinetuneConfig, FinetuneEvent, Finetuning, LabelledSamples, Predictions, SKIPPED_FILE,
    StopFlag, TrainError,
};
use serde_json::{Map, Value, json};

use super::begin::refuse_inside;
use crate::cli::Finetune;
use crate::embedding::explain;
use crate::exit::{Done, usage};
use crate::memory::Evaluation;
use crate::progress::CountProgress;
use crate::scores::{Sets, print_json, print_text, printable_lines};
use crate::stderr::tell;
use crate::weights::{FINETUNED, Loaded, RESULT_FILE, Weights, refuse_reference};
use crate::{disk, run_dir, signals};

const REPORT_FILE: &str = "classification_report.txt";

/// Classes up to which all confusions are printed, and how many of more classes.
const MAX_TABLE: usize = 20;

/// Metadata of [`FINETUNED`]: a JSON list of the classes' texts in the order of the logits.
pub(super) const CLASSES_KEY: &str = "selfsame.classes";
/// The label whose values the classes are.
pub(super) const LABEL_KEY: &str = "selfsame.label";
/// How pictures were resized for the crop: `resize` and `interpolation`, as JSON.
pub(super) const EVAL_KEY: &str = "selfsame.eval";

/// Time between checkpoints within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(15 * 60);

pub(crate) fn run(args: &Finetune) -> anyhow::Result<Done> {
    let flags = &args.data.weights;
    let config = configuration(args)?;
    let sets = Sets::open(&args.data)?;
    if sets.same {
        tell!("warning: --test is --train; the report is about the pictures learned from");
    }
    keep_freed_memory(&sets.device).context("setting up memory")?;
    sets.need_classes(&args.data.label)?;
    sets.suggest_regression(&args.data.label, "linear --regress");
    refuse_reference("--weights", &flags.weights)?;
    let weights = Weights::open(
        &flags.weights,
        flags.which,
        flags.arch.as_deref(),
        &sets.device,
    )?;
    let loaded = weights.backbone()?;
    let crop = weights.eval_crop(flags)?;
    let evaluation = Evaluation {
        batch_size: config.batch_size,
        trains: !args.freeze,
        ..sets.evaluation(&weights, flags, [0, 0])?
    };
    evaluation.check(&sets.device)?;
    let settings = settings(args, &config, &sets, &crop);
    let goes_on = goes_on(args)?;
    let mut tuning = Finetuning::new(
        &loaded.model,
        &loaded.params,
        sets.encoder.num_classes(),
        &config,
        &sets.device,
    )?;
    let _lock = match goes_on {
        true => run_dir::claim(&args.run)?,
        false => {
            disk::check_finetuning(&args.run, tuning.checkpoint_bytes() as u64)?;
            run_dir::claim_new(&args.run)?
        }
    };
    if goes_on && result(&args.run).exists() {
        return again(args, &settings);
    }
    if goes_on {
        restore_newest(&mut tuning, &sets, &settings, &args.run)?;
    }
    if !tuning.is_done() {
        sets.need_test_pictures(&args.data)?;
    }
    let stop = signals::stop_flag()?;
    let work = Work {
        args,
        sets: &sets,
        crop,
        settings: &settings,
        stop: &stop,
    };
    let Some(found) = work.all(&mut tuning)? else {
        return Ok(work.stopped());
    };
    work.keep(&tuning, &found, loaded)?;
    Ok(Done::Well)
}

/// The notebook's configuration with what flags say.
fn configuration(args: &Finetune) -> anyhow::Result<FinetuneConfig> {
    let flags = &args.data.weights;
    let notebook = FinetuneConfig::default();
    let config = FinetuneConfig {
        batch_size: flags.images_at_a_time(notebook.batch_size),
        epochs: args.epochs,
        lr: args.lr,
        freeze: args.freeze,
        seed: args.seed,
        workers: flags.workers,
        ..notebook
    };
    match config.check().first() {
        Some(problem) => Err(usage(format!("--{problem}"))),
        None => Ok(config),
    }
}

/// Whether `--run` holds a fine-tuning that is to go on, or to be told again; refuses a folder that
/// is something else.
fn goes_on(args: &Finetune) -> anyhow::Result<bool> {
    run_dir::refuse_file(&args.run)?;
    for (flag, spec) in [("--train", &args.data.train), ("--test", &args.data.test)] {
        refuse_inside(&args.run, flag, spec)?;
    }
    if args.run.join(run_dir::CONFIG_FILE).exists() {
        return Err(usage(format!(
            "--run {}: holds a pretraining run; name another folder",
            args.run.display()
        )));
    }
    if !args.resume && result(&args.run).exists() {
        return Err(usage(format!(
            "--run {}: a run is in it that is done; --resume tells its result, or name another folder",
            args.run.display()
        )));
    }
    let stopped = !list(&args.run)?.is_empty();
    if stopped && !args.resume {
        return Err(usage(format!(
            "--run {}: a run is in it that was stopped; go on with --resume, or name another folder",
            args.run.display()
        )));
    }
    Ok(args.resume && (stopped || result(&args.run).exists()))
}

fn result(run: &Path) -> std::path::PathBuf {
    run.join(RESULT_FILE)
}

/// What a run that goes on must have in common with how it began.
fn settings(
    args: &Finetune,
    config: &FinetuneConfig,
    sets: &Sets,
    crop: &EvalCrop,
) -> Map<String, Value> {
    let flags = &args.data.weights;
    let all = json!({
        "weights": flags.weights,
        "which": format!("{:?}", flags.which).to_lowercase(),
        "arch": flags.arch,
        "train": args.data.train,
        "test": args.data.test,
        "label": args.data.label.to_lowercase(),
        "image_size": crop.image_size,
        "resize": crop.resize_ratio,
        "interpolation": flags.filter(),
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "lr": config.lr,
        "freeze": config.freeze,
        "seed": config.seed,
        "classes": sets.encoder.classes(),
        "training pictures": sets.train.fingerprint(),
        "test pictures": sets.test.fingerprint(),
    });
    match all {
        Value::Object(all) => all,
        _ => Map::new(),
    }
}

/// Refuses to go on with other settings, flag by flag.
fn refuse_changes(before: &Value, now: &Map<String, Value>, run: &Path) -> anyhow::Result<()> {
    let changed: Vec<String> = now
        .iter()
        .filter(|(key, now)| before[key.as_str()] != **now)
        .map(|(key, now)| match key.as_str() {
            "training pictures" | "test pictures" | "classes" => format!("the {key} have changed"),
            _ => {
                let flag = key.replace('_', "-");
                format!("--{flag}: {now} instead of {}", before[key.as_str()])
            }
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "--run {}: what is in it was begun with other settings; take those, or another folder:\n  {}",
        run.display(),
        changed.join("\n  ")
    )))
}

/// Goes on from the newest checkpoint, if there is one, with what could not be used before it.
fn restore_newest(
    tuning: &mut Finetuning,
    sets: &Sets,
    settings: &Map<String, Value>,
    run: &Path,
) -> anyhow::Result<()> {
    let Some((checkpoint, warnings)) = load_newest(run, &sets.device)? else {
        return Ok(());
    };
    for warning in warnings {
        tell!("warning: {warning}");
    }
    let before = serde_json::from_str(&checkpoint.config)
        .map_err(|_| usage(format!("--run {}: that is no fine-tuning", run.display())))?;
    refuse_changes(&before, settings, run)?;
    tuning.restore(&checkpoint)?;
    tell!(
        "going on after {} steps, in epoch {}",
        checkpoint.step,
        checkpoint.epoch + 1
    );
    if let Err(error) = sets.ledger.read_csv(&run.join(SKIPPED_FILE)) {
        tell!("warning: what could not be used before is forgotten: {error}");
    }
    sets.ledger.place(sets.train.as_ref());
    let both = [sets.train.as_ref(), sets.test.as_ref()];
    sets.ledger.forget_returned(&both);
    Ok(())
}

/// Removes what is of no use once the result is written; where that fails it only takes room.
fn remove_checkpoints(run: &Path) {
    let checkpoints = run.join(CHECKPOINTS);
    if let Err(error) = std::fs::remove_dir_all(&checkpoints)
        && error.kind() != ErrorKind::NotFound
    {
        tell!("warning: {} stays: {error}", checkpoints.display());
    }
}

/// Prints the result of a run that is over.
fn again(args: &Finetune, settings: &Map<String, Value>) -> anyhow::Result<Done> {
    let (result, report) = (result(&args.run), args.run.join(REPORT_FILE));
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    let mut kept: Value = serde_json::from_str(&read(&result)?)
        .with_context(|| format!("reading {}", result.display()))?;
    refuse_changes(&kept["settings"], settings, &args.run)?;
    tell!("{} is done; this is its result", args.run.display());
    remove_checkpoints(&args.run);
    if args.data.json {
        if let Some(kept) = kept.as_object_mut() {
            kept.remove("settings");
        }
        print_json(&kept);
    } else {
        print_text(&printable_lines(&read(&report)?));
    }
    Ok(Done::Well)
}

/// Training and what comes after it.
struct Work<'a> {
    args: &'a Finetune,
    sets: &'a Sets,
    crop: EvalCrop,
    settings: &'a Map<String, Value>,
    stop: &'a StopFlag,
}

impl Work<'_> {
    /// Trains to the end and predicts; `None` after a signal, with a checkpoint.
    fn all(&self, tuning: &mut Finetuning) -> anyhow::Result<Option<Predictions>> {
        let Self { args, sets, .. } = self;
        let EvalCrop {
            image_size,
            mean,
            std,
            interpolation,
            ..
        } = self.crop.clone();
        let train_crop = StandardCrop {
            image_size,
            mean,
            std,
            interpolation,
            ..StandardCrop::default()
        };
        let (train, test) = (
            sets.classes(&sets.train_labels),
            sets.classes(&sets.test_labels),
        );
        let all = args.epochs.saturating_mul(train.len());
        let all = all.saturating_add(test.len());
        let mut progress = CountProgress::from("pictures", all, tuning.pictures());
        let train = LabelledSamples {
            dataset: &sets.train,
            classes: &train,
        };
        let test = LabelledSamples {
            dataset: &sets.test,
            classes: &test,
        };
        let mut saved = Instant::now();
        while !tuning.is_done() {
            let done = tuning.train(&train, &train_crop, &sets.ledger, |event| {
                let over = self.show(event, &mut progress);
                let pause = over || self.is_stopped() || saved.elapsed() >= CHECKPOINT_EVERY;
                flow(pause)
            });
            done.map_err(|error| self.explain(error, ("--train", &args.data.train)))?;
            let settings = serde_json::to_string_pretty(self.settings)?;
            let saved_at = selfsame_checkpoint::save(&args.run, &tuning.checkpoint(settings)?, 1);
            saved_at.map_err(|error| self.explain(error.into(), ("--run", "")))?;
            // What goes on in the middle of the last epoch does not meet them again.
            if let Err(error) = self.list_skipped() {
                tell!("warning: {error:#}");
            }
            saved = Instant::now();
            if self.is_stopped() {
                return Ok(None);
            }
        }
        let trained = tuning.pictures();
        let found = tuning.predict(&test, &self.crop, &sets.ledger, |n| {
            progress.set(trained + n);
            flow(self.is_stopped())
        });
        found.map_err(|error| self.explain(error, ("--test", &args.data.test)))
    }

    /// Whether an epoch is over.
    fn show(&self, event: FinetuneEvent, progress: &mut CountProgress) -> bool {
        match event {
            FinetuneEvent::Pictures(done) => progress.set(done),
            FinetuneEvent::Epoch {
                epoch,
                loss,
                accuracy,
            } => progress.say(&format!(
                "epoch {}/{}: loss {loss:.4}, training accuracy {:.1} %",
                epoch + 1,
                self.args.epochs,
                100.0 * accuracy
            )),
        }
        matches!(event, FinetuneEvent::Epoch { .. })
    }

    fn is_stopped(&self) -> bool {
        self.stop.requested().is_some()
    }

    fn stopped(&self) -> Done {
        tell!("stopped; the same command with --resume goes on from here");
        Done::Interrupted(self.stop.requested().unwrap_or_default())
    }

    fn explain(&self, error: TrainError, (flag, spec): (&str, &str)) -> anyhow::Error {
        match error {
            TrainError::NonFinite { step, what, value } => anyhow::anyhow!(
                "step {step}: the {what} is {value}; a --lr below {:e} may help",
                self.args.lr
            ),
            not_finite @ TrainError::Checkpoint(CheckpointError::NotFinite { .. }) => {
                let help = format!("a --lr below {:e} may help", self.args.lr);
                anyhow::Error::new(not_finite).context(help)
            }
            other => explain(other, flag, spec),
        }
    }

    /// Writes and prints the result, and removes the checkpoint that is not needed any more.
    fn keep(&self, tuning: &Finetuning, found: &Predictions, from: &Loaded) -> anyhow::Result<()> {
        let (args, sets) = (self.args, self.sets);
        let classes = sets.encoder.classes();
        let (truth, predicted) = (&found.truth, &found.predicted);
        let options = ReportOptions::default();
        let report = ClassificationReport::new(truth, predicted, classes, &options)?;
        let confusion = ConfusionMatrix::new(truth, predicted, classes.len())?;
        let text = format!("{report}\n{}", confusions(&confusion, classes));
        let epochs = tuning
            .epochs()
            .iter()
            .map(|(loss, accuracy)| json!({ "loss": loss, "train_accuracy": 100.0 * accuracy }));
        let result = json!({
            "accuracy": 100.0 * accuracy(truth, predicted)?,
            "n_train": sets.trained_on(),
            "n_test": truth.len(),
            "skipped": sets.skipped(),
            "epochs": epochs.collect::<Vec<_>>(),
            "trainable_parameters": tuning.trainable_parameters(),
        });
        let written = self.write(tuning, &result, &text, from);
        // A full disk is no reason not to tell.
        match args.data.json {
            true => print_json(&result),
            false => print_text(&printable_lines(&text)),
        }
        written?;
        remove_checkpoints(&args.run);
        Ok(())
    }

    /// Lists what could not be used; empty, if all that was missing has come back.
    fn list_skipped(&self) -> anyhow::Result<()> {
        let (ledger, list) = (&self.sets.ledger, self.args.run.join(SKIPPED_FILE));
        if !ledger.is_empty() || list.exists() {
            ledger.write_csv(&list)?;
        }
        Ok(())
    }

    /// Writes the weights, then the report, and the result last, which says that all is there.
    fn write(
        &self,
        tuning: &Finetuning,
        result: &Value,
        report: &str,
        from: &Loaded,
    ) -> anyhow::Result<()> {
        let run = &self.args.run;
        let mut metadata = from.metadata_for(&InputConfig {
            image_size: self.crop.image_size,
            mean: self.crop.mean,
            std: self.crop.std,
        })?;
        let classes = serde_json::to_string(self.sets.encoder.classes())?;
        metadata.insert(CLASSES_KEY.to_owned(), classes);
        let label = self.args.data.label.to_lowercase();
        metadata.insert(LABEL_KEY.to_owned(), label);
        let eval = json!({
            "resize": self.crop.resize_ratio,
            "interpolation": self.args.data.weights.filter(),
        });
        metadata.insert(EVAL_KEY.to_owned(), eval.to_string());
        // Pictures to test on that could not be used are in it since the last checkpoint.
        self.list_skipped()?;
        let weights = run.join(FINETUNED);
        write_tensors(&weights, &tuning.tensors(), &metadata)?;
        write_bytes(&run.join(REPORT_FILE), report.as_bytes())?;
        let mut result = result.clone();
        result["settings"] = Value::Object(self.settings.clone());
        let bytes = serde_json::to_vec_pretty(&result)?;
        Ok(write_bytes(&run.join(RESULT_FILE), &bytes)?)
    }
}

/// Who was taken for whom: a table of all counts, and of many classes the largest ones off its
/// diagonal.
fn confusions(matrix: &ConfusionMatrix, classes: &[String]) -> String {
    if classes.len() <= MAX_TABLE {
        return matrix.to_text(classes);
    }
    let cells = matrix.rows().enumerate().flat_map(|(truth, row)| {
        let cells = row.iter().enumerate();
        cells.map(move |(predicted, count)| (*count, truth, predicted))
    });
    let is_wrong =
        |(count, truth, predicted): &(usize, usize, usize)| *count > 0 && truth != predicted;
    let mut wrong: Vec<_> = cells.filter(is_wrong).collect();
    wrong.sort_by_key(|(count, truth, predicted)| (Reverse(*count), *truth, *predicted));
    if wrong.is_empty() {
        return "no picture was taken for one of another class".to_owned();
    }
    wrong.truncate(MAX_TABLE);
    let mut text = "most frequent confusions (pictures: true class, predicted class)".to_owned();
    for (count, truth, predicted) in wrong {
        let [truth, predicted] = [truth, predicted].map(|class| &classes[class]);
        text.push_str(&format!("\n{count:>6}: {truth}, {predicted}"));
    }
    text
}

fn flow(pause: bool) -> ControlFlow<()> {
    match pause {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_classes_the_most_frequent_confusions_are_told() {
        let told = |classes: usize, truth: &[usize], predicted: &[usize]| {
            let names: Vec<String> = (0..classes).map(|class| format!("c{class}")).collect();
            confusions(
                &ConfusionMatrix::new(truth, predicted, classes).unwrap(),
                &names,
            )
        };
        let (truth, predicted) = ([3, 3, 3, 1, 0, 2], [4, 4, 3, 0, 1, 2]);
        let text = told(21, &truth, &predicted);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            ["     2: c3, c4", "     1: c0, c1", "     1: c1, c0"]
        );
        assert_eq!(told(20, &truth, &predicted).lines().count(), 21);
        assert!(told(21, &truth, &truth).starts_with("no picture"));
    }
}
