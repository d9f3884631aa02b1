//! Opens data specifications with the flags and keys that go with them.

use std::path::PathBuf;
use std::sync::Arc;

use selfsame_data::{Cached, Dataset, Limits, OpenOptions, open};
use selfsame_train::DataConfig;

use crate::cli::WeightsArgs;

/// The largest picture that a run decodes.
pub(crate) fn limits(config: &DataConfig) -> Limits {
    Limits {
        max_pixels: config.max_pixels,
        max_side: config.max_side,
        ..Limits::default()
    }
}

/// The data set of `spec` as a run's `[data]` table says.
///
/// # Errors
/// The data crate's.
pub(crate) fn of_run(spec: &str, config: &DataConfig) -> anyhow::Result<Arc<dyn Dataset>> {
    let root = Some(&config.images_root).filter(|root| !root.is_empty());
    let options = OpenOptions {
        layout: config.layout,
        allow_outside: config.allow_outside,
        images_root: root.map(PathBuf::from),
        limits: limits(config),
    };
    let dataset = open(spec, &options)?;
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
    Ok(open(spec, &args.reading.options()?)?)
}
