//! Named tensors and a manifest, on disk, whole or not at all.
//! A checkpoint is a folder that appears under its name only when every byte of it is on the disk,
//! and that is believed only when every byte still has the hash the manifest gives.
//!
//! ```
//! use std::collections::BTreeMap;
//! use candle_core::{Device, Tensor};
//! use selfsame_checkpoint::{Checkpoint, RunLock, load_newest, save};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let run_dir = folder.path().join("run");
//! let _lock = RunLock::acquire(&run_dir)?;
//!
//! let weight = Tensor::new(&[0.5f32, -0.25], &Device::Cpu)?;
//! let student = BTreeMap::from([("backbone.norm.weight".to_string(), weight)]);
//! let checkpoint = Checkpoint {
//!     step: 120,
//!     epoch: 3,
//!     config: "seed = 42\n".to_string(),
//!     extra: serde_json::json!({ "batches_done": 7 }),
//!     files: BTreeMap::from([("student".to_string(), student)]),
//! };
//! save(&run_dir, &checkpoint, 3)?; // run/checkpoints/step-00000120
//!
//! let (newest, warnings) = load_newest(&run_dir, &Device::Cpu)?.expect("one was just saved");
//! assert_eq!(newest.step, 120);
//! assert!(warnings.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not know
//! Models, optimizers, what a step is, what the configuration says.
//! It sees names, tensors and two texts, and gives them back bit for bit.

mod error;
mod load;
mod lock;
mod manifest;
mod retention;
mod run_dir;
mod save;
mod tensors;

pub use candle_core;
pub use error::CheckpointError;
pub use load::{Partial, Warning, load, load_newest, load_newest_files, verify_file};
pub use lock::RunLock;
pub use manifest::{FORMAT, FileEntry, Manifest};
pub use run_dir::{CHECKPOINTS, checkpoint_dir, clean_stale, is_empty_run_dir, list};
pub use save::{Checkpoint, make_dir, refuse_non_finite, save};
pub use selfsame_files::unfinished_name;
pub use tensors::{
    TensorFile, read_tensor_file, read_tensors, remove_unfinished, write_bytes, write_tensors,
};

/// What fallible calls of this crate return, but [`make_dir`], which gives the system's own error.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
