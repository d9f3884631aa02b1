#![doc = include_str!("../README.md")]

mod beside;
mod patience;
mod sync;

pub use beside::{Beside, UNFINISHED, unfinished_name, write_whole};
pub use patience::{remove, rename};
pub use sync::{sync, sync_folder};
