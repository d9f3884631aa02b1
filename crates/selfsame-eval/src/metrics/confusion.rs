//! Who was taken for whom.

use super::check;
use crate::error::{EvalError, known_classes};
use std::fmt::Write as _;

/// Counts of (true class, predicted class).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    num_classes: usize,
    counts: Vec<usize>,
}

impl ConfusionMatrix {
    /// Counts the rows.
    ///
    /// # Errors
    /// [`EvalError`] without rows, for different lengths, or for a class number that is not below `num_classes`.
    pub fn new(
        truth: &[usize],
        predicted: &[usize],
        num_classes: usize,
    ) -> Result<ConfusionMatrix, EvalError> {
        check(truth.len(), predicted.len())?;
        known_classes(truth, num_classes)?;
        known_classes(predicted, num_classes)?;
        let mut counts = vec![0; num_classes * num_classes];
        for (t, p) in truth.iter().zip(predicted) {
            counts[t * num_classes + p] += 1;
        }
        Ok(ConfusionMatrix {
            num_classes,
            counts,
        })
    }

    /// Rows of class `truth` that were taken for `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> usize {
        self.counts[truth * self.num_classes + predicted]
    }

    /// The counts by true class, each `num_classes` long.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[usize]> {
        self.counts.chunks_exact(self.num_classes)
    }

    /// A table: a line per true class, a column per predicted class.
    ///
    /// A class without a name in `names` is called by its number.
    pub fn to_text(&self, names: &[String]) -> String {
        let head = "true \\ predicted";
        let names: Vec<String> = (0..self.num_classes)
            .map(|class| {
                names
                    .get(class)
                    .cloned()
                    .unwrap_or_else(|| class.to_string())
            })
            .collect();
        let length = |text: &String| text.chars().count();
        let first = names.iter().map(length).max().unwrap_or(0).max(head.len());
        let widest = |column: usize| {
            let counts = (0..self.num_classes).map(|row| self.count(row, column).to_string().len());
            counts.max().unwrap_or(0).max(length(&names[column]))
        };
        let widths: Vec<usize> = (0..self.num_classes).map(widest).collect();

        let mut text = format!("{head:>first$}");
        for (name, width) in names.iter().zip(&widths) {
            let _ = write!(text, "  {name:>width$}"); // writing to a String cannot fail
        }
        for (name, counts) in names.iter().zip(self.rows()) {
            let _ = write!(text, "\n{name:>first$}");
            for (count, width) in counts.iter().zip(&widths) {
                let _ = write!(text, "  {count:>width$}");
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_true_classes_and_columns_predicted_ones() {
        let matrix = ConfusionMatrix::new(&[0, 0, 1, 1, 1], &[0, 1, 1, 1, 0], 2).unwrap();
        assert_eq!(matrix.rows().collect::<Vec<_>>(), [[1, 1], [1, 2]]);
        let text = matrix.to_text(&["f".to_owned(), "other".to_owned()]);
        let lines = [
            "true \\ predicted  f  other",
            "               f  1      1",
            "           other  1      2",
        ];
        assert_eq!(text, lines.join("\n") + "\n");
    }

    #[test]
    fn a_class_beyond_the_matrix_is_an_error() {
        assert!(ConfusionMatrix::new(&[0], &[2], 2).is_err());
    }
}
