//! The loss, its gradient and the centre against PyTorch and against finite differences.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use candle_core::{Device, Result, Tensor, Var};
use selfsame_objectives::{Center, dino_loss, dino_loss_part, teacher_entropy, teacher_probs};
use serde_json::Value;

struct Case {
    json: Value,
    student: Var,
    teacher: Tensor,
    center: Tensor,
    num_crops: usize,
    temps: (f64, f64),
}

impl Case {
    fn floats(&self, key: &str) -> Vec<f64> {
        floats(&self.json[key])
    }

    fn loss_of(&self, student: &Tensor) -> Result<Tensor> {
        let (student_temp, teacher_temp) = self.temps;
        let (crops, center) = (self.num_crops, &self.center);
        Ok(dino_loss(
            student,
            &self.teacher,
            center,
            crops,
            student_temp,
            teacher_temp,
        )?
        .loss)
    }
}

fn floats(json: &Value) -> Vec<f64> {
    json.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

fn cases() -> Vec<Case> {
    let golden: Value = serde_json::from_str(include_str!("golden/dino_loss.json")).unwrap();
    let device = Device::Cpu;
    golden["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|json| {
            let size = |key: &str| json[key].as_u64().unwrap() as usize;
            let matrix = |key: &str, rows: usize| {
                let values: Vec<f32> = floats(&json[key]).iter().map(|&x| x as f32).collect();
                Tensor::from_vec(values, (rows, size("k")), &device).unwrap()
            };
            let (batch, num_crops) = (size("batch"), size("num_crops"));
            Case {
                student: Var::from_tensor(&matrix("student_logits", num_crops * batch)).unwrap(),
                teacher: matrix("teacher_logits", 2 * batch),
                center: matrix("center", 1),
                num_crops,
                temps: (
                    json["student_temp"].as_f64().unwrap(),
                    json["teacher_temp"].as_f64().unwrap(),
                ),
                json: json.clone(),
            }
        })
        .collect()
}

/// Both sides are f32 with other summation orders; values are of order 1 to 10 and logits are
/// divided by temperatures down to 0.04, so a few dozen ulp remain.
fn assert_close(got: &Tensor, want: &[f64], what: &str) {
    let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(got) - want).abs();
        assert!(
            difference < 5e-6 * want.abs().max(1.0),
            "{what}[{i}]: {got} is not {want}"
        );
    }
}

#[test]
fn loss_gradient_targets_and_center_equal_pytorch() {
    for case in cases() {
        let (student_temp, teacher_temp) = case.temps;
        let dino = dino_loss(
            &case.student,
            &case.teacher,
            &case.center,
            case.num_crops,
            student_temp,
            teacher_temp,
        )
        .unwrap();
        assert_close(&dino.loss, &[case.json["loss"].as_f64().unwrap()], "loss");
        assert_close(
            &dino.teacher_probs,
            &case.floats("teacher_probs"),
            "teacher_probs",
        );
        let entropy = teacher_entropy(&dino.teacher_probs).unwrap();
        assert_close(
            &entropy,
            &[case.json["teacher_entropy"].as_f64().unwrap()],
            "entropy",
        );

        let grads = dino.loss.backward().unwrap();
        let grad = grads
            .get(&case.student)
            .expect("the student has a gradient");
        assert_close(grad, &case.floats("student_grad"), "student_grad");

        let mut center = Center::new(case.center.dims()[1], 0.9, &Device::Cpu).unwrap();
        center.load(&case.center).unwrap();
        center
            .update(&case.teacher.mean_keepdim(0).unwrap())
            .unwrap();
        assert_close(center.tensor(), &case.floats("next_center"), "next_center");
    }
}

#[test]
fn gradient_equals_finite_differences() {
    let case = &cases()[0];
    let grads = case.loss_of(&case.student).unwrap().backward().unwrap();
    let grad = grads
        .get(&case.student)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let at = case
        .student
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    // f32 loss of about 10 has 1e-6 of noise: a step of 1e-2 leaves 1e-4 in the quotient, and its
    // own h² error (third derivative / temperature³) is as large.
    let h = 1e-2f32;
    for i in 0..at.len() {
        let loss_at = |delta: f32| {
            let mut moved = at.clone();
            moved[i] += delta;
            let moved = Tensor::from_vec(moved, case.student.dims(), &Device::Cpu).unwrap();
            case.loss_of(&moved).unwrap().to_scalar::<f32>().unwrap()
        };
        let quotient = (loss_at(h) - loss_at(-h)) / (2.0 * h);
        assert!(
            (quotient - grad[i]).abs() < 2e-3,
            "[{i}]: {quotient} is not {}",
            grad[i]
        );
    }
}

