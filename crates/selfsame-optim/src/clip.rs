//! Gradient clipping, in the two forms that DINO recipes use.

use candle_core::{Result, bail};
use selfsame_kernels::multi_tensor::{clip_factor, norm_of_squares};
use serde::{Deserialize, Serialize};

use crate::Grads;

/// What a limit on the gradient's norm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipMode {
    /// The norm over all parameters together (the notebook).
    #[doc(alias = "clip_grad_norm_")]
    #[default]
    Global,
    /// The norm of each parameter by itself (the official code).
    #[doc(alias = "clip_gradients")]
    PerParameter,
}

impl Grads {
    /// Clips to `max_norm` as `mode` says; a `max_norm` of 0 clips nothing.
    ///
    /// Returns [`Grads::global_norm`] before clipping. If it is not finite, nothing was clipped and the
    /// gradients must not be applied.
    ///
    /// A norm over the limit is scaled by `max_norm / (norm + 1e-6)`.
    ///
    /// # Errors
    /// [`candle_core::Error`] if a gradient is not of a float type, or `max_norm` is NaN or negative.
    pub fn clip(&mut self, max_norm: f64, mode: ClipMode) -> Result<f64> {
        match mode {
            ClipMode::Global => self.clip_global(max_norm),
            ClipMode::PerParameter => self.clip_per_parameter(max_norm),
        }
    }

    /// Scales all gradients by `min(1, max_norm / (global norm + 1e-6))`.
    fn clip_global(&mut self, max_norm: f64) -> Result<f64> {
        check_limit(max_norm)?;
        let norm = self.global_norm()?;
        if norm.is_finite() {
            self.scale(clip_factor(max_norm, norm));
        }
        Ok(norm)
    }

    /// Scales each gradient by `min(1, max_norm / (its own norm + 1e-6))`.
    fn clip_per_parameter(&mut self, max_norm: f64) -> Result<f64> {
        check_limit(max_norm)?;
        let mut squares = Vec::with_capacity(self.len());
        for grad in self.entries().values() {
            squares.push(grad.sum_of_squares()?);
        }
        let norm = norm_of_squares(squares.iter().sum());
        if norm.is_finite() {
            for (grad, square) in self.entries_mut().zip(squares) {
                grad.factor *= clip_factor(max_norm, square.sqrt());
            }
        }
        Ok(norm)
    }
}

/// # Errors
/// If it is no limit on a norm.
pub(crate) fn check_limit(max_norm: f64) -> Result<()> {
    if max_norm.is_nan() || max_norm < 0.0 {
        bail!("gradients cannot be clipped to a norm of {max_norm}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// Norms 3, 4 and 12: global norm 13.
    fn grads() -> Grads {
        let tensor = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
        Grads::new(
            [("a", 3.0), ("b", -4.0), ("c", 12.0)]
                .map(|(n, x)| (n.to_owned(), tensor(x)))
                .into(),
        )
    }

    fn values(grads: &Grads) -> Vec<f64> {
        let value = |tensor: Tensor| f64::from(tensor.to_vec1::<f32>().unwrap()[0]);
        grads.tensors().unwrap().into_values().map(value).collect()
    }

    #[test]
    fn global_clipping_keeps_the_direction() {
        let mut grads = grads();
        assert_eq!(grads.clip(6.5, ClipMode::Global).unwrap(), 13.0);
        for (got, want) in values(&grads).into_iter().zip([1.5, -2.0, 6.0]) {
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn clipping_per_parameter_touches_only_the_long_ones() {
        let mut grads = grads();
        assert_eq!(grads.clip(3.5, ClipMode::PerParameter).unwrap(), 13.0);
        for (got, want) in values(&grads).into_iter().zip([3.0, -3.5, 3.5]) {
            assert!((got - want).abs() < 2e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn a_limit_that_is_no_norm_is_refused() {
        for mode in [ClipMode::Global, ClipMode::PerParameter] {
            for limit in [f64::NAN, -1.0] {
                assert!(grads().clip(limit, mode).is_err(), "{limit}");
            }
        }
    }

    #[test]
    fn a_limit_of_zero_clips_nothing() {
        for mode in [ClipMode::Global, ClipMode::PerParameter] {
            let mut grads = grads();
            assert_eq!(grads.clip(0.0, mode).unwrap(), 13.0);
            assert_eq!(values(&grads), [3.0, -4.0, 12.0]);
        }
    }

    #[test]
    fn a_norm_that_is_not_finite_is_returned_and_nothing_is_clipped() {
        for mode in [ClipMode::Global, ClipMode::PerParameter] {
            let tensor = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
            let mut grads = Grads::new(
                [("a", 5.0), ("b", f32::NAN)]
                    .map(|(n, x)| (n.to_owned(), tensor(x)))
                    .into(),
            );
            assert!(grads.clip(1.0, mode).unwrap().is_nan());
            assert_eq!(values(&grads)[0], 5.0);
        }
    }

    #[test]
    fn a_norm_whose_square_no_f32_holds_is_infinite() {
        for mode in [ClipMode::Global, ClipMode::PerParameter] {
            let tensor = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
            let pair = [("a", 1.5e19), ("b", 1.5e19)];
            let mut grads = Grads::new(pair.map(|(n, x)| (n.to_owned(), tensor(x))).into());
            assert_eq!(grads.clip(1.0, mode).unwrap(), f64::INFINITY);
            assert_eq!(values(&grads)[0], f64::from(1.5e19f32));
            grads.scale(0.5);
            assert!(grads.clip(1.0, mode).unwrap().is_finite());
        }
    }
}
