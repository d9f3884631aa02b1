//! `selfsame linear`

use selfsame_data::augment::StandardCrop;
use selfsame_eval::linear_probe::{ProbeConfig, sgd};
use selfsame_eval::logistic::{LogisticConfig, default_grid, fit_with_best_c};
use selfsame_eval::metrics::{
    BootstrapConfig, ClassificationReport, ReportOptions, accuracy, accuracy_among, bootstrap_mean,
    correct,
};
use selfsame_eval::ridge::{self, fit_with_best_alpha};
use selfsame_models::Arch;
use selfsame_train::{Extractor, LabelledSamples, official_linear};
use serde_json::{Value, json};

use crate::cli::{Linear, Method, Protocol, WeightsArgs};
use crate::embedding::explain;
use crate::exit::{Done, usage};
use crate::progress::CountProgress;
use crate::scores::{
    Kind, NumberScore, Sets, TOP, print_json, print_text, printable_lines, top_in_words,
};
use crate::stderr::tell;
use crate::weights::Weights;

/// Passes over the training pictures, in the notebook and in the official code.
const EPOCHS: usize = 100;

/// Batch of the official protocol here; its learning rate is .001 · batch / 256.
const OFFICIAL_BATCH: usize = 256;

/// Resize(256) before CenterCrop(224) (eval_linear.py).
const OFFICIAL_RESIZE: f64 = 256.0 / 224.0;

pub(crate) fn run(args: &Linear) -> anyhow::Result<Done> {
    if args.epochs == Some(0) {
        return Err(usage("--epochs 0: at least one is needed"));
    }
    if let Some(lr) = args.lr.filter(|lr| !(*lr > 0.0 && lr.is_finite())) {
        return Err(usage(format!("--lr {lr}: a number above 0 is needed")));
    }
    if args.method == Method::Logistic {
        refuse_flags_of_sgd(args)?;
    }
    let mut flags = args.data.weights.clone();
    if args.method == Method::Sgd && args.protocol == Protocol::Official {
        flags.resize = flags.resize.or(Some(OFFICIAL_RESIZE));
    }
    let flags = &flags;
    let sets = Sets::open(&args.data)?.without_repeated(&args.data);
    if args.regress {
        sets.need_numbers(&args.data.label)?;
    } else {
        sets.need_classes(&args.data.label)?;
        sets.suggest_regression(&args.data.label, "--regress");
    }
    if sets.same {
        tell!("warning: --test is --train; the score is that of the pictures learned from");
    }
    let weights = Weights::open(
        &flags.weights,
        flags.which,
        flags.arch.as_deref(),
        &sets.device,
    )?;
    if args.regress {
        return regress(args, &sets, &weights);
    }
    let work = Classifying {
        args,
        flags,
        sets: &sets,
        weights: &weights,
    };
    let fitted = match (args.method, args.protocol) {
        (Method::Logistic, _) => work.logistic(),
        (Method::Sgd, Protocol::Notebook) => work.notebook(),
        (Method::Sgd, Protocol::Official) => work.official(),
    }?;
    work.tell(&fitted)?;
    Ok(Done::Well)
}

/// A classifier's answers to the test pictures.
struct Fitted {
    truth: Vec<usize>,
    predicted: Vec<usize>,
    /// The classes of each picture, the likeliest first, where the method has an order of them.
    ranked: Option<Vec<Vec<usize>>>,
    /// What `--json` says of this method alone.
    details: Value,
}

/// A classifier of labels on fixed features.
struct Classifying<'a> {
    args: &'a Linear,
    /// With what the protocol takes where nothing was said.
    flags: &'a WeightsArgs,
    sets: &'a Sets,
    weights: &'a Weights,
}

