//! Two labelled data sets through one extractor: what every score starts from.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use anyhow::Context;
use candle_core::Device;
use selfsame_data::{Dataset, Ledger, Overlap, repeated, shared};
use selfsame_eval::metrics::{BootstrapConfig, Interval, bootstrap, bootstrap_mean, r2};
use selfsame_eval::{Features, LabelEncoder, number};
use selfsame_train::{EVAL_BATCH, Embedder, Extractor, TrainError};
use serde_json::{Value, json};

use crate::cli::{Labelled, WeightsArgs};
use crate::embedding::{explain, name_left_out};
use crate::exit::usage;
use crate::memory::Evaluation;
use crate::progress::CountProgress;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device};

/// The two sides of a score, before any picture is read.
pub(crate) struct Sets {
    /// Where tensors live.
    pub(crate) device: Device,
    /// Learn from these.
    pub(crate) train: Arc<dyn Dataset>,
    /// Test on these.
    pub(crate) test: Arc<dyn Dataset>,
    /// Whether both are the same pictures with the same labels.
    pub(crate) same: bool,
    /// The classes of the label, over both sides.
    pub(crate) encoder: LabelEncoder,
    /// Label text of each labelled training sample.
    pub(crate) train_labels: BTreeMap<usize, String>,
    /// Label text of each labelled test sample.
    pub(crate) test_labels: BTreeMap<usize, String>,
    /// What could not be used.
    pub(crate) ledger: Arc<Ledger>,
}

/// Features of one side with the label texts of its rows.
pub(crate) struct LabelledFeatures {
    /// `[N, D]`.
    pub(crate) features: Features,
    /// A label a row.
    pub(crate) labels: Vec<String>,
}

impl LabelledFeatures {
    /// The numbers of the labels, all of which are numbers.
    pub(crate) fn numbers(&self) -> Vec<f64> {
        self.labels.iter().filter_map(|text| number(text)).collect()
    }
}

/// What a label is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each text is a class.
    Classes,
    /// Each text is a number.
    Numbers,
}

impl Sets {
    /// Opens both sides and finds the label.
    ///
    /// # Errors
    /// A usage error if a specification or the label does not exist, or a side has no picture with
    /// the label.
    pub(crate) fn open(args: &Labelled) -> anyhow::Result<Self> {
        device::set_threads(args.weights.threads)?;
        let device = device::open(&args.weights.device)?;
        let label = args.label.to_lowercase();
        let side = |flag: &str, spec: &str| {
            let set =
                data::of_flags(spec, &args.weights).with_context(|| format!("{flag} {spec}"))?;
            label_or_usage(flag, spec, set.as_ref(), &label)?;
            let labels: BTreeMap<usize, String> = (0..set.len())
                .filter_map(|i| Some((i, set.label(i, &label)?)))
                .collect();
            if labels.is_empty() {
                return Err(usage(format!(
                    "{flag} {spec}: not one of the {} pictures has a value of the label {label}",
                    set.len()
                )));
            }
            let without = set.len() - labels.len();
            if without > 0 {
                tell!(
                    "{spec}: {without} of {} pictures lack the label {label}",
                    set.len()
                );
            }
            Ok::<_, anyhow::Error>((set, labels))
        };
        let (train, train_labels) = side("--train", &args.train)?;
        let (test, test_labels) = side("--test", &args.test)?;
        let encoder = LabelEncoder::fit(train_labels.values().chain(test_labels.values()));
        let same = args.train == args.test
            || train_labels == test_labels
                && Overlap::of(train.as_ref(), test.as_ref()) == Overlap::Same;
        if !same {
            let tested_on = test_labels.keys().copied();
            let learned_from = (train.as_ref(), train_labels.keys().copied());
            let both = shared(test.as_ref(), tested_on, learned_from).len();
            if both > 0 {
                tell!(
                    "warning: {both} of the {} pictures of --test are also in --train; the score is \
                     better than it would be on new pictures",
                    test_labels.len()
                );
            }
        }
        Ok(Self {
            device,
            train,
            test,
            same,
            encoder,
            train_labels,
            test_labels,
            ledger: Arc::new(Ledger::default()),
        })
    }

