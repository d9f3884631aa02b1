//! Who was taken for whom.

use super::check;
use crate::error::{EvalError, fitting, known_classes};
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
    /// [`EvalError`] without rows, for different lengths, or for a class number that is not below `num_classes`,
    /// or for so many classes that the counts do not fit into memory.
    pub fn new(
        truth: &[usize],
        predicted: &[usize],
        num_classes: usize,
    ) -> Result<ConfusionMatrix, EvalError> {
        check(truth.len(), predicted.len())?;
        known_classes(truth, num_classes)?;
        known_classes(predicted, num_classes)?;
        let cells = fitting::<usize>("confusion matrix", num_classes, num_classes)?;
        let mut counts = vec![0; cells];
        for (t, p) in truth.iter().zip(predicted) {
            counts[t * num_classes + p] += 1;
        }
        Ok(ConfusionMatrix {
            num_classes,
            counts,
        })
    }

    /// Rows of class `truth` that were taken for `predicted`.
    ///
    /// # Panics
    /// If either is not below the number of classes, which is the length of [`ConfusionMatrix::rows`].
    pub fn count(&self, truth: usize, predicted: usize) -> usize {
        let classes = self.num_classes;
        assert!(
            truth < classes && predicted < classes,
            "no count of class {truth} taken for {predicted}: there are {classes} classes"
        );
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

        // The width of a format may not exceed 65,535.
        let at_right = |text: &str, width: usize| {
            " ".repeat(width.saturating_sub(text.chars().count())) + text
        };
        let mut text = at_right(head, first);
        for (name, width) in names.iter().zip(&widths) {
            let _ = write!(text, "  {}", at_right(name, *width)); // writing to a String cannot fail
        }
        for (name, counts) in names.iter().zip(self.rows()) {
            let _ = write!(text, "\n{}", at_right(name, first));
            for (count, width) in counts.iter().zip(&widths) {
                let _ = write!(text, "  {}", at_right(&count.to_string(), *width));
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
    fn a_name_of_any_length_is_written() {
        let matrix = ConfusionMatrix::new(&[0, 1], &[0, 1], 2).unwrap();
        let text = matrix.to_text(&["x".repeat(70_000), "b".to_owned()]);
        assert!(text.lines().all(|line| line.len() == 2 * 70_000 + 2 + 3));
    }

    #[test]
    #[should_panic(expected = "no count of class 0 taken for 2: there are 2 classes")]
    fn a_predicted_class_beyond_the_matrix_is_not_counted_elsewhere() {
        ConfusionMatrix::new(&[1], &[0], 2).unwrap().count(0, 2);
    }

    #[test]
    #[should_panic(expected = "no count of class 5 taken for 5: there are 2 classes")]
    fn a_true_class_beyond_the_matrix_has_no_count() {
        ConfusionMatrix::new(&[1], &[0], 2).unwrap().count(5, 5);
    }

    #[test]
    fn more_classes_than_memory_holds_are_an_error() {
        for classes in [1 << 30, 1 << 32, usize::MAX] {
            let error = ConfusionMatrix::new(&[0], &[0], classes).unwrap_err();
            let text = format!(
                "confusion matrix: {classes} x {classes} numbers are more than memory holds"
            );
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_class_beyond_the_matrix_is_an_error() {
        assert!(ConfusionMatrix::new(&[0], &[2], 2).is_err());
    }
}
