//! Scores of the features by each label, beside baselines and with intervals.

use std::collections::{BTreeMap, HashSet};

use selfsame_eval::logistic::{LogisticConfig, default_grid, fit_with_best_c};
use selfsame_eval::metrics::{
    BootstrapConfig, ClassificationReport, ConfusionMatrix, Interval, ReportOptions, accuracy,
    bootstrap_mean, correct, mean_absolute_error,
};
use selfsame_eval::ridge::{self, fit_with_best_alpha};
use selfsame_eval::{Features, KnnConfig, LabelEncoder, Own, knn, knn_regress, number};
use selfsame_report::{Cell, Page};
use serde_json::{Map, Value, json};

use super::subjects::{PIXELS, Subject, Subjects, labelled};
use crate::progress::CountProgress;
use crate::scores::NumberScore;

/// Neighbours that vote (the notebook's k).
const K: usize = 20;
/// Classes up to which a confusion matrix is shown.
const MAX_MATRIX: usize = 12;

/// Features of one subject whose pictures have a label, with its texts.
struct OfLabel {
    bank: Features,
    bank_texts: Vec<String>,
    /// `None`: leave one out.
    test: Option<(Features, Vec<String>)>,
}

impl OfLabel {
    fn of(subject: &Subject, subjects: &Subjects, label: &str) -> Self {
        let (bank, bank_texts) = labelled(&subject.bank, &subjects.train, label);
        let test = subject.test.as_ref().zip(subjects.val.as_ref());
        Self {
            bank,
            bank_texts,
            test: test.map(|(rows, val)| labelled(rows, val, label)),
        }
    }

    /// Whether a value asked for is one to learn from, as no name of other people is.
    fn can_be_told(&self) -> bool {
        let (_, asked) = self.queries();
        let learned: HashSet<&String> = self.bank_texts.iter().collect();
        asked.iter().any(|text| learned.contains(text))
    }

    fn queries(&self) -> (&Features, &[String]) {
        match &self.test {
            Some((features, texts)) => (features, texts),
            None => (&self.bank, &self.bank_texts),
        }
    }

    fn config(&self) -> KnnConfig {
        KnnConfig {
            ks: vec![K],
            own: match self.test {
                None => Own::LeaveOut,
                Some(_) => Own::Keep,
            },
            ..KnnConfig::default()
        }
    }
}

/// Writes what labels say; the figures again, by label and by features, for `--json`.
pub(super) fn add(page: &mut Page, subjects: &Subjects) -> anyhow::Result<Map<String, Value>> {
    let mut all = Map::new();
    let names = subjects.train.label_names();
    if names.is_empty() {
        page.text("The pictures have no labels to score the features by.");
    }
    for label in names {
        let of_subjects: Vec<OfLabel> = subjects
            .all
            .iter()
            .map(|s| OfLabel::of(s, subjects, &label))
            .collect();
        let texts = of_subjects[0]
            .bank_texts
            .iter()
            .chain(of_subjects[0].queries().1);
        let encoder = LabelEncoder::fit(texts);
        let (banked, asked) = (of_subjects[0].bank.n, of_subjects[0].queries().0.n);
        let to_learn = LabelEncoder::fit(&of_subjects[0].bank_texts).num_classes();
        if banked < 10 || asked < 2 || encoder.num_classes() < 2 {
            page.heading(&label);
            page.text("Too few of the pictures looked at carry it, or all the same value.");
        } else if encoder.suggests_regression() {
            let scores = numbers(page, &label, subjects, &of_subjects)?;
            all.insert(label, scores);
        } else if to_learn * 4 > banked {
            page.heading(&label);
            page.text(&format!(
                "{to_learn} values among {banked} pictures to learn from: too many to be told by \
                 neighbours."
            ));
        } else if !of_subjects[0].can_be_told() {
            page.heading(&label);
            page.text(
                "No held-out picture has a value that a picture to learn from has: there is \
                 nothing to tell.",
            );
        } else {
            let scores = classes(page, &label, subjects, &of_subjects, &encoder)?;
            all.insert(label, scores);
        }
    }
    Ok(all)
}

