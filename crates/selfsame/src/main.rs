//! `selfsame`: self-supervised pretraining of image backbones on your own pictures (DINO).

#![warn(clippy::print_stderr, reason = "`tell` does not end the process")]

mod cli;
mod commands;
mod config;
mod data;
mod device;
mod disk;
mod embedding;
mod exit;
mod figures;
mod memory;
mod out;
mod overwriting;
mod progress;
mod run_dir;
mod scores;
mod signals;
mod stderr;
mod weights;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

fn main() -> ExitCode {
    let command = std::env::args_os().nth(1);
    let command = command.as_ref().and_then(|name| name.to_str());
    let cli = cli::Cli::try_parse().unwrap_or_else(|error| cli::with_key(error, command).exit());
    let result = signals::survive_file_limit().context("installing a handler of signals");
    exit::code(result.and_then(|()| commands::run(cli)))
}
