//! Repository chores: `cargo xtask <command>`, one file for each.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

#![expect(clippy::print_stdout, reason = "what a chore found is its output")]

mod bench_embed;
mod bench_gpu;
mod bench_parts;
mod bench_peer;
mod bench_start;
mod bench_train;
mod ci;
mod cuda_check;
mod cuda_env;
mod golden;
mod prepare;
mod prepare_agedb;
mod prepare_utkface;
mod tidy;
mod turns;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use selfsame_data::DataError;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Repository chores of selfsame")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write annotation files for a folder of AgeDB images (id_name_age_gender.ext).
    PrepareAgedb(prepare_agedb::Args),
    /// Write annotation files for a folder of UTKFace images (age_gender_race_date.ext).
    PrepareUtkface(prepare_utkface::Args),
    /// Check what the compiler does not: dependencies between crates, documents, presets.
    Tidy,
    /// Make the golden files again, or compare augmentation with Pillow on far more than they hold.
    Golden(golden::Args),
    /// Compare the speed with the same work in Python, in turns.
    #[command(subcommand)]
    BenchPeer(bench_peer::Peer),
    /// Compare whole training steps on a GPU with PyTorch, in turns, within some minutes.
    BenchGpu(bench_gpu::Args),
    /// Fetch what a CUDA build needs as Python packages and print the environment for it.
    CudaEnv(cuda_env::Args),
    /// Check our CUDA kernels without a GPU: emulated by g++, and compiled by NVRTC on request.
    CudaCheck(cuda_check::Args),
    /// Everything that has to pass before a change is merged.
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::PrepareAgedb(args) => prepare_agedb::run(&args),
        Command::PrepareUtkface(args) => prepare_utkface::run(&args),
        Command::Golden(args) => golden::run(&args),
        Command::BenchPeer(peer) => bench_peer::run(&peer),
        Command::BenchGpu(args) => bench_gpu::run(&args),
        Command::CudaEnv(args) => cuda_env::run(&args),
        Command::CudaCheck(args) => cuda_check::run(&args),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_usage = error
                .downcast_ref::<DataError>()
                .is_some_and(DataError::is_usage);
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

/// An error that ends with exit code 2: a flag's value that is none.
fn wrong_usage(problem: String) -> anyhow::Error {
    DataError::Setting(problem).into()
}
