//! `cargo xtask bench-peer`: the same work here and in Python, in turns, as ratios.
//!
//! Both sides run as processes of their own that do so many images on request, so that they take
//! turns within seconds and a machine that is busy with other things slows both alike.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use clap::{Args as ClapArgs, Subcommand};

use crate::turns::peer_script;
use crate::{bench_embed, bench_parts, bench_start, bench_train};

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// Decoding and multi-crop, against torchvision on Pillow and albumentations. For one core:
    /// taskset -c 1 cargo xtask bench-peer augment --python PYTHON
    Augment(Augment),
    /// Whole training steps, against a training script in PyTorch.
    Train(bench_train::Args),
    /// Clipping, AdamW and the momentum teacher, against foreach and fused operations of PyTorch.
    Updates(bench_parts::Args),
    /// The last layer with 65,536 prototypes and the loss, against PyTorch.
    LastLayer(bench_parts::Args),
    /// From the start of the program to its first step: the demo, against a script in PyTorch.
    Start(bench_start::Args),
    /// Features of a folder of pictures, as whole commands, against a script in PyTorch.
    Embed(bench_embed::Args),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Augment {
    /// An interpreter with torch, torchvision, pillow, albumentations and opencv-python-headless.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// JPEG files; default: 64 drawn ones of 250 x 250 pixels.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Side of the global and of the local crops.
    #[arg(long, value_parser = parse_sizes, default_value = "128,128")]
    sizes: [usize; 2],
    /// bilinear or bicubic.
    #[arg(long, default_value = "bilinear")]
    filter: String,
    /// Levels of instructions of ours; those that the machine lacks are left out.
    #[arg(long, value_delimiter = ',', default_value = "avx2,avx512")]
    levels: Vec<String>,
    /// Peers.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "torchvision-v1,torchvision-v2,albumentations"
    )]
    peers: Vec<String>,
    /// Turns of every side; one more at the beginning is not counted.
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// Images of a turn.
    #[arg(long, default_value_t = 16)]
    count: usize,
}

fn parse_sizes(text: &str) -> Result<[usize; 2], String> {
    let sizes: Vec<usize> = text
        .split(',')
        .filter_map(|size| size.parse().ok())
        .collect();
    <[usize; 2]>::try_from(sizes).map_err(|_| format!("{text:?} is not like 224,96"))
}

pub(crate) fn run(peer: &Peer) -> anyhow::Result<()> {
    match peer {
        Peer::Augment(args) => augment(args),
        Peer::Train(args) => bench_train::run(args),
        Peer::Updates(args) => bench_parts::run(&bench_parts::UPDATES, args),
        Peer::LastLayer(args) => bench_parts::run(&bench_parts::LAST_LAYER, args),
        Peer::Start(args) => bench_start::run(args),
        Peer::Embed(args) => bench_embed::run(args),
    }
}

fn augment(args: &Augment) -> anyhow::Result<()> {
    let script = peer_script("augment.py");
    let server = build_server("serve_crops")?;
    let drawn = std::env::temp_dir().join(format!("selfsame-bench-{}", std::process::id()));
    let images = match &args.images {
        Some(images) => images.clone(),
        None => {
            let done = Command::new(&args.python)
                .arg(&script)
                .arg("--make")
                .arg(&drawn)
                .status()
                .with_context(|| format!("starting {}", args.python.display()))?;
            ensure!(done.success(), "the drawing of images failed: {done}");
            drawn.clone()
        }
    };
    let result = measure(args, &script, &server, &images);
    if args.images.is_none() {
        // Left behind only if even this fails.
        let _ = std::fs::remove_dir_all(&drawn);
    }
    print(args, &result?);
    Ok(())
}

/// Builds a bench that is our side and finds it. With the whole workspace, so that what is built
/// already serves.
pub(crate) fn build_server(bench: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["bench", "--workspace", "--bench", bench])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo bench")?;
    ensure!(output.status.success(), "cargo bench: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == bench)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no executable of {bench}"))
}

/// A process that does images, or steps, on request.
pub(crate) struct Side {
    pub(crate) name: String,
    is_ours: bool,
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Milliseconds per image of each turn.
    pub(crate) times: Vec<f64>,
}

