//! Everything that was logged, over epochs.

use selfsame_report::{LineChart, Reference, Scale, Series};
use selfsame_train::{EvalLine, MAX_SCORED, StepLine, ViewsLine, WeightDecayUpdate};

use super::{Facts, Log};

/// Charts as SVG, each with a text for those who do not see it.
pub(super) fn charts(facts: &Facts<'_>, log: &Log) -> Vec<(String, String)> {
    let curves = Curves { facts, log };
    let mut charts = curves.of_loss();
    charts.extend(curves.of_knn());
    charts.extend(curves.of_views());
    charts.extend(curves.of_steps());
    charts
        .iter()
        .map(|chart| (chart.svg(), in_words(chart)))
        .collect()
}

/// The lines of a log as curves over epochs, or over steps where it is not known how many an epoch
/// has.
struct Curves<'a> {
    facts: &'a Facts<'a>,
    log: &'a Log,
}

impl Curves<'_> {
    fn of_loss(&self) -> Vec<LineChart> {
        let ln_k = (self.facts.config.head.out_dim as f64).ln();
        let level = || {
            vec![Reference {
                name: format!("ln K = {ln_k:.2}"),
                y: ln_k,
            }]
        };
        let loss = vec![
            Series::line("loss", self.points(|line| line.loss)),
            Series::dashed(
                "floor: teacher entropy",
                self.points(|line| line.loss_floor),
            ),
        ];
        let entropy = vec![
            Series::line("teacher entropy", self.points(|line| line.loss_floor)),
            Series::line("KL: left to learn", self.points(|line| line.kl)),
        ];
        vec![
            LineChart {
                references: level(),
                ..self.chart("Training loss", "loss in nats", loss)
            },
            LineChart {
                references: level(),
                ..self.chart("Entropy and KL", "nats", entropy)
            },
            self.curve(
                "Feature spread (1: evenly in all directions)",
                "feature spread",
                |line| line.feature_std,
            ),
        ]
    }

    /// The scores of a label, a curve for each k; `None` if there are none.
    fn of_knn(&self) -> Option<LineChart> {
        let label = &self.log.evals.first()?.label;
        let mut scores: Vec<Series> = Vec::new();
        for line in &self.log.evals {
            for (k, percent) in &line.knn {
                let name = format!("k = {k}");
                let point = (line.epoch as f64, *percent);
                match scores.iter_mut().find(|series| series.name == name) {
                    Some(series) => series.points.push(point),
                    None => scores.push(Series::line(name, vec![point])),
                }
            }
        }
        let x_label = match standard_error(self.facts, &self.log.evals) {
            Some((error, n)) => {
                format!("epoch; one standard error of the last point is {error:.1} ({n} pictures)")
            }
            None => "epoch".to_owned(),
        };
        Some(LineChart {
            x_label,
            ..self.chart(&format!("k-NN on {label}"), "accuracy in %", scores)
        })
    }

    /// The scores without labels; none if there are none.
    fn of_views(&self) -> Vec<LineChart> {
        let lines = &self.log.views;
        if lines.is_empty() {
            return Vec::new();
        }
        let scored = |title: &str, y_label: &str, value: fn(&ViewsLine) -> f64| {
            let point = |line: &ViewsLine| (line.epoch as f64, value(line));
            let points = lines.iter().map(point).collect();
            LineChart {
                x_label: "epoch".to_owned(),
                ..self.chart(title, y_label, vec![Series::line(y_label, points)])
            }
        };
        vec![
            scored(
                "Views of one picture told from others' (chance: 50 %)",
                "AUC in %",
                |line| line.view_auc,
            ),
            scored("Effective rank of features", "effective rank", |line| {
                line.effective_rank
            }),
        ]
    }

    /// What else each step logged: the gradient, the schedules, the time.
    fn of_steps(&self) -> Vec<LineChart> {
        let norm = LineChart {
            y_scale: Scale::Log,
            ..self.curve("Gradient norm before clipping", "gradient norm", |line| {
                line.grad_norm
            })
        };
        let mut decay = self.curve("Weight decay", "weight decay", |line| line.weight_decay);
        let mut temperature = self.curve("Teacher temperature", "temperature", |line| {
            line.teacher_temp
        });
        if self.log.steps_per_epoch.is_some() {
            in_steps(&mut temperature);
            if self.facts.config.optim.weight_decay_update == WeightDecayUpdate::Epoch {
                in_steps(&mut decay);
            }
        }
        vec![
            norm,
            self.curve("Learning rate", "learning rate", |line| line.lr),
            decay,
            self.curve("Teacher momentum", "momentum", |line| line.momentum),
            temperature,
            self.curve("Throughput", "images per second", |line| line.images_per_s),
            self.curve("Time spent waiting for data", "share of the time", |line| {
                line.data_wait_frac
            }),
        ]
    }

    /// A chart of one value of each step.
    fn curve(&self, title: &str, y_label: &str, value: fn(&StepLine) -> f64) -> LineChart {
        let series = vec![Series::line(y_label, self.points(value))];
        self.chart(title, y_label, series)
    }

    fn points(&self, value: fn(&StepLine) -> f64) -> Vec<(f64, f64)> {
        let x = |step: u64| (step + 1) as f64 / self.log.steps_per_epoch.unwrap_or(1.0);
        let point = |line: &StepLine| (x(line.step), value(line));
        self.log.steps.iter().map(point).collect()
    }

    fn chart(&self, title: &str, y_label: &str, series: Vec<Series>) -> LineChart {
        let x_label = match self.log.steps_per_epoch {
            Some(_) => "epoch",
            None => "step",
        };
        LineChart {
            title: title.to_owned(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            series,
            height: 290.0,
            ..LineChart::default()
        }
    }
}

