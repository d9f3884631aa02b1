//! The optimizer's step in few launches, and crops that travelled as bytes.

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use crate::cuda::device::{Address, Output, element, run, with_inputs, words_on};
use crate::cuda::launch::{self, Step, Weight, table};
use crate::multi_tensor::{Clip, Constants, StepWeight, Update};

/// See [`crate::multi_tensor::whole_step`], whose arguments were found to fit; `constants` are those
/// of all updates, if there are any.
pub(crate) fn whole_step(
    weights: &[StepWeight<'_>],
    constants: Option<Constants>,
    clip: Clip,
    momentum: f64,
    allowed: Option<&Tensor>,
) -> Result<Tensor> {
    let Some(first) = weights.first() else {
        bail!("whole_step: no weights")
    };
    let device = cuda_device(first.param)?;
    // Gradients that are not contiguous are copied; the copies live until all is launched.
    let mut grads = Vec::with_capacity(weights.len());
    for weight in weights {
        grads.push(weight.grad.map(Tensor::contiguous).transpose()?);
    }
    let mut rows = Vec::with_capacity(weights.len());
    for (weight, grad) in weights.iter().zip(&grads) {
        rows.push(Weight {
            param: in_place(weight.param)?,
            grad: grad.as_ref().map(in_place).transpose()?,
            teacher: weight.teacher.map(in_place).transpose()?,
            len: weight.param.elem_count(),
            update: match weight.update {
                None => None,
                Some(update) => Some(row_of(&update, weight.param.rank() > 1)?),
            },
        });
    }
    let step = Step::new(rows.iter().map(|row| row.len))?;
    let allowed = allowed.map(in_place).transpose()?;
    let words = words_on(&device, &table(&rows))?;
    with_inputs([&words], |[words]| {
        let new = |dtype, len| Output::new(&device, dtype, len);
        let squares = new(DType::F32, step.num_squares())?;
        let control = new(DType::F32, step.num_controls())?;
        let (table, figures) = (words.address, control.address);
        run(&device, &step.squares(table, squares.address))?;
        let factors = step.clip(table, squares.address, allowed, figures, clip);
        run(&device, &factors)?;
        match constants {
            Some(Constants::AdamW { beta1, beta2, eps }) => {
                let constants = [beta1, beta2, eps, momentum];
                run(&device, &step.adamw(table, figures, constants))?;
            }
            Some(Constants::Lars { momentum: own }) => {
                let squares = new(DType::F64, step.num_lars_squares())?;
                let trust = new(DType::F32, step.num_trusts())?;
                let (sums, ratios) = (squares.address, trust.address);
                run(&device, &step.lars_squares(table, figures, sums))?;
                run(&device, &step.lars_trust(table, figures, sums, ratios))?;
                let shares = [own, momentum];
                run(
                    &device,
                    &step.momentum(table, figures, Some(ratios), shares),
                )?;
            }
            Some(Constants::Sgd { momentum: own }) => {
                run(
                    &device,
                    &step.momentum(table, figures, None, [own, momentum]),
                )?;
            }
            // Nothing moves but the teacher.
            None => run(
                &device,
                &step.momentum(table, figures, None, [0.0, momentum]),
            )?,
        }
        control.tensor(step.num_controls()).narrow(0, 0, 2)
    })
}

/// How a weight moves, of more than one dimension or not.
fn row_of(update: &Update<'_>, is_matrix: bool) -> Result<launch::Update<Address>> {
    Ok(match update {
        Update::AdamW {
            exp_avg,
            exp_avg_sq,
            options,
        } => {
            let (bias1, bias2) = options.bias_corrections();
            launch::Update::AdamW {
                moments: [in_place(exp_avg)?, in_place(exp_avg_sq)?],
                decay: (1.0 - options.lr * options.weight_decay) as f32,
                minus_step_size: (-(options.lr / bias1)) as f32,
                bias2_sqrt: bias2.sqrt() as f32,
            }
        }
        Update::Sgd {
            momentum_buffer,
            options,
        } => launch::Update::Momentum {
            buffer: in_place(momentum_buffer)?,
            weight_decay: options.weight_decay as f32,
            lr: options.lr as f32,
            eta: None,
        },
        Update::Lars { mu, options } => launch::Update::Momentum {
            buffer: in_place(mu)?,
            weight_decay: if is_matrix {
                options.weight_decay as f32
            } else {
                0.0
            },
            lr: options.lr as f32,
            eta: is_matrix.then_some(options.eta),
        },
    })
}

pub(super) fn cuda_device(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => bail!("expected a tensor on a cuda device"),
    }
}

/// Where an f32 tensor lies, which may not be copied to be contiguous.
pub(super) fn in_place(tensor: &Tensor) -> Result<Address> {
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
