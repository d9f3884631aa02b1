//! `cargo xtask bench-peer train`: whole training steps here and in PyTorch, in turns, as ratios.
//!
//! Each side is its own program with its own data loading, started anew for every turn.
//! A turn's figure is the median of its steps after the first two; a pair of turns gives a ratio.
//! Every turn is appended to a file as one JSON line, and the summary covers all that stand there,
//! so that pairs can be measured one by one whenever the machine is quiet.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::bench_peer::quantile;

/// Steps at the start of a turn that pay for start-up and are not counted.
const COLD_STEPS: usize = 2;

/// How often the memory of a running side is looked at.
const LOOK: Duration = Duration::from_millis(20);

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
    /// What to measure; default: every row.
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

/// The recipes of the performance table.
const ROWS: [Row; 8] = [
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
        ours: "--preset notebook --set model.arch=\"resnet50\" --set train.batch_size=16 \
               --set augment.local_size=64 --set augment.local_crops=6",
        peer: "--recipe notebook --arch resnet50 --batch 16 --local-size 64 --local-crops 6",
    },
    Row {
        name: "out-dim-65536",
        ours: "--preset notebook --set train.batch_size=16 --set head.kind=\"official\" \
               --set head.out_dim=65536",
        peer: "--recipe notebook --batch 16 --head official --out-dim 65536",
    },
];

/// What one turn of one side gave.
struct Turn {
    /// Seconds of each step, waiting for data included.
    seconds: Vec<f64>,
    losses: Vec<f64>,
    /// Peak resident memory of the main process, without loader processes.
    peak_mib: f64,
    /// From the start of the process to the end of its first step.
    first_step_s: f64,
}

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
            None => build()?,
        };
        for row in rows {
            for pair in 0..args.pairs {
                // The side that goes first changes, so that neither always finds a warm machine.
                for side in 0..2 {
                    let ours = (pair + side) % 2 == 0;
                    let turn = match ours {
                        true => our_turn(args, row, &program),
                        false => peer_turn(args, row),
                    }
                    .with_context(|| format!("{}, {}", row.name, name_of(ours)))?;
                    record(args, row, ours, &turn)?;
                }
            }
        }
    }
    summarise(&args.raw)
}

fn find(name: &str) -> anyhow::Result<&'static Row> {
    let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>();
    ROWS.iter()
        .find(|row| row.name == name)
        .with_context(|| format!("--row {name}: known are {}", known().join(", ")))
}

fn name_of(ours: bool) -> &'static str {
    if ours { "selfsame" } else { "pytorch" }
}

/// Builds the program with optimisation and finds it.
fn build() -> anyhow::Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--package", "selfsame"])
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo build")?;
    ensure!(output.status.success(), "cargo build: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "selfsame")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no executable of selfsame")
}

fn our_turn(args: &Args, row: &Row, program: &Path) -> anyhow::Result<Turn> {
    let dir = std::env::temp_dir().join(format!("selfsame-bench-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let steps = args.steps + COLD_STEPS;
    let mut command = Command::new(program);
    command.arg("train").arg("--data").arg(&args.images);
    command.arg("--run").arg(&dir);
    command.args(row.ours.split_whitespace());
    for setting in [
        format!("train.max_steps={steps}"),
        "train.log_every_steps=1".to_owned(),
        "train.knn_every_epochs=0".to_owned(),
        format!("data.workers={}", args.workers),
    ] {
        command.arg("--set").arg(setting);
    }
    command.args(["--threads", &args.threads.to_string()]);
    // A file, not a pipe: a full pipe that nobody reads would stop the program.
    let messages = dir.with_extension("log");
    let log =
        File::create(&messages).with_context(|| format!("creating {}", messages.display()))?;
    command.stdout(Stdio::null()).stderr(log);
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let metrics = dir.join("metrics.jsonl");
    let mut peak_mib: f64 = 0.0;
    let mut first_step_s = None;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting")? {
            break status;
        }
        peak_mib = peak_mib.max(peak_of(&child));
        if first_step_s.is_none() && std::fs::metadata(&metrics).is_ok_and(|file| file.len() > 0) {
            first_step_s = Some(started.elapsed().as_secs_f64());
        }
        std::thread::sleep(LOOK);
    };
    if !status.success() {
        let text = std::fs::read_to_string(&messages).context("reading its messages")?;
        bail!("{status}: {text}");
    }
    let lines = json_lines(&metrics)?;
    let batch = batch_size(&dir)?;
    let seconds = lines
        .iter()
        .filter_map(|line| line["images_per_s"].as_f64())
        .map(|rate| batch / rate)
        .collect();
    let losses = lines.iter().filter_map(|line| line["loss"].as_f64());
    let turn = Turn {
        seconds,
        losses: losses.collect(),
        peak_mib,
        first_step_s: first_step_s.context("it ended before its first step was seen")?,
    };
    std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    std::fs::remove_file(&messages).with_context(|| format!("removing {}", messages.display()))?;
    Ok(turn)
}

