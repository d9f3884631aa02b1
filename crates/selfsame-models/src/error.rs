//! What can go wrong when a model is configured, built or loaded.

use std::path::PathBuf;

/// Why a model could not be built or its weights not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration that no model can be built from; every problem names its key.
    #[error("the model configuration has {} problem(s):\n  {}", .0.len(), .0.join("\n  "))]
    Config(Vec<String>),
    /// Tensors that do not fit the model; all of them, not the first.
    #[error("the weights do not fit the model:{0}")]
    Weights(WeightMismatch),
    /// Tensors of integers where numbers are wanted, such as those of a quantised model: by name.
    #[error("weights are wanted as floats, these are integers: {}", .0.join(", "))]
    Integers(Vec<String>),
    /// A weights file that cannot be read.
    #[error("cannot read weights from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Tensors from whose names and shapes no architecture follows.
    #[error("cannot tell the architecture from the tensors: {0}")]
    Unrecognised(String),
    /// Two tensors of a file whose names become one.
    #[error("the tensors {first} and {second} are both {own}")]
    SameName {
        /// A name in the file.
        first: String,
        /// Another one.
        second: String,
        /// What both are called here.
        own: String,
    },
    /// Position embeddings that cannot be resampled, since they are of no square.
    #[error("{name} has {tokens} tokens, not a class token and a square of patches")]
    Positions {
        /// Their name.
        name: &'static str,
        /// How many there are.
        tokens: usize,
    },
    /// An ONNX model that no file holds.
    #[error("the model has {bytes} bytes, and an ONNX file at most {most}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest.
        most: usize,
    },
    /// Metadata of a weights file, under a key of ours, that is not what the key promises.
    #[error("{key} in the metadata cannot be read")]
    Metadata {
        /// [`MODEL_KEY`](crate::MODEL_KEY) or [`INPUT_KEY`](crate::INPUT_KEY).
        key: &'static str,
        /// What the reader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A JSON file beside the weights that cannot be read.
    #[error("{} cannot be read as JSON", path.display())]
    BesideUnread {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A JSON file beside the weights that says a network which is none of those here.
    #[error("{}: {why}", path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// What it says, with its key.
        why: String,
    },
    /// What is said of the size and normalisation of pictures cannot be followed, or is none.
    #[error("{place}: {why}")]
    Input {
        /// Where it is said: a file beside the weights, or a key of their metadata.
        place: String,
        /// What it says, with its key.
        why: String,
    },
    /// A checkpoint that has one network of the two, and not the one asked for.
    #[error("the file has a {there} and no {wanted}")]
    OtherNetwork {
        /// `teacher` or `student`.
        wanted: &'static str,
        /// The other one.
        there: &'static str,
    },
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// A text that is not the name of an [`Arch`](crate::Arch), or no
/// [`NamedArch`](crate::NamedArch).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseArchError(pub(crate) String);

/// The complete difference between the tensors a model has and those it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightMismatch {
    /// Names the model has and the file lacks.
    pub missing: Vec<String>,
    /// Names the file has and the model lacks.
    pub surplus: Vec<String>,
    /// Name, shape in the model, shape given.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl WeightMismatch {
    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for WeightMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for name in &self.surplus {
            write!(f, "\n  not in the model: {name}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(
                f,
                "\n  {name}: the model has shape {expected:?}, the weights {found:?}"
            )?;
        }
        Ok(())
    }
}