    /// Leaves out of each side what lists a picture again: it would vote on itself, or be held out
    /// and learned from.
    pub(crate) fn without_repeated(mut self, args: &Labelled) -> Self {
        let sides = [
            (&args.train, &self.train, &mut self.train_labels),
            (&args.test, &self.test, &mut self.test_labels),
        ];
        let mut told = None;
        for (spec, set, labels) in sides {
            let again = repeated(set.as_ref(), labels.keys().copied());
            if !again.is_empty() && told != Some(spec) {
                let rows = labels.len();
                tell!(
                    "{spec}: {} of {rows} pictures with the label are listed before; each counts once",
                    again.len()
                );
                told = Some(spec);
            }
            for sample in again {
                labels.remove(&sample);
            }
        }
        let labels = self.train_labels.values().chain(self.test_labels.values());
        self.encoder = LabelEncoder::fit(labels);
        self
    }

    /// Refuses a test side of which no picture can be used, before anything is learned for it.
    ///
    /// # Errors
    /// As [`explain`].
    pub(crate) fn need_test_pictures(&self, args: &Labelled) -> anyhow::Result<()> {
        let mut first = None;
        for sample in self.test_labels.keys() {
            match self.test.decode(*sample) {
                Ok(_) => return Ok(()),
                Err(error) => first.get_or_insert_with(|| {
                    let path = self.test.path(*sample);
                    let name = path.map_or_else(
                        || self.test.name(*sample).to_owned(),
                        |path| path.display().to_string(),
                    );
                    format!("{name}: {error}")
                }),
            };
        }
        let unusable = TrainError::Unusable {
            what: "pictures to test on".to_owned(),
            usable: 0,
            of: self.test_labels.len(),
            first: first.unwrap_or_default(),
        };
        Err(explain(unusable, "--test", &args.test))
    }

