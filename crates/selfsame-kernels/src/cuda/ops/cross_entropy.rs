//! The DINO loss: one pass over each row of the student for the loss, one for its gradient.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::only_on_cuda;
use crate::cuda::device::{Input, Output, element, run, with_inputs};
use crate::cuda::launch::{self, scaled};
use crate::locked::locked;

/// See [`crate::soft_cross_entropy_rows`], whose shapes were found to fit; f32 probabilities.
pub(crate) fn soft_cross_entropy_rows(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    batch: usize,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
) -> Result<Tensor> {
    let (rows, width) = student_logits.dims2()?;
    let op = SoftCrossEntropy {
        sizes: launch::CrossEntropy {
            element: element(student_logits.dtype())?,
            rows,
            width,
            batch,
            num_crops,
            first_row,
            student_temp,
        },
        keep: student_logits.track_op(),
        grad: Mutex::new(None),
    };
    student_logits
        .contiguous()?
        .apply_op2(&teacher_probs.to_dtype(DType::F32)?.contiguous()?, op)
}

struct SoftCrossEntropy {
    sizes: launch::CrossEntropy,
    keep: bool,
    /// Gradient for a loss gradient of 1, taken by the first backward pass.
    grad: Mutex<Option<Tensor>>,
}

impl SoftCrossEntropy {
    /// The loss and, if it is to be kept, its gradient.
    fn launch(
        &self,
        student: Input<'_>,
        teacher: Input<'_>,
        keep: bool,
    ) -> Result<(Output, Option<Tensor>)> {
        let (sizes, device) = (self.sizes, student.device);
        let read = [student.of(sizes.element)?, teacher.f32()?];
        let grad = match keep {
            true => Some(Output::new(
                device,
                student.dtype,
                sizes.rows * sizes.width,
            )?),
            false => None,
        };
        let losses = Output::new(device, DType::F32, sizes.rows)?;
        let loss = Output::new(device, DType::F32, 1)?;
        let place = grad.as_ref().map(|grad| grad.address);
        run(device, &sizes.forward(read, place, losses.address)?)?;
        run(device, &sizes.total(losses.address, loss.address)?)?;
        let grad = grad.map(|grad| grad.tensor((sizes.rows, sizes.width)));
        Ok((loss, grad))
    }
}

impl CustomOp2 for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        "soft-cross-entropy"
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
        student: &CudaStorage,
        student_layout: &Layout,
        teacher: &CudaStorage,
        teacher_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let student = Input::new(student, student_layout)?;
        let teacher = Input::new(teacher, teacher_layout)?;
        let (loss, grad) = self.launch(student, teacher, self.keep)?;
        *locked(&self.grad) = grad;
        Ok((loss.storage, ().into()))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        loss_grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = locked(&self.grad).take();
        let grad = match kept {
            Some(grad) => Some(grad),
            // A second backward pass through the same graph.
            None => with_inputs([student, teacher], |[student, teacher]| {
                Ok(self.launch(student, teacher, true)?.1)
            })?,
        };
        let Some(grad) = grad else {
            candle_core::bail!("soft_cross_entropy: no gradient was computed")
        };
        // The factor lies on the device, and the host need not wait for it.
        let dx = with_inputs([&grad, loss_grad], |[grad, factor]| {
            let len = self.sizes.rows * self.sizes.width;
            let dx = Output::new(grad.device, grad.dtype, len)?;
            let factor = factor.f32()?;
            let launch = scaled(self.sizes.element, grad.address, factor, dx.address, len)?;
            run(grad.device, &launch)?;
            Ok(dx.tensor(student.shape()))
        })?;
        Ok((Some(dx), None))
    }
}
