//! Convolution of f32 images.

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor,
};

use super::only_on_cuda;
use crate::conv2d::output_len;
use crate::cuda::device::{Address, Input, Output, dtype, run, with_inputs};
use crate::cuda::launch::{Conv, ConvStep, Element, Target};
use crate::cuda::product::multiply;
use crate::gemm::Precision;

/// See [`crate::conv2d`], whose checks these sizes have passed.
pub(crate) fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    precision: Precision,
) -> Result<Tensor> {
    let ((_, _, h, w), (_, _, kh, kw)) = (xs.dims4()?, weight.dims4()?);
    let len = |len, kernel| output_len("conv2d", len, kernel, stride, padding);
    let op = Conv2d {
        factors: precision.into(),
        output: [len(h, kh)?, len(w, kw)?],
        stride,
        padding,
    };
    xs.contiguous()?.apply_op2(&weight.contiguous()?, op)
}

/// `ys = conv(xs, weight)`
pub(super) fn forward(
    device: &CudaDevice,
    sizes: &Conv,
    read: [Address; 2],
    ys: Address,
) -> Result<()> {
    run_steps(device, |room| sizes.forward(read, ys, room))
}

/// The gradients of `xs` and `weight` from `[xs, weight, grad]`, each if there is a place for it.
pub(super) fn backward(
    device: &CudaDevice,
    sizes: &Conv,
    read: [Address; 3],
    dx: Option<Target<Address>>,
    dw: Option<Address>,
) -> Result<()> {
    run_steps(device, |room| sizes.backward(read, dx, dw, room))
}

/// Does all steps with room that lasts until they are queued.
pub(super) fn run_steps(
    device: &CudaDevice,
    make: impl FnOnce(
        &mut dyn FnMut(Element, usize) -> Result<Address>,
    ) -> Result<Vec<ConvStep<Address>>>,
) -> Result<()> {
    let mut rooms = Vec::new();
    let mut room = |element, len| {
        let output = Output::new(device, dtype(element), len)?;
        let address = output.address;
        rooms.push(output);
        Ok(address)
    };
    for step in make(&mut room)? {
        match step {
            ConvStep::Launch(launch) => run(device, &launch)?,
            ConvStep::Product(product) => multiply(device, &product)?,
        }
    }
    Ok(())
}

/// Room for the gradient of a tensor, if it has one.
fn gradient(device: &CudaDevice, of: &Tensor) -> Result<Option<Output>> {
    match of.track_op() {
        true => Output::new(device, DType::F32, of.elem_count()).map(Some),
        false => Ok(None),
    }
}

struct Conv2d {
    /// Of the products.
    factors: Element,
    /// Height and width of the result.
    output: [usize; 2],
    stride: usize,
    padding: usize,
}

impl Conv2d {
    fn sizes(&self, xs: &Shape, weight: &Shape) -> Result<Conv> {
        let [(b, c, h, w), (o, c_weight, kh, kw)] = [xs.dims4()?, weight.dims4()?];
        let (xs, weight) = ([b, c, h, w], [o, c_weight, kh, kw]);
        Conv::new(
            self.factors,
            xs,
            weight,
            self.output,
            [self.stride, self.padding],
        )
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let sizes = self.sizes(xs_layout.shape(), weight_layout.shape())?;
        let [h_out, w_out] = self.output;
        let (b, o) = (xs_layout.dims()[0], weight_layout.dims()[0]);
        let shape = Shape::from((b, o, h_out, w_out));
        let (xs, weight) = (
            Input::new(xs, xs_layout)?,
            Input::new(weight, weight_layout)?,
        );
        let ys = Output::new(xs.device, DType::F32, shape.elem_count())?;
        let read = [xs.f32()?, weight.f32()?];
        forward(xs.device, &sizes, read, ys.address)?;
        Ok((ys.storage, shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(xs.shape(), weight.shape())?;
        with_inputs([xs, weight, grad], |[x, w, grad]| {
            let read = [x.f32()?, w.f32()?, grad.f32()?];
            let (dx, dw) = (gradient(x.device, xs)?, gradient(x.device, weight)?);
            let address = |of: &Option<Output>| of.as_ref().map(|output| output.address);
            let to_dx = address(&dx).map(Target::new);
            backward(x.device, &sizes, read, to_dx, address(&dw))?;
            Ok((
                dx.map(|dx| dx.tensor(xs.shape())),
                dw.map(|dw| dw.tensor(weight.shape())),
            ))
        })
    }
}
