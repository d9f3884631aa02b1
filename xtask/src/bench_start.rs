//! `cargo xtask bench-peer start`: from the start of a program to its first training step, for the
//! demo and for a training script in PyTorch with the same sizes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::bench_peer::quantile;
use crate::turns::{build, peer_script};

/// The demo's sizes for the script; its network is a ViT-Tiny, for timm has no smaller one.
const PEER: &str = "--recipe cpu --batch 16 --global-size 32 --local-size 16 --local-crops 2 \
                    --out-dim 256 --steps 1";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with torch, torchvision, timm and pillow.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// A folder of pictures for the script; the demo draws its own.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Pairs of starts; one more at the beginning is not counted.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let program = build()?;
    let run = std::env::temp_dir().join(format!("selfsame-start-{}", std::process::id()));
    let mut shares = Vec::new();
    for pair in 0..=args.pairs {
        let ours = our_start(&program, &run);
        if run.exists() {
            std::fs::remove_dir_all(&run).with_context(|| format!("removing {}", run.display()))?;
        }
        let (ours, peer) = (ours?, peer_start(args)?);
        if pair > 0 {
            println!("{ours:6.2} s, PyTorch {peer:6.2} s");
            shares.push(ours / peer);
        }
    }
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|at| quantile(&shares, at));
    println!(
        "the demo's first step comes after {middle:.2} of PyTorch's time (quartiles {low:.2} to \
         {high:.2})"
    );
    Ok(())
}

fn our_start(program: &Path, run: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new(program);
    command.arg("demo").arg("--run").arg(run);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let messages = child.stderr.take().context("no standard error")?;
    let seconds = seconds_to_line(started, &mut BufReader::new(messages), "step 1/");
    stop(&mut child)?;
    seconds.context("selfsame demo")
}

fn peer_start(args: &Args) -> anyhow::Result<f64> {
    let mut command = Command::new(&args.python);
    command.arg(peer_script("train_dino.py"));
    command.arg("--images").arg(&args.images);
    command.args(PEER.split_whitespace());
    command.stdout(Stdio::piped());
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", args.python.display()))?;
    let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
    let seconds = seconds_to_line(started, &mut output, "{\"step\": 0");
    // It ends by itself, and its loader processes with it, if somebody reads what it prints.
    std::io::copy(&mut output, &mut std::io::sink()).context("reading its output")?;
    let status = child.wait().context("waiting")?;
    ensure!(status.success(), "train_dino.py: {status}");
    seconds.context("train_dino.py")
}

/// Seconds until a line begins so.
fn seconds_to_line(
    started: Instant,
    output: &mut impl BufRead,
    start: &str,
) -> anyhow::Result<f64> {
    let mut last = String::new();
    for line in output.lines() {
        last = line.context("reading its output")?;
        if last.starts_with(start) {
            return Ok(started.elapsed().as_secs_f64());
        }
    }
    anyhow::bail!("it ended without a line that starts with {start:?}; the last was {last:?}")
}

fn stop(child: &mut Child) -> anyhow::Result<()> {
    child.kill().context("stopping the demo")?;
    child.wait().context("waiting for the demo")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_waited_for_and_its_absence_is_told() {
        let text = "first\nstep 1/10  epoch 1\nstep 2/10\n";
        let seconds = |start| seconds_to_line(Instant::now(), &mut text.as_bytes(), start);
        assert!(seconds("step 1/").is_ok());
        let error = seconds("epoch").unwrap_err().to_string();
        assert!(error.contains("step 2/10"), "{error}");
    }
}
