//! A matrix of features on the host.

use crate::error::EvalError;
use rayon::prelude::*;

/// One feature vector per image, in host memory.
///
/// # Shape
/// `data` is row-major `[n, d]`: row `i` is `data[i * d..(i + 1) * d]`.
/// The fields are public so that a caller can build it from what a device returned; every function of this crate
/// checks it before use.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Features {
    /// Number of rows (images).
    pub n: usize,
    /// Number of columns (dimensions of the feature).
    pub d: usize,
    /// The values, row after row.
    pub data: Vec<f32>,
}

impl Features {
    /// Features of `n` rows and `d` columns.
    ///
    /// # Errors
    /// [`EvalError`] as of [`Features::check`].
    pub fn new(n: usize, d: usize, data: Vec<f32>) -> Result<Features, EvalError> {
        let features = Features { n, d, data };
        features.check()?;
        Ok(features)
    }

    /// Checks that the sizes agree and that every value is finite.
    ///
    /// # Errors
    /// [`EvalError::Empty`] without columns, [`EvalError::Length`] if `data` is not `n * d` long, and
    /// [`EvalError::NotFinite`] with the place of the first bad value.
    pub fn check(&self) -> Result<(), EvalError> {
        if self.d == 0 {
            return Err(EvalError::Empty {
                what: "feature columns",
            });
        }
        if self.n.checked_mul(self.d) != Some(self.data.len()) {
            let expected = self.n.saturating_mul(self.d);
            return Err(EvalError::Length {
                what: "feature values",
                expected,
                found: self.data.len(),
            });
        }
        match self.data.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(EvalError::NotFinite {
                row: at / self.d,
                column: at % self.d,
            }),
            None => Ok(()),
        }
    }

    /// As [`Features::check`], and at least one row, and `d` columns.
    pub(crate) fn check_width(&self, d: usize) -> Result<(), EvalError> {
        self.check()?;
        crate::error::same_length("feature columns", d, self.d)?;
        if self.n == 0 {
            Err(EvalError::Empty {
                what: "feature rows",
            })
        } else {
            Ok(())
        }
    }

    /// Row `i`, `d` values.
    ///
    /// # Panics
    /// If there is no such row, or fewer values than [`Features::check`] asks for.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.d..(i + 1) * self.d]
    }

    /// All rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.d.max(1))
    }

    /// The rows named by `indices`, in that order; a row may be named more than once.
    ///
    /// # Panics
    /// As [`Features::row`].
    pub fn subset(&self, indices: &[usize]) -> Features {
        let mut data = Vec::with_capacity(indices.len() * self.d);
        for &i in indices {
            data.extend_from_slice(self.row(i));
        }
        Features {
            n: indices.len(),
            d: self.d,
            data,
        }
    }

    /// Every row divided by its Euclidean length; a row of zeros stays zeros.
    ///
    /// The length is summed in `f64`, so the result does not depend on how the machine vectorises.
    pub fn l2_normalized(&self) -> Features {
        let mut data = self.data.clone();
        data.par_chunks_mut(self.d.max(1)).for_each(|row| {
            let length = row
                .iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                .sqrt();
            if length > 0.0 {
                for x in row {
                    *x = (f64::from(*x) / length) as f32;
                }
            }
        });
        Features {
            n: self.n,
            d: self.d,
            data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_unit_length_and_zero_rows_stay_zero() {
        let features = Features::new(3, 2, vec![3.0, 4.0, 0.0, 0.0, 1e-30, 0.0]).unwrap();
        assert_eq!(
            features.l2_normalized().data,
            [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn subset_takes_rows_in_the_order_asked_for() {
        let features = Features::new(3, 2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!(
            features.subset(&[2, 0, 2]).data,
            [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]
        );
        assert_eq!(features.rows().nth(1), Some(&[2.0, 3.0][..]));
    }

    #[test]
    fn a_bad_value_is_named_by_row_and_column() {
        let error = Features::new(2, 2, vec![0.0, 1.0, 2.0, f32::NAN]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "features: row 1, column 1 is not a finite number"
        );
        let error = Features::new(2, 2, vec![0.0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "feature values: expected 4, found 3");
    }
}
