//! `cargo xtask prepare-agedb`: annotation files for AgeDB, no person on both sides.

use anyhow::Result;
use selfsame_data::AgeDbName;
use selfsame_data::annotations::AGEDB_HEADER;

use crate::prepare::{self, CommonArgs, Labelled, Strategy};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Keep all images of a person on one side (the default).
    #[arg(long)]
    by_identity: bool,
    /// Split at random, whoever is on the images.
    #[arg(long, conflicts_with = "by_identity")]
    random: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let strategy = if args.random {
        Strategy::Random
    } else {
        Strategy::ByIdentity
    };
    prepare::run(
        &args.common,
        "data/agedb",
        &AGEDB_HEADER,
        strategy,
        &|file_name| {
            let AgeDbName { name, age, gender } = AgeDbName::parse(file_name)?;
            let cells = vec![name.clone(), age.to_string(), gender.to_string()];
            Ok(Labelled {
                age,
                gender,
                identity: name,
                cells,
            })
        },
    )
}
