//! Figures that tell learning from collapse.
//!
//! DINO can fail in two ways with a falling loss: all images share one prototype (entropy → 0),
//! or the teacher says nothing about any of them (entropy → ln K). Either way the features of
//! different images become the same, and their spread goes to 0.
//! These functions but [`feature_spread`] wait for the device: call them when a line is logged, not
//! at every step.

use std::collections::BTreeSet;

use candle_core::{D, DType, Result, Tensor};

use crate::teacher_entropy;

/// The figures of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Signs {
    /// Mean entropy of the teacher's distributions, in nats, from 0 to [`Signs::ln_k`].
    pub entropy: f64,
    /// What the student still lacks: loss − entropy, in nats.
    pub kl: f64,
    /// The entropy of a uniform teacher: the loss from which nothing was learned.
    pub ln_k: f64,
    /// How many prototypes win at least one row.
    pub prototypes_used: usize,
}

impl Signs {
    /// Reads the figures off a step's loss (a scalar) and teacher distributions `[N, K]`.
    ///
    /// # Errors
    /// [`candle_core::Error`] if a shape is another one.
    pub fn read(loss: &Tensor, teacher_probs: &Tensor) -> Result<Self> {
        let (_, k) = teacher_probs.dims2()?;
        let entropy = scalar(&teacher_entropy(teacher_probs)?)?;
        Ok(Self {
            entropy,
            kl: scalar(loss)? - entropy,
            ln_k: (k as f64).ln(),
            prototypes_used: prototypes_used(teacher_probs)?,
        })
    }
}

/// Spread of features over a batch: `√D` × the mean over dimensions of the standard deviation of
/// L2-normalised features.
///
/// About 1 if the features point in all directions, 0 if all are the same. The deviation is the
/// unbiased one (`n − 1`, as `torch.std`), over rows.
///
/// # Shape
/// `features`: `[N, D]`, of backbone outputs. Fewer than two rows have no spread: 0.
///
/// # Errors
/// [`candle_core::Error`] if `features` is not a float matrix.
pub fn feature_std(features: &Tensor) -> Result<f64> {
    feature_spread(features)?.to_scalar::<f64>()
}

/// [`feature_std`] as a scalar on the device, in f64, without waiting for it.
///
/// # Errors
/// As [`feature_std`].
pub fn feature_spread(features: &Tensor) -> Result<Tensor> {
    let (n, d) = features.dims2()?;
    // In f64: the spread of a collapsed batch is a difference of nearly equal numbers.
    let features = features.detach().to_dtype(DType::F64)?;
    if n < 2 {
        return Tensor::zeros((), DType::F64, features.device());
    }
    // 1e-12 as in torch.nn.functional.normalize: a row of zeros stays a row of zeros.
    let norms = features
        .sqr()?
        .sum_keepdim(D::Minus1)?
        .sqrt()?
        .maximum(1e-12)?;
    let directions = features.broadcast_div(&norms)?;
    let centred = directions.broadcast_sub(&directions.mean_keepdim(0)?)?;
    let std = (centred.sqr()?.sum(0)? / (n - 1) as f64)?.sqrt()?;
    std.mean_all()? * (d as f64).sqrt()
}

/// Number of different prototypes that are the largest of some row.
///
/// # Shape
/// `teacher_probs`: `[N, K]`, probabilities or logits.
///
/// # Errors
/// [`candle_core::Error`] if it is not a matrix.
pub fn prototypes_used(teacher_probs: &Tensor) -> Result<usize> {
    let winners = teacher_probs.detach().argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(winners.into_iter().collect::<BTreeSet<_>>().len())
}

fn scalar(xs: &Tensor) -> Result<f64> {
    xs.to_dtype(DType::F64)?.to_scalar::<f64>()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn matrix(rows: &[&[f32]]) -> Tensor {
        let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.to_vec()).collect();
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn feature_std_is_zero_for_equal_directions_whatever_their_length() {
        let collapsed = matrix(&[&[1.0, 2.0, 2.0], &[2.0, 4.0, 4.0], &[0.5, 1.0, 1.0]]);
        assert!(feature_std(&collapsed).unwrap() < 1e-7);
    }

    #[test]
    fn feature_std_matches_a_value_by_hand() {
        // Directions (1,0), (-1,0), (0,1): std² = 2/2 and (2/3)/2 … mean 1/3.
        let features = matrix(&[&[2.0, 0.0], &[-3.0, 0.0], &[0.0, 5.0]]);
        let expected = 2f64.sqrt() * (1.0 + (1.0f64 / 3.0).sqrt()) / 2.0;
        assert!((feature_std(&features).unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn feature_std_survives_a_zero_row_and_a_single_row() {
        assert!(
            feature_std(&matrix(&[&[0.0, 0.0], &[1.0, 0.0]]))
                .unwrap()
                .is_finite()
        );
        assert_eq!(feature_std(&matrix(&[&[1.0, 0.0]])).unwrap(), 0.0);
    }

    #[test]
    fn prototypes_used_counts_winners_once() {
        let probs = matrix(&[&[0.6, 0.3, 0.1], &[0.1, 0.1, 0.8], &[0.5, 0.4, 0.1]]);
        assert_eq!(prototypes_used(&probs).unwrap(), 2);
    }

    #[test]
    fn signs_tell_a_uniform_teacher_from_a_one_prototype_teacher() {
        let uniform = matrix(&[&[0.25; 4], &[0.25; 4]]);
        let loss = Tensor::new(1.5f32, &Device::Cpu).unwrap();
        let signs = Signs::read(&loss, &uniform).unwrap();
        assert!((signs.entropy - signs.ln_k).abs() < 1e-6);
        assert!((signs.kl - (1.5 - 4f64.ln())).abs() < 1e-6);

        let one = matrix(&[&[0.0, 1.0, 0.0, 0.0], &[0.0, 1.0, 0.0, 0.0]]);
        let signs = Signs::read(&loss, &one).unwrap();
        assert_eq!((signs.entropy, signs.prototypes_used), (0.0, 1));
    }
}
