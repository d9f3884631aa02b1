//! Everything that was logged, over epochs.

use selfsame_report::{LineChart, Reference, Scale, Series};
use selfsame_train::{EvalLine, MAX_SCORED, StepLine, ViewsLine, WeightDecayUpdate};

use super::{Facts, Log};

/// Charts as SVG, each with a text for those who do not see it.
pub(super) fn charts(facts: &Facts<'_>, log: &Log) -> Vec<(String, String)> {
    let config = facts.config;
    let over = |value: fn(&StepLine) -> f64| -> Vec<(f64, f64)> {
        let x = |step: u64| (step + 1) as f64 / log.steps_per_epoch.unwrap_or(1.0);
        log.steps
            .iter()
            .map(|line| (x(line.step), value(line)))
            .collect()
    };
    let ln_k = (config.head.out_dim as f64).ln();
    let level = |name: String, y: f64| vec![Reference { name, y }];
    let x_label = match log.steps_per_epoch {
        Some(_) => "epoch",
        None => "step",
    };
    let chart =
        |title: &str, y_label: &str, series: Vec<Series>, references: Vec<Reference>| LineChart {
            title: title.to_owned(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            series,
            references,
            height: 290.0,
            ..LineChart::default()
        };
    let one = |title: &str, y_label: &str, value: fn(&StepLine) -> f64| {
        chart(
            title,
            y_label,
            vec![Series::line(y_label, over(value))],
            Vec::new(),
        )
    };
    let mut charts = vec![
        chart(
            "Training loss",
            "loss in nats",
            vec![
                Series::line("loss", over(|line| line.loss)),
                Series::dashed("floor: teacher entropy", over(|line| line.loss_floor)),
            ],
            level(format!("ln K = {ln_k:.2}"), ln_k),
        ),
        chart(
            "Entropy and KL",
            "nats",
            vec![
                Series::line("teacher entropy", over(|line| line.loss_floor)),
                Series::line("KL: left to learn", over(|line| line.kl)),
            ],
            level(format!("ln K = {ln_k:.2}"), ln_k),
        ),
        one(
            "Feature spread (1: evenly in all directions)",
            "feature spread",
            |line| line.feature_std,
        ),
    ];
    if !log.evals.is_empty() {
        let mut scores: Vec<Series> = Vec::new();
        for line in &log.evals {
            for (k, percent) in &line.knn {
                let name = format!("k = {k}");
                let point = (line.epoch as f64, *percent);
                match scores.iter_mut().find(|series| series.name == name) {
                    Some(series) => series.points.push(point),
                    None => scores.push(Series::line(name, vec![point])),
                }
            }
        }
        let label = &log.evals[0].label;
        let mut knn = chart(
            &format!("k-NN on {label}"),
            "accuracy in %",
            scores,
            Vec::new(),
        );
        knn.x_label = match standard_error(facts, &log.evals) {
            Some((error, n)) => {
                format!("epoch; one standard error of the last point is {error:.1} ({n} pictures)")
            }
            None => "epoch".to_owned(),
        };
        charts.push(knn);
    }
    if !log.views.is_empty() {
        let over = |value: fn(&ViewsLine) -> f64| -> Vec<(f64, f64)> {
            let point = |line: &ViewsLine| (line.epoch as f64, value(line));
            log.views.iter().map(point).collect()
        };
        let mut scored = |title: &str, y_label: &str, value: fn(&ViewsLine) -> f64| {
            let series = vec![Series::line(y_label, over(value))];
            let mut drawn = chart(title, y_label, series, Vec::new());
            drawn.x_label = "epoch".to_owned();
            charts.push(drawn);
        };
        scored(
            "Views of one picture told from others' (chance: 50 %)",
            "AUC in %",
            |line| line.view_auc,
        );
        scored("Effective rank of features", "effective rank", |line| {
            line.effective_rank
        });
    }
    let mut norm = one("Gradient norm before clipping", "gradient norm", |line| {
        line.grad_norm
    });
    norm.y_scale = Scale::Log;
    let mut decay = one("Weight decay", "weight decay", |line| line.weight_decay);
    let mut temperature = one("Teacher temperature", "temperature", |line| {
        line.teacher_temp
    });
    if log.steps_per_epoch.is_some() {
        in_steps(&mut temperature);
        if config.optim.weight_decay_update == WeightDecayUpdate::Epoch {
            in_steps(&mut decay);
        }
    }
    charts.extend([
        norm,
        one("Learning rate", "learning rate", |line| line.lr),
        decay,
        one("Teacher momentum", "momentum", |line| line.momentum),
        temperature,
        one("Throughput", "images per second", |line| line.images_per_s),
        one("Time spent waiting for data", "share of the time", |line| {
            line.data_wait_frac
        }),
    ]);
    charts
        .iter()
        .map(|chart| (chart.svg(), in_words(chart)))
        .collect()
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
