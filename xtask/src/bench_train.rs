//! `cargo xtask bench-peer train`: whole training steps here and in PyTorch, in turns, as ratios.
//!
//! Each side is its own program with its own data loading, started anew for every turn.
//! A turn's figure is the median of its steps after the first two; a pair of turns gives a ratio.
//! Every turn is appended to a file as one JSON line, and the summary covers all that stand there,
//! so that pairs can be measured one by one whenever the machine is quiet.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use crate::turns::{self, Bench, OURS, json_lines, summaries};
use crate::wrong_usage;

/// Steps at the start of a turn that pay for start-up and are not counted.
const COLD_STEPS: usize = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with torch, torchvision, timm and pillow.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// A folder of pictures, at least as many as a batch.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The program; default: built from this workspace with optimisation.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// What to measure; default: every row. Of the same ResNet-50, `resnet50` leaves the peer's maps
    /// as PyTorch lays them out by itself, channel after channel; `resnet50-channels-last` has it keep
    /// a place's channels side by side, the faster layout for its convolutions and ours in both.
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
    /// Pairs of turns.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Counted steps of a turn.
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Compute threads of both sides.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Compute threads of the peer, if they should differ.
    #[arg(long)]
    peer_threads: Option<usize>,
    /// Loader threads and processes.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// JSON lines of all turns; appended to.
    #[arg(long, value_name = "FILE", default_value = "bench-train.jsonl")]
    raw: PathBuf,
    /// Measure nothing, only sum up the raw lines.
    #[arg(long)]
    summary: bool,
}

/// A piece of work and how each side is asked for it.
struct Row {
    name: &'static str,
    ours: &'static str,
    peer: &'static str,
}

const RESNET50: &str = "--preset notebook --set model.arch=\"resnet50\" \
                        --set train.batch_size=16 --set augment.local_size=64 \
                        --set augment.local_crops=6";

/// The recipes of the performance table.
const ROWS: [Row; 9] = [
    Row {
        name: "notebook-16",
        ours: "--preset notebook --set train.batch_size=16",
        peer: "--recipe notebook --batch 16",
    },
    Row {
        name: "notebook-32",
        ours: "--preset notebook",
        peer: "--recipe notebook",
    },
    Row {
        name: "notebook-16-bf16",
        ours: "--preset notebook --set train.batch_size=16 --precision bf16",
        peer: "--recipe notebook --batch 16 --amp",
    },
    Row {
        name: "notebook-32-bf16",
        ours: "--preset notebook --precision bf16",
        peer: "--recipe notebook --amp",
    },
    Row {
        name: "crops-48",
        ours: "--preset notebook --set train.batch_size=96 --set augment.global_size=48 \
               --set augment.local_size=48 --set model.image_size=48",
        peer: "--recipe notebook --batch 96 --global-size 48 --local-size 48",
    },
    Row {
        name: "cpu",
        ours: "--preset cpu",
        peer: "--recipe cpu",
    },
    Row {
        name: "resnet50",
        ours: RESNET50,
        peer: "--recipe notebook --arch resnet50 --batch 16 --local-size 64 --local-crops 6",
    },
    Row {
        name: "resnet50-channels-last",
        ours: RESNET50,
        peer: "--recipe notebook --arch resnet50 --batch 16 --local-size 64 --local-crops 6 \
               --channels-last",
    },
    Row {
        name: "out-dim-65536",
        ours: "--preset notebook --set train.batch_size=16 --set head.kind=\"official\" \
               --set head.out_dim=65536",
        peer: "--recipe notebook --batch 16 --head official --out-dim 65536",
    },
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rows: Vec<&Row> = match args.rows.as_slice() {
        [] => ROWS.iter().collect(),
        names => names
            .iter()
            .map(|name| find(name))
            .collect::<anyhow::Result<_>>()?,
    };
    if !args.summary {
        let program = match &args.program {
            Some(program) => program.clone(),
            None => turns::build()?,
        };
        let session = turns::session();
        let bench = Bench {
            python: &args.python,
            program: &program,
            images: &args.images,
            device: "cpu",
            threads: args.threads,
            peer_threads: args.peer_threads.unwrap_or(args.threads),
            workers: args.workers,
            cold_lines: COLD_STEPS,
            lines: args.steps,
            steps_a_line: 1,
            by_mean: false,
            libraries: None,
            raw: &args.raw,
            session: &session,
        };
        for row in rows {
            for pair in 0..args.pairs {
                // The side that goes first changes, so that neither always finds a warm machine.
                for side in 0..2 {
                    let (side, turn) = match (pair + side) % 2 == 0 {
                        true => (OURS, bench.our_turn(row.ours)),
                        false => ("PyTorch", bench.peer_turn(row.peer)),
                    };
                    let turn = turn.with_context(|| format!("{}, {side}", row.name))?;
                    bench.record(row.name, side, pair, &turn, &json!({}))?;
                }
            }
        }
    }
    for summary in summaries(&json_lines(&args.raw)?, &["peak_mib", "first_step_s"])? {
        let [memory, start] = [0, 1].map(|i| summary.shares[i].unwrap_or(f64::NAN));
        println!(
            "{}, {memory:.2} x its memory, {start:.2} x its time to the first step",
            summary.speed_text()
        );
    }
    Ok(())
}

fn find(name: &str) -> anyhow::Result<&'static Row> {
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        wrong_usage(format!("--row {name}: known are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_row_is_refused_with_the_known_ones() {
        let text = find("nonsense").err().map(|error| error.to_string());
        assert!(text.is_some_and(|text| text.contains("notebook-16")));
        assert!(ROWS.iter().all(|row| find(row.name).is_ok()));
    }

    #[test]
    fn resnet50_is_measured_in_both_layouts_of_the_peer() {
        let [plain, last] = ["resnet50", "resnet50-channels-last"].map(|name| find(name).unwrap());
        assert_eq!(plain.ours, last.ours);
        assert_eq!(format!("{} --channels-last", plain.peer), last.peer);
    }

    #[test]
    fn every_row_has_a_name_of_its_own_that_fits_the_summary() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        assert!(names.iter().all(|name| name.len() <= 22), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
