//! `cargo xtask bench-peer embed`: features of a folder of pictures, as whole commands, against a
//! script in PyTorch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::bench_peer::quantile;
use crate::turns::{build, peer_script};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with torch, torchvision, timm, numpy and pillow.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// A folder of pictures, all of which are taken.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    #[arg(long, value_enum, default_value = "resnet50")]
    arch: Arch,
    /// Side of the pictures as they go into the network.
    #[arg(long, default_value_t = 224)]
    size: usize,
    /// Compute threads of each side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Pairs of runs; one more at the beginning is not counted.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Arch {
    #[value(name = "vit_small")]
    VitSmall,
    Resnet18,
    Resnet50,
}

impl Arch {
    /// What the script calls it.
    fn name(self) -> &'static str {
        match self {
            Arch::VitSmall => "vit_small",
            Arch::Resnet18 => "resnet18",
            Arch::Resnet50 => "resnet50",
        }
    }

    /// Random weights of it.
    fn weights(self, size: usize) -> String {
        let patch = match self {
            Arch::VitSmall => "/16",
            Arch::Resnet18 | Arch::Resnet50 => "",
        };
        format!("random:{}{patch}@{size}", self.name())
    }

    /// Ways in which PyTorch does it.
    fn variants(self) -> &'static [&'static str] {
        match self {
            Arch::VitSmall => &[""],
            Arch::Resnet18 | Arch::Resnet50 => &["", "--channels-last"],
        }
    }
}

/// What a way of the script took, by pairs.
#[derive(Default)]
struct Times {
    /// Of the whole command, over ours.
    whole: Vec<f64>,
    /// Without imports and the model, over all of ours.
    pictures: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let program = build()?;
    let out = std::env::temp_dir().join(format!("selfsame-embed-{}.npy", std::process::id()));
    let variants = args.arch.variants();
    let mut times: Vec<Times> = variants.iter().map(|_| Times::default()).collect();
    for pair in 0..=args.pairs {
        let ours = ours(args, &program, &out)?;
        println!("{ours:7.2} s");
        for (variant, times) in variants.iter().zip(&mut times) {
            let (whole, pictures) = peer(args, variant, &out)?;
            println!("{whole:7.2} s, {pictures:.2} s of them for pictures: PyTorch {variant}");
            if pair > 0 {
                times.whole.push(whole / ours);
                times.pictures.push(pictures / ours);
            }
        }
    }
    std::fs::remove_file(&out).with_context(|| format!("removing {}", out.display()))?;
    for (variant, times) in variants.iter().zip(&times) {
        for (what, ratios) in [
            ("whole", &times.whole),
            ("without its start", &times.pictures),
        ] {
            let [low, middle, high] = [0.25, 0.5, 0.75].map(|at| quantile(ratios, at));
            println!(
                "PyTorch {variant} {what}: {middle:.2} of our time (quartiles {low:.2} to {high:.2})"
            );
        }
    }
    Ok(())
}

fn ours(args: &Args, program: &Path, out: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new(program);
    command.arg("embed").arg("--data").arg(&args.images);
    command.args(["--weights", &args.arch.weights(args.size)]);
    command.args(["--threads", &args.threads.to_string()]);
    command.arg("--out").arg(out);
    Ok(finished(&mut command)?.0)
}

/// Seconds of all of it, and of what it counts itself.
fn peer(args: &Args, variant: &str, out: &Path) -> anyhow::Result<(f64, f64)> {
    let mut command = Command::new(&args.python);
    command.arg(peer_script("embed.py"));
    command.arg("--images").arg(&args.images);
    command.arg("--out").arg(out);
    command.args(["--arch", args.arch.name()]);
    command.args(["--size", &args.size.to_string()]);
    command.args(["--threads", &args.threads.to_string()]);
    command.args(variant.split_whitespace());
    let (seconds, output) = finished(&mut command)?;
    let line: Value = serde_json::from_str(&output).context("the last line of embed.py")?;
    let pictures = line["seconds"]
        .as_f64()
        .context("embed.py names no seconds")?;
    Ok((seconds, pictures))
}

/// Seconds and standard output of a command.
fn finished(command: &mut Command) -> anyhow::Result<(f64, String)> {
    let started = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "{}: {}\n{}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((
        seconds,
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}
