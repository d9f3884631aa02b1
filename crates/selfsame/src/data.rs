//! Opens data specifications with the flags and keys that go with them.

use std::path::PathBuf;
use std::sync::Arc;

use selfsame_data::{Cached, Dataset, Layout, OpenOptions, open};
use selfsame_train::DataConfig;

use crate::cli::WeightsArgs;

/// The data set of `spec` as a run's `[data]` table says.
///
/// # Errors
/// The data crate's.
pub(crate) fn of_run(spec: &str, config: &DataConfig) -> anyhow::Result<Arc<dyn Dataset>> {
    let root = Some(&config.images_root)
        .filter(|root| !root.is_empty())
        .map(PathBuf::from);
    let dataset = with(spec, config.layout, config.allow_outside, root)?;
    Ok(match config.cache_mib {
        0 => dataset,
        mib => Arc::new(Cached::new(dataset, mib.saturating_mul(1 << 20))),
    })
}

/// The data set of `spec` as the flags of an evaluation say.
///
/// # Errors
/// The data crate's; a usage error for an unknown layout.
pub(crate) fn of_flags(spec: &str, args: &WeightsArgs) -> anyhow::Result<Arc<dyn Dataset>> {
    with(
        spec,
        args.layout.parse()?,
        args.allow_outside,
        args.images_root.clone(),
    )
}

/// The data set of `spec`.
///
/// # Errors
/// The data crate's.
pub(crate) fn with(
    spec: &str,
    layout: Layout,
    allow_outside: bool,
    images_root: Option<PathBuf>,
) -> anyhow::Result<Arc<dyn Dataset>> {
    let options = OpenOptions {
        layout,
        allow_outside,
        images_root,
        ..OpenOptions::default()
    };
    Ok(open(spec, &options)?)
}
