//! The teacher as a moving average of the student.

use std::collections::BTreeMap;

use candle_core::{Result, Var, bail};
use selfsame_kernels::multi_tensor;

/// Moves every teacher parameter towards the student's of the same name, in place:
/// `teacher ← momentum·teacher + (1 − momentum)·student` (`main_dino.py`, "EMA update").
///
/// Hand over parameters only: batch-norm buffers belong to the network whose images they saw, and
/// the reference leaves the teacher's alone.
///
/// # Errors
/// [`candle_core::Error`] that lists every name that only one of the two has and every pair of
/// different shapes; in that case nothing was changed.
pub fn update_teacher(
    teacher: &BTreeMap<String, Var>,
    student: &BTreeMap<String, Var>,
    momentum: f64,
) -> Result<()> {
    if !(0.0..=1.0).contains(&momentum) {
        bail!("the teacher's momentum {momentum} is not between 0 and 1");
    }
    let problems = differences(teacher, student);
    if !problems.is_empty() {
        bail!("teacher and student differ: {}", problems.join("; "));
    }
    for (name, average) in teacher {
        multi_tensor::ema(average, &student[name], momentum)?;
    }
    Ok(())
}

/// One sentence for each name or shape that does not match.
fn differences(teacher: &BTreeMap<String, Var>, student: &BTreeMap<String, Var>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, average) in teacher {
        match student.get(name) {
            None => problems.push(format!("{name} is not in the student")),
            Some(source) if source.dims() != average.dims() => problems.push(format!(
                "{name} is {:?} in the teacher and {:?} in the student",
                average.dims(),
                source.dims()
            )),
            Some(_) => {}
        }
    }
    let surplus = student.keys().filter(|name| !teacher.contains_key(*name));
    problems.extend(surplus.map(|name| format!("{name} is not in the teacher")));
    problems
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn params(entries: &[(&str, &[f32])]) -> BTreeMap<String, Var> {
        entries
            .iter()
            .map(|(name, values)| (name.to_string(), Var::new(*values, &Device::Cpu).unwrap()))
            .collect()
    }

    #[test]
    fn teacher_keeps_the_momentum_share_of_itself() {
        let teacher = params(&[("a", &[1.0, 2.0, -4.0]), ("b", &[0.0])]);
        let student = params(&[("a", &[2.0, 0.0, 4.0]), ("b", &[8.0])]);
        update_teacher(&teacher, &student, 0.75).unwrap();
        // Were teacher and student swapped, a[0] would be 1.75.
        assert_eq!(teacher["a"].to_vec1::<f32>().unwrap(), [1.25, 1.5, -2.0]);
        assert_eq!(teacher["b"].to_vec1::<f32>().unwrap(), [2.0]);
        assert_eq!(student["a"].to_vec1::<f32>().unwrap(), [2.0, 0.0, 4.0]);
    }

    #[test]
    fn momentum_one_leaves_the_teacher_and_zero_copies_the_student() {
        let teacher = params(&[("a", &[0.1, 0.7])]);
        let student = params(&[("a", &[0.3, -0.9])]);
        update_teacher(&teacher, &student, 1.0).unwrap();
        assert_eq!(teacher["a"].to_vec1::<f32>().unwrap(), [0.1, 0.7]);
        update_teacher(&teacher, &student, 0.0).unwrap();
        assert_eq!(teacher["a"].to_vec1::<f32>().unwrap(), [0.3, -0.9]);
    }

    #[test]
    fn detached_views_of_the_teacher_see_the_update() {
        let teacher = params(&[("a", &[1.0])]);
        let view = teacher["a"].as_detached_tensor();
        update_teacher(&teacher, &params(&[("a", &[3.0])]), 0.5).unwrap();
        assert_eq!(view.to_vec1::<f32>().unwrap(), [2.0]);
    }

    #[test]
    fn every_name_that_differs_is_listed_and_nothing_moves() {
        let teacher = params(&[("a", &[1.0]), ("b", &[1.0]), ("c", &[1.0])]);
        let student = params(&[("a", &[2.0]), ("c", &[2.0, 2.0]), ("d", &[2.0])]);
        let text = update_teacher(&teacher, &student, 0.5)
            .unwrap_err()
            .to_string();
        for part in [
            "b is not in the student",
            "d is not in the teacher",
            "c is [1]",
        ] {
            assert!(text.contains(part), "{part:?} is missing from {text}");
        }
        assert_eq!(teacher["a"].to_vec1::<f32>().unwrap(), [1.0]);
    }

    #[test]
    fn momentum_above_one_is_refused() {
        let same = params(&[("a", &[1.0])]);
        assert!(update_teacher(&same, &same, 1.5).is_err());
    }
}
