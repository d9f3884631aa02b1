//! Everything that was logged, over epochs.

use selfsame_report::{LineChart, Reference, Scale, Series};
use selfsame_train::{RunConfig, StepLine};

use super::Log;

/// Charts as SVG, each with a text for those who do not see it.
pub(super) fn charts(config: &RunConfig, log: &Log) -> Vec<(String, String)> {
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
            "loss",
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
        one("Feature spread", "feature_std", |line| line.feature_std),
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
        knn.x_label = "epoch".to_owned();
        charts.push(knn);
    }
    let mut norm = one("Gradient norm before clipping", "grad_norm", |line| {
        line.grad_norm
    });
    norm.y_scale = Scale::Log;
    charts.extend([
        norm,
        one("Learning rate", "lr", |line| line.lr),
        one("Weight decay", "weight_decay", |line| line.weight_decay),
        one("Teacher momentum", "momentum", |line| line.momentum),
        one("Teacher temperature", "teacher_temp", |line| {
            line.teacher_temp
        }),
        one("Throughput", "images_per_s", |line| line.images_per_s),
        one("Share of time waiting for data", "data_wait_frac", |line| {
            line.data_wait_frac
        }),
    ]);
    charts
        .iter()
        .map(|chart| (chart.svg(), in_words(chart)))
        .collect()
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
