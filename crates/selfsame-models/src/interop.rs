//! Weights of other programs under our names, and ours under theirs.
//!
//! All of it but [`onnx`] stands at the root of the crate too.

mod adapt;
mod beside;
mod container;
mod dinov2;
mod file;
mod grid;
mod hf;
mod infer;
mod names;
pub mod onnx;

pub use adapt::{fit_patches, fit_positions};
pub use beside::{Beside, Difference};
pub use container::Which;
pub use file::{INPUT_KEY, ImportedWeights, MODEL_KEY, is_pth, read_weights};
pub use hf::to_hf;
pub use infer::{InferredModel, infer, infer_head, infer_model};
pub use names::{Layout, to_own_names};
