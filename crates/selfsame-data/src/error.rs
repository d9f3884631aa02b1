//! What can be wrong with a data set, as opposed to with one image ([`DecodeError`]).
//!
//! [`DecodeError`]: crate::DecodeError

use std::io;
use std::path::{Path, PathBuf};

/// Why a data set cannot be opened, read, split or loaded from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The text is not a data specification.
    #[error("data specification {spec:?}: {problem}")]
    Spec {
        /// The text as given.
        spec: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file or folder does not exist.
    #[error("{}: no such file or folder", .path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// There is nothing in it that could be an image.
    #[error("{spec}: no image files, nothing to read")]
    NoCandidates {
        /// The specification as given.
        spec: String,
    },
    /// A row of an annotation file is wrong.
    #[error("{}:{line}: {problem}", .path.display())]
    Annotation {
        /// The annotation file.
        path: PathBuf,
        /// Line in that file, from 1.
        line: u64,
        /// What is wrong on it.
        problem: String,
    },
    /// An annotation file points outside the folder it is confined to.
    #[error(
        "{}:{line}: {image:?} lies outside {} (images_root names another folder, allow_outside lifts \
         the confinement)", .path.display(), .root.display()
    )]
    Outside {
        /// The annotation file.
        path: PathBuf,
        /// Line in that file, from 1.
        line: u64,
        /// The image's path as written there.
        image: String,
        /// The folder images are confined to.
        root: PathBuf,
    },
    /// The operating system refused something.
    #[error("{doing}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A batch is larger than the data set.
    #[error("{len} images are fewer than a batch of {batch}")]
    TooFewImages {
        /// Images in the data set.
        len: usize,
        /// Images in a batch over all ranks.
        batch: usize,
    },
    /// More files are missing or failed to decode than the configuration tolerates.
    #[error(
        "{bad} of {len} images cannot be used so far, more than the tolerated {max_bad_fraction} \
         (max_bad_fraction); the last one: {name}: {reason}"
    )]
    TooManyBad {
        /// Different images that failed so far.
        bad: usize,
        /// Images in the data set.
        len: usize,
        /// The tolerated fraction of them.
        max_bad_fraction: f64,
        /// The image that was one too many.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No stand-in for an undecodable image could be found.
    #[error("no decodable image found in {attempts} draws; the last one: {name}: {reason}")]
    NoReplacement {
        /// How many stand-ins were tried.
        attempts: u64,
        /// The last one tried.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting of the loader, sampler or split makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The augmentation refused its configuration or an image.
    #[error(transparent)]
    Augment(#[from] selfsame_augment::AugmentError),
    /// A loader thread panicked: a bug, not a bad file.
    #[error("a loader thread panicked while making batch {batch}: {message}")]
    Panicked {
        /// Index of the batch within its epoch.
        batch: usize,
        /// The panic's message.
        message: String,
    },
}

impl DataError {
    /// True if what the user asked for is wrong (exit code 2), false if doing it failed (1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Spec { .. }
            | Self::NotFound { .. }
            | Self::NoCandidates { .. }
            | Self::Annotation { .. }
            | Self::Outside { .. }
            | Self::TooFewImages { .. }
            | Self::Setting(_)
            | Self::Augment(_) => true,
            Self::Io { .. }
            | Self::TooManyBad { .. }
            | Self::NoReplacement { .. }
            | Self::Panicked { .. } => false,
        }
    }

    /// An [`DataError::Io`] that says what was done to which path.
    pub(crate) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            doing: format!("{doing} {}", path.display()),
            source,
        }
    }
}