impl Classifying<'_> {
    fn logistic(&self) -> anyhow::Result<Fitted> {
        let Self { args, sets, .. } = self;
        // Scaled, less what is held out, and that in f64.
        let copies = [5, 2];
        let extractor = self.weights.extractor();
        let (train, test) = sets.embed(self.weights, extractor, &args.data, copies)?;
        let (x, test_x) = (
            train.features.l2_normalized(),
            test.features.l2_normalized(),
        );
        let config = LogisticConfig::default();
        let labels = sets.encode(&train.labels);
        let grid = default_grid();
        let mut progress = CountProgress::new("fits", grid.len() + 1);
        let on_fit = &mut |done| progress.set(done);
        let (model, tried) = fit_with_best_c(&x, &labels, &grid, &config, args.seed, on_fit)?;
        let best = tried
            .iter()
            .max_by(|a, b| a.accuracy.total_cmp(&b.accuracy));
        Ok(Fitted {
            truth: sets.encode(&test.labels),
            predicted: model.predict(&test_x)?,
            ranked: None,
            details: json!({
                "method": "logistic",
                "iterations": model.iterations,
                "converged": model.converged,
                "held_out_accuracy": best.map(|tried| 100.0 * tried.accuracy),
            }),
        })
    }

    fn notebook(&self) -> anyhow::Result<Fitted> {
        let Self { args, sets, .. } = self;
        let extractor = self.weights.extractor();
        let (train, test) = sets.embed(self.weights, extractor, &args.data, [1, 1])?;
        let config = probe(args, ProbeConfig::default());
        let (labels, truth) = (sets.encode(&train.labels), sets.encode(&test.labels));
        let mut progress = CountProgress::new("epochs", config.epochs);
        let done = sgd(
            (&train.features, &labels),
            (&test.features, &truth),
            sets.encoder.num_classes(),
            &config,
            &mut |done| progress.set(done),
        )?;
        Ok(Fitted {
            ranked: Some(done.classifier.predict_ranked(&test.features, TOP)?),
            truth,
            predicted: done.predictions,
            details: json!({
                "method": "sgd", "protocol": "notebook", "epochs": config.epochs, "lr": config.lr,
                "best_epoch_accuracy": 100.0 * done.best_accuracy, "best_epoch": done.best_epoch + 1,
            }),
        })
    }

    fn official(&self) -> anyhow::Result<Fitted> {
        let Self {
            args,
            flags,
            sets,
            weights,
        } = self;
        let config = probe(args, ProbeConfig::official(OFFICIAL_BATCH));
        let crop = weights.eval_crop(flags)?;
        let standard = StandardCrop {
            image_size: crop.image_size,
            mean: crop.mean,
            std: crop.std,
            ..StandardCrop::default()
        };
        let (extractor, features) = official_features(weights);
        let (train_classes, test_classes) = (
            sets.classes(&sets.train_labels),
            sets.classes(&sets.test_labels),
        );
        sets.evaluation(weights, flags, [extractor.parts(); 2])?
            .check(&sets.device)?;
        let mut progress = CountProgress::new("epochs", config.epochs);
        let done = official_linear(
            &sets.embedder(weights, extractor, flags)?,
            &LabelledSamples {
                dataset: &sets.train,
                classes: &train_classes,
            },
            &LabelledSamples {
                dataset: &sets.test,
                classes: &test_classes,
            },
            sets.encoder.num_classes(),
            &standard,
            &config,
            |epoch, _| progress.set(epoch + 1),
        )
        .map_err(|error| {
            let (flag, spec) = sets.unusable(&args.data);
            explain(error, flag, spec)
        })?;
        Ok(Fitted {
            details: json!({
                "method": "sgd", "protocol": "official", "epochs": config.epochs,
                "features": features, "image_size": crop.image_size, "resize": crop.resize_ratio,
                "interpolation": flags.filter(),
                "batch_size": OFFICIAL_BATCH, "lr": config.lr,
                "best_epoch_accuracy": 100.0 * done.best_accuracy, "best_epoch": done.best_epoch + 1,
            }),
            truth: done.truth,
            predicted: done.predicted,
            ranked: Some(done.ranked),
        })
    }

    /// Prints how good the answers are.
    fn tell(&self, fitted: &Fitted) -> anyhow::Result<()> {
        let Self {
            args,
            flags,
            sets,
            weights,
        } = self;
        let Fitted {
            truth,
            predicted,
            details,
            ..
        } = fitted;
        let percent = 100.0 * accuracy(truth, predicted)?;
        let interval = bootstrap_mean(&correct(truth, predicted)?, &BootstrapConfig::default())?;
        let report = ClassificationReport::new(
            truth,
            predicted,
            sets.encoder.classes(),
            &ReportOptions::default(),
        )?;
        let ranked = fitted.ranked.as_ref();
        let ranked = ranked.filter(|_| sets.encoder.num_classes() > TOP);
        let among = ranked.map(|ranked| accuracy_among(truth, ranked));
        let among = among.transpose()?.map(|share| 100.0 * share);
        let skipped = sets.skipped();
        if args.data.json {
            let mut result = json!({
                "linear": percent,
                "standard_error": 100.0 * interval.standard_error,
                "n_train": sets.trained_on(),
                "n_test": truth.len(),
                "skipped": skipped,
                "weights": weights.describe(),
                "protocol": protocol(args, sets, (weights, flags), details)?,
            });
            if let Some(among) = among {
                result["top5"] = json!(among);
            }
            print_json(&result);
        } else {
            print_text(&format!(
                "{}\naccuracy {percent:.1} %  (95 % interval {:.1} to {:.1}){}; {}",
                printable_lines(&report.to_string()),
                100.0 * interval.low,
                100.0 * interval.high,
                top_in_words(among),
                in_words(details)
            ));
        }
        Ok(())
    }
}

