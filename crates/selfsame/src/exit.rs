//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 129/130/143 interrupted.

use std::path::Path;
use std::process::ExitCode;

use selfsame_data::DataError;
use selfsame_models::ModelError;
use selfsame_train::{Outcome, TrainError};

use crate::memory;
use crate::stderr::tell;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// All is well.
    Well,
    /// The answer is no, for example unusable files in `check-data`.
    No,
    /// Stopped by a signal after a checkpoint.
    Interrupted(i32),
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Interrupted(signal) => Self::Interrupted(signal),
            _ => Self::Well,
        }
    }
}

/// Marks an error as the user's: a flag, a key, a specification.
#[derive(Debug)]
pub(crate) struct Usage {
    /// The flag whose value it is, or nothing.
    flag: &'static str,
    text: String,
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.flag {
            "" => f.write_str(&self.text),
            flag => write!(f, "{flag} {}", self.text),
        }
    }
}

impl std::error::Error for Usage {}

/// What libraries call the settings that are flags here.
const FLAGS: [(&str, &str); 4] = [
    ("images_root: ", "--images-root: "),
    ("knn.ks: ", "--k: "),
    ("knn.temperature: ", "--temperature: "),
    ("tsne.perplexity: ", "--perplexity: "),
];

/// What the data crate calls its options within a text, and what they are here.
const OPTIONS: [(&str, &str); 3] = [
    ("(images_root names", "(--images-root DIR names"),
    (", allow_outside lifts", ", --allow-outside lifts"),
    (
        " (max_bad_fraction);",
        " (data.max_bad_fraction); `selfsame check-data` lists them, to be mended or taken out;",
    ),
];

/// A usage error with this text; a setting of a library is named by its flag.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    usage_of("", by_setting(text.into()))
}

/// The text with a flag for the setting of a library that it begins with.
fn by_setting(text: String) -> String {
    let named = FLAGS.iter().find_map(|(setting, flag)| {
        let problem = text.strip_prefix(setting)?;
        Some(format!("{flag}{problem}"))
    });
    named.unwrap_or(text)
}

/// A usage error about the value of this flag, with which `text` begins.
pub(crate) fn usage_of(flag: &'static str, text: impl Into<String>) -> anyhow::Error {
    let text = text.into();
    anyhow::Error::new(Usage { flag, text })
}

/// The same error where the value came by another flag, or by none.
pub(crate) fn by_flag(flag: &'static str, mut error: anyhow::Error) -> anyhow::Error {
    if let Some(usage) = error.downcast_mut::<Usage>()
        && !usage.flag.is_empty()
    {
        usage.flag = flag;
    }
    error
}

