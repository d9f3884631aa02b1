//! `selfsame config`

use crate::cli;
use crate::config::{Merged, OwnFlag};
use crate::exit::Done;
use crate::scores::print_text;

pub(crate) fn run(args: &cli::Config) -> anyhow::Result<Done> {
    let merged = Merged::from_settings(&args.settings, OwnFlag::init(args.init.as_deref())?)?;
    let config = merged.resolve()?;
    print_text(merged.annotated(&config)?.trim_end());
    Ok(Done::Well)
}
