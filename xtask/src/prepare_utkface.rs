//! `cargo xtask prepare-utkface`: annotation files for UTKFace, which names no people.

use anyhow::Result;
use selfsame_data::annotations::UTKFACE_HEADER;
use selfsame_data::{DataError, UtkFaceName};

use crate::prepare::{self, CommonArgs, Labelled, Strategy};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Refused: the file names do not say who is on an image.
    #[arg(long)]
    by_identity: bool,
    /// Split at random (the default).
    #[arg(long, conflicts_with = "by_identity")]
    random: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.by_identity {
        let problem = "--by-identity: UTKFace's file names do not say who is on an image";
        return Err(DataError::Setting(problem.to_owned()).into());
    }
    prepare::run(
        &args.common,
        "data/utkface",
        &UTKFACE_HEADER,
        Strategy::Random,
        &|file_name| {
            let UtkFaceName { age, gender, race } = UtkFaceName::parse(file_name)?;
            let cells = vec![age.to_string(), gender.to_string(), race.to_string()];
            Ok(Labelled {
                age,
                gender,
                identity: String::new(),
                cells,
            })
        },
    )
}
