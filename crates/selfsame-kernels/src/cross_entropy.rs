//! The DINO loss for given teacher probabilities (Caron et al. 2021, Eq. 1 and 3).

use crate::composed;
use candle_core::{Result, Tensor, bail};

/// Mean cross-entropy between teacher and student over all pairs of different views (Eq. 1–3).
///
/// Rows are view-major: all images of crop 0, then of crop 1. The teacher saw only crops 0 and 1.
/// The gradient goes to the student's logits alone.
///
/// # Shape
/// `student_logits`: `[num_crops * B, K]`, `teacher_probs`: `[2 * B, K]`; the loss is a scalar.
/// # Errors
/// If the shapes do not fit, `num_crops < 2` or the temperature is not positive.
pub fn soft_cross_entropy(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    student_temp: f64,
) -> Result<Tensor> {
    composed::soft_cross_entropy(student_logits, teacher_probs, num_crops, student_temp)
}

/// The batch size B, after all shapes were found to fit.
pub(crate) fn check(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
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
    let b = teacher_rows / 2;
    if student_rows != num_crops * b || k != teacher_k || k == 0 {
        bail!(
            "soft_cross_entropy: student [{student_rows}, {k}] does not fit {num_crops} crops of \
             teacher [{teacher_rows}, {teacher_k}]"
        );
    }
    Ok(b)
}
