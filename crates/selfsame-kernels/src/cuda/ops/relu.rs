//! ReLU.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::only_on_cuda;
use crate::cuda::device::{Input, Output, run, with_inputs};
use crate::cuda::launch;

/// See [`crate::relu`].
pub(crate) fn relu(xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (xs, len) = (Input::new(xs, layout)?, layout.shape().elem_count());
        let ys = Output::new(xs.device, xs.dtype, len)?;
        let launch = launch::relu(xs.element()?, len, xs.address, ys.address)?;
        run(xs.device, &launch)?;
        Ok((ys.storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        with_inputs([ys, grad], |[ys, grad]| {
            let (element, len) = (ys.element()?, xs.elem_count());
            let read = [ys.address, grad.of(element)?];
            let dx = Output::new(ys.device, ys.dtype, len)?;
            let launch = launch::relu_grad(element, len, read, dx.address)?;
            run(ys.device, &launch)?;
            Ok(Some(dx.tensor(xs.shape())))
        })
    }
}
