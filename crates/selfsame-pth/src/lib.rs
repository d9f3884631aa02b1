//! Reads the tensors of PyTorch `.pth` and `.pt` files without trusting them.
//! The pickle inside is a program; this crate reads it as data, with allow-listed opcodes and
//! classes and a cap on everything that grows, and gives names, shapes, types and bytes.
//!
//! ```no_run
//! use selfsame_pth::PthFile;
//!
//! # fn main() -> Result<(), selfsame_pth::PthError> {
//! let mut file = PthFile::open("dino_checkpoint.pth")?;
//! for (name, info) in file.tensors() {
//!     println!("{name} {:?} {:?}", info.dtype, info.shape);
//! }
//! // Only what is asked for is read.
//! let teacher = file.read(|name| name.starts_with("teacher."))?;
//! println!("{} tensors", teacher.len());
//! # Ok(())
//! # }
//! ```
//!
//! Names are the keys of nested dictionaries and the positions in lists, joined by dots; a key that
//! is no text stands as Python writes it.
//!
//! # What it does not know
//! candle, PyTorch, models, what a name means, and files from before PyTorch 1.6, which it refuses
//! by name.

mod archive;
mod dtype;
mod error;
mod file;
mod flatten;
mod limits;
mod pickle;
mod strided;

pub use dtype::DType;
pub use error::PthError;
pub use file::{PthFile, PthTensor, TensorInfo};
pub use limits::Limits;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, PthError>;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
