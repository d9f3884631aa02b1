//! Max pooling.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::only_on_cuda;
use crate::conv2d::output_len;
use crate::cuda::device::{Input, Output, element, run, with_inputs};
use crate::cuda::launch;

/// Whether there is a kernel for windows of this side.
pub(crate) fn pools(kernel: usize) -> bool {
    kernel <= launch::MAX_POOL_KERNEL
}

/// See [`crate::max_pool2d`], whose checks these sizes have passed.
pub(crate) fn max_pool2d(
    xs: &Tensor,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    let len = |len| output_len("max_pool2d", len, kernel, stride, padding);
    let output = [len(h)?, len(w)?];
    xs.contiguous()?.apply_op1(MaxPool {
        output,
        of: [kernel, stride, padding],
        winners: OnceLock::new(),
    })
}

struct MaxPool {
    output: [usize; 2],
    /// Kernel, stride, padding.
    of: [usize; 3],
    /// Which place of its window each output comes from, from the forward pass.
    winners: OnceLock<Tensor>,
}

impl MaxPool {
    fn sizes(&self, shape: &Shape, dtype: DType) -> Result<launch::MaxPool> {
        let (b, c, h, w) = shape.dims4()?;
        launch::MaxPool::new(element(dtype)?, b * c, [h, w], self.output, self.of)
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let xs = Input::new(xs, layout)?;
        let sizes = self.sizes(layout.shape(), xs.dtype)?;
        let (b, c, _, _) = layout.shape().dims4()?;
        let shape = Shape::from((b, c, self.output[0], self.output[1]));
        let ys = Output::new(xs.device, xs.dtype, shape.elem_count())?;
        let winners = Output::new(xs.device, DType::U8, shape.elem_count())?;
        let launch = sizes.forward(xs.address, ys.address, winners.address);
        run(xs.device, &launch)?;
        // A second forward pass of the same op would be a second op.
        let _ = self.winners.set(winners.tensor(&shape));
        Ok((ys.storage, shape))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else {
            bail!("max_pool2d: backward before forward")
        };
        let sizes = self.sizes(xs.shape(), xs.dtype())?;
        with_inputs([winners, grad], |[winners, grad]| {
            let gradient = grad.of(element(xs.dtype())?)?;
            let dx = Output::new(grad.device, xs.dtype(), xs.elem_count())?;
            run(
                grad.device,
                &sizes.grad(winners.address, gradient, dx.address),
            )?;
            Ok(Some(dx.tensor(xs.shape())))
        })
    }
}
