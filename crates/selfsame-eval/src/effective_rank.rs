//! How many directions features use.

use candle_core::{Device, Tensor};

use crate::error::EvalError;
use crate::features::Features;
use crate::matrix::eigenvalues;

/// The effective rank of `[n, d]` features: exp of the entropy of their singular values, each taken as
/// a share of their sum (Roy and Vetterli 2007; RankMe, Garrido et al. 2023, arXiv 2210.02885,
/// equation 1, without its ε). Rows are neither centred nor scaled.
///
/// It is 1 if all rows are multiples of one, min(n, d) if no direction is longer than another, and 0
/// for zeros. It grows with `n`, so that only figures of equally many rows can be compared.
///
/// # Errors
/// [`EvalError`] for bad features or none.
///
/// ```
/// use selfsame_eval::{Features, effective_rank};
///
/// # fn main() -> Result<(), selfsame_eval::EvalError> {
/// let rows = Features::new(3, 2, vec![2.0, 0.0, 0.0, 2.0, 0.0, 0.0])?;
/// assert!((effective_rank(&rows)? - 2.0).abs() < 1e-6);
/// # Ok(()) }
/// ```
pub fn effective_rank(features: &Features) -> Result<f64, EvalError> {
    features.check_width(features.d)?;
    let largest = features.data.iter().fold(0f32, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return Ok(0.0);
    }
    // Of about 1, so that no square leaves the range of numbers.
    let scaled = features.data.iter();
    let scaled: Vec<f64> = scaled.map(|&x| f64::from(x) / f64::from(largest)).collect();
    let rows = Tensor::from_vec(scaled, (features.n, features.d), &Device::Cpu)?;
    let columns = rows.t()?.contiguous()?;
    let gram = match features.n < features.d {
        true => rows.matmul(&columns)?,
        false => columns.matmul(&rows)?,
    };
    let n = gram.dim(0)?;
    let squares = eigenvalues(gram.flatten_all()?.to_vec1()?, n);
    let lengths: Vec<f64> = squares
        .iter()
        .map(|square| square.max(0.0).sqrt())
        .collect();
    let sum: f64 = lengths.iter().sum();
    let shares = lengths.iter().map(|length| length / sum);
    let entropy: f64 = shares.filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    fn random(n: usize, d: usize, seed: u64) -> Features {
        let mut stream = Stream::new(seed, Purpose::PcaStart, 0);
        let data = (0..n * d).map(|_| stream.normal() as f32).collect();
        Features { n, d, data }
    }

    #[test]
    fn directions_of_equal_length_count_whole_and_others_in_part() {
        // Three directions, one of them twice as long: shares 1/4, 1/4, 1/2.
        let mut data = vec![0.0; 5 * 8];
        (data[0], data[8 + 3], data[16 + 6]) = (1.0, 1.0, -2.0);
        let rows = Features { n: 5, d: 8, data };
        let expected = (0.5 * 4f64.ln() + 0.5 * 2f64.ln()).exp();
        assert!((effective_rank(&rows).unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn equal_rows_have_rank_one_random_ones_nearly_all_and_zeros_none() {
        let row = random(1, 60, 1).data;
        let same = Features {
            n: 50,
            d: 60,
            data: row.repeat(50),
        };
        assert!((effective_rank(&same).unwrap() - 1.0).abs() < 1e-3);
        let rank = effective_rank(&random(400, 20, 2)).unwrap();
        assert!(rank > 19.0 && rank <= 20.0 + 1e-9, "{rank}");
        let zeros = Features {
            n: 3,
            d: 2,
            data: vec![0.0; 6],
        };
        assert_eq!(effective_rank(&zeros).unwrap(), 0.0);
    }

    #[test]
    fn neither_scale_nor_turned_axes_matter_and_bad_features_are_refused() {
        let rows = random(30, 12, 5);
        let rank = effective_rank(&rows).unwrap();
        for factor in [1e-30f32, 1e30] {
            let data = rows.data.iter().map(|x| x * factor).collect();
            let scaled = Features { data, ..rows };
            assert!((effective_rank(&scaled).unwrap() - rank).abs() < 1e-4 * rank);
        }
        let data = (0..12 * 30)
            .map(|at| rows.data[at % 30 * 12 + at / 30])
            .collect();
        let turned = Features { n: 12, d: 30, data };
        assert!((effective_rank(&turned).unwrap() - rank).abs() < 1e-6 * rank);
        let mut bad = rows.clone();
        bad.data[3] = f32::NAN;
        assert!(effective_rank(&bad).is_err());
        assert!(effective_rank(&Features::default()).is_err());
    }
}
