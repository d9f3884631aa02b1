//! Image files become batches of augmented crops in a known order.
//! Annotations, strict decoding, sampling and loading by threads; the same seed gives the same
//! bytes for any number of them.
//!
//! ```
//! use std::sync::Arc;
//! use selfsame_data::augment::{AugmentConfig, MultiCrop};
//! use selfsame_data::{Ledger, Loader, LoaderConfig, OpenOptions, open};
//!
//! // A folder, an annotation file, or drawn portraits that need no files:
//! let dataset = open("synthetic:portraits?count=10&seed=0", &OpenOptions::default())?;
//! assert_eq!(dataset.label_names(), ["age", "gender", "name"]);
//!
//! let crops = AugmentConfig {
//!     global_size: 32,
//!     local_size: 16,
//!     local_crops: 2,
//!     ..AugmentConfig::default()
//! };
//! let config = LoaderConfig { seed: 1, batch_size: 4, ..LoaderConfig::default() };
//! let ledger = Arc::new(Ledger::new()); // what cannot be decoded is named there
//! let loader = Loader::new(dataset, MultiCrop::new(crops)?, config, ledger.clone())?;
//! assert_eq!(loader.steps_per_epoch(), 2);
//! for batch in loader.epoch(0, 0) {
//!     let batch = batch?;
//!     assert_eq!(batch.global.len(), 2 * 4 * 3 * 32 * 32); // [2, B, 3, G, G]
//!     assert_eq!(batch.local.len(), 2 * 4 * 3 * 16 * 16); // [L, B, 3, S, S]
//! }
//! assert!(ledger.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`open`] gives a [`Dataset`]: names, labels, [`Dataset::decode`].
//! - [`Cached`] keeps decoded pictures in memory.
//! - [`Loader`] makes batches of crops for training, [`EvalLoader`] one view of each image.
//! - [`PictureList`] names what has changed since a run began.
//! - [`Overlap`] tells whether two data sets have pictures in common.
//! - [`check()`] decodes everything and counts what cannot be used.
//! - [`shrink()`] writes copies that are no larger than training needs.
//! - [`annotations`], [`split`] and [`walk`] are what `cargo xtask prepare-*` is made of.
//!
//! **What this crate does not know:** tensors, devices, models, losses, TOML, the command line.

pub use selfsame_augment as augment;

pub mod annotations;
mod batch;
mod cached;
pub mod check;
mod copies;
mod csv_text;
mod dataset;
pub mod decode;
mod error;
mod eval_loader;
mod file_list;
mod file_name;
mod fingerprint;
mod image_folder;
mod label_table;
mod ledger;
mod loader;
mod ordered;
mod overlap;
mod picture_list;
mod portraits;
mod rng;
pub mod sampler;
mod shrink;
pub mod split;
pub mod walk;

pub use batch::{EvalBatch, HostBatch, PixelType, Pixels};
pub use cached::Cached;
pub use check::{CheckReport, LabelBalance, check};
pub use dataset::{Dataset, Layout, OpenOptions, open};
pub use decode::{DecodeError, Limits};
pub use error::DataError;
pub use eval_loader::{EvalBatches, EvalLoader, EvalTransform};
pub use file_name::{AgeDbName, UtkFaceName};
pub use ledger::{Ledger, LedgerEntry};
pub use loader::{Batches, Loader, LoaderConfig};
pub use overlap::{Overlap, repeated, shared};
pub use picture_list::PictureList;
pub use portraits::PORTRAIT_SIZE;
pub use sampler::Sampler;
pub use shrink::{ShrinkConfig, ShrinkReport, check_names, place_of, shrink};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