impl Side {
    pub(crate) fn start(
        name: String,
        is_ours: bool,
        command: &mut Command,
    ) -> anyhow::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("no standard output")?);
        let mut side = Self {
            name,
            is_ours,
            process,
            requests,
            answers,
            times: Vec::new(),
        };
        let first = side.answer()?;
        ensure!(first == "ready", "{} answers {first:?}", side.name);
        Ok(side)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .with_context(|| format!("reading from {}", self.name))?;
        ensure!(!line.is_empty(), "{} ended", self.name);
        Ok(line.trim().to_owned())
    }

    pub(crate) fn take_turn(&mut self, count: usize) -> anyhow::Result<f64> {
        let requests = self.requests.as_mut().context("the side has ended")?;
        writeln!(requests, "{count}").with_context(|| format!("writing to {}", self.name))?;
        let answer = self.answer()?;
        let seconds: f64 = answer
            .parse()
            .with_context(|| format!("{} answers {answer:?}", self.name))?;
        Ok(1000.0 * seconds / count as f64)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Without requests it ends by itself.
        self.requests = None;
        let _ = self.process.wait();
    }
}

fn measure(
    args: &Augment,
    script: &Path,
    server: &Path,
    images: &Path,
) -> anyhow::Result<Vec<(String, bool, Vec<f64>)>> {
    let [global, local] = args.sizes.map(|size| size.to_string());
    let mut sides = Vec::new();
    for level in &args.levels {
        let mut command = Command::new(server);
        command
            .arg(images)
            .args([&global, &local, &args.filter, level]);
        match Side::start(level.clone(), true, &mut command) {
            Ok(side) => sides.push(side),
            Err(error) => eprintln!("without {level}: {error:#}"),
        }
    }
    for peer in &args.peers {
        let mut command = Command::new(&args.python);
        command.arg(script).arg(images);
        command.args([peer, &global, &local, &args.filter]);
        sides.push(Side::start(peer.clone(), false, &mut command)?);
    }
    for round in 0..=args.rounds {
        for side in &mut sides {
            // Our turns are as long as the others', so that both see the same disturbances.
            let count = if side.is_ours {
                8 * args.count
            } else {
                args.count
            };
            let time = side.take_turn(count)?;
            if round > 0 {
                side.times.push(time);
            }
        }
    }
    Ok(sides
        .iter_mut()
        .map(|side| {
            (
                side.name.clone(),
                side.is_ours,
                std::mem::take(&mut side.times),
            )
        })
        .collect())
}

fn print(args: &Augment, sides: &[(String, bool, Vec<f64>)]) {
    let [global, local] = args.sizes;
    println!(
        "ten crops, {global} + {local}, {}, decoding included",
        args.filter
    );
    for (name, _, times) in sides {
        let (min, median) = (quantile(times, 0.0), quantile(times, 0.5));
        println!("{name:16} {min:8.2} ms per image at least, {median:8.2} in the middle");
    }
    for (ours, _, our_times) in sides.iter().filter(|(_, is_ours, _)| *is_ours) {
        for (peer, _, peer_times) in sides.iter().filter(|(_, is_ours, _)| !is_ours) {
            let pairs = our_times.iter().zip(peer_times);
            let ratios: Vec<f64> = pairs.map(|(ours, peer)| peer / ours).collect();
            let least = quantile(peer_times, 0.0) / quantile(our_times, 0.0);
            println!(
                "{ours:8} {:5.1} x {peer} (turn by turn; quartiles {:.1} to {:.1}), {least:.1} x by \
                 the fastest turns",
                quantile(&ratios, 0.5),
                quantile(&ratios, 0.25),
                quantile(&ratios, 0.75),
            );
        }
    }
}

pub(crate) fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (at * (sorted.len().max(1) - 1) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_list() {
        let values = [3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!(
            [0.0, 0.5, 1.0].map(|at| quantile(&values, at)),
            [1.0, 3.0, 5.0]
        );
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!(parse_sizes("224,96"), Ok([224, 96]));
        assert!(parse_sizes("224").is_err());
    }
}
