//! Batch norm of f32 values, with what follows it.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor,
};

use super::only_on_cuda;
use crate::batch_norm::AfterNorm;
use crate::cuda::device::{Input, Output, run, with_inputs};
use crate::cuda::launch::{self, Extras};

/// See [`crate::batch_norm_train_then`], whose checks these sizes have passed.
pub(crate) fn batch_norm_train(
    xs: &Tensor,
    [weight, bias]: [&Tensor; 2],
    eps: f64,
    after: AfterNorm<'_>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (xs, sizes) = (xs.contiguous()?, sizes_of(xs.shape())?);
    let channels = weight.elem_count();
    let stats = with_inputs([&xs], |[xs]| {
        let parts = Output::new(xs.device, DType::F32, sizes.parts_len())?;
        let stats = Output::new(xs.device, DType::F32, 3 * channels)?;
        let read = xs.f32()?;
        for launch in sizes.stats(read, parts.address, stats.address, eps as f32) {
            run(xs.device, &launch)?;
        }
        Ok(stats.tensor((3, channels)))
    })?;
    let [mean, variance] = [stats.get(0)?, stats.get(2)?];
    let ys = apply(&xs, stats, [weight, bias], after, true)?;
    Ok((ys, mean, variance))
}

/// See [`crate::batch_norm_eval_then`]; the statistics get no gradient.
pub(crate) fn batch_norm_eval(
    xs: &Tensor,
    [mean, variance]: [&Tensor; 2],
    [weight, bias]: [&Tensor; 2],
    eps: f64,
    after: AfterNorm<'_>,
) -> Result<Tensor> {
    let (xs, sizes) = (xs.contiguous()?, sizes_of(xs.shape())?);
    let channels = weight.elem_count();
    let stats = with_inputs([mean, variance], |[mean, variance]| {
        let stats = Output::new(mean.device, DType::F32, 3 * channels)?;
        let (read, written) = ([mean.f32()?, variance.f32()?], stats.address);
        run(
            mean.device,
            &sizes.given(read[0], read[1], written, eps as f32),
        )?;
        Ok(stats.tensor((3, channels)))
    })?;
    apply(&xs, stats, [weight, bias], after, false)
}

fn sizes_of(shape: &Shape) -> Result<launch::BatchNorm> {
    let (batch, channels) = (shape.dims()[0], shape.dims()[1]);
    let plane = shape.dims()[2..].iter().product();
    launch::BatchNorm::new(batch, channels, plane)
}

fn apply(
    xs: &Tensor,
    stats: Tensor,
    [weight, bias]: [&Tensor; 2],
    after: AfterNorm<'_>,
    of_batch: bool,
) -> Result<Tensor> {
    let affine = Tensor::cat(&[weight, bias], 0)?;
    let relu = !matches!(after, AfterNorm::Nothing);
    let op = BatchNorm {
        stats,
        extras: Extras { relu, of_batch },
    };
    match after {
        AfterNorm::Nothing | AfterNorm::Relu => xs.apply_op2(&affine, op),
        AfterNorm::AddRelu(residual) => xs.apply_op3(&residual.contiguous()?, &affine, op),
    }
}

struct BatchNorm {
    /// `[3, C]`: mean, 1/std, variance.
    stats: Tensor,
    extras: Extras,
}

impl BatchNorm {
    fn forward(
        &self,
        xs: Input<'_>,
        residual: Option<Input<'_>>,
        affine: Input<'_>,
        shape: &Shape,
    ) -> Result<(CudaStorage, Shape)> {
        let residual = residual.map(|residual| residual.f32()).transpose()?;
        let (sizes, x) = (sizes_of(shape)?, xs.f32()?);
        let ys = Output::new(xs.device, DType::F32, shape.elem_count())?;
        with_inputs([&self.stats], |[stats]| {
            let of_channel = [stats.f32()?, affine.f32()?];
            let launch = sizes.apply(x, residual, of_channel, ys.address, self.extras);
            run(xs.device, &launch)
        })?;
        Ok((ys.storage, shape.clone()))
    }

    /// The gradients of `xs`, of what was added if `ys` is given, and of `affine`.
    fn backward(
        &self,
        xs: &Tensor,
        ys: Option<&Tensor>,
        affine: &Tensor,
        grad: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>, Tensor)> {
        let (sizes, shape) = (sizes_of(xs.shape())?, xs.shape());
        let (stats, added) = (&self.stats, ys.is_some());
        // Without something added ys is not read; any place will do.
        let inputs = [xs, grad, stats, affine, ys.unwrap_or(grad)];
        with_inputs(inputs, |[x, grad, stats, weights, ys]| {
            let new = |len| Output::new(x.device, DType::F32, len);
            let parts = new(sizes.parts_len())?;
            let (dx, d_affine) = (new(shape.elem_count())?, new(affine.elem_count())?);
            let d_residual = match added {
                true => Some(new(shape.elem_count())?),
                false => None,
            };
            let read = [x.f32()?, grad.f32()?, stats.f32()?, weights.f32()?];
            let launches = sizes.grads(
                read,
                added.then_some(ys.f32()?),
                parts.address,
                [d_affine.address, dx.address],
                d_residual.as_ref().map(|output| output.address),
                self.extras,
            );
            for launch in launches {
                run(x.device, &launch)?;
            }
            let d_residual = d_residual.map(|output| output.tensor(shape));
            Ok((
                dx.tensor(shape),
                d_residual,
                d_affine.tensor(affine.shape()),
            ))
        })
    }
}

impl CustomOp2 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda("batch-norm")
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        affine: &CudaStorage,
        affine_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let affine = Input::new(affine, affine_layout)?;
        self.forward(Input::new(xs, xs_layout)?, None, affine, xs_layout.shape())
    }

    fn bwd(
        &self,
        xs: &Tensor,
        affine: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, _, d_affine) = self.backward(xs, None, affine, grad)?;
        Ok((Some(dx), Some(d_affine)))
    }
}

/// With what is added before the ReLU as the second argument.
impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm-add"
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
        only_on_cuda("batch-norm-add")
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
        affine: &CudaStorage,
        affine_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let residual = Input::new(residual, residual_layout)?;
        let affine = Input::new(affine, affine_layout)?;
        self.forward(
            Input::new(xs, xs_layout)?,
            Some(residual),
            affine,
            xs_layout.shape(),
        )
    }

    fn bwd(
        &self,
        xs: &Tensor,
        _residual: &Tensor,
        affine: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, d_residual, d_affine) = self.backward(xs, Some(ys), affine, grad)?;
        Ok((Some(dx), d_residual, Some(d_affine)))
    }
}