/// The batch size that a run resolved to.
fn batch_size(run: &Path) -> anyhow::Result<f64> {
    let path = run.join("config.toml");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "batch_size")
        // A comment behind it says where the value came from.
        .and_then(|(_, value)| value.split('#').next()?.trim().parse().ok())
        .with_context(|| format!("{} has no batch_size", path.display()))
}

fn peer_turn(args: &Args, row: &Row) -> anyhow::Result<Turn> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/train_dino.py");
    let threads = args.peer_threads.unwrap_or(args.threads);
    let mut command = Command::new(&args.python);
    command
        .arg(script)
        .arg("--images")
        .arg(&args.images)
        .args(row.peer.split_whitespace())
        .args(["--steps", &(args.steps + COLD_STEPS).to_string()])
        .args(["--threads", &threads.to_string()])
        .args(["--workers", &args.workers.to_string()])
        .stdout(Stdio::piped());
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", args.python.display()))?;
    let output = child.stdout.take().context("no standard output")?;
    let mut turn = Turn {
        seconds: Vec::new(),
        losses: Vec::new(),
        peak_mib: 0.0,
        first_step_s: 0.0,
    };
    for line in BufReader::new(output).lines() {
        let line = line.context("reading its output")?;
        let line: Value = serde_json::from_str(&line)
            .with_context(|| format!("it printed {line:?} instead of JSON"))?;
        if line["summary"].is_string() {
            continue;
        }
        if turn.seconds.is_empty() {
            turn.first_step_s = started.elapsed().as_secs_f64();
        }
        turn.peak_mib = turn.peak_mib.max(peak_of(&child));
        turn.seconds
            .push(line["seconds"].as_f64().context("a line without seconds")?);
        turn.losses
            .push(line["loss"].as_f64().context("a line without loss")?);
    }
    let status = child.wait().context("waiting")?;
    ensure!(status.success(), "{status}");
    Ok(turn)
}

/// The highest resident memory so far, in MiB; 0 where the system does not say.
fn peak_of(child: &Child) -> f64 {
    std::fs::read_to_string(format!("/proc/{}/status", child.id()))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|text| {
            text.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<f64>()
                .ok()
        })
        .unwrap_or(0.0)
        / 1024.0
}

fn record(args: &Args, row: &Row, ours: bool, turn: &Turn) -> anyhow::Result<()> {
    let counted = turn.seconds.get(COLD_STEPS..).unwrap_or_default();
    ensure!(
        counted.len() == args.steps,
        "{} steps instead of {}",
        counted.len(),
        args.steps
    );
    let line = json!({
        "row": row.name,
        "side": name_of(ours),
        "seconds": quantile(counted, 0.5),
        "steps": turn.seconds,
        "losses": turn.losses,
        "peak_mib": turn.peak_mib.round(),
        "first_step_s": turn.first_step_s,
        "threads": args.threads,
    });
    println!("{line}");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.raw)
        .with_context(|| format!("opening {}", args.raw.display()))?;
    writeln!(file, "{line}").with_context(|| format!("writing {}", args.raw.display()))
}

fn json_lines(path: &Path) -> anyhow::Result<Vec<Value>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut lines = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        lines.push(
            serde_json::from_str(&line)
                .with_context(|| format!("{}: {line:?} is not JSON", path.display()))?,
        );
    }
    Ok(lines)
}

/// Ratios over all pairs in the raw file: the n-th turn of one side with the n-th of the other.
fn summarise(raw: &Path) -> anyhow::Result<()> {
    let lines = json_lines(raw)?;
    let mut names: Vec<&str> = Vec::new();
    for line in &lines {
        let name = line["row"].as_str().context("a line without a row")?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let of = |ours: bool, key: &str| -> Vec<f64> {
            let side = |line: &&Value| line["row"] == name && line["side"] == name_of(ours);
            lines
                .iter()
                .filter(side)
                .filter_map(|line| line[key].as_f64())
                .collect()
        };
        let ratios = |key: &str| -> Vec<f64> {
            let pairs = of(false, key).into_iter().zip(of(true, key));
            pairs.map(|(peer, ours)| peer / ours).collect()
        };
        let speed = ratios("seconds");
        let [low, middle, high] = [0.0, 0.5, 1.0].map(|at| quantile(&speed, at));
        println!(
            "{name:18} {middle:5.2} x PyTorch ({low:.2} to {high:.2}, {} pairs), {:.2} x its \
             memory, {:.2} x its time to the first step",
            speed.len(),
            1.0 / quantile(&ratios("peak_mib"), 0.5),
            1.0 / quantile(&ratios("first_step_s"), 0.5),
        );
    }
    Ok(())
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
}
