//! `selfsame train`

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use selfsame_data::{Dataset, Overlap};
use selfsame_train::{
    Init, Learner, MetricsLine, Outcome, Run, RunConfig, RunLength, StopFlag, TrainError,
    judge_run, read_metrics, shrink_them, train,
};

use super::begin::{Opened, goes_on, refuse_place, weights_to_begin_with};
use super::report::{self, Facts, REPORT_FILE};
use crate::cli::Train;
use crate::config::{Merged, OwnFlag, to_toml};
use crate::exit::{Done, pasteable, usage};
use crate::memory::Stage;
use crate::progress::TrainProgress;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{memory, run_dir, signals};

pub(crate) fn run(args: &Train) -> anyhow::Result<Done> {
    let merged = Merged::from_settings(&args.settings, OwnFlag::init(args.init.as_deref())?)?;
    let config = merged.resolve()?;
    if config.data.train.is_empty() {
        return Err(usage("--data SPEC: say which pictures to train on"));
    }
    refuse_place(&args.run, &config)?;
    let continues = goes_on(&args.run, args.resume, &config)?;
    let opened = Opened::of(&config, continues.then_some(&args.run))?;
    let steps = opened.plan.steps;
    if let Some(step) = args.capture_step.filter(|step| *step >= steps) {
        return Err(usage(format!(
            "--capture-step {step}: the run has {steps} steps, counted from 0"
        )));
    }
    opened.check_room(&config, &args.run)?;
    let init = weights_to_begin_with(&args.run, &config, &opened.device)?;
    let lock = if continues {
        run_dir::claim(&args.run)?
    } else {
        run_dir::claim_new(&args.run)?
    };
    let text = to_toml(&config)?;
    run_dir::write_config(&args.run, &merged.annotated(&config)?)?;
    let stop = signals::stop_flag()?;
    if !continues {
        tell_of_large(&config, opened.train.as_ref());
    }
    let outcome = execute(&Execution {
        config: &config,
        config_text: &text,
        run_dir: &args.run,
        device: &opened.device,
        train: opened.train,
        val: opened.val,
        capture_step: args.capture_step,
        init: init.as_ref(),
        accept_data_change: args.accept_data_change,
        stop: &stop,
        report: !args.no_report,
        go_on: &go_on(&args.run),
    })?;
    drop(lock);
    Ok(outcome.into())
}

/// The command that continues a run.
pub(super) fn go_on(run: &Path) -> String {
    format!("selfsame resume {}", pasteable(run))
}

/// Says if pictures are so large that it will take most of the time to read them, as far as three of
/// them tell; `plan` measures it.
fn tell_of_large(config: &RunConfig, set: &dyn Dataset) {
    /// Pixels on the shorter side up to which nothing is said.
    const LARGE: u32 = 1000;
    if set.path(0).is_none() {
        return;
    }
    let some = [0, set.len() / 2, set.len() - 1];
    let pictures = some.into_iter().filter_map(|index| set.decode(index).ok());
    let mut sides: Vec<u32> = pictures.map(|p| p.width().min(p.height())).collect();
    sides.sort_unstable();
    let side = sides.get(sides.len() / 2).copied().unwrap_or(0);
    if side > LARGE && side as usize > 2 * config.augment.sharp_side() {
        tell!("note: {}", shrink_them(config, side));
    }
}

/// What a run is made of, for `train`, `resume` and `demo`.
pub(super) struct Execution<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) config_text: &'a str,
    pub(super) run_dir: &'a Path,
    pub(super) device: &'a Device,
    pub(super) train: Arc<dyn Dataset>,
    pub(super) val: Option<Arc<dyn Dataset>>,
    pub(super) capture_step: Option<u64>,
    pub(super) init: Option<&'a Weights>,
    pub(super) accept_data_change: bool,
    pub(super) stop: &'a StopFlag,
    /// Whether a page is written at the end.
    pub(super) report: bool,
    /// The command that continues it.
    pub(super) go_on: &'a str,
}

