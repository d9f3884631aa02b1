//! Rows of a given length, alone and as the weight of a linear layer.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor,
};

use super::{only_on_cuda, rows_and_width};
use crate::cuda::device::{Input, Output, address_of, dtype, element, run, with_inputs};
use crate::cuda::gemm::{self, Matrix, multiply};
use crate::cuda::launch::{Element, Normalize};
use crate::sink;

/// See [`crate::l2_normalize_last_dim`]; for f32.
pub(crate) fn l2_normalize_last_dim(xs: &Tensor, eps: f64) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(L2Normalize { eps })
}

struct L2Normalize {
    eps: f64,
}

impl L2Normalize {
    fn sizes(&self, dims: &[usize]) -> Result<Normalize> {
        let (rows, width) = rows_and_width(dims);
        Normalize::new(rows, width, self.eps)
    }
}

impl CustomOp1 for L2Normalize {
    fn name(&self) -> &'static str {
        "l2-normalize"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (xs, shape) = (Input::new(xs, layout)?, layout.shape());
        let ys = Output::new(xs.device, DType::F32, shape.elem_count())?;
        let sizes = self.sizes(shape.dims())?;
        let launch = sizes.forward(Element::F32, xs.f32()?, None, ys.address);
        run(xs.device, &launch)?;
        Ok((ys.storage, shape.clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (sizes, shape) = (self.sizes(xs.dims())?, xs.shape());
        with_inputs([xs, grad], |[xs, grad]| {
            let dx = Output::new(xs.device, DType::F32, shape.elem_count())?;
            run(
                xs.device,
                &sizes.grad(xs.f32()?, None, grad.f32()?, dx.address),
            )?;
            Ok(Some(dx.tensor(shape)))
        })
    }
}

/// See [`crate::normalized_linear`], whose shapes were found to fit; the weight and the lengths are
/// f32, and so is the result: of bf16 inputs it is not rounded.
pub(crate) fn normalized_linear(
    xs: &Tensor,
    weight: &Tensor,
    length: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let op = NormalizedLinear {
        length: length
            .map(|length| length.to_dtype(DType::F32)?.contiguous())
            .transpose()?,
        eps,
    };
    xs.contiguous()?.apply_op2(&weight.contiguous()?, op)
}

struct NormalizedLinear {
    length: Option<Tensor>,
    eps: f64,
}

impl NormalizedLinear {
    /// The rows of the weight at their lengths, in the type of the product's factors.
    fn scaled_weight(
        &self,
        weight: Input<'_>,
        [outputs, inputs]: [usize; 2],
        element: Element,
    ) -> Result<Output> {
        let scaled = Output::new(weight.device, dtype(element), outputs * inputs)?;
        let normalize = Normalize::new(outputs, inputs, self.eps)?;
        let lengths = self.lengths()?;
        let launch = normalize.forward(element, weight.f32()?, lengths, scaled.address);
        run(weight.device, &launch)?;
        Ok(scaled)
    }

    fn lengths(&self) -> Result<Option<u64>> {
        self.length.as_ref().map(address_of).transpose()
    }
}

impl CustomOp2 for NormalizedLinear {
    fn name(&self) -> &'static str {
        "normalized-linear"
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
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, inputs) = xs_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        let (xs, weight) = (
            Input::new(xs, xs_layout)?,
            Input::new(weight, weight_layout)?,
        );
        let (device, element) = (xs.device, xs.element()?);
        let scaled = self.scaled_weight(weight, [outputs, inputs], element)?;
        let ys = Output::new(device, DType::F32, rows * outputs)?;
        let product = gemm::Sizes {
            rows,
            columns: outputs,
            inner: inputs,
        };
        let factors = [
            Matrix::new(xs.address, inputs),
            Matrix::new(scaled.address, inputs).t(),
        ];
        let to = Matrix::new(ys.address, outputs);
        multiply(device, product, element, factors, to, Element::F32)?;
        Ok((ys.storage, (rows, outputs).into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), (outputs, _)) = (xs.dims2()?, weight.dims2()?);
        let element = element(xs.dtype())?;
        let grad = grad.to_dtype(xs.dtype())?;
        let (wants_dx, wants_dw) = (xs.track_op(), weight.track_op());
        let (dx, dw) = with_inputs([xs, weight, &grad], |[xs, weight, grad]| {
            let device = xs.device;
            let d_ys = Matrix::new(grad.of(element)?, outputs);
            let dx = match wants_dx {
                false => None,
                true => {
                    let scaled = self.scaled_weight(weight, [outputs, inputs], element)?;
                    let dx = Output::new(device, xs.dtype, rows * inputs)?;
                    let product = gemm::Sizes {
                        rows,
                        columns: inputs,
                        inner: outputs,
                    };
                    let factors = [d_ys, Matrix::new(scaled.address, inputs)];
                    let to = Matrix::new(dx.address, inputs);
                    multiply(device, product, element, factors, to, element)?;
                    Some(dx.tensor((rows, inputs)))
                }
            };
            let dw = match wants_dw {
                false => None,
                true => {
                    let [d_scaled, dw] = [
                        Output::new(device, DType::F32, outputs * inputs)?,
                        Output::new(device, DType::F32, outputs * inputs)?,
                    ];
                    let product = gemm::Sizes {
                        rows: outputs,
                        columns: inputs,
                        inner: rows,
                    };
                    let factors = [d_ys.t(), Matrix::new(xs.address, inputs)];
                    let to = Matrix::new(d_scaled.address, inputs);
                    multiply(device, product, element, factors, to, Element::F32)?;
                    let normalize = Normalize::new(outputs, inputs, self.eps)?;
                    let (from, lengths) = (weight.f32()?, self.lengths()?);
                    let launch = normalize.grad(from, lengths, d_scaled.address, dw.address);
                    run(device, &launch)?;
                    Some(dw.tensor((outputs, inputs)))
                }
            };
            Ok((dx, dw))
        })?;
        Ok((
            dx,
            dw.map(|dw| sink::add_tensor(weight, dw))
                .transpose()?
                .flatten(),
        ))
    }
}
