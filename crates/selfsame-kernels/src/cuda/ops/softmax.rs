//! Softmax and its logarithm over the last dimension.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{only_on_cuda, rows_and_width};
use crate::cuda::device::{Input, Output, element, run, with_inputs};
use crate::cuda::launch;

/// The softmax, or its logarithm with `is_log`.
pub(crate) fn softmax(xs: &Tensor, is_log: bool) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Softmax { is_log })
}

/// Softmax of `(xs − center) · scale` without a gradient.
pub(crate) fn centered_softmax(xs: &Tensor, center: &Tensor, scale: f32) -> Result<Tensor> {
    let (rows, width) = rows_and_width(xs.dims());
    let sizes = launch::Softmax::new(element(xs.dtype())?, rows, width, false)?;
    let shape = xs.shape();
    with_inputs([xs, center], |[xs, center]| {
        let ys = Output::new(xs.device, xs.dtype, rows * width)?;
        let center = Some(center.f32()?);
        run(
            xs.device,
            &sizes.forward(xs.address, center, ys.address, scale),
        )?;
        Ok(ys.tensor(shape))
    })
}

struct Softmax {
    is_log: bool,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        if self.is_log {
            "log-softmax"
        } else {
            "softmax"
        }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let xs = Input::new(xs, layout)?;
        let (rows, width) = rows_and_width(layout.dims());
        let sizes = launch::Softmax::new(xs.element()?, rows, width, self.is_log)?;
        let ys = Output::new(xs.device, xs.dtype, rows * width)?;
        run(xs.device, &sizes.forward(xs.address, None, ys.address, 1.0))?;
        Ok((ys.storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = rows_and_width(xs.dims());
        let sizes = launch::Softmax::new(element(xs.dtype())?, rows, width, self.is_log)?;
        let shape = xs.shape();
        with_inputs([ys, grad], |[ys, grad]| {
            let grad = grad.of(ys.element()?)?;
            let dx = Output::new(ys.device, ys.dtype, rows * width)?;
            run(ys.device, &sizes.grad(ys.address, grad, dx.address))?;
            Ok(Some(dx.tensor(shape)))
        })
    }
}