/// Trains in a claimed run directory and draws its curves.
pub(super) fn execute(execution: &Execution<'_>) -> anyhow::Result<Outcome> {
    let Execution {
        config, run_dir, ..
    } = *execution;
    let start = execution.init.map(|weights| {
        move |learner: &mut Learner| -> Result<(), TrainError> {
            if let Weights::Backbone(loaded) = weights {
                let tensors = loaded.params.tensors();
                learner.student_params.load_part(&tensors, "backbone.")?;
                learner.teacher_params.load_part(&tensors, "backbone.")?;
            }
            Ok(())
        }
    });
    warn_of_shared(execution);
    let images = execution.train.len();
    let run = Run {
        config,
        config_text: execution.config_text,
        run_dir,
        device: execution.device,
        train: execution.train.clone(),
        val: execution.val.clone(),
        capture_step: execution.capture_step,
        init: start.as_ref().map(|start| start as &Init<'_>),
        accept_data_change: execution.accept_data_change,
        stop: execution.stop,
    };
    let outcome = train(&run, &mut TrainProgress::new(config.train.epochs)).map_err(|error| {
        let has_begun = selfsame_checkpoint::list(run_dir).is_ok_and(|found| !found.is_empty());
        let stage = match has_begun {
            true => Stage::Begun,
            false => Stage::New,
        };
        memory::explain(error, config, execution.device, stage)
    })?;
    let steps_per_epoch = RunLength::of(config, images)?.steps_per_epoch;
    // What was learned is not lost for want of a picture.
    match run_dir::draw_curves(run_dir, config, steps_per_epoch as f64) {
        Ok(curves) => tell!("curves: {}", curves.display()),
        Err(error) => tell!("warning: no curves were drawn: {error:#}"),
    }
    if matches!(outcome, Outcome::Interrupted(_)) {
        tell!("continue with: {}", execution.go_on);
        return Ok(outcome);
    }
    let lines = read_metrics(run_dir)?;
    let grown = how_scores_grew(&lines);
    let steps = lines.into_iter().filter_map(MetricsLine::into_step);
    let steps: Vec<_> = steps.collect();
    tell!("verdict: {}", judge_run(run_dir, &steps, config));
    for score in grown {
        tell!("  {score}");
    }
    if !execution.report {
        return Ok(outcome);
    }
    // All that took long is saved.
    signals::end_at_once();
    if let Some(signal) = execution.stop.requested() {
        tell!(
            "training is done; write the page about it with: selfsame report {}",
            pasteable(run_dir)
        );
        return Ok(Outcome::Interrupted(signal));
    }
    tell!("training is done; writing the page about it");
    write_report(execution);
    Ok(outcome)
}

/// The first and the last of each score, where there are two: a verdict tells a run that collapsed from
/// one that did not, these whether its features became better.
fn how_scores_grew(lines: &[MetricsLine]) -> Vec<String> {
    let scores_of = |line: &MetricsLine| match line {
        MetricsLine::Step(_) => Vec::new(),
        MetricsLine::Eval(line) => {
            let name = |k: &str| format!("k-NN (k = {k}) on {}", line.label);
            let scores = line.knn.iter();
            scores
                .map(|(k, percent)| (name(k), line.epoch, format!("{percent:.1} %")))
                .collect()
        }
        MetricsLine::Views(line) => {
            let score = |name: &str, value| (name.to_owned(), line.epoch, value);
            vec![
                score(
                    "views of one picture told from others' (chance: 50)",
                    format!("{:.1} %", line.view_auc),
                ),
                score(
                    "effective rank of features",
                    format!("{:.1}", line.effective_rank),
                ),
            ]
        }
    };
    let scores: Vec<_> = lines.iter().flat_map(scores_of).collect();
    let mut told = Vec::new();
    for (at, (name, from, first)) in scores.iter().enumerate() {
        let is_new = scores[..at].iter().all(|(other, ..)| other != name);
        let last = scores[at + 1..].iter().rfind(|(other, ..)| other == name);
        if let (true, Some((_, to, last))) = (is_new, last) {
            told.push(format!(
                "{name}: {first} after epoch {from}, {last} after epoch {to}"
            ));
        }
    }
    told
}

/// Says if the scores during training are of pictures that are among their own neighbours.
fn warn_of_shared(execution: &Execution<'_>) {
    let Some(val) = &execution.val else {
        return;
    };
    if execution.config.train.knn_every_epochs == 0 {
        return;
    }
    let shared = Overlap::of(execution.train.as_ref(), val.as_ref()).shared(val.len());
    if shared > 0 {
        tell!(
            "warning: {shared} of {} pictures of --val are in --data too, each among its own \
             neighbours: the k-NN score says too much, and what is scored without labels is not of \
             pictures held out; without --val every picture is left out of its own vote",
            val.len()
        );
    }
}

/// Writes the page about a finished run. A run that is done is not lost for want of a page.
fn write_report(execution: &Execution<'_>) {
    let facts = Facts {
        dir: execution.run_dir,
        config: execution.config,
        device: execution.device,
        train: Some(execution.train.clone()),
        val: execution.val.clone(),
    };
    let out = execution.run_dir.join(REPORT_FILE);
    match report::write(&facts, &out) {
        Ok(_) => tell!("report: {}", out.display()),
        Err(error) => tell!("warning: no report was written: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use selfsame_train::{EvalLine, StepLine, ViewsLine};

    use super::*;

    #[test]
    fn the_end_of_a_run_tells_its_first_and_last_scores() {
        let knn = |epoch, percent| {
            MetricsLine::Eval(EvalLine {
                step: None,
                epoch,
                knn: [("20".to_owned(), percent)].into(),
                label: "gender".to_owned(),
            })
        };
        let views = |epoch, view_auc| {
            MetricsLine::Views(ViewsLine {
                step: None,
                epoch,
                view_auc,
                effective_rank: view_auc / 2.0,
                pictures: 500,
                held_out: true,
            })
        };
        let step = MetricsLine::Step(StepLine::default());
        let lines = [
            knn(0, 53.5),
            views(0, 68.0),
            step,
            knn(4, 60.0),
            knn(8, 69.5),
            views(8, 99.5),
        ];
        let told = how_scores_grew(&lines);
        assert_eq!(
            told,
            [
                "k-NN (k = 20) on gender: 53.5 % after epoch 0, 69.5 % after epoch 8",
                "views of one picture told from others' (chance: 50): 68.0 % after epoch 0, 99.5 % after epoch 8",
                "effective rank of features: 34.0 after epoch 0, 49.8 after epoch 8",
            ]
        );
        assert!(how_scores_grew(&lines[..3]).is_empty());
    }
}
