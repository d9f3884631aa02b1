//! `selfsame report`: one page about a run, from what lies in its directory and from its pictures.

mod about;
mod curves;
mod looks;
mod scores;
mod split;
mod subjects;
mod views;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use selfsame_checkpoint::write_bytes;
use selfsame_data::Dataset;
use selfsame_report::{News, Page};
use selfsame_train::{
    EvalLine, MetricsLine, RunConfig, RunLength, StepLine, ViewsLine, judge_run, read_metrics,
};
use serde_json::{Value, json};

use crate::cli::{Report, Which};
use crate::exit::{Done, usage};
use crate::out::check_writable;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::scores::print_json;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device, run_dir};
use subjects::Subjects;

/// Name of the page in a run directory.
pub(crate) const REPORT_FILE: &str = "report.html";

pub(crate) fn run(args: &Report) -> anyhow::Result<Done> {
    let config = run_dir::read_config(&args.run)?.typed()?;
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| args.run.join(REPORT_FILE));
    let inputs = [
        ("the run", args.run.as_path()),
        ("data.train", Path::new(&config.data.train)),
        ("data.val", Path::new(&config.data.val)),
    ];
    refuse_overwriting(("--out", &out), &inputs)?;
    check_writable("--out", &out)?;
    let device = device::open("cpu")?;
    // Pictures that have moved since are no reason to show nothing.
    let open = |spec: &str| match spec {
        "" => None,
        spec => match data::of_run(spec, &config.data) {
            Ok(set) => Some(set),
            Err(error) => {
                tell!("warning: without pictures of {spec}: {error:#}");
                None
            }
        },
    };
    let train = open(&config.data.train);
    let val = open(&config.data.val);
    for (key, set) in [("data.train", &train), ("data.val", &val)] {
        if let Some(set) = set {
            refuse_overwriting_pictures(("--out", &out), (key, set.as_ref()))?;
        }
    }
    let facts = Facts {
        dir: &args.run,
        config: &config,
        device: &device,
        train,
        val,
    };
    let mut told = write(&facts, &out)?;
    tell!("wrote {}", out.display());
    if args.json {
        told["out"] = json!(out.to_string_lossy());
        print_json(&told);
    }
    Ok(Done::Well)
}

/// What a report is made from.
pub(crate) struct Facts<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) config: &'a RunConfig,
    pub(crate) device: &'a Device,
    /// Training pictures, if they can be opened.
    pub(crate) train: Option<Arc<dyn Dataset>>,
    /// Held-out pictures.
    pub(crate) val: Option<Arc<dyn Dataset>>,
}

/// Writes the page of a run; it is whole or not there. What it says in figures is given back.
///
/// # Errors
/// If nothing was logged yet, or a file cannot be read or written.
pub(crate) fn write(facts: &Facts<'_>, out: &Path) -> anyhow::Result<Value> {
    let log = Log::read(facts)?;
    let mut page = Page::new(&format!("Run {}", name_of(facts.dir)));
    let mut told = verdict(&mut page, facts, &log);
    let weights = newest_weights(facts);
    let subjects = match (&weights, &facts.train) {
        (Ok(weights), Some(train)) => Subjects::embed(facts, train, weights)?,
        _ => None,
    };
    match &subjects {
        Some(subjects) => {
            page.section("Scores");
            told["views"] = views::add(&mut page, subjects)?;
            told["scores"] = json!(scores::add(&mut page, subjects)?);
        }
        None => {
            page.section("Scores");
            page.text(&why_none(facts, weights.as_ref().err()));
        }
    }
    page.section("Curves");
    page.charts(&curves::charts(facts, &log));
    if let (Some(subjects), Ok(weights)) = (&subjects, &weights) {
        looks::add(&mut page, facts, subjects, weights)?;
    }
    about::add(&mut page, facts)?;
    write_bytes(out, page.finish().as_bytes())?;
    Ok(told)
}

/// The weights of a run, of its newest checkpoint if it goes on.
fn newest_weights(facts: &Facts<'_>) -> anyhow::Result<Weights> {
    let weights = Weights::open_at(facts.dir, Which::Teacher, None, facts.device);
    if let Err(error) = &weights
        && has_checkpoint(facts)
    {
        tell!("warning: without scores: {error:#}");
    }
    weights
}

/// Whether a checkpoint is there, be it damaged, or cannot be looked for.
fn has_checkpoint(facts: &Facts<'_>) -> bool {
    !selfsame_checkpoint::list(facts.dir).is_ok_and(|found| found.is_empty())
}

