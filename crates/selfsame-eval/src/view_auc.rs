//! Whether two views of a picture are told to belong together.

use crate::error::{EvalError, same_length};
use crate::features::Features;
use crate::neighbors::{Own, neighbors};

/// Of each row of `first`, `[n, d]`, the share of the other pictures whose row of `second`, `[n, d]`, is
/// less similar to it (cosine) than the one of the same number, its own second view; equally similar
/// ones count half.
///
/// It is the area under the ROC curve of telling one's own second view from the others' by similarity:
/// what DINO asks of its network, as a test that needs no labels. Chance, and features that have
/// collapsed, give one half on average, whatever `n` is; 1 is perfect.
///
/// Memory: the similarities of all pairs, 8·n² bytes.
///
/// # Errors
/// [`EvalError`] for bad features, fewer than two rows, and numbers of rows or columns that differ.
///
/// ```
/// use selfsame_eval::{Features, view_auc};
///
/// # fn main() -> Result<(), selfsame_eval::EvalError> {
/// let first = Features::new(3, 2, vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.2])?;
/// let second = Features::new(3, 2, vec![0.9, 0.1, 0.2, 0.8, 0.1, 0.9])?;
/// assert_eq!(view_auc(&first, &second)?, [1.0, 0.5, 1.0]);
/// # Ok(()) }
/// ```
pub fn view_auc(first: &Features, second: &Features) -> Result<Vec<f64>, EvalError> {
    same_length("second views", first.n, second.n)?;
    if first.n < 2 {
        return Err(EvalError::Length {
            what: "pictures to tell apart",
            expected: 2,
            found: first.n,
        });
    }
    let n = first.n;
    let all = neighbors(second, first, n, Own::Keep)?;
    let of_row = |row: usize| {
        let (pictures, similarities) = all.row(row);
        let own = pictures.iter().position(|picture| *picture as usize == row);
        let own = similarities[own.expect("every row is a neighbour of every row")];
        let nearer = similarities.partition_point(|similarity| *similarity > own);
        let equal = similarities[nearer..].partition_point(|similarity| *similarity == own);
        let further = n - nearer - equal;
        (further as f64 + 0.5 * (equal - 1) as f64) / (n - 1) as f64
    };
    Ok((0..n).map(of_row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    #[test]
    fn features_that_have_collapsed_are_at_chance() {
        let same = Features {
            n: 40,
            d: 3,
            data: [0.3, -1.0, 2.0].repeat(40),
        };
        assert_eq!(view_auc(&same, &same).unwrap(), [0.5; 40]);
    }

    #[test]
    fn it_is_the_share_of_pairs_in_order() {
        let (n, d) = (30, 5);
        let mut stream = Stream::new(4, Purpose::PcaStart, 0);
        let mut rows = |noise_of: Option<&Features>| {
            let mut value = |at: usize| {
                let drawn = stream.normal();
                noise_of.map_or(drawn, |of| f64::from(of.data[at]) + drawn) as f32
            };
            let data = (0..n * d).map(&mut value).collect();
            Features { n, d, data }
        };
        let first = rows(None);
        let second = rows(Some(&first));
        let cosine = |i: usize, j: usize| {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            let (a, b) = (first.row(i), second.row(j));
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        for (i, found) in view_auc(&first, &second).unwrap().into_iter().enumerate() {
            let less = (0..n).filter(|&j| cosine(i, j) < cosine(i, i)).count();
            assert!((found - less as f64 / (n - 1) as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn length_does_not_matter_and_numbers_of_rows_must_agree() {
        let rows = |scale: f32| Features {
            n: 3,
            d: 2,
            data: vec![scale, 0.0, 0.0, 1.0, -2.0 * scale, 0.1],
        };
        assert_eq!(view_auc(&rows(1.0), &rows(5.0)).unwrap(), [1.0; 3]);
        let two = rows(1.0).subset(&[0, 1]);
        let error = view_auc(&rows(1.0), &two).unwrap_err().to_string();
        assert!(error.contains("expected 3, found 2"), "{error}");
        let one = rows(1.0).subset(&[0]);
        assert!(view_auc(&one, &one).is_err());
    }
}
