//! `cargo xtask bench-gpu`: whole training steps on a GPU, here and in PyTorch, in turns.
//!
//! Made for a machine that is lent for minutes: pictures are drawn on the spot, turns go on as long
//! as the budget lasts, every row has its first turn of each side before any has a second, and each
//! turn is kept as soon as it is done.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bench_peer::quantile;
use crate::turns::{Bench, OURS, Turn, json_lines, peer_script, session, summaries};
use crate::wrong_usage;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with torch for this GPU, torchvision, timm and pillow.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// The program, built with `--features cuda`.
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// A folder of pictures; default: drawn ones of 450 x 450 pixels.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// How many pictures are drawn; each gets several names, so that no epoch ends within a turn.
    #[arg(long, default_value_t = 1024)]
    count: usize,
    /// What to measure; default: every row.
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
    /// Turns of each side of each row, as far as the time allows.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// No turn is begun that would end later than this, by what the side took before.
    #[arg(long, default_value_t = 540)]
    seconds: u64,
    /// Steps of a counted line; a turn has one line to warm up, as many more as a loader works ahead
    /// where data counts, and three that count.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Loader threads and processes.
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// JSON lines of all turns; appended to.
    #[arg(long, value_name = "FILE", default_value = "bench-gpu.jsonl")]
    raw: PathBuf,
    /// Measure nothing, only sum up the raw lines.
    #[arg(long)]
    summary: bool,
}

/// A piece of work and how each side is asked for it.
struct Row {
    name: &'static str,
    /// Whether waiting for data counts; else the peers reuse a batch and only computing is compared.
    with_data: bool,
    ours: &'static str,
    /// Name and flags of each peer.
    peers: &'static [(&'static str, &'static str)],
}

/// Names of each drawn picture.
const NAMES: usize = 16;

/// The recipe of `--preset official`, with its crops of 224 and 96 pixels.
const ROWS: [Row; 5] = [
    // What a user gets: decoding and augmentation included.
    Row {
        name: "vit_small",
        with_data: true,
        ours: "--preset official --set train.batch_size=128 --precision bf16",
        // Compiled or not, the peer waits for its loader here.
        peers: &[("eager", "--recipe official --batch 128 --amp")],
    },
    // Without data on the peer's side; ours is the row above less its waiting.
    Row {
        name: "vit_small-compute",
        with_data: false,
        ours: "--preset official --set train.batch_size=128 --precision bf16",
        peers: &[
            ("eager", "--recipe official --batch 128 --amp --reuse-batch"),
            (
                "compiled",
                "--recipe official --batch 128 --amp --reuse-batch --compile",
            ),
        ],
    },
    Row {
        name: "vit_small-f32",
        with_data: false,
        ours: "--preset official --set train.batch_size=64",
        peers: &[("eager", "--recipe official --batch 64 --reuse-batch")],
    },
    Row {
        name: "resnet50",
        with_data: false,
        ours: "--preset official-resnet50 --set train.batch_size=64 --precision bf16",
        peers: &[
            (
                "eager",
                "--recipe official --arch resnet50 --batch 64 --amp --channels-last --reuse-batch",
            ),
            (
                "compiled",
                "--recipe official --arch resnet50 --batch 64 --amp --channels-last \
                 --reuse-batch --compile",
            ),
        ],
    },
    Row {
        name: "vit_base",
        with_data: false,
        ours: "--preset official --set model.arch=\"vit_base\" --set train.batch_size=64 \
               --precision bf16",
        peers: &[
            (
                "eager",
                "--recipe official --arch vit_base --batch 64 --amp --reuse-batch",
            ),
            (
                "compiled",
                "--recipe official --arch vit_base --batch 64 --amp --reuse-batch --compile",
            ),
        ],
    },
];

/// One turn that is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Planned {
    round: usize,
    row: usize,
    /// The peer's position, or none for our own program.
    peer: Option<usize>,
}

/// All turns in order: a round has every side of every row once, and the side that begins a row
/// changes from round to round.
fn plan(rows: &[&Row], rounds: usize) -> Vec<Planned> {
    let mut turns = Vec::new();
    for round in 0..rounds {
        for (index, row) in rows.iter().enumerate() {
            let peers = (0..row.peers.len()).map(Some);
            let mut sides: Vec<_> = std::iter::once(None).chain(peers).collect();
            sides.rotate_left(round % row_sides(row));
            turns.extend(sides.into_iter().map(|peer| Planned {
                round,
                row: index,
                peer,
            }));
        }
    }
    turns
}

fn row_sides(row: &Row) -> usize {
    1 + row.peers.len()
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !args.summary {
        let drawn = std::env::temp_dir().join(format!("selfsame-drawn-{}", std::process::id()));
        let measured = measure(args, &drawn);
        let _ = std::fs::remove_dir_all(&drawn);
        measured?;
    }
    summarise(&args.raw)
}