    /// The side that has no picture that could be used, as its flag and specification.
    pub(crate) fn unusable<'a>(&self, args: &'a Labelled) -> (&'static str, &'a str) {
        match self.left_out(&self.test, &self.test_labels) == self.test_labels.len() {
            true => ("--test", &args.test),
            false => ("--train", &args.train),
        }
    }

    /// Features and labels of the training and the test side, of which so many copies will be made.
    ///
    /// # Errors
    /// If nothing could be decoded, or from the network.
    pub(crate) fn embed(
        &self,
        weights: &Weights,
        extractor: Extractor<'_>,
        args: &Labelled,
        copies: [usize; 2],
    ) -> anyhow::Result<(LabelledFeatures, LabelledFeatures)> {
        let embedder = self.embedder(weights, extractor, &args.weights)?;
        self.evaluation(weights, &args.weights, copies)?
            .check(&self.device)?;
        let run = |set: &Arc<dyn Dataset>, labels: &BTreeMap<usize, String>, what, flag, spec| {
            let samples: Vec<usize> = labels.keys().copied().collect();
            let mut progress = CountProgress::new(what, samples.len());
            let done = embedder.embed(set, &samples, |n| progress.set(n));
            let done = done.map_err(|error| explain(error, flag, spec))?;
            let labels = done.samples.iter().map(|i| labels[i].clone()).collect();
            Ok::<_, anyhow::Error>(LabelledFeatures {
                features: done.features,
                labels,
            })
        };
        let (set, labels) = (&self.train, &self.train_labels);
        let train = run(set, labels, "train features", "--train", &args.train)?;
        let test = if self.same {
            LabelledFeatures {
                features: train.features.clone(),
                labels: train.labels.clone(),
            }
        } else {
            let (set, labels) = (&self.test, &self.test_labels);
            run(set, labels, "test features", "--test", &args.test)?
        };
        Ok((train, test))
    }

    /// What makes features of both sides.
    ///
    /// # Errors
    /// As [`Weights::embed_options`].
    pub(crate) fn embedder<'a>(
        &'a self,
        weights: &Weights,
        extractor: Extractor<'a>,
        flags: &WeightsArgs,
    ) -> anyhow::Result<Embedder<'a>> {
        Ok(Embedder {
            extractor,
            options: weights.embed_options(flags)?,
            device: &self.device,
            ledger: self.ledger.clone(),
        })
    }

    /// What it takes to embed both sides and to have so many copies of each one's features.
    ///
    /// # Errors
    /// As [`Weights::eval_crop`].
    pub(crate) fn evaluation<'a>(
        &self,
        weights: &'a Weights,
        flags: &WeightsArgs,
        copies: [usize; 2],
    ) -> anyhow::Result<Evaluation<'a>> {
        let (train, test) = (self.train_labels.len(), self.test_labels.len());
        Ok(Evaluation {
            weights,
            size: weights.eval_crop(flags)?.image_size,
            batch_size: flags.images_at_a_time(EVAL_BATCH),
            batch_flag: Some("--batch-size"),
            workers: flags.workers,
            pictures: train.max(test),
            rows: copies[0] * train + copies[1] * test,
            trains: false,
        })
    }

    /// Class numbers of label texts.
    pub(crate) fn encode(&self, labels: &[String]) -> Vec<usize> {
        labels
            .iter()
            .filter_map(|label| self.encoder.encode(label))
            .collect()
    }

    /// Class number of each labelled sample of one side.
    pub(crate) fn classes(&self, labels: &BTreeMap<usize, String>) -> BTreeMap<usize, usize> {
        labels
            .iter()
            .filter_map(|(i, label)| Some((*i, self.encoder.encode(label)?)))
            .collect()
    }

    /// Needs at least two classes, and one of them on both sides.
    ///
    /// # Errors
    /// A usage error otherwise.
    pub(crate) fn need_classes(&self, label: &str) -> anyhow::Result<()> {
        if self.encoder.num_classes() < 2 {
            return Err(usage(format!(
                "--label {label}: all pictures have the same one"
            )));
        }
        let known: BTreeSet<&String> = self.train_labels.values().collect();
        if known.len() < 2 {
            return Err(usage(format!(
                "--label {label}: all pictures of --train have the same one, so there is nothing to \
                 tell apart: {}",
                examples(&known)
            )));
        }
        let labels = self.test_labels.values();
        let unknown: Vec<&String> = labels.filter(|label| !known.contains(label)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let (count, all) = (unknown.len(), self.test_labels.len());
        let unknown = examples(&unknown.into_iter().collect());
        if count == all {
            return Err(usage(format!(
                "--label {label}: no picture of --test has a value that --train knows; --train has {}, \
                 --test has {unknown}",
                examples(&known)
            )));
        }
        tell!(
            "warning: the {label} of {count} of the {all} pictures of --test is one that --train never \
             has, which counts as wrong: {unknown}"
        );
        Ok(())
    }

    /// Needs a number in each label.
    ///
    /// # Errors
    /// A usage error with the first text that is none.
    pub(crate) fn need_numbers(&self, label: &str) -> anyhow::Result<()> {
        let mut texts = self.encoder.classes().iter();
        match texts.find(|text| number(text).is_none()) {
            None => Ok(()),
            Some(text) => Err(usage(format!(
                "--regress: the label {label} has the value {text:?}, which is no number"
            ))),
        }
    }

    /// Says so where each number of a label is a class of its own, and what is there instead.
    pub(crate) fn suggest_regression(&self, label: &str, instead: &str) {
        if self.encoder.suggests_regression() {
            tell!(
                "note: {label} has {} different numbers, and each is a class of its own here; \
                 {instead} predicts the number and gives its error",
                self.encoder.num_classes()
            );
        }
    }

    /// What was scored and how pictures were prepared, as `--json` tells it.
    ///
    /// # Errors
    /// As [`Weights::eval_crop`].
    pub(crate) fn protocol(
        &self,
        weights: &Weights,
        flags: &WeightsArgs,
        label: &str,
        kind: Kind,
    ) -> anyhow::Result<Value> {
        let crop = weights.eval_crop(flags)?;
        let mut protocol = json!({
            "weights": weights.describe(),
            "label": label,
            "image_size": crop.image_size,
            "resize": crop.resize_ratio,
            "interpolation": flags.filter(),
        });
        if kind == Kind::Classes {
            protocol["classes"] = json!(self.encoder.classes());
        }
        Ok(protocol)
    }

    /// How many training pictures with the label were used, once all of them were asked for.
    pub(crate) fn trained_on(&self) -> usize {
        self.train_labels.len() - self.left_out(&self.train, &self.train_labels)
    }

    /// How many pictures with the label could not be used; they are named on stderr.
    pub(crate) fn skipped(&self) -> usize {
        name_left_out(&self.ledger);
        let of_test = match self.same {
            true => 0,
            false => self.left_out(&self.test, &self.test_labels),
        };
        self.left_out(&self.train, &self.train_labels) + of_test
    }

    fn left_out(&self, set: &Arc<dyn Dataset>, labels: &BTreeMap<usize, String>) -> usize {
        let left_out = |i: &&usize| self.ledger.has(set.as_ref(), **i);
        labels.keys().filter(left_out).count()
    }
}

