//! The DINO loss.

use candle_core::{D, DType, Result, Tensor, bail};
use selfsame_kernels::{centered_softmax, soft_cross_entropy, soft_cross_entropy_rows};

/// The loss of one batch, and the targets it was taken against.
#[derive(Debug, Clone)]
pub struct DinoLoss {
    /// Scalar; its graph ends at the student's logits.
    pub loss: Tensor,
    /// `[2B, K]`, rows sum to 1, without a graph. Its mean entropy is the loss's floor.
    pub teacher_probs: Tensor,
}

/// Cross-entropy between the centred, sharpened teacher and the student, over views (Eq. 1-3).
///
/// The mean over all pairs of a global view (teacher) and another view (student), and over the
/// images; a view is never compared with itself. The teacher's side carries no graph.
///
/// # Shape
/// - `student_logits`: `[num_crops·B, K]`, view-major, the two global views first.
/// - `teacher_logits`: `[2B, K]`, view-major, uncentred.
/// - `center`: `[1, K]`, the one of the steps before this one.
///
/// `num_crops` is 2 + the number of local views; the temperatures are positive.
///
/// # Errors
/// [`candle_core::Error`] if shapes do not fit one another or a temperature is not positive.
#[doc(alias = "DINOLoss")]
pub fn dino_loss(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    center: &Tensor,
    num_crops: usize,
    student_temp: f64,
    teacher_temp: f64,
) -> Result<DinoLoss> {
    let (student_rows, k) = student_logits.dims2()?;
    let (teacher_rows, teacher_k) = teacher_logits.dims2()?;
    if num_crops < 2 || student_rows == 0 || student_rows * 2 != teacher_rows * num_crops {
        bail!(
            "{student_rows} student rows of {num_crops} crops do not fit {teacher_rows} teacher \
             rows of 2"
        );
    }
    if student_rows % num_crops != 0 {
        bail!("{student_rows} student rows are not a multiple of {num_crops} crops");
    }
    if teacher_k != k || center.dims() != [1, k] {
        bail!(
            "student logits have {k} prototypes, teacher logits {teacher_k}, the centre is {:?}",
            center.dims()
        );
    }
    for (name, temp) in [("student", student_temp), ("teacher", teacher_temp)] {
        if !(temp > 0.0 && temp.is_finite()) {
            bail!("the {name} temperature {temp} is not positive");
        }
    }
    let teacher_probs = teacher_probs(teacher_logits, center, teacher_temp)?;
    let student_logits = student_logits.to_dtype(DType::F32)?;
    let loss = soft_cross_entropy(&student_logits, &teacher_probs, num_crops, student_temp)?;
    Ok(DinoLoss {
        loss,
        teacher_probs,
    })
}

/// The share of some of the student's rows in [`dino_loss`]; the shares of all rows add up to it.
///
/// # Shape
/// `student_logits`: `[n, K]`, the rows from `first_row` on of all `num_crops·B`; `teacher_probs`:
/// `[2B, K]`, by [`teacher_probs`].
///
/// # Errors
/// [`candle_core::Error`] if shapes do not fit one another or the temperature is not positive.
pub fn dino_loss_part(
    student_logits: &Tensor,
    teacher_probs: &Tensor,
    num_crops: usize,
    first_row: usize,
    student_temp: f64,
) -> Result<Tensor> {
    let student_logits = student_logits.to_dtype(DType::F32)?;
    soft_cross_entropy_rows(
        &student_logits,
        teacher_probs,
        num_crops,
        first_row,
        student_temp,
    )
}

/// Softmax of `(logits − center) / temp` in f32, without a graph (Eq. 1 with the centre of Eq. 4).
///
/// # Shape
/// `teacher_logits`: `[2B, K]`, `center`: `[1, K]`; the result is shaped as the logits.
///
/// # Errors
/// [`candle_core::Error`] if the shapes do not fit, or the temperature is not above 0.
pub fn teacher_probs(
    teacher_logits: &Tensor,
    center: &Tensor,
    teacher_temp: f64,
) -> Result<Tensor> {
    centered_softmax(teacher_logits, center, teacher_temp)
}

/// Mean entropy of the teacher's distributions in nats: the floor of the DINO loss.
///
/// Every teacher row stands in the same number of pairs, so `loss − teacher_entropy` is the mean
/// KL divergence. ln K says that the teacher is uniform, 0 that every row is one prototype.
///
/// # Shape
/// `teacher_probs`: `[N, K]`; the result is a scalar without a graph.
///
/// # Errors
/// [`candle_core::Error`] if `teacher_probs` is not a float matrix.
pub fn teacher_entropy(teacher_probs: &Tensor) -> Result<Tensor> {
    let (n, _) = teacher_probs.dims2()?;
    let probs = teacher_probs.detach().to_dtype(DType::F32)?;
    // A sharp softmax underflows to 0 in f32, and p·ln p is 0 there: the smallest normal number
    // under the logarithm leaves such a product 0 instead of NaN.
    let logs = probs.maximum(f64::from(f32::MIN_POSITIVE))?.log()?;
    (probs * logs)?.sum(D::Minus1)?.sum_all()? / -(n as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_prototypes_and_temperatures_that_do_not_fit_are_refused() {
        let logits = |rows, k| Tensor::zeros((rows, k), DType::F32, &Device::Cpu).unwrap();
        let loss = |student: (usize, usize), teacher: (usize, usize), center, crops, temps| {
            let (student_temp, teacher_temp) = temps;
            dino_loss(
                &logits(student.0, student.1),
                &logits(teacher.0, teacher.1),
                &logits(1, center),
                crops,
                student_temp,
                teacher_temp,
            )
            .map(drop)
        };
        let temps = (0.1, 0.04);
        loss((12, 5), (6, 5), 5, 4, temps).unwrap();
        for (student, teacher, center, crops, temps) in [
            ((3, 5), (6, 5), 5, 1, temps),
            ((0, 5), (0, 5), 5, 4, temps),
            ((12, 5), (4, 5), 5, 4, temps),
            ((6, 5), (3, 5), 5, 4, temps),
            ((12, 5), (6, 4), 5, 4, temps),
            ((12, 5), (6, 5), 4, 4, temps),
            ((12, 5), (6, 5), 5, 4, (0.0, 0.04)),
            ((12, 5), (6, 5), 5, 4, (0.1, -1.0)),
            ((12, 5), (6, 5), 5, 4, (f64::INFINITY, 0.04)),
            ((12, 5), (6, 5), 5, 4, (0.1, f64::NAN)),
        ] {
            let refused = loss(student, teacher, center, crops, temps);
            assert!(
                refused.is_err(),
                "{student:?} {teacher:?} {center} {crops} {temps:?}"
            );
        }
    }
}
