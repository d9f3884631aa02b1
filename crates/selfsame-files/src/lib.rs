//! Files and folders that appear whole or not at all, and survive a loss of power.
//!
//! ```
//! use std::io::Write;
//!
//! # fn main() -> std::io::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! let list = folder.path().join("list.csv");
//! selfsame_files::write_whole(&list, b"path\n")?;
//!
//! let beside = selfsame_files::Beside::create(&list)?;
//! beside.file().write_all(b"path,label\n")?;
//! assert_eq!(std::fs::read(&list)?, b"path\n"); // as before, until it is put in place
//! beside.put()?;
//! assert_eq!(std::fs::read(&list)?, b"path,label\n");
//! # Ok(())
//! # }
//! ```

mod beside;
mod patience;
mod sync;

pub use beside::{Beside, UNFINISHED, unfinished_name, write_whole};
pub use patience::{remove, rename};
pub use sync::{sync, sync_folder};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
