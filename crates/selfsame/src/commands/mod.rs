//! One file per command: flags to typed configs, then a call.

mod attention;
mod begin;
mod check_data;
mod demo;
mod embed;
mod export;
mod finetune;
mod inspect;
mod knn;
mod linear;
mod map;
mod neighbors;
mod plan;
mod predict;
mod preview;
mod replay;
pub(crate) mod report;
mod resume;
mod show_config;
mod shrink;
mod train;

use crate::cli::{Cli, Command};
use crate::exit::{Done, by_flag};

/// Runs the command asked for.
///
/// # Errors
/// The command's; `exit::code` tells the exit code from it.
pub(crate) fn run(cli: Cli) -> anyhow::Result<Done> {
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(&args).map_err(by_init),
        Command::Resume(args) => resume::run(&args).map_err(by_init),
        Command::Plan(args) => plan::run(&args).map_err(by_init),
        Command::Config(args) => show_config::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Knn(args) => knn::run(&args),
        Command::Linear(args) => linear::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::CheckData(args) => check_data::run(&args),
        Command::Shrink(args) => shrink::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Inspect(args) => inspect::run(&args).map_err(|error| by_flag("", error)),
        Command::Preview(args) => preview::run(&args),
        Command::Attention(args) => attention::run(&args),
        Command::Tsne(args) => map::tsne(&args),
        Command::Pca(args) => map::pca(&args),
        Command::Neighbors(args) => neighbors::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Replay(args) => replay::run(&args),
    }
}

/// What pretraining takes weights by.
fn by_init(error: anyhow::Error) -> anyhow::Error {
    by_flag("--init", error)
}
