//! A whole optimizer step over all weights: norm, clipping, AdamW and the momentum teacher.

use super::{AdamW, adamw_step, check, ema, sum_of_squares};
use candle_core::{Result, Tensor, bail};

/// Added to a norm before it divides (`torch.nn.utils.clip_grad_norm_`).
const NORM_EPS: f64 = 1e-6;

/// How gradients are clipped: each is scaled by `min(1, limit / (norm + 1e-6))`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Not at all.
    #[default]
    Nothing,
    /// By the norm over all gradients together.
    Global(f64),
    /// By its own norm.
    Each(f64),
}

/// One weight of [`adamw_ema_step`]; all tensors alike in shape and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct StepWeight<'a> {
    /// What is trained.
    pub param: &'a Tensor,
    /// Without one the weight stays as it is and only goes into the teacher.
    pub grad: Option<&'a Tensor>,
    /// First and second moment; without them the gradient counts in the norm and is not applied.
    pub moments: Option<(&'a Tensor, &'a Tensor)>,
    /// What follows the weight, if anything does.
    pub teacher: Option<&'a Tensor>,
    /// Of this weight; betas and eps are the same for all, and `grad_scale` is 1.
    pub options: AdamW,
}

impl<'a> StepWeight<'a> {
    fn tensors(&self) -> Vec<&'a Tensor> {
        let (m, v) = self.moments.unzip();
        [Some(self.param), self.grad, m, v, self.teacher]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Clips all gradients, moves all weights by AdamW and the teacher after them:
/// `teacher ← momentum·teacher + (1 − momentum)·param`.
///
/// Nothing moves if the norm of the gradients is not finite.
/// On a CUDA device these are three launches for any number of weights and the host waits for none
/// of them; elsewhere [`adamw_step`] and [`ema`] weight by weight.
///
/// # Shape
/// The result is `[2]`, f32: the norm of all gradients before clipping, and 1 if the step was done
/// or 0.
/// # Errors
/// If there is no weight, shapes differ, two tensors of a weight share a storage, a written one is
/// not contiguous, or betas and eps are not those of the first weight.
pub fn adamw_ema_step(weights: &[StepWeight<'_>], clip: Clip, momentum: f64) -> Result<Tensor> {
    let Some(first) = weights.first() else {
        bail!("adamw_ema_step: no weights")
    };
    for weight in weights {
        check("adamw_ema_step", &weight.tensors())?;
        let constants = |options: &AdamW| (options.beta1, options.beta2, options.eps);
        if constants(&weight.options) != constants(&first.options)
            || weight.options.grad_scale != 1.0
        {
            bail!("adamw_ema_step: betas and eps differ, or a gradient is scaled already");
        }
    }
    #[cfg(feature = "cuda")]
    if first.param.device().is_cuda() {
        return crate::cuda::ops::adamw_ema_step(weights, clip, momentum);
    }
    let mut squares = Vec::with_capacity(weights.len());
    for weight in weights {
        squares.push(weight.grad.map_or(Ok(0.0), sum_of_squares)?);
    }
    let norm = squares.iter().sum::<f64>().sqrt();
    if norm.is_finite() {
        for (weight, square) in weights.iter().zip(squares) {
            if let (Some(grad), Some((m, v))) = (weight.grad, weight.moments) {
                let grad_scale = match clip {
                    Clip::Nothing => 1.0,
                    Clip::Global(limit) => factor(limit, norm),
                    Clip::Each(limit) => factor(limit, square.sqrt()),
                };
                let options = AdamW {
                    grad_scale,
                    ..weight.options
                };
                adamw_step(weight.param, grad, m, v, options)?;
            }
            if let Some(teacher) = weight.teacher {
                ema(teacher, weight.param, momentum)?;
            }
        }
    }
    let figures = [norm as f32, f32::from(u8::from(norm.is_finite()))];
    Tensor::new(&figures, first.param.device())
}

/// What a gradient of this norm is multiplied by; a limit of 0 clips nothing.
fn factor(limit: f64, norm: f64) -> f64 {
    if limit > 0.0 {
        (limit / (norm + NORM_EPS)).min(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;
    use candle_core::Device;

    fn tensor(seed: u64) -> Tensor {
        Tensor::new(values(50, seed, 1.0), &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Parameter, gradient, both moments and teacher.
    fn weight(tensors: &[Tensor; 5]) -> StepWeight<'_> {
        let [param, grad, m, v, teacher] = tensors;
        StepWeight {
            param,
            grad: Some(grad),
            moments: Some((m, v)),
            teacher: Some(teacher),
            options: AdamW::default(),
        }
    }

    fn tensors(seed: u64) -> [Tensor; 5] {
        let [param, grad, m, v, teacher] = [0, 1, 2, 3, 4].map(|i| tensor(seed + i));
        [param, grad, m, v.sqr().unwrap(), teacher]
    }

    #[test]
    fn a_step_is_clipping_adamw_and_ema_one_after_the_other() {
        let (fused, one_by_one) = (tensors(1), tensors(1));
        let norm = sum_of_squares(&fused[1]).unwrap().sqrt();
        let figures = adamw_ema_step(&[weight(&fused)], Clip::Global(1.0), 0.9).unwrap();
        assert_eq!(figures.to_vec1::<f32>().unwrap(), [norm as f32, 1.0]);
        let [param, grad, m, v, teacher] = &one_by_one;
        let options = AdamW {
            grad_scale: 1.0 / (norm + 1e-6),
            ..AdamW::default()
        };
        adamw_step(param, grad, m, v, options).unwrap();
        ema(teacher, param, 0.9).unwrap();
        for (fused, one) in fused.iter().zip(&one_by_one) {
            assert_eq!(bits(fused), bits(one));
        }
    }

    #[test]
    fn a_frozen_weight_counts_in_the_norm_and_moves_only_the_teacher() {
        let (frozen, free) = (tensors(1), tensors(20));
        let frozen_weight = StepWeight {
            moments: None,
            ..weight(&frozen)
        };
        let without_grad = StepWeight {
            grad: None,
            ..weight(&free)
        };
        let before = bits(&free[2]);
        let weights = [frozen_weight, without_grad];
        let figures = adamw_ema_step(&weights, Clip::Each(1.0), 0.5).unwrap();
        let norm = sum_of_squares(&frozen[1]).unwrap().sqrt();
        assert_eq!(figures.to_vec1::<f32>().unwrap(), [norm as f32, 1.0]);
        assert_eq!(bits(&frozen[0]), bits(&tensor(1)));
        assert_eq!(bits(&free[2]), before);
        assert_ne!(bits(&frozen[4]), bits(&tensor(5)));
        assert_ne!(bits(&free[4]), bits(&tensor(24)));
    }

    #[test]
    fn nothing_moves_without_a_finite_norm() {
        let mut bad = tensors(1);
        bad[1] = Tensor::full(f32::NAN, 50, &Device::Cpu).unwrap();
        let good = tensors(20);
        let figures =
            adamw_ema_step(&[weight(&good), weight(&bad)], Clip::Global(1.0), 0.5).unwrap();
        assert_eq!(figures.to_vec1::<f32>().unwrap()[1], 0.0);
        for (after, before) in good.iter().zip(&tensors(20)) {
            assert_eq!(bits(after), bits(before));
        }
    }

    #[test]
    fn no_weights_and_mixed_constants_are_errors() {
        assert!(adamw_ema_step(&[], Clip::Nothing, 0.9).is_err());
        let (a, b) = (tensors(1), tensors(20));
        let mut other = weight(&b);
        other.options.beta1 = 0.8;
        assert!(adamw_ema_step(&[weight(&a), other], Clip::Nothing, 0.9).is_err());
    }
}