/// A path as a shell takes it, for commands that are to be pasted.
pub(crate) fn pasteable(path: &Path) -> String {
    let text = path.display().to_string();
    // What is a list or a variable to one of the shells there needs quotes.
    let plain = match cfg!(windows) {
        true => r"/._-+=:\",
        false => "/._-+=:,@%",
    };
    let is_plain = |c: char| c.is_alphanumeric() || plain.contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    match cfg!(windows) {
        // Both shells take these, but for what `$` and % mean within them; one more backslash at the
        // end, or it would take the quote for its own.
        true if text.ends_with('\\') => format!("\"{text}\\\""),
        true => format!("\"{text}\""),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Prints an error to stderr and gives the process's exit code.
pub(crate) fn code(result: anyhow::Result<Done>) -> ExitCode {
    match result {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::No) => ExitCode::from(1),
        Ok(Done::Interrupted(signal)) => ExitCode::from((128 + signal).clamp(0, 255) as u8),
        Err(error) => {
            tell!("error: {}{}", text_of(&error), memory::hint(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// The error with its causes; the data crate's options are named by their flags and keys.
fn text_of(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let of_data = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(TrainError::Data(error)) => Some(error),
        _ => cause.downcast_ref::<DataError>(),
    });
    let Some(of_data) = of_data.map(DataError::to_string) else {
        return text;
    };
    let named = OPTIONS
        .iter()
        .fold(by_setting(of_data.clone()), |named, (option, flag)| {
            named.replacen(option, flag, 1)
        });
    text.replacen(&of_data, &named, 1)
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause
                .downcast_ref::<TrainError>()
                .is_some_and(TrainError::is_usage)
            || cause
                .downcast_ref::<DataError>()
                .is_some_and(DataError::is_usage)
            || matches!(cause.downcast_ref(), Some(ModelError::Config(_)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(pasteable(Path::new("runs/mine-2")), "runs/mine-2");
        if cfg!(windows) {
            assert_eq!(pasteable(Path::new(r"C:\runs\mine")), r"C:\runs\mine");
            assert_eq!(pasteable(Path::new(r"C:\my run")), r#""C:\my run""#);
            assert_eq!(pasteable(Path::new(r"C:\my run\")), r#""C:\my run\\""#);
            assert_eq!(pasteable(Path::new("a,b")), r#""a,b""#);
        } else {
            assert_eq!(pasteable(Path::new("my run")), "'my run'");
            assert_eq!(pasteable(Path::new("it's")), r"'it'\''s'");
        }
    }

    #[test]
    fn a_value_is_named_by_the_flag_that_it_came_by() {
        let wrong = || usage_of("--weights", "nosuch: no such run").context("opening");
        assert_eq!(
            format!("{:#}", wrong()),
            "opening: --weights nosuch: no such run"
        );
        let by_init = by_flag("--init", wrong());
        assert_eq!(
            format!("{by_init:#}"),
            "opening: --init nosuch: no such run"
        );
        assert!(is_usage(&by_init));
        assert_eq!(
            by_flag("", wrong()).root_cause().to_string(),
            "nosuch: no such run"
        );
        assert_eq!(
            by_flag("--init", usage("--data SPEC: say")).to_string(),
            "--data SPEC: say"
        );
    }

    #[test]
    fn options_of_data_sets_are_named_by_flags_and_keys() {
        let told = |error: DataError| {
            let wrapped = anyhow::Error::from(TrainError::from(error));
            text_of(&wrapped.context("opening"))
        };
        let outside = DataError::Outside {
            path: "a.csv".into(),
            line: 3,
            image: "../x.jpg".to_owned(),
            root: "set".into(),
        };
        let expected = "opening: a.csv:3: \"../x.jpg\" lies outside set (--images-root DIR names \
                        another folder, --allow-outside lifts the confinement)";
        assert_eq!(told(outside), expected);
        let too_many = DataError::TooManyBad {
            bad: 3,
            len: 12,
            max_bad_fraction: 0.2,
            name: "x.jpg".to_owned(),
            reason: "not an image".to_owned(),
        };
        let expected = "opening: 3 of 12 images cannot be used so far, more than the tolerated 0.2 \
                        (data.max_bad_fraction); `selfsame check-data` lists them, to be mended or \
                        taken out; the last one: x.jpg: not an image";
        assert_eq!(told(too_many), expected);
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("annot.csv");
        std::fs::write(&list, "Images\nx.jpg\n").unwrap();
        let options = selfsame_data::OpenOptions {
            images_root: Some("no/such/folder".into()),
            ..Default::default()
        };
        let error = selfsame_data::open(list.to_str().unwrap(), &options).unwrap_err();
        let expected = "--images-root: the images' folder no/such/folder does not exist";
        assert_eq!(text_of(&error.into()), expected);
    }

    #[test]
    fn the_users_mistakes_are_told_from_failures() {
        let mistake = Err::<(), _>(usage("no such key"))
            .context("reading preset")
            .unwrap_err();
        assert!(is_usage(&mistake));
        assert!(is_usage(
            &TrainError::TooFewImages {
                images: 1,
                needed: 2
            }
            .into()
        ));
        assert!(!is_usage(&anyhow::anyhow!("disk full")));
    }
}
