//! Collapse and health in plain words, from the figures that a run logs.
//!
//! DINO has no labels to be wrong about, so its loss alone says little. Three figures together do:
//! the teacher's entropy beside ln K, what the student still lacks (KL), and the spread of the
//! features. The thresholds were set on the logs of about 45 small runs,
//! collapsed ones among them.

use std::fmt;
use std::path::Path;

use crate::capture::not_finite_steps;
use crate::config::RunConfig;
use crate::metrics::StepLine;
use crate::run_files::capture_dir;
use crate::skips::SkipsInARow;

/// Steps whose lines are averaged.
const WINDOW_STEPS: u64 = 50;
/// Lines that are averaged at least.
const WINDOW_LINES: usize = 3;
/// Share of ln K below which the KL leaves the student nothing to learn from the teacher.
const SETTLED_KL: f64 = 0.01;
/// Share of ln K below which a loss leaves nothing: the teacher is sure, and the student knows.
const SETTLED_LOSS: f64 = 0.05;
/// Share of ln K above which a settled teacher is uniform, below which it has favourites.
const UNIFORM_ENTROPY: f64 = 0.5;
/// Spread of features above which a settled teacher still tells pictures apart.
const WIDE_SPREAD: f64 = 0.5;
/// Share of its first value by which the spread of features has to move.
const STILL_SPREAD: f64 = 0.08;
/// Share of ln K from which a teacher that still teaches is worth watching.
const NEARLY_UNIFORM: f64 = 0.96;

/// What the figures say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The features are those of the first step: too early, or too small a learning rate.
    NotYetMoving,
    /// The teacher tells pictures apart and the student follows.
    Healthy,
    /// The teacher says the same of every picture: all prototypes alike.
    UniformCollapse,
    /// The teacher says the same of every picture: always the same few prototypes.
    OnePrototypeCollapse,
    /// A step after the last line had a loss or a gradient that is NaN or infinite.
    Diverged,
}

impl Verdict {
    /// Whether the features have collapsed: the run is lost unless settings change.
    pub fn is_collapse(self) -> bool {
        matches!(self, Self::UniformCollapse | Self::OnePrototypeCollapse)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYetMoving => "not yet moving",
            Self::Healthy => "healthy",
            Self::UniformCollapse => "uniform collapse",
            Self::OnePrototypeCollapse => "one-prototype collapse",
            Self::Diverged => "diverged",
        })
    }
}

/// A verdict, the figures it rests on, and the settings to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What the figures say.
    pub verdict: Verdict,
    /// The figures in a sentence.
    pub why: String,
    /// What to change, each with the setting's name and value; empty if nothing needs it.
    pub advice: Vec<String>,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict, self.why)?;
        for advice in &self.advice {
            write!(f, "\n  {advice}")?;
        }
        Ok(())
    }
}

/// Means over the latest lines, in shares of ln K.
#[derive(Clone, Copy, Debug)]
struct Recent {
    entropy: f64,
    kl: f64,
    spread: f64,
}

impl Recent {
    fn of(lines: &[StepLine], ln_k: f64) -> Self {
        let mean = |value: fn(&StepLine) -> f64| {
            lines.iter().map(value).sum::<f64>() / lines.len().max(1) as f64
        };
        Self {
            entropy: mean(|line| line.loss_floor) / ln_k,
            kl: mean(|line| line.kl) / ln_k,
            spread: mean(|line| line.feature_std),
        }
    }
}

/// The lines that count for the verdict at the end of `lines`: of the last 50 steps, but 3 at least.
fn window(lines: &[StepLine]) -> &[StepLine] {
    let Some(last) = lines.last() else {
        return lines;
    };
    let first = lines.partition_point(|line| line.step + WINDOW_STEPS <= last.step);
    &lines[first.min(lines.len().saturating_sub(WINDOW_LINES))..]
}

/// Whether nothing can be said yet.
fn is_too_short(lines: &[StepLine]) -> bool {
    lines.len() < WINDOW_LINES
}

