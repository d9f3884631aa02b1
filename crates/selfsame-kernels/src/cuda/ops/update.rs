//! The optimizer's step in three launches, and crops that travelled as bytes.

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use crate::cuda::device::{Address, Output, element, run, with_inputs, words_on};
use crate::cuda::launch::{self, Step, Weight, table};
use crate::multi_tensor::{Clip, StepWeight};

/// See [`crate::multi_tensor::adamw_ema_step`], whose arguments were found to fit.
pub(crate) fn adamw_ema_step(
    weights: &[StepWeight<'_>],
    clip: Clip,
    momentum: f64,
) -> Result<Tensor> {
    let Some(first) = weights.first() else {
        bail!("adamw_ema_step: no weights")
    };
    let (options, device) = (first.options, cuda_device(first.param)?);
    // Gradients that are not contiguous are copied; the copies live until all is launched.
    let mut grads = Vec::with_capacity(weights.len());
    for weight in weights {
        grads.push(weight.grad.map(Tensor::contiguous).transpose()?);
    }
    let mut rows = Vec::with_capacity(weights.len());
    for (weight, grad) in weights.iter().zip(&grads) {
        let (bias1, bias2) = weight.options.bias_corrections();
        let (m, v) = weight.moments.unzip();
        let optional = |tensor: Option<&Tensor>| tensor.map(in_place).transpose();
        rows.push(Weight {
            param: in_place(weight.param)?,
            grad: optional(grad.as_ref())?,
            exp_avg: optional(m)?,
            exp_avg_sq: optional(v)?,
            teacher: optional(weight.teacher)?,
            len: weight.param.elem_count(),
            decay: (1.0 - weight.options.lr * weight.options.weight_decay) as f32,
            minus_step_size: (-(weight.options.lr / bias1)) as f32,
            bias2_sqrt: bias2.sqrt() as f32,
            is_applied: weight.moments.is_some(),
        });
    }
    let step = Step::new(rows.iter().map(|row| row.len))?;
    let words = words_on(&device, &table(&rows))?;
    let constants = [options.beta1, options.beta2, options.eps, momentum];
    with_inputs([&words], |[words]| {
        let squares = Output::new(&device, DType::F32, step.num_squares())?;
        let control = Output::new(&device, DType::F32, step.num_controls())?;
        let (table, squares) = (words.address, squares.address);
        run(&device, &step.squares(table, squares))?;
        run(&device, &step.clip(table, squares, control.address, clip))?;
        run(&device, &step.update(table, control.address, constants))?;
        control.tensor(step.num_controls()).narrow(0, 0, 2)
    })
}

fn cuda_device(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => bail!("expected a tensor on a cuda device"),
    }
}

/// Where an f32 tensor lies, which may not be copied to be contiguous.
fn in_place(tensor: &Tensor) -> Result<Address> {
    if !tensor.is_contiguous() {
        bail!(
            "an in-place update needs a contiguous tensor, got {:?}",
            tensor.layout()
        );
    }
    with_inputs([tensor], |[tensor]| tensor.f32())
}

/// See [`crate::normalize_crops`].
pub(crate) fn normalize_crops(
    bytes: &Tensor,
    mean: [f32; 3],
    std: [f32; 3],
    dtype: DType,
) -> Result<Tensor> {
    let (images, _, height, width) = bytes.dims4()?;
    let (shape, element) = (bytes.shape(), element(dtype)?);
    with_inputs([bytes], |[bytes]| {
        if bytes.dtype != DType::U8 {
            bail!("normalize_crops: expected bytes, got {:?}", bytes.dtype);
        }
        let ys = Output::new(bytes.device, dtype, shape.elem_count())?;
        let (from, to) = (bytes.address, ys.address);
        let plane = height * width;
        let launch = launch::normalize_crops(element, from, to, images, plane, mean, std)?;
        run(bytes.device, &launch)?;
        Ok(ys.tensor(shape))
    })
}