fn measure(args: &Args, drawn: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let rows: Vec<&Row> = match args.rows.as_slice() {
        [] => ROWS.iter().collect(),
        names => names
            .iter()
            .map(|name| find(name))
            .collect::<anyhow::Result<_>>()?,
    };
    let machine = machine()?;
    println!("{machine}");
    let images = match &args.images {
        Some(images) => images,
        None => {
            draw(args, drawn)?;
            drawn
        }
    };
    let libraries = libraries(&args.python)?;
    // A round of all workers, where waiting for them counts.
    let steps = |with_data: bool| match with_data {
        true => args.steps.max(args.workers),
        false => args.steps,
    };
    let session = session();
    let bench = |with_data: bool| Bench {
        python: &args.python,
        program: &args.program,
        images,
        device: "cuda",
        threads: 0,
        peer_threads: 0,
        workers: args.workers,
        cold_lines: match with_data {
            false => 1,
            true => cold_lines(args.workers, steps(true)),
        },
        lines: 3,
        steps_a_line: steps(with_data),
        by_mean: with_data,
        libraries: Some(&libraries),
        raw: &args.raw,
        session: &session,
    };
    let budget = Duration::from_secs(args.seconds);
    let mut taken: Vec<(Planned, Duration)> = Vec::new();
    for turn in plan(&rows, args.rounds) {
        let before = taken.iter().rev().find(|(earlier, _)| {
            // In whichever round.
            (earlier.row, earlier.peer) == (turn.row, turn.peer)
        });
        let expected = before.map_or(Duration::ZERO, |(_, time)| *time);
        if began.elapsed() + expected > budget {
            println!(
                "{{\"left_out\": \"the time of {} s is used up\"}}",
                args.seconds
            );
            break;
        }
        let started = Instant::now();
        let row = rows[turn.row];
        let side = turn.peer.map_or(OURS, |peer| row.peers[peer].0);
        // One side that fails, for want of memory or of a compiler, must not cost the others.
        let bench = bench(row.with_data);
        match watched(&bench, row, turn.peer) {
            Ok((done, gpu)) => {
                let mut more = gpu;
                more["machine"] = machine.clone();
                more["with_data"] = row.with_data.into();
                bench.record(row.name, side, turn.round, &done, &more)?;
            }
            Err(error) => eprintln!("{}, {side}: {error:#}", row.name),
        }
        taken.push((turn, started.elapsed()));
    }
    Ok(())
}

/// Lines that pass before a loader's rate shows: its workers, who have two batches each on their way,
/// had them made while the program started.
fn cold_lines(workers: usize, steps_a_line: usize) -> usize {
    1 + (2 * workers).div_ceil(steps_a_line.max(1))
}

/// A turn, and what the driver said of the GPU meanwhile.
fn watched(bench: &Bench<'_>, row: &Row, peer: Option<usize>) -> anyhow::Result<(Turn, Value)> {
    let watch = Watch::begin()?;
    let turn = match peer {
        None => bench.our_turn(row.ours),
        Some(peer) => bench.peer_turn(row.peers[peer].1),
    };
    let seen = watch.end()?;
    Ok((turn?, seen))
}

fn find(name: &str) -> anyhow::Result<&'static Row> {
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        wrong_usage(format!("--row {name}: known are {}", known.join(", ")))
    })
}

