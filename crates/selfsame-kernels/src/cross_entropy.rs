//! The DINO loss for given teacher probabilities (Caron et al. 2021, Eq. 1 and 3).

use crate::composed;
use crate::host::{self, fused, slice, with_slice};
use crate::locked::locked;
use crate::simd::{Level, softmax};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Mutex;

/// Mean cross-entropy between teacher and student over all pairs of different views (Eq. 1–3).
///
/// Rows are view-major: all images of crop 0, then of crop 1, and so on. The teacher saw only crops
/// 0 and 1. The gradient goes to the student's logits alone, in closed form:
/// per row `(Σ q · softmax − q) / (pairs · B · temp)`; nothing larger than it is ever held.
///
/// # Shape
/// `student_logits`: `[num_crops · B, K]`, `teacher_probs`: `[2 · B, K]`; the loss is a scalar.
/// # Errors
/// If the shapes do not fit, `num_crops < 2` or the temperature is not positive.
pub fn soft_cross_entropy(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    student_temp: f64,
) -> Result<Tensor> {
    let (rows, _) = student_logits.dims2()?;
    let (teacher_rows, _) = teacher_probs.dims2()?;
    if rows != num_crops * (teacher_rows / 2) {
        bail!(
            "soft_cross_entropy: {rows} student rows do not fit {num_crops} crops of \
             {teacher_rows} teacher rows"
        );
    }
    soft_cross_entropy_rows(student_logits, teacher_probs, num_crops, 0, student_temp)
}

/// The share of some of the student's rows in [`soft_cross_entropy`]: the shares of all rows add up
/// to it, so that they can be taken one after the other.
///
/// # Shape
/// `student_logits`: `[n, K]`, the rows from `first_row` on of all `num_crops · B`; the others as
/// in [`soft_cross_entropy`].
/// # Errors
/// As [`soft_cross_entropy`], and if the rows go beyond the last.
pub fn soft_cross_entropy_rows(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
) -> Result<Tensor> {
    let batch = check(
        student_logits,
        teacher_probs,
        num_crops,
        first_row,
        student_temp,
    )?;
    let teacher_probs = teacher_probs.detach();
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(student_logits) {
        return crate::cuda::ops::soft_cross_entropy_rows(
            student_logits,
            &teacher_probs,
            batch,
            num_crops,
            first_row,
            student_temp,
        );
    }
    if !fused(&[student_logits, &teacher_probs]) {
        return composed::soft_cross_entropy_rows(
            student_logits,
            &teacher_probs,
            num_crops,
            first_row,
            student_temp,
        );
    }
    let op = SoftCrossEntropy {
        batch,
        num_crops,
        first_row,
        student_temp,
        grad: Mutex::new(None),
    };
    student_logits
        .contiguous()?
        .apply_op2(&teacher_probs.contiguous()?, op)
}

/// The batch size B, after all shapes were found to fit.
pub(crate) fn check(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
) -> Result<usize> {
    let (student_rows, k) = student_logits.dims2()?;
    let (teacher_rows, teacher_k) = teacher_probs.dims2()?;
    if student_temp.is_nan() || student_temp <= 0.0 {
        bail!("soft_cross_entropy: the student temperature {student_temp} is not positive");
    }
    if num_crops < 2 || teacher_rows == 0 || teacher_rows % 2 != 0 {
        bail!("soft_cross_entropy: {num_crops} crops and {teacher_rows} teacher rows");
    }
    let batch = teacher_rows / 2;
    if first_row.saturating_add(student_rows) > num_crops.saturating_mul(batch)
        || k != teacher_k
        || k == 0
    {
        bail!(
            "soft_cross_entropy: student [{student_rows}, {k}] from row {first_row} on does not fit \
             {num_crops} crops of teacher [{teacher_rows}, {teacher_k}]"
        );
    }
    Ok(batch)
}

struct SoftCrossEntropy {
    batch: usize,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
    /// Gradient for a loss gradient of 1, taken by the first backward pass.
    grad: Mutex<Option<Vec<f32>>>,
}

impl SoftCrossEntropy {
    /// The loss and its gradient.
    fn run(&self, student: &[f32], teacher: &[f32]) -> (f64, Vec<f32>) {
        let k = teacher.len() / (2 * self.batch);
        let terms = ((2 * self.num_crops - 2) * self.batch) as f64;
        let (level, mut grad) = (Level::best(), student.to_vec());
        let (inverse_temp, factor) = (
            (1.0 / self.student_temp) as f32,
            (1.0 / (terms * self.student_temp)) as f32,
        );
        let losses: Vec<f64> = grad
            .par_chunks_exact_mut(k)
            .enumerate()
            .map(|(row, logits)| {
                let row = self.first_row + row;
                let (view, image) = (row / self.batch, row % self.batch);
                let target = |crop: usize| {
                    let start = (crop * self.batch + image) * k;
                    (view != crop).then(|| &teacher[start..start + k])
                };
                let targets = [target(0), target(1)];
                softmax::cross_entropy_row(level, logits, targets, inverse_temp, factor)
            })
            .collect();
        (losses.iter().sum::<f64>() / terms, grad)
    }
}

impl CustomOp2 for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        "soft-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        student_layout: &Layout,
        teacher: &CpuStorage,
        teacher_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let student = slice(student, student_layout)?;
        let (loss, grad) = self.run(student, slice(teacher, teacher_layout)?);
        *locked(&self.grad) = Some(grad);
        Ok((CpuStorage::F32(vec![loss as f32]), ().into()))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        loss_grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = locked(&self.grad).take();
        let mut grad = match kept {
            Some(grad) => grad,
            // A second backward pass through the same graph.
            None => with_slice(student, |student| {
                with_slice(teacher, |teacher| Ok(self.run(student, teacher).1))
            })?,
        };
        let scale = loss_grad.to_scalar::<f32>()?;
        if scale != 1.0 {
            host::for_each_chunk(&mut grad, host::CHUNK, |_, grad| {
                for g in grad {
                    *g *= scale;
                }
            });
        }
        Ok((Some(host::tensor(grad, student.shape())?), None))
    }
}