fn classes(
    page: &mut Page,
    label: &str,
    subjects: &Subjects,
    of_subjects: &[OfLabel],
    encoder: &LabelEncoder,
) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    let mut scores = Map::new();
    let mut of_trained = Vec::new();
    for (subject, of_label) in subjects.all.iter().zip(of_subjects) {
        let (features, texts) = of_label.queries();
        let bank = encode(encoder, &of_label.bank_texts);
        let truth = encode(encoder, texts);
        let predicted = knn(&of_label.bank, &bank, features, &of_label.config())?;
        let predicted = predicted[0].predictions.clone();
        let (knn_text, knn) = accuracy_of(&truth, &predicted)?;
        let by_logistic = match subject.name {
            PIXELS => None,
            _ => by_logistic(of_label, &bank)?,
        };
        let (logistic_text, logistic) = match by_logistic {
            Some(predicted) => accuracy_of(&truth, &predicted)?,
            None => ("–".to_owned(), Value::Null),
        };
        rows.push(vec![
            Cell::Text(subject.name.to_owned()),
            Cell::Figure(knn_text),
            Cell::Figure(logistic_text),
        ]);
        scores.insert(
            subject.name.to_owned(),
            json!({"knn": knn, "logistic": logistic}),
        );
        if of_trained.is_empty() {
            of_trained = predicted;
        }
    }
    let truth = encode(encoder, of_subjects[0].queries().1);
    rows.push(vec![
        Cell::Text("always the most frequent class".to_owned()),
        Cell::Figure(format!("{:.1}", 100.0 * share_of_most_frequent(&truth))),
        Cell::Figure(String::new()),
    ]);
    page.heading(label);
    accuracy_table(page, &of_subjects[0], &rows);
    if encoder.num_classes() <= MAX_MATRIX {
        confusion_table(page, label, encoder.classes(), (&truth, &of_trained))?;
    }
    Ok(Value::Object(scores))
}

fn encode(encoder: &LabelEncoder, texts: &[String]) -> Vec<usize> {
    texts
        .iter()
        .filter_map(|text| encoder.encode(text))
        .collect()
}

/// An accuracy for a table and for JSON.
fn accuracy_of(truth: &[usize], predicted: &[usize]) -> anyhow::Result<(String, Value)> {
    let hits = correct(truth, predicted)?;
    let interval = bootstrap_mean(&hits, &BootstrapConfig::default())?;
    let percent = 100.0 * accuracy(truth, predicted)?;
    let (low, high) = (100.0 * interval.low, 100.0 * interval.high);
    Ok((
        format!("{percent:.1} ({low:.1} to {high:.1})"),
        json!({"accuracy": percent, "interval": [low, high]}),
    ))
}

/// Classes of the test side predicted by logistic regression; `None` without one, or if there are
/// too few rows to hold any out.
fn by_logistic(of_label: &OfLabel, bank: &[usize]) -> anyhow::Result<Option<Vec<usize>>> {
    let Some((features, _)) = &of_label.test else {
        return Ok(None);
    };
    let config = LogisticConfig {
        max_iter: 200,
        ..LogisticConfig::default()
    };
    let grid = default_grid();
    let mut progress = CountProgress::new("logistic fits", grid.len() + 1);
    let on_fit = &mut |done| progress.set(done);
    match fit_with_best_c(&of_label.bank, bank, &grid, &config, 0, on_fit) {
        Ok((model, _)) => Ok(Some(model.predict(features)?)),
        Err(_) => Ok(None),
    }
}

fn share_of_most_frequent(truth: &[usize]) -> f64 {
    let mut counts = BTreeMap::new();
    for class in truth {
        *counts.entry(class).or_insert(0usize) += 1;
    }
    counts.values().max().copied().unwrap_or(0) as f64 / truth.len() as f64
}

fn accuracy_table(page: &mut Page, of_label: &OfLabel, rows: &[Vec<Cell>]) {
    let asked = of_label.queries().0.n;
    let how = match of_label.test {
        Some(_) => format!(
            "{} pictures to learn from, {asked} held out",
            of_label.bank.n
        ),
        None => format!("{asked} pictures, each by the others"),
    };
    page.table(
        &format!("Accuracy in per cent with 95 % bootstrap intervals; {how}"),
        &["features", &format!("k-NN, k = {K}"), "logistic regression"],
        rows,
    );
    page.text(match of_label.test {
        None => "–: logistic regression is not fitted, since no pictures are held out (--val).",
        Some(_) => {
            "–: logistic regression is not fitted to raw pixels, whose many columns take longer \
             than all the rest of this page, nor to too few pictures."
        }
    });
}

/// Who was taken for whom by k-NN after training.
fn confusion_table(
    page: &mut Page,
    label: &str,
    names: &[String],
    (truth, predicted): (&[usize], &[usize]),
) -> anyhow::Result<()> {
    let matrix = ConfusionMatrix::new(truth, predicted, names.len())?;
    let mut head = vec!["true \\ predicted"];
    head.extend(names.iter().map(String::as_str));
    let row = |(name, counts): (&String, &[usize])| {
        let all = counts.iter().sum::<usize>().max(1) as f64;
        let cell = |n: &usize| Cell::Shaded(n.to_string(), *n as f64 / all);
        let name = Cell::Text(name.clone());
        std::iter::once(name)
            .chain(counts.iter().map(cell))
            .collect()
    };
    let rows: Vec<Vec<Cell>> = names.iter().zip(matrix.rows()).map(row).collect();
    page.table(
        "Confusion of k-NN after training, in pictures",
        &head,
        &rows,
    );
    let report = ClassificationReport::new(truth, predicted, names, &ReportOptions::default())?;
    let heading = format!("Classification report of k-NN on {label}");
    page.code(Some(&heading), &report.to_string());
    Ok(())
}