/// JPEG files of about the size of ImageNet's photographs.
fn draw(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let done = Command::new(&args.python)
        .arg(peer_script("augment.py"))
        .arg("--make")
        .arg(folder)
        .args(["--side", "450", "--count", &args.count.to_string()])
        .status()
        .with_context(|| format!("starting {}", args.python.display()))?;
    ensure!(done.success(), "the drawing of images failed: {done}");
    let drawn: Vec<_> = std::fs::read_dir(folder)
        .and_then(|entries| entries.collect::<Result<_, _>>())
        .with_context(|| format!("reading {}", folder.display()))?;
    for picture in drawn {
        let name = picture.file_name().into_string().unwrap_or_default();
        for copy in 1..NAMES {
            let link = folder.join(format!("{copy}-{name}"));
            std::fs::hard_link(picture.path(), &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
    }
    Ok(())
}

/// Folders of the CUDA libraries that came with PyTorch, and those that were to be searched anyway.
fn libraries(python: &Path) -> anyhow::Result<String> {
    const FIND: &str = "import glob, os, nvidia\n\
                        for root in nvidia.__path__:\n    \
                        print(*glob.glob(os.path.join(root, '*', 'lib')), sep='\\n')";
    let output = Command::new(python)
        .args(["-c", FIND])
        .output()
        .with_context(|| format!("starting {}", python.display()))?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<&str> = before
        .split(':')
        .chain(found.lines())
        .filter(|folder| !folder.is_empty())
        .collect();
    Ok(folders.join(":"))
}

/// Name and driver of the GPU, and the number of cores.
fn machine() -> anyhow::Result<Value> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version,memory.total"])
        .args(["--format=csv,noheader"])
        .output()
        .context("nvidia-smi: there is no GPU to measure, or no driver")?;
    ensure!(output.status.success(), "nvidia-smi: {}", output.status);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let gpu = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(json!({"gpu": gpu, "cores": cores}))
}

/// A driver's tool that prints the GPU's memory and load five times a second.
struct Watch {
    tool: Child,
}

impl Watch {
    fn begin() -> anyhow::Result<Self> {
        let tool = Command::new("nvidia-smi")
            .args(["--query-gpu=memory.used,utilization.gpu"])
            .args(["--format=csv,noheader,nounits", "--loop-ms=200"])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting nvidia-smi")?;
        Ok(Self { tool })
    }

    fn end(mut self) -> anyhow::Result<Value> {
        self.tool.kill().context("ending nvidia-smi")?;
        let mut text = String::new();
        if let Some(mut output) = self.tool.stdout.take() {
            output
                .read_to_string(&mut text)
                .context("reading what nvidia-smi said")?;
        }
        self.tool.wait().context("waiting for nvidia-smi")?;
        Ok(of_samples(&text))
    }
}

/// Peak memory beyond what was in use at first, and the median load of the second half of the
/// samples, when everything has warmed up.
fn of_samples(text: &str) -> Value {
    let samples: Vec<[f64; 2]> = text
        .lines()
        .filter_map(|line| {
            let (memory, load) = line.split_once(',')?;
            Some([memory.trim().parse().ok()?, load.trim().parse().ok()?])
        })
        .collect();
    let Some([first, _]) = samples.first() else {
        return json!({});
    };
    let peak = samples
        .iter()
        .map(|[memory, _]| *memory)
        .fold(0.0, f64::max);
    let loads: Vec<f64> = samples[samples.len() / 2..]
        .iter()
        .map(|[_, load]| *load)
        .collect();
    json!({"gpu_mib": peak - first, "gpu_load": quantile(&loads, 0.5)})
}

fn summarise(raw: &Path) -> anyhow::Result<()> {
    ensure!(
        raw.exists(),
        "no turn ended well; there is nothing to sum up"
    );
    let mut lines = json_lines(raw)?;
    // A peer that reuses its batch waits for none: what is compared there is the computation.
    for line in &mut lines {
        if line["with_data"] == false
            && let (Some(seconds), Some(wait)) =
                (line["seconds"].as_f64(), line["wait_frac"].as_f64())
        {
            line["seconds"] = (seconds * (1.0 - wait)).into();
        }
    }
    for summary in summaries(&lines, &["gpu_mib", "peak_mib", "first_step_s"])? {
        let [gpu, host, start] = [0, 1, 2].map(|i| summary.shares[i].unwrap_or(f64::NAN));
        println!(
            "{}, {gpu:.2} x its memory on the GPU, {host:.2} x on the host, {start:.2} x its time \
             to the first line",
            summary.speed_text()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_of_every_row_comes_once_before_any_comes_twice() {
        let rows: Vec<&Row> = ROWS.iter().collect();
        let sides: usize = rows.iter().map(|row| row_sides(row)).sum();
        let turns = plan(&rows, 2);
        assert_eq!(turns.len(), 2 * sides);
        for (round, turns) in turns.chunks(sides).enumerate() {
            for (index, row) in rows.iter().enumerate() {
                for peer in std::iter::once(None).chain((0..row.peers.len()).map(Some)) {
                    let turn = Planned {
                        round,
                        row: index,
                        peer,
                    };
                    assert_eq!(turns.iter().filter(|other| **other == turn).count(), 1);
                }
            }
        }
        assert_ne!(
            turns[0].peer, turns[sides].peer,
            "another side begins the second round"
        );
    }

    #[test]
    fn what_was_loaded_ahead_is_not_counted() {
        assert_eq!(
            [cold_lines(16, 10), cold_lines(0, 10), cold_lines(3, 1)],
            [5, 1, 7]
        );
    }

    #[test]
    fn samples_give_the_rise_of_memory_and_the_late_load() {
        let seen = of_samples("500, 0\n900, 10\nN/A\n4500, 90\n4400, 98\n");
        assert_eq!(seen, json!({"gpu_mib": 4000.0, "gpu_load": 98.0}));
        assert_eq!(of_samples(""), json!({}));
    }
}