/// Ridge regression of a label of numbers on fixed features.
fn regress(args: &Linear, sets: &Sets, weights: &Weights) -> anyhow::Result<Done> {
    let flags = &args.data.weights;
    let columns = sets.evaluation(weights, flags, [0, 0])?.columns();
    let copies = [ridge_copies(sets.train_labels.len(), columns), 2];
    let (train, test) = sets.embed(weights, weights.extractor(), &args.data, copies)?;
    let (x, test_x) = (
        train.features.l2_normalized(),
        test.features.l2_normalized(),
    );
    let (values, truth) = (train.numbers(), test.numbers());
    let (model, tried) = fit_with_best_alpha(&x, &values, &ridge::default_grid(), args.seed)?;
    let score = NumberScore::of(&truth, &model.predict(&test_x)?)?;
    // The first of those with the lowest error, as it was chosen.
    let best = tried
        .iter()
        .min_by(|a, b| a.mean_absolute_error.total_cmp(&b.mean_absolute_error));
    let details = json!({
        "method": "ridge",
        "alpha": best.map(|tried| tried.alpha),
        "held_out_mae": best.map(|tried| tried.mean_absolute_error),
    });
    let skipped = sets.skipped();
    if args.data.json {
        print_json(&json!({
            "linear": score.json(),
            "n_train": values.len(),
            "n_test": truth.len(),
            "skipped": skipped,
            "weights": weights.describe(),
            "protocol": protocol(args, sets, (weights, flags), &details)?,
        }));
    } else {
        print_text(&format!("{score}; {}", in_words(&details)));
    }
    Ok(Done::Well)
}

/// How many times the features are in memory at the peak of a ridge regression.
fn ridge_copies(rows: usize, columns: usize) -> usize {
    // As read, scaled, and in f64 what is kept of them, then all and those transposed; the Gram
    // matrix and its factor twice, in f64, against rows x columns.
    let (small, large) = (rows.min(columns), rows.max(columns).max(1));
    8 + (8 * small).div_ceil(large)
}

/// What `--json` says of every method, and what only one has.
fn protocol(
    args: &Linear,
    sets: &Sets,
    (weights, flags): (&Weights, &WeightsArgs),
    details: &Value,
) -> anyhow::Result<Value> {
    let kind = match args.regress {
        true => Kind::Numbers,
        false => Kind::Classes,
    };
    let mut protocol = sets.protocol(weights, flags, &args.data.label, kind)?;
    for (name, value) in details.as_object().into_iter().flatten() {
        protocol[name.as_str()] = value.clone();
    }
    Ok(protocol)
}

/// What the official code takes of each architecture, and in words.
fn official_features(weights: &Weights) -> (Extractor<'_>, String) {
    match (weights, weights.extractor()) {
        (Weights::Backbone(loaded), Extractor::Backbone(backbone)) => match loaded.model.arch {
            Arch::VitBase => (
                Extractor::ClassTokenAndMean(backbone),
                "class token and mean of the patches of the last block".to_owned(),
            ),
            arch if arch.is_vit() => (
                Extractor::LastFourClassTokens(backbone),
                // As many as the extractor finds.
                match backbone.num_blocks() {
                    0 | 1 => "class token of the last block".to_owned(),
                    blocks => format!("class tokens of the last {} blocks", blocks.min(4)),
                },
            ),
            _ => (Extractor::Backbone(backbone), "pooled output".to_owned()),
        },
        (_, other) => (other, "pixels".to_owned()),
    }
}

/// The protocol's settings, but for what flags say.
fn probe(args: &Linear, protocol: ProbeConfig) -> ProbeConfig {
    ProbeConfig {
        epochs: args.epochs.unwrap_or(EPOCHS),
        lr: args.lr.unwrap_or(protocol.lr),
        seed: args.seed,
        ..protocol
    }
}

/// Refuses what would change nothing.
fn refuse_flags_of_sgd(args: &Linear) -> anyhow::Result<()> {
    let protocol = (args.protocol == Protocol::Official).then(|| "--protocol official".to_owned());
    let epochs = args.epochs.map(|epochs| format!("--epochs {epochs}"));
    let lr = args.lr.map(|lr| format!("--lr {lr}"));
    let flags: Vec<String> = [protocol, epochs, lr].into_iter().flatten().collect();
    if flags.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "{}: for --method sgd only; --method logistic takes fixed features and as many steps as it \
         needs",
        flags.join(" and ")
    )))
}

/// "method logistic, iterations 120, held out accuracy 93.1": percentages with one digit.
fn in_words(details: &Value) -> String {
    let fields = details.as_object().into_iter().flatten();
    let words = fields.filter_map(|(name, value)| {
        let value = match value {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            // Said together with the epoch.
            _ if name == "best_epoch_accuracy" => return None,
            Value::Number(epoch) if name == "best_epoch" => {
                let percent = details["best_epoch_accuracy"].as_f64()?;
                format!("{epoch} on --test: {percent:.1} %")
            }
            Value::Number(percent) if name.ends_with("accuracy") => {
                format!("{:.1}", percent.as_f64()?)
            }
            Value::Number(error) if name.ends_with("mae") => format!("{:.2}", error.as_f64()?),
            other => other.to_string(),
        };
        Some(format!("{} {value}", name.replace('_', " ")))
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_epoch_is_told_with_its_accuracy() {
        let details = json!({
            "method": "sgd", "epochs": 100, "best_epoch": 1, "best_epoch_accuracy": 47.54,
        });
        let told = in_words(&details);
        let words = "best epoch 1 on --test: 47.5 %, epochs 100, method sgd";
        assert_eq!(told, words);
    }
}