fn numbers(
    page: &mut Page,
    label: &str,
    subjects: &Subjects,
    of_subjects: &[OfLabel],
) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    let mut scores = Map::new();
    for (subject, of_label) in subjects.all.iter().zip(of_subjects) {
        let (features, texts) = of_label.queries();
        let (bank, truth) = (values(&of_label.bank_texts), values(texts));
        let predicted = knn_regress(&of_label.bank, &bank, features, &of_label.config())?;
        let of_knn = NumberScore::of(&truth, &predicted[0].predictions)?;
        // As many columns as pixels have take longer than all the rest of the page.
        let of_ridge = match subject.name {
            PIXELS => None,
            _ => by_ridge(of_label, &bank)
                .map(|predicted| NumberScore::of(&truth, &predicted))
                .transpose()?,
        };
        rows.push(number_row(subject.name, "k-NN", &of_knn));
        if let Some(of_ridge) = &of_ridge {
            rows.push(number_row(subject.name, "ridge", of_ridge));
        }
        scores.insert(
            subject.name.to_owned(),
            json!({"knn": of_knn.json(), "ridge": of_ridge.as_ref().map(NumberScore::json)}),
        );
    }
    let of_trained = &of_subjects[0];
    let (bank, truth) = (
        values(&of_trained.bank_texts),
        values(of_trained.queries().1),
    );
    let mean = bank.iter().sum::<f64>() / bank.len() as f64;
    let always = mean_absolute_error(&truth, &vec![mean; truth.len()])?;
    rows.push(vec![
        Cell::Text("always the mean".to_owned()),
        Cell::Text(String::new()),
        Cell::Figure(format!("{always:.2}")),
        Cell::Figure(String::new()),
    ]);
    page.heading(label);
    number_table(page, label, of_trained, &rows);
    Ok(Value::Object(scores))
}

fn values(texts: &[String]) -> Vec<f64> {
    texts
        .iter()
        .map(|text| number(text).unwrap_or(f64::NAN))
        .collect()
}

fn number_row(subject: &str, method: &str, NumberScore { mae, r2 }: &NumberScore) -> Vec<Cell> {
    let text = |figure: &Interval, digits: usize| {
        let [value, low, high] = [figure.estimate, figure.low, figure.high];
        Cell::Figure(format!(
            "{value:.digits$} ({low:.digits$} to {high:.digits$})"
        ))
    };
    vec![
        Cell::Text(subject.to_owned()),
        Cell::Text(method.to_owned()),
        text(mae, 2),
        text(r2, 3),
    ]
}

fn number_table(page: &mut Page, label: &str, of_label: &OfLabel, rows: &[Vec<Cell>]) {
    let asked = of_label.queries().0.n;
    let how = match of_label.test {
        Some(_) => format!(
            "{} pictures to learn from, {asked} held out; k = {K}",
            of_label.bank.n
        ),
        None => format!(
            "{asked} pictures: k-NN (k = {K}) each by the others, ridge each fifth by the other four"
        ),
    };
    page.table(
        &format!("Mean absolute error and R² of {label} with 95 % bootstrap intervals; {how}"),
        &["features", "by", "error", "R²"],
        rows,
    );
    page.text(
        "Ridge regression is not fitted to raw pixels, whose many columns take longer than all the \
         rest of this page.",
    );
}

/// Numbers predicted by ridge regression: of the test side, or of each fifth of the bank by a fit
/// to the other four; `None` if there are too few rows to choose alpha on.
fn by_ridge(of_label: &OfLabel, bank: &[f64]) -> Option<Vec<f64>> {
    let grid = ridge::default_grid();
    if let Some((features, _)) = &of_label.test {
        let (model, _) = fit_with_best_alpha(&of_label.bank, bank, &grid, 0).ok()?;
        return model.predict(features).ok();
    }
    let mut predicted = vec![0.0; bank.len()];
    for fifth in 0..5 {
        let (out, kept): (Vec<usize>, Vec<usize>) = (0..bank.len()).partition(|i| i % 5 == fifth);
        let values: Vec<f64> = kept.iter().map(|&i| bank[i]).collect();
        let (model, _) =
            fit_with_best_alpha(&of_label.bank.subset(&kept), &values, &grid, 0).ok()?;
        let values = model.predict(&of_label.bank.subset(&out)).ok()?;
        for (i, value) in out.into_iter().zip(values) {
            predicted[i] = value;
        }
    }
    Some(predicted)
}
