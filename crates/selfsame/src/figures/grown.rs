//! A run's snapshots beside its newest weights: how a network grew.

use std::path::Path;

use crate::run_dir;
use crate::stderr::tell;
use crate::weights::{Loaded, Weights};

/// What a run was at different times.
pub(crate) struct Grown {
    /// Snapshots, oldest first, with what they are called; none of them is the newest weights.
    pub(crate) before: Vec<(String, Weights)>,
    /// What the newest weights are called.
    pub(crate) newest: String,
}

impl Grown {
    /// Opens at most `max` snapshots of a run; `None` if it has not one.
    ///
    /// A run that ended after an epoch with a snapshot has its last weights twice: they are named
    /// after that epoch and shown once. One that cannot be opened is told and left out.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(crate) fn open(
        run: &Path,
        max: usize,
        newest: &Loaded,
        open: impl Fn(&Path) -> anyhow::Result<Weights>,
    ) -> anyhow::Result<Option<Self>> {
        let mut before = Vec::new();
        for (epoch, path) in run_dir::snapshots(run, max)? {
            match open(&path) {
                Ok(weights) => before.push((format!("epoch {epoch}"), weights)),
                Err(error) => {
                    tell!("warning: the snapshot of epoch {epoch} is left out: {error:#}")
                }
            }
        }
        let Some((title, last)) = before.last() else {
            return Ok(None);
        };
        let newest = match last.backbone()?.same_weights(newest)? {
            true => format!("{title}, newest"),
            false => "newest".to_owned(),
        };
        if newest != "newest" {
            before.pop();
        }
        Ok(Some(Self { before, newest }))
    }
}