/// The rules, on lines in the order of their steps.
///
/// 1. With fewer than three lines, and until the mean spread of features over the latest lines has once left the first value by
///    8 %, the run is not yet moving.
/// 2. If the mean KL is below 1 % of ln K and the entropy above half of it, the teacher says the
///    same flat thing of every picture: uniform collapse.
/// 3. If the mean KL is below 1 % of ln K, or the loss below 5 %, and the spread of features is
///    below 0.5, it is always the same few prototypes: one-prototype collapse.
/// 4. Else it is healthy.
pub fn verdict(lines: &[StepLine], out_dim: usize) -> Verdict {
    if is_too_short(lines) {
        return Verdict::NotYetMoving;
    }
    let ln_k = (out_dim as f64).ln();
    let start = lines[0].feature_std;
    let has_moved = (WINDOW_LINES..=lines.len()).any(|end| {
        let spread = Recent::of(window(&lines[..end]), ln_k).spread;
        (spread - start).abs() > STILL_SPREAD * start
    });
    if !has_moved {
        return Verdict::NotYetMoving;
    }
    let recent = Recent::of(window(lines), ln_k);
    let settled = recent.kl < SETTLED_KL;
    if settled && recent.entropy >= UNIFORM_ENTROPY {
        Verdict::UniformCollapse
    } else if (settled || recent.entropy + recent.kl < SETTLED_LOSS) && recent.spread < WIDE_SPREAD
    {
        Verdict::OnePrototypeCollapse
    } else {
        Verdict::Healthy
    }
}

/// The verdict on `lines`, with reasons and advice from the run's configuration.
pub fn judge(lines: &[StepLine], config: &RunConfig) -> Judgement {
    let verdict = verdict(lines, config.head.out_dim);
    let ln_k = (config.head.out_dim as f64).ln();
    let recent = Recent::of(window(lines), ln_k);
    let entropy = recent.entropy * ln_k;
    let kl = recent.kl * ln_k;
    let spread = recent.spread;
    let figures = format!(
        "teacher's entropy {entropy:.2} of at most ln K = {ln_k:.2}, {kl:.3} left to learn (KL), \
         feature spread {spread:.2}"
    );
    let why = match (verdict, lines.first()) {
        (_, None) => "no step has been logged yet".to_owned(),
        _ if is_too_short(lines) => format!(
            "{} of the {WINDOW_LINES} lines that are needed to judge are logged ({figures})",
            lines.len()
        ),
        (Verdict::NotYetMoving, Some(first)) => format!(
            "after {} steps the features are as they were at the first ({figures}; spread then \
             {:.2})",
            lines.last().map_or(0, |line| line.step + 1),
            first.feature_std
        ),
        (Verdict::Healthy, _) if recent.entropy > NEARLY_UNIFORM => format!(
            "the teacher is close to uniform but still tells pictures apart; watch it ({figures})"
        ),
        (Verdict::Healthy, _) => {
            format!("the teacher tells pictures apart and the student follows ({figures})")
        }
        (Verdict::UniformCollapse, _) => {
            format!("the teacher gives every picture the same, nearly flat answer ({figures})")
        }
        (Verdict::OnePrototypeCollapse, _) => {
            format!("the teacher gives every picture the same few prototypes ({figures})")
        }
        // Lines hold what is finite; `judge_run` looks further.
        (Verdict::Diverged, _) => figures,
    };
    Judgement {
        verdict,
        why,
        advice: match is_too_short(lines) {
            true => Vec::new(),
            false => advice(verdict, config),
        },
    }
}

