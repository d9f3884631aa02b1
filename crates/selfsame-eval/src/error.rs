//! The crate's error.

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Two things that belong together have different lengths.
    #[error("{what}: expected {expected}, found {found}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// The length that the other side asks for.
        expected: usize,
        /// The length that was given.
        found: usize,
    },
    /// Nothing to work on.
    #[error("{what}: none given")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// A feature is infinite or not a number.
    #[error("features: row {row}, column {column} is not a finite number")]
    NotFinite {
        /// Row of the feature, from 0.
        row: usize,
        /// Column of the feature, from 0.
        column: usize,
    },
    /// A target value is infinite or not a number.
    #[error("values: row {row} is not a finite number")]
    ValueNotFinite {
        /// Row of the value, from 0.
        row: usize,
    },
    /// A class id is not below the number of classes.
    #[error("labels: class {class} in row {row}, but there are {num_classes} classes")]
    UnknownClass {
        /// The class id.
        class: usize,
        /// Row of the label, from 0.
        row: usize,
        /// How many classes there are.
        num_classes: usize,
    },
    /// A classifier needs at least two classes.
    #[error("labels: all {rows} rows have the same class; a classifier needs two")]
    OneClass {
        /// How many rows there are.
        rows: usize,
    },
    /// A setting is out of range; the text names it.
    #[error("{0}")]
    Setting(String),
    /// The linear system of a ridge regression is singular.
    #[error(
        "ridge: the features do not determine the weights at alpha {alpha}; use a larger alpha"
    )]
    Singular {
        /// The penalty that was asked for.
        alpha: f64,
    },
    /// A matrix product failed.
    #[error("matrix product failed")]
    Tensor(#[from] candle_core::Error),
}

/// Checks that `found` values were given where `expected` are needed.
pub(crate) fn same_length(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), EvalError> {
    if expected == found {
        Ok(())
    } else {
        Err(EvalError::Length {
            what,
            expected,
            found,
        })
    }
}

/// Checks that every class id is below `num_classes`.
pub(crate) fn known_classes(labels: &[usize], num_classes: usize) -> Result<(), EvalError> {
    match labels.iter().position(|&class| class >= num_classes) {
        Some(row) => Err(EvalError::UnknownClass {
            class: labels[row],
            row,
            num_classes,
        }),
        None => Ok(()),
    }
}

/// Checks that every target value is finite.
pub(crate) fn finite_values(values: &[f64]) -> Result<(), EvalError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(row) => Err(EvalError::ValueNotFinite { row }),
        None => Ok(()),
    }
}