/// Draws values of whole epochs as they were: constant, then at once another at the first step of
/// the next.
fn in_steps(chart: &mut LineChart) {
    for series in &mut chart.series {
        let mut points: Vec<(f64, f64)> = Vec::with_capacity(series.points.len());
        for &(x, y) in &series.points {
            // The first step of an epoch ends a step's length after its begin.
            let begin = (x - 1e-9).ceil() - 1.0;
            match points.last() {
                Some(&(before, last)) if last != y && before <= begin => {
                    points.extend([(begin, last), (begin, y), (x, y)]);
                }
                _ => points.push((x, y)),
            }
        }
        series.points = points;
    }
}

/// One standard error of the last k-NN accuracy in points, and the number of pictures that it is
/// the mean of.
fn standard_error(facts: &Facts<'_>, evals: &[EvalLine]) -> Option<(f64, usize)> {
    let last = evals.last()?;
    let tested = match facts.config.data.val.is_empty() {
        true => facts.train.as_ref()?,
        false => facts.val.as_ref()?,
    };
    let labelled = (0..tested.len()).filter(|i| tested.label(*i, &last.label).is_some());
    let n = labelled.take(MAX_SCORED).count();
    let share = last.knn.values().next_back()? / 100.0;
    (n > 0).then(|| (100.0 * (share * (1.0 - share) / n as f64).sqrt(), n))
}

/// "Line chart of the training loss over epochs: loss from 5.6 to 4.9; …"
fn in_words(chart: &LineChart) -> String {
    let of = |series: &Series| {
        let finite = || series.points.iter().filter(|point| point.1.is_finite());
        match (finite().next(), finite().next_back()) {
            (Some(first), Some(last)) => {
                format!(
                    "{} from {} to {}",
                    series.name,
                    short(first.1),
                    short(last.1)
                )
            }
            _ => format!("{} without values", series.name),
        }
    };
    let series: Vec<String> = chart.series.iter().map(of).collect();
    let (title, x) = (&chart.title, &chart.x_label);
    format!("Line chart, {title} by {x}: {}", series.join("; "))
}

fn short(value: f64) -> String {
    match value.abs() {
        x if x != 0.0 && !(1e-3..1e5).contains(&x) => format!("{value:.2e}"),
        x if x < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_an_epoch_is_drawn_in_steps() {
        let third = |i: i32| f64::from(i) / 3.0;
        let mut chart = LineChart {
            series: vec![Series::line(
                "weight decay",
                (1..=6)
                    .map(|i| (third(i), f64::from((i - 1) / 3)))
                    .collect(),
            )],
            ..LineChart::default()
        };
        in_steps(&mut chart);
        let expected = [
            (third(1), 0.0),
            (third(2), 0.0),
            (1.0, 0.0),
            (1.0, 0.0),
            (1.0, 1.0),
            (third(4), 1.0),
            (third(5), 1.0),
            (2.0, 1.0),
        ];
        assert_eq!(chart.series[0].points, expected);
    }
}
