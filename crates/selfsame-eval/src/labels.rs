//! Label texts as class numbers.

use std::collections::{BTreeMap, BTreeSet};

/// Above so many different values a label of numbers is better regressed than classified.
const MAX_CLASSES_OF_NUMBERS: usize = 20;

/// Gives every label text a class number.
///
/// Classes are sorted by value if all texts are numbers, by text (bytes) otherwise, so that the numbers do not depend
/// on the order of the data: `f` is 0 and `m` is 1, and `9` comes before `10`.
/// Texts that differ are different classes, even `1` and `1.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelEncoder {
    classes: Vec<String>,
    ids: BTreeMap<String, usize>,
}

impl LabelEncoder {
    /// The encoder for the classes that occur in `labels`.
    pub fn fit<S: AsRef<str>>(labels: impl IntoIterator<Item = S>) -> LabelEncoder {
        let texts: BTreeSet<String> = labels
            .into_iter()
            .map(|label| label.as_ref().to_owned())
            .collect();
        let values: Option<Vec<f64>> = texts.iter().map(|text| number(text)).collect();
        let mut classes: Vec<String> = texts.into_iter().collect();
        if let Some(values) = values {
            let mut by_value: Vec<(f64, String)> = values.into_iter().zip(classes).collect();
            by_value.sort_by(|a, b| a.0.total_cmp(&b.0)); // stable: equal values stay in text order
            classes = by_value.into_iter().map(|(_, text)| text).collect();
        }
        let ids = classes
            .iter()
            .enumerate()
            .map(|(id, text)| (text.clone(), id))
            .collect();
        LabelEncoder { classes, ids }
    }

    /// The class texts; the place of a text is its class number.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of classes.
    pub fn num_classes(&self) -> usize {
        self.classes.len()
    }

    /// The class number of a text, `None` if it did not occur in `fit`.
    pub fn encode(&self, label: &str) -> Option<usize> {
        self.ids.get(label).copied()
    }

    /// The text of a class number.
    pub fn decode(&self, class: usize) -> Option<&str> {
        self.classes.get(class).map(String::as_str)
    }

    /// The value of each class, if all are finite numbers.
    pub fn values(&self) -> Option<Vec<f64>> {
        self.classes.iter().map(|text| number(text)).collect()
    }

    /// Whether this label is better regressed: all numbers, and more than 20 different ones.
    pub fn suggests_regression(&self) -> bool {
        self.values().is_some_and(|mut values| {
            values.sort_by(f64::total_cmp);
            values.dedup();
            values.len() > MAX_CLASSES_OF_NUMBERS
        })
    }
}

/// The finite number that a label text stands for, `None` if it is none.
pub fn number(text: &str) -> Option<f64> {
    let value: f64 = text.trim().parse().ok()?;
    value.is_finite().then_some(value + 0.0) // -0 and 0 are one value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_sorted_by_text() {
        let encoder = LabelEncoder::fit(["m", "f", "m", "10", "9"]);
        assert_eq!(encoder.classes(), ["10", "9", "f", "m"]);
        assert_eq!(encoder.encode("m"), Some(3));
        assert_eq!(encoder.encode("x"), None);
        assert_eq!(encoder.decode(0), Some("10"));
        assert_eq!(encoder.values(), None);
    }

    #[test]
    fn numbers_are_sorted_by_value() {
        let encoder = LabelEncoder::fit(["10", "9", "-1", "9.5", "1e1"]);
        assert_eq!(encoder.classes(), ["-1", "9", "9.5", "10", "1e1"]);
        assert_eq!(encoder.values(), Some(vec![-1.0, 9.0, 9.5, 10.0, 10.0]));
    }

    #[test]
    fn infinity_and_nan_are_texts() {
        assert_eq!(
            LabelEncoder::fit(["nan", "inf", "2"]).classes(),
            ["2", "inf", "nan"]
        );
    }

    #[test]
    fn more_than_twenty_numbers_suggest_regression() {
        let ages = |count: usize| LabelEncoder::fit((0..count).map(|age| age.to_string()));
        assert!(!ages(20).suggests_regression());
        assert!(ages(21).suggests_regression());
        assert!(!LabelEncoder::fit((0..40).map(|i| format!("n{i}"))).suggests_regression());
    }
}
