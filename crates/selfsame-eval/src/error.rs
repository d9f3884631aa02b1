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
    /// The SGD linear probe's weights left the range of numbers.
    #[error(
        "linear probe: epoch {epoch} ends with a loss of {loss:.2e} and weights that are not all finite numbers; \
         lower the learning rate (it is {lr:.2e} in this epoch) or the momentum, or bring the features to a size of about 1"
    )]
    Diverged {
        /// The epoch, from 0.
        epoch: usize,
        /// Its mean cross-entropy, which may be finite still.
        loss: f64,
        /// Its learning rate.
        lr: f64,
    },
    /// A linear classifier cannot predict with such weights.
    #[error(
        "linear classifier: the weights and the bias of class {class} are not all finite numbers"
    )]
    WeightNotFinite {
        /// The first such class.
        class: usize,
    },
    /// A logit of a row is not a number, or the largest is infinite, so that none is the largest.
    #[error(
        "linear classifier: the largest logit of row {row} is not a finite number; its weights or the features are too large"
    )]
    LogitNotFinite {
        /// The row, from 0.
        row: usize,
    },
    /// A matrix of `rows` by `columns` cannot be held.
    #[error("{what}: {rows} x {columns} numbers are more than memory holds")]
    TooLarge {
        /// What it is for.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
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

/// The number of elements of a matrix, if the system lends memory for them.
pub(crate) fn fitting<T>(
    what: &'static str,
    rows: usize,
    columns: usize,
) -> Result<usize, EvalError> {
    let lent = |count: &usize| Vec::<T>::new().try_reserve_exact(*count).is_ok();
    let count = rows.checked_mul(columns).filter(lent);
    count.ok_or(EvalError::TooLarge {
        what,
        rows,
        columns,
    })
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