#[test]
fn neither_teacher_nor_center_gets_a_gradient() {
    let case = &cases()[0];
    let teacher = Var::from_tensor(&case.teacher).unwrap();
    let center = Var::from_tensor(&case.center).unwrap();
    let dino = dino_loss(&case.student, &teacher, &center, case.num_crops, 0.1, 0.04).unwrap();
    let grads = dino.loss.backward().unwrap();
    assert!(grads.get(&case.student).is_some());
    assert!(grads.get(&teacher).is_none() && grads.get(&center).is_none());
}

#[test]
fn a_view_is_never_compared_with_itself() {
    // Two views, one image: the teacher's first view is compared with the student's second alone.
    let device = Device::Cpu;
    let student = Var::new(&[[5f32, 0.0], [0.0, 0.0]], &device).unwrap();
    let teacher = Tensor::new(&[[1f32, 0.0], [0.0, 0.0]], &device).unwrap();
    let center = Tensor::zeros((1, 2), candle_core::DType::F32, &device).unwrap();
    let loss = dino_loss(&student, &teacher, &center, 2, 1.0, 0.01)
        .unwrap()
        .loss;
    // −½·[ln ½ (first teacher, second student) + ½·ln p₀ + ½·ln p₁ (second teacher, first student)]
    let log_p1 = -(1.0 + 5f64.exp()).ln();
    let expected = -0.5 * (0.5f64.ln() + 0.5 * (5.0 + log_p1) + 0.5 * log_p1);
    let got = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
}

#[test]
fn loss_of_a_student_that_equals_the_teacher_is_its_entropy() {
    let device = Device::Cpu;
    let row = [0.3f32, -0.2, 0.1];
    let teacher = Tensor::new(&[row, row], &device).unwrap();
    let student = Tensor::new(&[row, row, row], &device).unwrap();
    let center = Tensor::zeros((1, 3), candle_core::DType::F32, &device).unwrap();
    let dino = dino_loss(&student, &teacher, &center, 3, 0.1, 0.1).unwrap();
    let floor = teacher_entropy(&dino.teacher_probs)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!((dino.loss.to_scalar::<f32>().unwrap() - floor).abs() < 1e-6);
}

#[test]
fn very_sharp_teachers_have_entropy_zero_not_nan() {
    let device = Device::Cpu;
    let teacher = Tensor::new(&[[900f32, 0.0, -900.0], [0.0, 800.0, 0.0]], &device).unwrap();
    let center = Tensor::zeros((1, 3), candle_core::DType::F32, &device).unwrap();
    let dino = dino_loss(&teacher, &teacher, &center, 2, 0.1, 0.04).unwrap();
    assert_eq!(
        teacher_entropy(&dino.teacher_probs)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap(),
        0.0
    );
    assert!(dino.loss.to_scalar::<f32>().unwrap().is_finite());
}

#[test]
fn shapes_and_temperatures_that_do_not_fit_are_refused() {
    let device = Device::Cpu;
    let zeros =
        |n: usize, k: usize| Tensor::zeros((n, k), candle_core::DType::F32, &device).unwrap();
    let refused = |s: &Tensor, t: &Tensor, c: &Tensor, crops: usize, temp: f64| {
        dino_loss(s, t, c, crops, 0.1, temp).is_err()
    };
    assert!(!refused(&zeros(10, 4), &zeros(4, 4), &zeros(1, 4), 5, 0.04));
    assert!(
        refused(&zeros(9, 4), &zeros(4, 4), &zeros(1, 4), 5, 0.04),
        "a row is missing"
    );
    assert!(
        refused(&zeros(10, 4), &zeros(4, 5), &zeros(1, 5), 5, 0.04),
        "teacher is wider"
    );
    assert!(
        refused(&zeros(10, 4), &zeros(4, 4), &zeros(1, 1), 5, 0.04),
        "centre would broadcast"
    );
    assert!(
        refused(&zeros(2, 4), &zeros(4, 4), &zeros(1, 4), 1, 0.04),
        "one crop has no pair"
    );
    assert!(
        refused(&zeros(10, 4), &zeros(4, 4), &zeros(1, 4), 5, 0.0),
        "temperature 0"
    );
    assert!(
        refused(&zeros(5, 4), &zeros(2, 4), &zeros(1, 4), 0, 0.04),
        "no crops"
    );
}

#[test]
fn temperatures_and_rows_that_cannot_be_are_refused() {
    let device = &Device::Cpu;
    let logits = |rows: usize| Tensor::zeros((rows, 4), candle_core::DType::F32, device).unwrap();
    let center = Center::new(4, 0.9, device).unwrap();
    for temp in [0.0, -1.0, f64::NAN] {
        let error = teacher_probs(&logits(2), center.tensor(), temp).unwrap_err();
        assert!(error.to_string().contains("temperature"), "{error}");
    }
    let probs = teacher_probs(&logits(2), center.tensor(), 0.1).unwrap();
    dino_loss_part(&logits(1), &probs, 2, 1, 0.1).unwrap();
    for first_row in [2, usize::MAX] {
        let error = dino_loss_part(&logits(1), &probs, 2, first_row, 0.1).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
    }
}
