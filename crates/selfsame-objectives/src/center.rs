//! The centre of the teacher's outputs.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Moving average of teacher outputs that keeps one prototype from winning every image (Eq. 4).
///
/// It starts at zero. A step uses the centre of the steps before it: [`crate::dino_loss`] first,
/// [`Center::update`] after (`main_dino.py`, `DINOLoss.forward`).
#[derive(Debug, Clone)]
pub struct Center {
    tensor: Tensor,
    momentum: f64,
}

impl Center {
    /// A centre of zeros for `out_dim` prototypes; `momentum` is the share of the old centre that
    /// survives an update (0.9 in the reference).
    ///
    /// # Errors
    /// [`candle_core::Error`] if `momentum` is not in `[0, 1]`, or the device is out of memory.
    pub fn new(out_dim: usize, momentum: f64, device: &Device) -> Result<Self> {
        if !(0.0..=1.0).contains(&momentum) {
            bail!("the centre's momentum {momentum} is not between 0 and 1");
        }
        let tensor = Tensor::zeros((1, out_dim), DType::F32, device)?;
        Ok(Self { tensor, momentum })
    }

    /// The centre as it is now, `[1, K]`, f32.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Moves the centre towards the mean of a batch: `c ← m·c + (1 − m)·batch_mean`.
    ///
    /// # Shape
    /// `batch_mean`: `[1, K]`, the mean over all rows of raw teacher logits, of both global views
    /// and, in a distributed run, of all ranks.
    ///
    /// # Errors
    /// [`candle_core::Error`] if `K` differs from the centre's.
    pub fn update(&mut self, batch_mean: &Tensor) -> Result<()> {
        let batch_mean = self.accept(batch_mean)?;
        let kept = self.tensor.affine(self.momentum, 0.0)?;
        self.tensor = (kept + batch_mean.affine(1.0 - self.momentum, 0.0)?)?;
        Ok(())
    }

    /// [`Center::update`] where `done` is not 0; else the centre stays as it is. The host does not
    /// wait for the device.
    ///
    /// # Shape
    /// `done`: one number, on the centre's device.
    /// # Errors
    /// As [`Center::update`].
    pub fn update_if(&mut self, done: &Tensor, batch_mean: &Tensor) -> Result<()> {
        let before = self.tensor.clone();
        self.update(batch_mean)?;
        let done = done.reshape((1, 1))?.ne(0f32)?;
        let done = done.broadcast_as(before.shape())?;
        self.tensor = done.where_cond(&self.tensor, &before)?;
        Ok(())
    }

    /// Replaces the centre by a saved one, `[1, K]`.
    ///
    /// # Errors
    /// [`candle_core::Error`] if `K` differs from the centre's.
    pub fn load(&mut self, saved: &Tensor) -> Result<()> {
        self.tensor = self.accept(saved)?;
        Ok(())
    }

    /// Brings `given` to the centre's type and device, without its graph.
    fn accept(&self, given: &Tensor) -> Result<Tensor> {
        if given.dims() != self.tensor.dims() {
            bail!(
                "a centre has shape {:?}, given is {:?}",
                self.tensor.dims(),
                given.dims()
            );
        }
        given
            .detach()
            .to_dtype(DType::F32)?
            .to_device(self.tensor.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap()
    }

    fn values(center: &Center) -> Vec<f32> {
        center.tensor().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn center_follows_eq4_over_two_batches() {
        let mut center = Center::new(3, 0.9, &Device::Cpu).unwrap();
        assert_eq!(values(&center), [0.0, 0.0, 0.0]);
        center.update(&row(&[1.0, -2.0, 10.0])).unwrap();
        center.update(&row(&[3.0, 0.0, -10.0])).unwrap();
        // 0.9·(0.1·first) + 0.1·second; swapped momenta would give 0.9·second + …
        let expected = [0.09 + 0.3, -0.18, 0.9 - 1.0];
        for (got, want) in values(&center).iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn a_step_that_was_not_done_leaves_the_center() {
        let mut center = Center::new(2, 0.5, &Device::Cpu).unwrap();
        let flag = |done: f32| Tensor::new(&[done], &Device::Cpu).unwrap();
        center.update_if(&flag(1.0), &row(&[2.0, 4.0])).unwrap();
        assert_eq!(values(&center), [1.0, 2.0]);
        let nothing = row(&[f32::NAN, f32::INFINITY]);
        center.update_if(&flag(0.0), &nothing).unwrap();
        assert_eq!(values(&center), [1.0, 2.0]);
    }

    #[test]
    fn center_of_another_width_is_refused_and_changes_nothing() {
        let mut center = Center::new(3, 0.9, &Device::Cpu).unwrap();
        assert!(center.update(&row(&[1.0, 2.0])).is_err());
        // A row that would broadcast is refused as well.
        assert!(center.update(&row(&[1.0])).is_err());
        assert!(center.load(&row(&[1.0, 2.0])).is_err());
        assert_eq!(values(&center), [0.0; 3]);
    }

    #[test]
    fn loaded_center_goes_on_as_the_saved_one() {
        let mut kept = Center::new(2, 0.9, &Device::Cpu).unwrap();
        kept.update(&row(&[0.3, -7.7])).unwrap();
        let mut resumed = Center::new(2, 0.9, &Device::Cpu).unwrap();
        resumed.load(kept.tensor()).unwrap();
        for center in [&mut kept, &mut resumed] {
            center.update(&row(&[1.1, 2.2])).unwrap();
        }
        assert_eq!(values(&kept), values(&resumed));
    }

    #[test]
    fn momentum_outside_zero_to_one_is_refused() {
        assert!(Center::new(2, 1.1, &Device::Cpu).is_err());
        assert!(Center::new(2, f64::NAN, &Device::Cpu).is_err());
    }
}