/// The first few of some values.
fn examples(values: &BTreeSet<&String>) -> String {
    let mut named: Vec<&str> = values.iter().take(3).map(|value| value.as_str()).collect();
    if values.len() > named.len() {
        named.push("…");
    }
    printable(&named.join(", "))
}

/// The label's name as the data set has it.
///
/// # Errors
/// A usage error with the labels that there are.
pub(crate) fn label_or_usage(
    flag: &str,
    spec: &str,
    set: &dyn Dataset,
    label: &str,
) -> anyhow::Result<String> {
    let label = label.to_lowercase();
    let names = set.label_names();
    if names.contains(&label) {
        return Ok(label);
    }
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Err(usage(format!(
        "{flag} {spec}: no label {label:?}; its labels: {names}"
    )))
}

/// Errors of predicted numbers, with 95 % bootstrap intervals.
pub(crate) struct NumberScore {
    /// Mean absolute error, in the label's unit.
    pub(crate) mae: Interval,
    /// R², 1 at best, 0 for the mean.
    pub(crate) r2: Interval,
}

impl NumberScore {
    /// Scores predictions.
    ///
    /// # Errors
    /// Without rows, for different lengths, or values that are not finite.
    pub(crate) fn of(truth: &[f64], predicted: &[f64]) -> anyhow::Result<Self> {
        r2(truth, predicted)?;
        let pairs = || truth.iter().zip(predicted);
        let errors: Vec<f64> = pairs().map(|(t, p)| (t - p).abs()).collect();
        let config = BootstrapConfig::default();
        let of_rows = |rows: &[usize]| {
            let (truth, predicted): (Vec<f64>, Vec<f64>) =
                rows.iter().map(|&i| (truth[i], predicted[i])).unzip();
            r2(&truth, &predicted).unwrap_or(f64::NAN)
        };
        Ok(Self {
            mae: bootstrap_mean(&errors, &config)?,
            r2: bootstrap(truth.len(), &config, of_rows)?,
        })
    }

    /// Both figures; their intervals are lists of the lower and the upper end.
    pub(crate) fn json(&self) -> Value {
        let Self { mae, r2 } = self;
        json!({
            "mae": mae.estimate,
            "mae_interval": [mae.low, mae.high],
            "r2": r2.estimate,
            "r2_interval": [r2.low, r2.high],
        })
    }
}

impl std::fmt::Display for NumberScore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mae, r2 } = self;
        write!(
            f,
            "mean absolute error {:.2} (95 % interval {:.2} to {:.2}), R² {:.3} ({:.3} to {:.3})",
            mae.estimate, mae.low, mae.high, r2.estimate, r2.low, r2.high
        )
    }
}

/// Classes that are looked at for the accuracy at five, where there are more (eval_knn.py,
/// eval_linear.py).
pub(crate) const TOP: usize = 5;

/// The accuracy at five in percent, after the accuracy in a line; nothing where there is none.
pub(crate) fn top_in_words(percent: Option<f64>) -> String {
    percent.map_or(String::new(), |percent| {
        format!("  among the first {TOP}: {percent:.1} %")
    })
}

/// Prints the one JSON object that `--json` promises.
pub(crate) fn print_json(value: &Value) {
    print_text(&value.to_string());
}

/// A name for a terminal: control characters, of which file names may have any, as `\n` or `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Text of several lines for a terminal, each as [`printable`] gives it.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// Prints text for people.
///
/// A reader that has seen enough, such as `head`, is no failure; a full disk ends the program.
pub(crate) fn print_text(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            tell!("error: writing to standard output: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}