/// As [`judge`], of the run in a directory whose log has these lines: one that ended, or stands, at a
/// step that was not finite has diverged, whatever its lines say; one that has a line of a later
/// step, or a checkpoint with a finite one, went on without it.
pub fn judge_run(run_dir: &Path, lines: &[StepLine], config: &RunConfig) -> Judgement {
    let logged = lines.last().map_or(0, |line| line.step + 1);
    let newest = not_finite_steps(run_dir)
        .into_iter()
        .max_by_key(|info| info.step)
        .filter(|info| info.step >= logged && !has_gone_by(run_dir, info.step));
    let Some((step, what, batches)) =
        newest.and_then(|info| Some((info.step, info.not_finite?, info.batches)))
    else {
        let mut judged = judge(lines, config);
        let newest = selfsame_checkpoint::list(run_dir).unwrap_or_default().pop();
        if let (true, Some((steps @ 1.., _))) = (lines.is_empty(), newest) {
            judged.why = format!(
                "the log has no step although {steps} are done, so there is nothing to judge by; \
                 metrics.jsonl may have been lost"
            );
        }
        return judged;
    };
    let folder = capture_dir(run_dir, step);
    let kept = if batches > 0 {
        "the step"
    } else {
        "its number alone"
    };
    Judgement {
        verdict: Verdict::Diverged,
        why: format!(
            "the {what} of step {step} was NaN or infinite; {kept} is in {}",
            folder.display()
        ),
        advice: advice(Verdict::Diverged, config),
    }
}

/// Whether a checkpoint says that a step behind this one was finite.
fn has_gone_by(run_dir: &Path, step: u64) -> bool {
    let checkpoints = selfsame_checkpoint::list(run_dir).unwrap_or_default();
    let mut later = checkpoints.into_iter().filter(|(steps, _)| *steps > step);
    later.any(|(steps, dir)| {
        // The last ones may have been left out, as this one was.
        let manifest = selfsame_checkpoint::Manifest::read(&dir).ok();
        let left_out = manifest.map(|manifest| SkipsInARow::of(&manifest.extra).count());
        left_out.is_some_and(|left_out| steps.saturating_sub(left_out) > step)
    })
}

fn advice(verdict: Verdict, config: &RunConfig) -> Vec<String> {
    let objective = &config.objective;
    let (temp, ema) = (objective.teacher_temp, objective.momentum_teacher);
    let center = objective.center_momentum;
    let (lr, warmup) = (config.optim.lr, config.optim.warmup_epochs);
    let out_dim = config.head.out_dim;
    match verdict {
        Verdict::Healthy => Vec::new(),
        Verdict::NotYetMoving => {
            let mut advice = vec![format!(
                "optim.lr = {lr}: raise it, unless the run is in its warm-up or has just begun"
            )];
            if warmup > 0 {
                advice.push(format!(
                    "optim.warmup_epochs = {warmup}: fewer let it move sooner"
                ));
            }
            advice.push(format!(
                "objective.momentum_teacher = {ema}: lower, so that the teacher follows"
            ));
            advice
        }
        Verdict::Diverged => {
            let mut advice = vec![
                format!("optim.lr = {lr}: lower"),
                format!("optim.warmup_epochs = {warmup}: more"),
            ];
            advice.push(match config.optim.clip_grad {
                0.0 => "optim.clip_grad = 0: 3 keeps single steps from being too long".to_owned(),
                clip => format!("optim.clip_grad = {clip}: lower"),
            });
            advice
        }
        Verdict::UniformCollapse => vec![
            format!("objective.teacher_temp = {temp}: lower (0.02 to 0.04) sharpens the teacher"),
            format!("objective.center_momentum = {center}: higher moves the centre less"),
            format!(
                "objective.momentum_teacher = {ema}: lower (0.98 to 0.99) in runs of few steps"
            ),
            format!("head.out_dim = {out_dim}: fewer prototypes for few pictures"),
            format!("optim.lr = {lr}: lower, and smaller batches, for more and smaller steps"),
        ],
        Verdict::OnePrototypeCollapse => vec![
            format!(
                "objective.center_momentum = {center}: lower (0.9) lets the centre follow; at 1 \
                 there is no centring"
            ),
            format!("objective.teacher_temp = {temp}: higher (0.04 to 0.07) softens the teacher"),
            format!("objective.momentum_teacher = {ema}: higher makes the teacher steadier"),
            format!("optim.lr = {lr}: lower, or a longer optim.warmup_epochs"),
        ],
    }
}

