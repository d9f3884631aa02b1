//! Bias and GELU behind a matrix product that cuBLAS does.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor,
};

use super::{only_on_cuda, rows_and_width, sum_of_parts};
use crate::cuda::device::{Input, Output, element, run, with_inputs};
use crate::cuda::launch;

/// `gelu(xs + bias)` over the last dimension; without a bias it is 0.
pub(crate) fn bias_gelu(xs: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    match bias {
        None => xs.apply_op1(BiasGelu),
        Some(bias) => xs.apply_op2(&bias.to_dtype(DType::F32)?.contiguous()?, BiasGelu),
    }
}

/// `xs + bias` over the last dimension; the bias is added in f32, its gradient is.
pub(crate) fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    xs.contiguous()?
        .apply_op2(&bias.to_dtype(DType::F32)?.contiguous()?, AddBias)
}

fn sizes_of(dims: &[usize], dtype: DType) -> Result<launch::BiasGelu> {
    let (rows, width) = rows_and_width(dims);
    launch::BiasGelu::new(element(dtype)?, rows, width)
}

struct BiasGelu;

impl BiasGelu {
    fn forward(
        xs: Input<'_>,
        bias: Option<Input<'_>>,
        shape: &Shape,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = sizes_of(shape.dims(), xs.dtype)?;
        let bias = bias.map(|bias| bias.f32()).transpose()?;
        let ys = Output::new(xs.device, xs.dtype, shape.elem_count())?;
        run(xs.device, &sizes.forward(xs.address, bias, ys.address))?;
        Ok((ys.storage, shape.clone()))
    }
}

impl CustomOp1 for BiasGelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda("gelu-erf")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        BiasGelu::forward(Input::new(xs, layout)?, None, layout.shape())
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = sizes_of(xs.dims(), xs.dtype())?;
        let shape = xs.shape();
        with_inputs([xs, grad], |[xs, grad]| {
            let grad = grad.of(xs.element()?)?;
            let dx = Output::new(xs.device, xs.dtype, shape.elem_count())?;
            let launch = sizes.grad(xs.address, None, grad, dx.address, None);
            run(xs.device, &launch)?;
            Ok(Some(dx.tensor(shape)))
        })
    }
}

impl CustomOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda("bias-gelu")
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let bias = Input::new(bias, bias_layout)?;
        BiasGelu::forward(Input::new(xs, xs_layout)?, Some(bias), xs_layout.shape())
    }

    fn bwd(
        &self,
        xs: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = sizes_of(xs.dims(), xs.dtype())?;
        let (shape, width) = (xs.shape(), bias.elem_count());
        with_inputs([xs, bias, grad], |[xs, bias, grad]| {
            let (bias, grad) = (bias.f32()?, grad.of(xs.element()?)?);
            let dx = Output::new(xs.device, xs.dtype, shape.elem_count())?;
            let d_bias = sum_of_parts(xs, sizes.parts(), width, |parts| {
                let launch = sizes.grad(xs.address, Some(bias), grad, dx.address, Some(parts));
                run(xs.device, &launch)
            })?;
            Ok((Some(dx.tensor(shape)), Some(d_bias)))
        })
    }
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
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
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (xs, bias) = (Input::new(xs, xs_layout)?, Input::new(bias, bias_layout)?);
        let sizes = sizes_of(xs_layout.dims(), xs.dtype)?;
        let ys = Output::new(xs.device, xs.dtype, xs_layout.shape().elem_count())?;
        run(
            xs.device,
            &sizes.add_bias(xs.address, bias.f32()?, ys.address),
        )?;
        Ok((ys.storage, xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = sizes_of(xs.dims(), xs.dtype())?;
        let d_bias = with_inputs([grad], |[grad]| {
            let address = grad.of(element(xs.dtype())?)?;
            sum_of_parts(grad, sizes.parts(), bias.elem_count(), |parts| {
                run(grad.device, &sizes.column_sums(address, parts))
            })
        })?;
        Ok((Some(grad.clone()), Some(d_bias)))
    }
}