/// Why a page has no scores.
fn why_none(facts: &Facts<'_>, of_weights: Option<&anyhow::Error>) -> String {
    match of_weights {
        Some(error) if has_checkpoint(facts) => {
            format!("There are none, since the weights cannot be used: {error:#}")
        }
        Some(_) => "There are none yet: they need a checkpoint and the pictures.".to_owned(),
        None => {
            let spec = &facts.config.data.train;
            match facts.train {
                None => format!("There are none, since the pictures of {spec} cannot be opened."),
                Some(_) => {
                    format!("There are none, since fewer than two pictures of {spec} can be used.")
                }
            }
        }
    }
}

fn name_of(dir: &Path) -> String {
    let whole: PathBuf = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

/// What a run has logged.
pub(crate) struct Log {
    pub(crate) steps: Vec<StepLine>,
    pub(crate) evals: Vec<EvalLine>,
    pub(crate) views: Vec<ViewsLine>,
    /// Steps in an epoch, where the pictures tell it.
    pub(crate) steps_per_epoch: Option<f64>,
}

impl Log {
    fn read(facts: &Facts<'_>) -> anyhow::Result<Self> {
        let lines = read_metrics(facts.dir).map_err(|error| {
            usage(format!(
                "{}: nothing was logged yet ({error})",
                facts.dir.display()
            ))
        })?;
        let length = facts.train.as_ref().and_then(|set| {
            // Fewer than a batch by now tell nothing of the run.
            RunLength::of(facts.config, set.len()).ok()
        });
        let mut log = Self {
            steps: Vec::new(),
            evals: Vec::new(),
            views: Vec::new(),
            steps_per_epoch: length.map(|length| length.steps_per_epoch as f64),
        };
        for line in lines {
            match line {
                MetricsLine::Step(line) => log.steps.push(line),
                MetricsLine::Eval(line) => log.evals.push(line),
                MetricsLine::Views(line) => log.views.push(line),
            }
        }
        Ok(log)
    }
}

fn verdict(page: &mut Page, facts: &Facts<'_>, log: &Log) -> Value {
    page.section("Verdict");
    let judgement = judge_run(facts.dir, &log.steps, facts.config);
    let news = match judgement.verdict == selfsame_train::Verdict::Healthy {
        true => News::Good,
        false => News::Bad,
    };
    page.verdict(&judgement.verdict.to_string(), &judgement.why, news);
    if !judgement.advice.is_empty() {
        page.text("Settings to change, one at a time:");
        page.list(&judgement.advice);
    }
    if let Some(last) = log.steps.last() {
        let epochs = facts.config.train.epochs;
        let done = match log.steps_per_epoch {
            Some(n) => format!(
                "{:.1} of {epochs} epochs ({} steps)",
                (last.step + 1) as f64 / n,
                last.step + 1
            ),
            None => format!("{} steps", last.step + 1),
        };
        page.text(&format!(
            "{done} were logged; the loss is {:.3}.",
            last.loss
        ));
    }
    if let Some(text) = while_it_trained(&log.evals) {
        page.text(&text);
    }
    if let Some(text) = views::while_it_trained(&log.views) {
        page.text(&text);
    }
    let last = log.steps.last();
    let knn = |line: &EvalLine| json!({"label": line.label, "epoch": line.epoch, "knn": line.knn});
    json!({
        "verdict": judgement.verdict.to_string(),
        "why": judgement.why,
        "advice": judgement.advice,
        "steps": last.map(|line| line.step + 1),
        "loss": last.map(|line| line.loss),
        "knn_while_training": log.evals.iter().map(knn).collect::<Vec<_>>(),
        "views_while_training": log.views,
        "views": Value::Null,
        "scores": Value::Null,
    })
}

/// The first and the last score of a run, of which there may be but one.
fn while_it_trained(evals: &[EvalLine]) -> Option<String> {
    let (first, last) = (evals.first()?, evals.last()?);
    let text = |line: &EvalLine| {
        let scores = line.knn.iter();
        let scores: Vec<String> = scores
            .map(|(k, percent)| format!("{percent:.1} % (k = {k})"))
            .collect();
        scores.join(", ")
    };
    let then = match evals.len() {
        1 => String::new(),
        _ => format!(", {} after {}", text(last), last.epoch),
    };
    Some(format!(
        "k-NN on {} while it trained: {} after {} epochs{then}.",
        last.label,
        text(first),
        first.epoch,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_score_is_told_once() {
        let line = |epoch: usize, percent: f64| EvalLine {
            step: None,
            epoch,
            knn: [("20".to_owned(), percent)].into(),
            label: "gender".to_owned(),
        };
        let told = |evals: &[EvalLine]| while_it_trained(evals).unwrap();
        assert_eq!(
            told(&[line(0, 20.0)]),
            "k-NN on gender while it trained: 20.0 % (k = 20) after 0 epochs."
        );
        assert_eq!(
            told(&[line(0, 20.0), line(3, 61.5), line(5, 70.0)]),
            "k-NN on gender while it trained: 20.0 % (k = 20) after 0 epochs, 70.0 % (k = 20) after \
             5."
        );
    }
}
