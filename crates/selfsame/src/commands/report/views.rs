//! What can be said of features without a label.

use selfsame_eval::metrics::{BootstrapConfig, bootstrap_mean};
use selfsame_report::{Cell, Page};
use selfsame_train::ViewsLine;
use serde_json::{Map, Value, json};

use super::subjects::Subjects;

/// Writes the table; the figures again, by features, for `--json`: null if there are none.
pub(super) fn add(page: &mut Page, subjects: &Subjects) -> anyhow::Result<Value> {
    let (mut rows, mut told) = (Vec::new(), Map::new());
    let mut pictures = 0;
    for subject in &subjects.all {
        let Some(score) = &subject.views else {
            continue;
        };
        pictures = pictures.max(score.auc.len());
        let interval = bootstrap_mean(&score.auc, &BootstrapConfig::default())?;
        let (low, high) = (100.0 * interval.low, 100.0 * interval.high);
        let percent = score.percent();
        rows.push(vec![
            Cell::Text(subject.name.to_owned()),
            Cell::Figure(format!("{percent:.1} ({low:.1} to {high:.1})")),
            Cell::Figure(format!("{:.1}", score.effective_rank)),
        ]);
        let figures = json!({
            "view_auc": percent,
            "interval": [low, high],
            "effective_rank": score.effective_rank,
            "pictures": score.auc.len(),
        });
        told.insert(subject.name.to_owned(), figures);
    }
    if rows.is_empty() {
        return Ok(Value::Null);
    }
    let of = match subjects.views_held_out {
        true => "held-out pictures",
        false => "pictures of those trained on",
    };
    rows.push(vec![
        Cell::Text("chance".to_owned()),
        Cell::Figure("50.0".to_owned()),
        Cell::Figure(String::new()),
    ]);
    page.heading("Without labels");
    page.table(
        &format!(
            "How often a picture's other view is nearer than another picture's (AUC), in per cent \
             with 95 % bootstrap intervals, and effective rank of the features; {pictures} {of}"
        ),
        &["features", "views told apart", "effective rank"],
        &rows,
    );
    page.text(
        "Each picture is seen in both global views of the run's own recipe, as they are drawn for \
         this score alone: telling which belong together is what DINO asks of its network. The \
         effective rank counts the directions that features use: 1 if all are alike. Both say \
         whether training goes on, not whether the features serve a purpose of yours: that takes \
         labels.",
    );
    Ok(Value::Object(told))
}

/// The first and the last score of a run, of which there may be but one.
pub(super) fn while_it_trained(lines: &[ViewsLine]) -> Option<String> {
    let (first, last) = (lines.first()?, lines.last()?);
    let then = match lines.len() {
        1 => String::new(),
        _ => format!(", {:.1} % after {}", last.view_auc, last.epoch),
    };
    let of = match last.held_out {
        true => "held-out pictures",
        false => "pictures",
    };
    Some(format!(
        "Views of one picture told from those of others ({} {of}; chance is 50 %): {:.1} % after {} \
         epochs{then}.",
        last.pictures, first.view_auc, first.epoch
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_score_is_told_once() {
        let line = |epoch: usize, view_auc: f64| ViewsLine {
            step: None,
            epoch,
            view_auc,
            effective_rank: 7.0,
            pictures: 500,
            held_out: epoch > 0,
        };
        let told = |lines: &[ViewsLine]| while_it_trained(lines).unwrap();
        assert_eq!(
            told(&[line(0, 52.0)]),
            "Views of one picture told from those of others (500 pictures; chance is 50 %): 52.0 % \
             after 0 epochs."
        );
        assert_eq!(
            told(&[line(0, 52.0), line(3, 61.5), line(5, 70.0)]),
            "Views of one picture told from those of others (500 held-out pictures; chance is \
             50 %): 52.0 % after 0 epochs, 70.0 % after 5."
        );
        assert_eq!(while_it_trained(&[]), None);
    }
}
