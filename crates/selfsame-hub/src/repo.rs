use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use crate::error::HubError;

/// The name of a repository of models, and which state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    organisation: String,
    name: String,
    revision: String,
}

impl RepoId {
    /// A branch, tag or commit; `main` unless told otherwise.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// `ORGANISATION/NAME`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// Its folder in the cache (huggingface_hub, `repo_folder_name`).
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }

    /// The same at another revision, which must be a commit's hash.
    pub(crate) fn at(&self, commit: &str) -> Self {
        Self {
            revision: commit.to_owned(),
            ..self.clone()
        }
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    /// Reads `ORGANISATION/NAME` or `ORGANISATION/NAME@REVISION`.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Name {
            text: text.to_owned(),
        };
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, name) = path.split_once('/').ok_or_else(wrong)?;
        // Parts become parts of a URL and of a path, so nothing else is let through; revisions
        // with a slash, such as refs/pr/1, are left out.
        let is_sound = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(allowed)
                && !part.starts_with('.')
        };
        if ![organisation, name, revision].into_iter().all(is_sound) || path.contains("--") {
            return Err(wrong());
        }
        Ok(Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

/// Checks that a text is the name of a file within a repository: parts between single slashes, none of which leads
/// elsewhere.
pub(crate) fn check_file(file: &str) -> Result<(), HubError> {
    let is_sound = |part: &str| !matches!(part, "" | "." | "..");
    // What is a drive or a separator is for the system to say; a backslash is one only on some.
    let is_inside = || {
        Path::new(file)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    let is_name = file.split('/').all(is_sound) && !file.contains(['\\', '\0']) && is_inside();
    is_name.then_some(()).ok_or_else(|| HubError::FileName {
        file: file.to_owned(),
    })
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())?;
        match self.revision.as_str() {
            "main" => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        let repo: RepoId = "timm/vit_small.dino".parse().unwrap();
        assert_eq!(
            (repo.path().as_str(), repo.revision()),
            ("timm/vit_small.dino", "main")
        );
        assert_eq!(repo.folder(), "models--timm--vit_small.dino");
        let tagged: RepoId = "a/b@v1.0".parse().unwrap();
        assert_eq!(tagged.to_string(), "a/b@v1.0");
    }

    #[test]
    fn nothing_that_leaves_the_cache_or_the_url_is_a_name() {
        for text in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "../b",
            "a/..",
            "a/.git",
            "a/b@",
            "a/b@../c",
            "a/b?x=1",
            "a/b#c",
            "a b/c",
            "a/b@main/x",
            "a\\b/c",
            "a--b/c",
            "ä/b",
        ] {
            assert!(text.parse::<RepoId>().is_err(), "{text}");
        }
    }
}
