//! Image files become batches of augmented crops in a known order.

pub use selfsame_augment as augment;

pub mod annotations;
mod batch;
mod check;
mod dataset;
pub mod decode;
mod error;
mod eval_loader;
mod file_name;
mod fingerprint;
mod image_folder;
mod ledger;
mod loader;
mod ordered;
mod portraits;
mod rng;
pub mod sampler;
pub mod split;
pub mod walk;

pub use batch::{EvalBatch, HostBatch};
pub use check::{CheckReport, check};
pub use dataset::{Dataset, Layout, OpenOptions, open};
pub use decode::{DecodeError, Limits};
pub use error::DataError;
pub use eval_loader::{EvalBatches, EvalLoader, EvalTransform, eval_batches};
pub use file_name::{AgeDbName, UtkFaceName};
pub use ledger::{Ledger, LedgerEntry};
pub use loader::{EpochBatches, Loader, LoaderConfig};
pub use portraits::PORTRAIT_SIZE;
pub use sampler::Sampler;