/// Watches a run: says when the verdict changes for good.
#[derive(Debug)]
pub struct Watch {
    lines: Vec<StepLine>,
    told: Verdict,
    /// A verdict that is not told yet, and for how many lines it has held.
    pending: (Verdict, usize),
}

impl Watch {
    /// A watch over a run that has logged `lines` before.
    pub fn new(mut lines: Vec<StepLine>, config: &RunConfig) -> Self {
        // For how many of the newest lines the verdict has held is found as it was then.
        let newest = lines.split_off(lines.len().saturating_sub(WINDOW_LINES));
        let told = verdict(&lines, config.head.out_dim);
        let mut watch = Self {
            lines,
            told,
            pending: (told, 0),
        };
        for line in &newest {
            watch.line(line, config);
        }
        watch
    }

    /// Takes the next line; the judgement if the verdict is another one and has held for 3 lines.
    pub fn line(&mut self, line: &StepLine, config: &RunConfig) -> Option<Judgement> {
        self.lines.push(line.clone());
        let now = verdict(&self.lines, config.head.out_dim);
        let held = if now == self.pending.0 {
            self.pending.1 + 1
        } else {
            1
        };
        self.pending = (now, held);
        if now == self.told || held < WINDOW_LINES {
            return None;
        }
        self.told = now;
        Some(judge(&self.lines, config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines 10 steps apart from (entropy, KL, spread), of a run with K = e² ≈ 7 prototypes.
    fn lines(figures: &[(f64, f64, f64)]) -> Vec<StepLine> {
        let line = |(i, &(loss_floor, kl, feature_std)): (usize, &(f64, f64, f64))| StepLine {
            step: 10 * i as u64,
            loss: loss_floor + kl,
            loss_floor,
            kl,
            feature_std,
            ..StepLine::default()
        };
        figures.iter().enumerate().map(line).collect()
    }

    const K: usize = 256;

    #[test]
    fn fewer_than_three_lines_say_nothing() {
        assert_eq!(verdict(&[], K), Verdict::NotYetMoving);
        assert_eq!(
            verdict(&lines(&[(5.5, 0.0, 0.7), (5.5, 0.0, 0.1)]), K),
            Verdict::NotYetMoving
        );
        let judgement = judge(&[], &RunConfig::default());
        assert!(judgement.why.contains("no step"), "{judgement}");
        let judgement = judge(
            &lines(&[(5.5, 0.0, 0.7), (5.5, 0.0, 0.1)]),
            &RunConfig::default(),
        );
        assert!(judgement.why.starts_with("2 of the 3 lines"), "{judgement}");
        assert!(judgement.advice.is_empty(), "{judgement}");
    }

    #[test]
    fn a_run_that_went_on_behind_a_step_that_was_left_out_has_not_diverged() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let config = RunConfig::default();
        let lines = lines(&[(5.5, 0.0, 0.7); 4]);
        let verdict = || judge_run(dir.path(), &lines, &config).verdict;
        let capture = |step: u64, not_finite: &str| {
            let text = format!(
                "{{\"format\":1,\"step\":{step},\"steps_per_epoch\":9,\"epochs\":9,\"batches\":1,\
                 \"not_finite\":{not_finite}}}"
            );
            put(&format!("captures/step-{step:08}/capture.json"), &text);
        };
        capture(35, "null");
        assert_ne!(verdict(), Verdict::Diverged, "asked for by a flag");
        capture(12, "\"loss\"");
        assert_ne!(verdict(), Verdict::Diverged, "a later line is there");
        capture(33, "\"gradient_norm\"");
        assert_eq!(verdict(), Verdict::Diverged);
        let save = |step: u64, left_out: u64| {
            let checkpoint = selfsame_checkpoint::Checkpoint {
                step,
                epoch: 0,
                config: String::new(),
                extra: serde_json::json!({"skipped_in_a_row": left_out}),
                files: std::collections::BTreeMap::new(),
            };
            selfsame_checkpoint::save(dir.path(), &checkpoint, 9).unwrap();
        };
        save(33, 0);
        assert_eq!(verdict(), Verdict::Diverged, "the checkpoint before it");
        save(35, 2);
        assert_eq!(
            verdict(),
            Verdict::Diverged,
            "it and the next were left out"
        );
        save(36, 1);
        assert_ne!(verdict(), Verdict::Diverged, "there was one between");
    }

    #[test]
    fn a_settled_student_is_judged_by_entropy_and_spread() {
        let after = |entropy, kl, spread| {
            let mut figures = vec![(2.0, 3.0, 0.7)];
            figures.extend([(entropy, kl, spread); 8]);
            verdict(&lines(&figures), K)
        };
        assert_eq!(after(5.5, 0.01, 0.2), Verdict::UniformCollapse);
        assert_eq!(after(0.1, 0.01, 0.2), Verdict::OnePrototypeCollapse);
        assert_eq!(after(0.1, 0.01, 0.6), Verdict::Healthy, "sharp and right");
        assert_eq!(after(5.3, 0.20, 0.4), Verdict::Healthy);
        assert_eq!(after(2.0, 0.01, 0.7), Verdict::NotYetMoving);
    }

    #[test]
    fn a_spread_that_comes_back_to_its_first_value_has_moved() {
        let mut figures = vec![(2.0, 1.0, 0.7); 4];
        figures.extend([(3.0, 1.0, 0.5); 8]);
        figures.extend([(2.0, 1.0, 0.7); 8]);
        assert_eq!(verdict(&lines(&figures), K), Verdict::Healthy);
    }

    #[test]
    fn a_watch_tells_a_change_once_and_only_if_it_lasts() {
        let config = RunConfig::default();
        let mut figures = vec![(2.0, 3.0, 0.7)];
        figures.extend([(3.0, 1.0, 0.5); 10]);
        figures.extend([(7.6, 0.0, 0.1); 12]);
        let mut watch = Watch::new(Vec::new(), &config);
        let told: Vec<Verdict> = lines(&figures)
            .iter()
            .filter_map(|line| watch.line(line, &config))
            .map(|judgement| judgement.verdict)
            .collect();
        assert_eq!(told, [Verdict::Healthy, Verdict::UniformCollapse]);
    }

    #[test]
    fn a_watch_tells_the_same_wherever_a_run_was_stopped() {
        let config = RunConfig::default();
        let mut figures = vec![(2.0, 3.0, 0.7)];
        figures.extend([(3.0, 1.0, 0.5); 10]);
        figures.extend([(7.6, 0.0, 0.1); 12]);
        let lines = lines(&figures);
        let told = |watch: &mut Watch, lines: &[StepLine]| -> Vec<(u64, Verdict)> {
            let told = lines.iter().filter_map(|line| {
                let judgement = watch.line(line, &config)?;
                Some((line.step, judgement.verdict))
            });
            told.collect()
        };
        let whole = told(&mut Watch::new(Vec::new(), &config), &lines);
        assert_eq!(whole.len(), 2);
        for stop in 0..lines.len() {
            let (before, after) = lines.split_at(stop);
            let mut told_in_all = told(&mut Watch::new(Vec::new(), &config), before);
            told_in_all.extend(told(&mut Watch::new(before.to_vec(), &config), after));
            assert_eq!(told_in_all, whole, "stopped after {stop} lines");
        }
    }

    #[test]
    fn advice_names_settings_with_their_values() {
        let mut config = RunConfig::default();
        config.objective.center_momentum = 1.0;
        let mut figures = vec![(2.0, 3.0, 0.7)];
        figures.extend([(0.01, 0.0, 0.1); 8]);
        let text = judge(&lines(&figures), &config).to_string();
        assert!(text.starts_with("one-prototype collapse: "), "{text}");
        for key in [
            "objective.center_momentum = 1:",
            "objective.teacher_temp = 0.07",
            "optim.lr",
        ] {
            assert!(text.contains(key), "{text}");
        }
    }
}
