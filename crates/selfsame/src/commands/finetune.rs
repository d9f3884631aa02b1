//! `selfsame finetune`

use anyhow::Context;
use selfsame_checkpoint::write_tensors;
use selfsame_data::augment::StandardCrop;
use selfsame_eval::metrics::{ClassificationReport, ConfusionMatrix, ReportOptions, accuracy};
use selfsame_models::keep_freed_memory;
use selfsame_train::{FinetuneConfig, FinetuneEvent, LabelledSamples, TrainError, finetune};
use serde_json::json;

use crate::cli::Finetune;
use crate::exit::{Done, usage};
use crate::memory::Evaluation;
use crate::progress::CountProgress;
use crate::run_dir;
use crate::scores::{Sets, print_json, print_text};
use crate::weights::{Weights, refuse_reference};

pub(crate) fn run(args: &Finetune) -> anyhow::Result<Done> {
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
    if let Some(problem) = config.check().first() {
        return Err(usage(format!("--{problem}")));
    }
    let sets = Sets::open(&args.data)?;
    keep_freed_memory(&sets.device).context("setting up memory")?;
    sets.need_classes(&args.data.label)?;
    refuse_reference("--weights", &args.data.weights.weights)?;
    let weights = Weights::open(
        &flags.weights,
        flags.which,
        flags.arch.as_deref(),
        &sets.device,
    )?;
    let loaded = weights.backbone()?;
    let eval_crop = weights.eval_crop(flags)?;
    let train_crop = StandardCrop {
        image_size: eval_crop.image_size,
        mean: eval_crop.mean,
        std: eval_crop.std,
        interpolation: eval_crop.interpolation,
        ..StandardCrop::default()
    };
    let evaluation = Evaluation {
        batch_size: config.batch_size,
        trains: !args.freeze,
        ..sets.evaluation(&weights, flags, [0, 0])?
    };
    evaluation.check(&sets.device)?;
    let _lock = run_dir::claim_new(&args.run)?;
    let (train, test) = (
        sets.classes(&sets.train_labels),
        sets.classes(&sets.test_labels),
    );
    let pictures = args.epochs.saturating_mul(train.len());
    let mut progress = CountProgress::new("pictures", pictures.saturating_add(test.len()));
    let done = finetune(
        &loaded.model,
        &loaded.params,
        sets.encoder.num_classes(),
        &LabelledSamples {
            dataset: &sets.train,
            classes: &train,
        },
        &LabelledSamples {
            dataset: &sets.test,
            classes: &test,
        },
        (&train_crop, &eval_crop),
        &config,
        &sets.device,
        &sets.ledger,
        |event| match event {
            FinetuneEvent::Pictures(done) => progress.set(done),
            FinetuneEvent::Epoch {
                epoch,
                loss,
                accuracy,
            } => progress.say(&format!(
                "epoch {}/{}: loss {loss:.4}, training accuracy {:.1} %",
                epoch + 1,
                args.epochs,
                100.0 * accuracy
            )),
        },
    );
    let done = done.map_err(|error| match error {
        TrainError::NonFinite { step, what, value } => anyhow::anyhow!(
            "step {step}: the {what} is {value}; a --lr below {:e} may help",
            args.lr
        ),
        other => other.into(),
    })?;
    let classes = sets.encoder.classes();
    let report = ClassificationReport::new(
        &done.truth,
        &done.predicted,
        classes,
        &ReportOptions::default(),
    )?;
    let confusion = ConfusionMatrix::new(&done.truth, &done.predicted, classes.len())?;
    let percent = 100.0 * accuracy(&done.truth, &done.predicted)?;
    let skipped = sets.skipped();
    let text = format!("{report}\n{}", confusion.to_text(classes));
    run_dir::replace(&args.run.join("classification_report.txt"), text.as_bytes())?;
    let mut metadata = loaded.metadata()?;
    metadata.insert(
        "selfsame.classes".to_owned(),
        serde_json::to_string(classes)?,
    );
    write_tensors(
        &args.run.join("finetuned.safetensors"),
        &done.tensors,
        &metadata,
    )?;
    if args.data.json {
        print_json(&json!({
            "accuracy": percent,
            "n_train": sets.train_labels.len(),
            "n_test": done.truth.len(),
            "skipped": skipped,
            "epochs": done.epochs.iter().map(|(loss, accuracy)| json!({
                "loss": loss, "train_accuracy": 100.0 * accuracy,
            })).collect::<Vec<_>>(),
            "trainable_parameters": done.trainable_parameters,
        }));
    } else {
        print_text(&text);
    }
    Ok(Done::Well)
}
