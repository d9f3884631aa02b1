//! Which part of a file is a network's weights.

use crate::error::ModelError;

/// Which network of a checkpoint that has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// The one that is evaluated.
    #[default]
    Teacher,
    /// The one that is trained.
    Student,
}

/// Dictionaries that hold nothing but a network's weights.
const WRAPPERS: [&str; 3] = ["state_dict.", "model_state_dict.", "model."];

/// The prefix under which the weights asked for stand; empty if they are not wrapped.
///
/// # Errors
/// [`ModelError::OtherNetwork`] if the file has one network of the two and the other is wanted.
pub(super) fn prefix<'a>(
    names: impl Iterator<Item = &'a String> + Clone,
    which: Which,
) -> Result<String, ModelError> {
    let has = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
    for outer in [""].into_iter().chain(WRAPPERS) {
        let [teacher, student] = ["teacher.", "student."].map(|inner| format!("{outer}{inner}"));
        return match (has(&teacher), has(&student), which) {
            (false, false, _) => continue,
            (true, _, Which::Teacher) => Ok(teacher),
            (_, true, Which::Student) => Ok(student),
            (true, false, Which::Student) => Err(lacks("student", "teacher")),
            (false, true, Which::Teacher) => Err(lacks("teacher", "student")),
        };
    }
    let wrapper = WRAPPERS.into_iter().find(|wrapper| has(wrapper));
    Ok(wrapper.unwrap_or_default().to_owned())
}

fn lacks(wanted: &'static str, there: &'static str) -> ModelError {
    ModelError::OtherNetwork { wanted, there }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_asked_for_is_found_in_each_kind_of_file() {
        let prefix = |names: &[&str], which| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            super::prefix(names.iter(), which)
        };
        let both = ["student.module.backbone.x", "teacher.backbone.x", "epoch"];
        assert_eq!(prefix(&both, Which::Teacher).unwrap(), "teacher.");
        assert_eq!(prefix(&both, Which::Student).unwrap(), "student.");
        assert_eq!(
            prefix(&["model.cls_token"], Which::Teacher).unwrap(),
            "model."
        );
        assert_eq!(prefix(&["cls_token"], Which::Student).unwrap(), "");
        // Lightning's, with a model that has both.
        let nested = [
            "state_dict.teacher.backbone.x",
            "state_dict.student.backbone.x",
        ];
        assert_eq!(
            prefix(&nested, Which::Student).unwrap(),
            "state_dict.student."
        );
        let error = prefix(&["teacher.x"], Which::Student).unwrap_err();
        let told = "a teacher and no student";
        assert!(error.to_string().contains(told), "{error}");
    }
}
