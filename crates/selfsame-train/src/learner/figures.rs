//! The figures of a step, which a device may still be working on when the host has gone on.

use candle_core::{DType, Result, Tensor};

use crate::capture::BadFigure;
use crate::error::TrainError;

/// Figures of one step, as host numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFigures {
    /// Mean cross-entropy over all pairs of different views.
    pub loss: f64,
    /// Mean entropy of the teacher's distributions: what the loss cannot fall below.
    pub loss_floor: f64,
    /// Norm of all gradients before clipping and freezing.
    pub grad_norm: f64,
    /// Spread of the teacher's L2-normalised features over the global crops of the whole step.
    pub feature_std: f64,
}

impl StepFigures {
    /// What the student can still learn from this teacher: loss minus its floor.
    pub fn kl(&self) -> f64 {
        self.loss - self.loss_floor
    }
}

/// Figures of a step that was handed to a device.
#[derive(Clone, Debug)]
pub struct Pending {
    step: u64,
    figures: Figures,
}

#[derive(Clone, Debug)]
enum Figures {
    Known(StepFigures),
    /// `[5]`: loss, floor, spread, norm, and 1 if every step so far was done.
    OnDevice(Tensor),
}

impl Pending {
    pub(super) fn known(step: u64, figures: StepFigures) -> Self {
        let figures = Figures::Known(figures);
        Self { step, figures }
    }

    /// `norm` and `all_done` are `[1]`.
    pub(super) fn on_device(
        step: u64,
        sums: Sums,
        norm: &Tensor,
        all_done: &Tensor,
    ) -> Result<Self> {
        let mut parts = sums.on_device(norm)?;
        parts.extend([norm.clone(), all_done.clone()]);
        let figures = Figures::OnDevice(Tensor::cat(&parts, 0)?);
        Ok(Self { step, figures })
    }

    /// Whether reading them waits for a device; else they are numbers already.
    pub fn waits(&self) -> bool {
        matches!(self.figures, Figures::OnDevice(_))
    }

    /// The figures as numbers, once the device has done the step.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] if this step, or one before it whose figures were not read, was
    /// not done because something in it was not finite.
    pub fn read(&self) -> std::result::Result<StepFigures, TrainError> {
        let values = match &self.figures {
            Figures::Known(figures) => return Ok(*figures),
            Figures::OnDevice(values) => values.to_vec1::<f32>()?,
        };
        let [loss, loss_floor, feature_std, grad_norm, all_done] =
            <[f32; 5]>::try_from(values).expect("five figures were put there");
        let non_finite = |what, value: f32| TrainError::NonFinite {
            step: self.step,
            what,
            value: f64::from(value),
        };
        if !loss.is_finite() {
            return Err(non_finite(BadFigure::Loss, loss));
        }
        if !grad_norm.is_finite() {
            return Err(non_finite(BadFigure::GradientNorm, grad_norm));
        }
        if all_done == 0.0 {
            return Err(non_finite(BadFigure::EarlierStep, f32::NAN));
        }
        Ok(StepFigures {
            loss: f64::from(loss),
            loss_floor: f64::from(loss_floor),
            grad_norm: f64::from(grad_norm),
            feature_std: f64::from(feature_std),
        })
    }
}

/// Which figure is summed up over micro-batches and parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    Loss,
    Floor,
    Spread,
}

/// Sums of figures: numbers where reading them costs nothing, else tensors on the device.
#[derive(Debug)]
pub(super) enum Sums {
    Known([f64; 3]),
    OnDevice([Option<Tensor>; 3]),
}

impl Sums {
    pub(super) fn new(defers: bool) -> Self {
        match defers {
            true => Sums::OnDevice([None, None, None]),
            false => Sums::Known([0.0; 3]),
        }
    }

    /// Adds a scalar's share.
    pub(super) fn add(&mut self, sum: Sum, value: &Tensor, share: f64) -> Result<()> {
        match self {
            Sums::Known(sums) => {
                let value = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                sums[sum as usize] += share * value;
            }
            Sums::OnDevice(sums) => {
                let value = (value.detach().to_dtype(DType::F32)?.reshape(1)? * share)?;
                let sum = &mut sums[sum as usize];
                *sum = Some(match sum.take() {
                    None => value,
                    Some(before) => (before + value)?,
                });
            }
        }
        Ok(())
    }

    /// A sum, if it is known without waiting for a device.
    pub(super) fn known(&self, sum: Sum) -> Option<f64> {
        match self {
            Sums::Known(sums) => Some(sums[sum as usize]),
            Sums::OnDevice(_) => None,
        }
    }

    /// `[1]`: 1 if the loss is finite, else 0, if it was left on the device.
    pub(super) fn has_finite_loss(&self) -> Result<Option<Tensor>> {
        let Sums::OnDevice([Some(loss), ..]) = self else {
            return Ok(None);
        };
        let finite = loss.abs()?.le(f32::MAX)?;
        Ok(Some(finite.to_dtype(DType::F32)?))
    }

    /// All three, `[1]` each, on the device of `like`.
    fn on_device(self, like: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Sums::Known(sums) => sums
                .into_iter()
                .map(|sum| Tensor::new(&[sum as f32], like.device()))
                .collect(),
            Sums::OnDevice(sums) => sums
                .into_iter()
                .map(|sum| sum.map_or_else(|| like.zeros_like(), Ok))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn pending(loss: f32, norm: f32, all_done: f32) -> Pending {
        let one = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
        let mut sums = Sums::new(true);
        for share in [0.25, 0.75] {
            sums.add(Sum::Loss, &Tensor::new(loss, &Device::Cpu).unwrap(), share)
                .unwrap();
        }
        assert_eq!(sums.known(Sum::Loss), None);
        Pending::on_device(7, sums, &one(norm), &one(all_done)).unwrap()
    }

    #[test]
    fn a_loss_on_the_device_tells_whether_it_is_finite() {
        for (loss, expected) in [(3.5f32, 1f32), (f32::INFINITY, 0.0), (f32::NAN, 0.0)] {
            let mut sums = Sums::new(true);
            let loss = Tensor::new(loss, &Device::Cpu).unwrap();
            sums.add(Sum::Loss, &loss, 1.0).unwrap();
            let finite = sums.has_finite_loss().unwrap().unwrap();
            assert_eq!(finite.to_vec1::<f32>().unwrap(), [expected], "{loss}");
        }
        assert!(Sums::new(false).has_finite_loss().unwrap().is_none());
    }

    #[test]
    fn figures_come_back_from_the_device_in_their_places() {
        let figures = pending(4.0, 3.0, 1.0).read().unwrap();
        assert_eq!((figures.loss, figures.grad_norm), (4.0, 3.0));
        assert_eq!((figures.loss_floor, figures.feature_std), (0.0, 0.0));
    }

    #[test]
    fn what_is_not_finite_is_named_and_so_is_a_step_that_nobody_read() {
        for (pending, expected) in [
            (pending(f32::NAN, 1.0, 1.0), BadFigure::Loss),
            (pending(1.0, f32::INFINITY, 0.0), BadFigure::GradientNorm),
            (pending(1.0, 1.0, 0.0), BadFigure::EarlierStep),
        ] {
            let error = pending.read().unwrap_err();
            assert!(
                matches!(error, TrainError::NonFinite { step: 7, what, .. } if what == expected),
                "{error}"
            );
        }
    }
}
