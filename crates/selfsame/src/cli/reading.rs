//! How pictures are found and read.

use std::path::PathBuf;

use clap::Args;
use selfsame_data::{Limits, OpenOptions};

/// Flags of every command that opens pictures without a configuration.
#[derive(Clone, Debug, Args)]
pub(crate) struct Reading {
    /// How a folder is read: auto, agedb, utkface, classes, flat.
    #[arg(long, default_value = "auto")]
    layout: String,
    /// Folder that the paths of a CSV resolve against.
    #[arg(long, value_name = "DIR")]
    images_root: Option<PathBuf>,
    /// Let a CSV name files outside its root folder.
    #[arg(long)]
    allow_outside: bool,
    /// Most pixels of a picture that is decoded.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// Most pixels on a side of a picture that is decoded.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_side)]
    max_side: u32,
}

impl Reading {
    /// What is decoded.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_pixels: self.max_pixels,
            max_side: self.max_side,
            ..Limits::default()
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// A usage error for an unknown layout.
    pub(crate) fn options(&self) -> anyhow::Result<OpenOptions> {
        Ok(OpenOptions {
            layout: self.layout.parse()?,
            allow_outside: self.allow_outside,
            images_root: self.images_root.clone(),
            limits: self.limits(),
        })
    }
}
