//! Parts of a training step here and in PyTorch: `cargo xtask bench-peer updates` (clipping, AdamW
//! and the momentum teacher) and `last-layer` (the prototypes' logits and the loss).

use std::path::PathBuf;
use std::process::Command;

use crate::bench_peer::{Side, build_server, quantile};
use crate::turns::peer_script;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with torch and timm.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Compute threads of every side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns of every side; one more at the beginning is not counted.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Steps of a turn.
    #[arg(long, default_value_t = 5)]
    steps: usize,
}

/// A part of a step, done on request by a program of either side.
pub(crate) struct Part {
    what: &'static str,
    /// The bench that is our side.
    server: &'static str,
    /// The script that is the other, and the ways in which it does it.
    script: &'static str,
    variants: &'static [&'static str],
}

pub(crate) const UPDATES: Part = Part {
    what: "clipping, AdamW and teacher of a ViT-S/16",
    server: "serve_updates",
    script: "updates.py",
    variants: &["foreach", "fused"],
};

pub(crate) const LAST_LAYER: Part = Part {
    what: "last layer of 65,536 prototypes and loss of 16 images in 10 views, and back",
    server: "serve_last_layer",
    script: "last_layer.py",
    variants: &["eager"],
};

pub(crate) fn run(part: &Part, args: &Args) -> anyhow::Result<()> {
    let script = peer_script(part.script);
    let threads = args.threads.to_string();
    let server = build_server(part.server)?;
    let ours = Side::start("ours".to_owned(), true, Command::new(server).arg(&threads))?;
    let mut sides = vec![ours];
    for variant in part.variants {
        let mut command = Command::new(&args.python);
        command.arg(&script).args([variant, threads.as_str()]);
        sides.push(Side::start((*variant).to_owned(), false, &mut command)?);
    }
    for round in 0..=args.rounds {
        for side in &mut sides {
            let time = side.take_turn(args.steps)?;
            if round > 0 {
                side.times.push(time);
            }
        }
    }
    println!("{}, {threads} threads", part.what);
    let (ours, peers) = sides.split_first().expect("ours was put in first");
    for side in &sides {
        let median = quantile(&side.times, 0.5);
        println!("{:8} {median:8.2} ms a step in the middle", side.name);
    }
    for peer in peers {
        let pairs = ours.times.iter().zip(&peer.times);
        let shares: Vec<f64> = pairs.map(|(ours, peer)| ours / peer).collect();
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|at| quantile(&shares, at));
        println!(
            "ours takes {middle:.2} of the time of {} (quartiles {low:.2} to {high:.2})",
            peer.name
        );
    }
    Ok(())
}
