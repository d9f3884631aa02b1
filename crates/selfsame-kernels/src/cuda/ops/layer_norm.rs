//! Layer norm with statistics, weight and bias in f32.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::{only_on_cuda, rows_and_width, sum_of_parts};
use crate::cuda::device::{Input, Output, run, with_inputs};
use crate::cuda::launch::{self, Norm};

/// See [`crate::layer_norm`]; the result is of type `dtype`, that of `xs` or bf16.
pub(crate) fn layer_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let norm = match (xs.dtype(), dtype) {
        (DType::F32, DType::F32) => Norm::F32,
        (DType::BF16, DType::BF16) => Norm::Bf16,
        (DType::F32, DType::BF16) => Norm::F32ToBf16,
        (from, to) => bail!("layer_norm: no kernel from {from:?} to {to:?}"),
    };
    let op = LayerNorm {
        norm,
        dtype,
        eps: eps as f32,
        stats: OnceLock::new(),
    };
    let [weight, bias] = [weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?];
    xs.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

struct LayerNorm {
    norm: Norm,
    dtype: DType,
    eps: f32,
    /// Mean and 1/std per row, from the forward pass.
    stats: OnceLock<Tensor>,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = rows_and_width(xs_layout.dims());
        let sizes = launch::LayerNorm::new(self.norm, rows, width)?;
        let xs = Input::new(xs, xs_layout)?;
        let weight = Input::new(weight, weight_layout)?.f32()?;
        let bias = Input::new(bias, bias_layout)?.f32()?;
        let ys = Output::new(xs.device, self.dtype, rows * width)?;
        let stats = Output::new(xs.device, DType::F32, 2 * rows)?;
        let written = [ys.address, stats.address];
        run(
            xs.device,
            &sizes.forward([xs.address, weight, bias], written, self.eps),
        )?;
        // A second forward pass of the same op would be a second op.
        let _ = self.stats.set(stats.tensor((rows, 2)));
        Ok((ys.storage, xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(stats) = self.stats.get() else {
            bail!("layer_norm: backward before forward")
        };
        let (rows, width) = rows_and_width(xs.dims());
        let sizes = launch::LayerNorm::new(self.norm, rows, width)?;
        let shape = xs.shape();
        let (dx, sums) = with_inputs([xs, stats, weight, grad], |[xs, stats, weight, grad]| {
            let (stats, weight) = (stats.f32()?, weight.f32()?);
            if grad.dtype != self.dtype {
                bail!("layer_norm: a gradient of type {:?}", grad.dtype);
            }
            let dx = Output::new(xs.device, xs.dtype, rows * width)?;
            let read = [xs.address, stats, weight, grad.address];
            run(xs.device, &sizes.grad(read, dx.address))?;
            let sums = sum_of_parts(xs, sizes.parts(), 2 * width, |parts| {
                let read = [xs.address, stats, grad.address];
                run(xs.device, &sizes.weights_grad(read, parts))
            })?;
            Ok((dx.tensor(shape), sums))
        })?;
        Ok((
            Some(dx),
            Some(sums.narrow(0, 0, width)?),
            Some(sums.narrow(0, width, width)?),
        ))
    }
}
