//! What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use selfsame_train::{MetricsLine, Observer, Progress, RunFacts};

use crate::scores::printable_lines;
use crate::stderr::tell;

/// Seconds between plain lines, so that a log file stays readable.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Writes the progress of a run to stderr.
pub(crate) struct TrainProgress {
    bar: Option<ProgressBar>,
    /// When the first step here began; the score before it is not part of the pace.
    began: Option<Instant>,
    began_at_step: u64,
    told: Option<Instant>,
    rate: f64,
    data_wait: f64,
    epochs: usize,
}

impl TrainProgress {
    /// Progress of a run of `epochs` epochs.
    pub(crate) fn new(epochs: usize) -> Self {
        Self {
            bar: None,
            began: None,
            began_at_step: 0,
            told: None,
            rate: 0.0,
            data_wait: 0.0,
            epochs,
        }
    }

    fn say(&self, text: &str) {
        say(self.bar.as_ref(), text);
    }
}

impl Observer for TrainProgress {
    fn started(&mut self, facts: &RunFacts) {
        self.say(&format!(
            "{}, {} an epoch, {:.3} M trainable parameters; a uniform guess has loss {:.3}",
            counted(facts.images, "image", "images"),
            counted(facts.steps_per_epoch, "step", "steps"),
            facts.trainable_parameters as f64 / 1e6,
            facts.uniform_loss
        ));
        if facts.steps_done >= facts.total_steps {
            self.say(&format!(
                "{} of {} steps are done already: nothing is left to train",
                facts.steps_done, facts.total_steps
            ));
        }
        self.began_at_step = facts.steps_done;
        if std::io::stderr().is_terminal() {
            self.bar = Some(bar(facts.total_steps, facts.steps_done));
        }
    }

    fn stepped(&mut self, progress: &Progress) {
        if progress.images_per_s > 0.0 && progress.images_per_s.is_finite() {
            self.rate = progress.images_per_s;
            self.data_wait = progress.data_wait_frac;
        }
        let done_here = progress.steps_done - self.began_at_step;
        let left = progress.total_steps.saturating_sub(progress.steps_done);
        let began = *self
            .began
            .get_or_insert_with(|| Instant::now() - progress.step_time);
        let seconds = began.elapsed().as_secs_f64() / done_here.max(1) as f64 * left as f64;
        let text = format!(
            "epoch {}/{}  loss {:.4}  {:.1} images/s  data wait {:.0} %  {} left",
            progress.epoch + 1,
            self.epochs,
            progress.loss,
            self.rate,
            100.0 * self.data_wait,
            duration(seconds)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(progress.steps_done);
            bar.set_message(text);
        } else if left == 0 || self.told.is_none_or(|told| told.elapsed() >= PLAIN_EVERY) {
            tell!(
                "step {}/{}  {text}",
                progress.steps_done,
                progress.total_steps
            );
            self.told = Some(Instant::now());
        }
        if let (Some(bar), 0) = (&self.bar, left) {
            bar.finish();
        }
    }

    fn logged(&mut self, line: &MetricsLine) {
        match line {
            MetricsLine::Step(_) => {}
            MetricsLine::Eval(line) => {
                for (k, percent) in &line.knn {
                    self.say(&format!(
                        "after {}: k-NN (k = {k}) on {} {percent:.1} %",
                        counted(line.epoch, "epoch", "epochs"),
                        line.label
                    ));
                }
            }
            MetricsLine::Views(line) => self.say(&format!(
                "after {}: views of one picture told from others' {:.1} % of the time (chance: 50); \
                 effective rank of features {:.1}",
                counted(line.epoch, "epoch", "epochs"),
                line.view_auc,
                line.effective_rank
            )),
        }
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }
}

/// A line of its own, above the bar where there is one.
fn say(bar: Option<&ProgressBar>, text: &str) {
    match bar {
        Some(bar) => bar.println(printable_lines(text)),
        None => tell!("{text}"),
    }
}

fn bar(total: u64, done: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}").expect("the template is valid");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_position(done);
    bar
}

/// Counts samples of an evaluation.
pub(crate) struct CountProgress {
    what: &'static str,
    total: usize,
    /// Done before this process began.
    before: usize,
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
}

impl CountProgress {
    /// Progress over `total` items called `what`.
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        Self::from(what, total, 0)
    }

    /// The same where so many were done before.
    pub(crate) fn from(what: &'static str, total: usize, before: usize) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| bar(total as u64, before as u64));
        Self {
            what,
            total,
            before,
            bar,
            began: Instant::now(),
            told: Instant::now(),
        }
    }

    /// So many are done.
    pub(crate) fn set(&mut self, done: usize) {
        let here = done.saturating_sub(self.before);
        let rate = here as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let left = duration(self.total.saturating_sub(done) as f64 / rate.max(1e-9));
        let text = format!("{}: {rate:.1}/s, {left} left", self.what);
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(text);
            if done >= self.total {
                bar.finish_and_clear();
            }
        } else if self.told.elapsed() >= PLAIN_EVERY {
            tell!("{done}/{} {text}", self.total);
            self.told = Instant::now();
        }
    }

    /// A line of its own.
    pub(crate) fn say(&self, text: &str) {
        say(self.bar.as_ref(), text);
    }
}

/// "1 epoch", "2 epochs".
pub(crate) fn counted<N: Display + PartialEq + From<u8>>(n: N, one: &str, many: &str) -> String {
    let noun = if n == N::from(1) { one } else { many };
    format!("{n} {noun}")
}

/// "1 h 02 min", "3 min 20 s", "7 s".
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match seconds {
        3600.. => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        60.. => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_none_is_not() {
        let told = [0_usize, 1, 2].map(|n| counted(n, "copy", "copies"));
        assert_eq!(told, ["0 copies", "1 copy", "2 copies"]);
    }

    #[test]
    fn durations_are_read_at_a_glance() {
        assert_eq!(duration(7.4), "7 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }
}
