//! Files of a model hub over HTTPS: resumed where they broke off, checked by the hashes that the hub
//! tells, kept in the cache that Hugging Face's Python library uses.
//!
//! ```no_run
//! use selfsame_hub::{Hub, HubConfig, RepoId};
//!
//! # fn main() -> Result<(), selfsame_hub::HubError> {
//! let hub = Hub::new(HubConfig { cache: "cache".into(), ..HubConfig::default() })?;
//! let repo: RepoId = "facebook/dino-vits16@main".parse()?;
//! let weights = hub.fetch_weights(&repo, &mut |now| {
//!     println!("{}: {} of {:?} bytes", now.file, now.done, now.total);
//! })?;
//! println!("config.json and weights in {}", weights.folder.display());
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not know
//! candle, tensors, what is in a file, environment variables, and where a home directory is.

mod cache;
mod checksum;
mod config;
mod error;
mod fetch;
mod http;
mod repo;

pub use config::HubConfig;
pub use error::HubError;
pub use fetch::{Fetched, FetchedWeights, Hub, Progress};
pub use repo::RepoId;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
