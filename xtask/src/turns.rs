//! Turns of a speed comparison: each side is its own program with its own data loading, started
//! anew, and every turn is kept as one JSON line. A line names the pair that its turn belongs to and
//! under which settings it was taken, so that a turn that failed leaves no wrong pair behind.

mod summary;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::bench_peer::quantile;
pub(crate) use summary::summaries;

/// How often the memory of a running side is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The side that everything is compared with.
pub(crate) const OURS: &str = "selfsame";

/// What both sides of a comparison are given.
pub(crate) struct Bench<'a> {
    /// An interpreter with torch, torchvision, timm and pillow.
    pub(crate) python: &'a Path,
    /// Our program.
    pub(crate) program: &'a Path,
    /// A folder of pictures.
    pub(crate) images: &'a Path,
    /// `cpu` or `cuda`.
    pub(crate) device: &'a str,
    /// Compute threads; 0 leaves the choice to each side.
    pub(crate) threads: usize,
    /// Compute threads of the peer.
    pub(crate) peer_threads: usize,
    /// Loader threads and processes.
    pub(crate) workers: usize,
    /// Lines at the start of a turn that pay for start-up and are not counted.
    pub(crate) cold_lines: usize,
    /// Counted lines of a turn.
    pub(crate) lines: usize,
    /// Steps that a line is the mean of.
    pub(crate) steps_a_line: usize,
    /// Whether a turn is judged by the mean of its lines: loader processes deliver in bursts, so that
    /// the median is either that of computing or that of waiting.
    pub(crate) by_mean: bool,
    /// Folders of shared libraries that our program needs, as `LD_LIBRARY_PATH` takes them.
    pub(crate) libraries: Option<&'a str>,
    /// JSON lines of all turns; appended to.
    pub(crate) raw: &'a Path,
    /// Names this start of the command among those whose turns stand in one file; see [`session`].
    pub(crate) session: &'a str,
}

/// When the command was started, in milliseconds since 1970.
pub(crate) fn session() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis()).to_string()
}

/// What one turn of one side gave.
pub(crate) struct Turn {
    /// Seconds of a step, waiting for data included, line by line.
    seconds: Vec<f64>,
    losses: Vec<f64>,
    /// Share of the time spent waiting for data, line by line.
    waits: Vec<f64>,
    /// Peak resident memory of the main process, without loader processes.
    peak_mib: f64,
    /// From the start of the process to the end of its first line.
    first_line_s: f64,
}

impl Bench<'_> {
    /// Steps of a turn. Our program writes its first line after one step.
    fn all_steps(&self) -> usize {
        let first = usize::from(self.steps_a_line > 1);
        first + (self.cold_lines + self.lines) * self.steps_a_line
    }

    /// A turn of our program; `flags` are those of `selfsame train`, parted by white space.
    pub(crate) fn our_turn(&self, flags: &str) -> anyhow::Result<Turn> {
        let dir = std::env::temp_dir().join(format!("selfsame-bench-{}", std::process::id()));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        let mut command = Command::new(self.program);
        command.envs(self.libraries.map(|folders| ("LD_LIBRARY_PATH", folders)));
        command.arg("train").arg("--data").arg(self.images);
        command.arg("--run").arg(&dir).arg("--no-report");
        command.args(["--device", self.device]);
        command.args(flags.split_whitespace());
        for setting in [
            format!("train.max_steps={}", self.all_steps()),
            format!("train.log_every_steps={}", self.steps_a_line),
            "train.knn_every_epochs=0".to_owned(),
            format!("data.workers={}", self.workers),
        ] {
            command.arg("--set").arg(setting);
        }
        command.args(["--threads", &self.threads.to_string()]);
        // A file, not a pipe: a full pipe that nobody reads would stop the program.
        let messages = dir.with_extension("log");
        let log =
            File::create(&messages).with_context(|| format!("creating {}", messages.display()))?;
        command.stdout(Stdio::null()).stderr(log);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let metrics = dir.join("metrics.jsonl");
        let mut peak_mib: f64 = 0.0;
        let mut first_line_s = None;
        let status = loop {
            if let Some(status) = child.try_wait().context("waiting")? {
                break status;
            }
            peak_mib = peak_mib.max(peak_of(&child));
            if first_line_s.is_none()
                && std::fs::metadata(&metrics).is_ok_and(|file| file.len() > 0)
            {
                first_line_s = Some(started.elapsed().as_secs_f64());
            }
            std::thread::sleep(LOOK);
        };
        if !status.success() {
            let text = std::fs::read_to_string(&messages).context("reading its messages")?;
            bail!("{status}: {text}");
        }
        let lines = json_lines(&metrics)?;
        let batch = batch_size(&dir)?;
        let of = |key: &'static str| lines.iter().filter_map(move |line| line[key].as_f64());
        let mut seconds: Vec<f64> = of("images_per_s").map(|rate| batch / rate).collect();
        let mut losses: Vec<f64> = of("loss").collect();
        let mut waits: Vec<f64> = of("data_wait_frac").collect();
        // Every line but the first is the mean of as many steps.
        if self.steps_a_line > 1 {
            for list in [&mut seconds, &mut losses, &mut waits] {
                list.drain(..1.min(list.len()));
            }
        }
        let turn = Turn {
            seconds,
            losses,
            waits,
            peak_mib,
            first_line_s: first_line_s.context("it ended before its first step was seen")?,
        };
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        std::fs::remove_file(&messages)
            .with_context(|| format!("removing {}", messages.display()))?;
        Ok(turn)
    }

    /// A turn of `peer/train_dino.py` with these flags, parted by white space.
    pub(crate) fn peer_turn(&self, flags: &str) -> anyhow::Result<Turn> {
        let mut command = Command::new(self.python);
        command
            .arg(peer_script("train_dino.py"))
            .arg("--images")
            .arg(self.images)
            .args(["--device", self.device])
            .args(flags.split_whitespace())
            .args(["--steps", &self.all_steps().to_string()])
            .args(["--steps-a-line", &self.steps_a_line.to_string()])
            .args(["--threads", &self.peer_threads.to_string()])
            .args(["--workers", &self.workers.to_string()])
            .stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.python.display()))?;
        let output = child.stdout.take().context("no standard output")?;
        let mut turn = Turn {
            seconds: Vec::new(),
            losses: Vec::new(),
            waits: Vec::new(),
            peak_mib: 0.0,
            first_line_s: 0.0,
        };
        for line in BufReader::new(output).lines() {
            let line = line.context("reading its output")?;
            let line: Value = serde_json::from_str(&line)
                .with_context(|| format!("it printed {line:?} instead of JSON"))?;
            if line["summary"].is_string() {
                continue;
            }
            if turn.seconds.is_empty() {
                turn.first_line_s = started.elapsed().as_secs_f64();
            }
            turn.peak_mib = turn.peak_mib.max(peak_of(&child));
            let of = |key: &str| {
                let value = line[key].as_f64();
                value.with_context(|| format!("a line without {key}: {line}"))
            };
            turn.seconds.push(of("seconds")?);
            turn.losses.push(of("loss")?);
            turn.waits.push(of("wait_seconds")? / of("seconds")?);
        }
        let status = child.wait().context("waiting")?;
        ensure!(status.success(), "{status}");
        Ok(turn)
    }

    /// Keeps a turn, with whatever `more` has to say of it; `pair` is the pair's number, or the
    /// round's.
    pub(crate) fn record(
        &self,
        row: &str,
        side: &str,
        pair: usize,
        turn: &Turn,
        more: &Value,
    ) -> anyhow::Result<()> {
        let counted = turn.seconds.get(self.cold_lines..).unwrap_or_default();
        ensure!(
            counted.len() == self.lines,
            "{} lines instead of {}",
            counted.len(),
            self.lines
        );
        let waits = turn.waits.get(self.cold_lines..).unwrap_or_default();
        let middle = |values: &[f64]| match self.by_mean {
            true => values.iter().sum::<f64>() / values.len() as f64,
            false => quantile(values, 0.5),
        };
        let mut line = json!({
            "row": row,
            "side": side,
            "pair": format!("{}-{pair}", self.session),
            "seconds": middle(counted),
            "steps": turn.seconds,
            "steps_a_line": self.steps_a_line,
            "losses": turn.losses,
            "wait_frac": middle(waits),
            "peak_mib": turn.peak_mib.round(),
            "first_step_s": turn.first_line_s,
            "threads": self.threads,
            "peer_threads": self.peer_threads,
            "workers": self.workers,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            line[key] = value.clone();
        }
        println!("{line}");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.raw)
            .with_context(|| format!("opening {}", self.raw.display()))?;
        writeln!(file, "{line}").with_context(|| format!("writing {}", self.raw.display()))
    }
}

/// A script of `xtask/peer`: below the current folder if it is there, as the tree may have been
/// copied since this program was built, else where it was then.
pub(crate) fn peer_script(name: &str) -> PathBuf {
    let here = Path::new("xtask/peer").join(name);
    match here.exists() {
        true => here,
        false => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("peer")
            .join(name),
    }
}

/// Builds the program with optimisation and finds it.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
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

/// The values of a file of JSON lines.
pub(crate) fn json_lines(path: &Path) -> anyhow::Result<Vec<Value>> {
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

#[cfg(test)]
mod tests {
    use super::summary::settings;
    use super::*;

    #[test]
    fn a_line_names_its_pair_and_both_numbers_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw.jsonl");
        let bench = Bench {
            python: Path::new("python3"),
            program: Path::new("selfsame"),
            images: folder.path(),
            device: "cpu",
            threads: 2,
            peer_threads: 3,
            workers: 4,
            cold_lines: 1,
            lines: 1,
            steps_a_line: 1,
            by_mean: false,
            libraries: None,
            raw: &raw,
            session: "1700000000000",
        };
        let turn = Turn {
            seconds: vec![9.0, 1.0],
            losses: vec![8.0, 8.0],
            waits: vec![0.0, 0.0],
            peak_mib: 1.0,
            first_line_s: 1.0,
        };
        for side in [OURS, "eager"] {
            bench.record("a", side, 5, &turn, &json!({})).unwrap();
        }
        let lines = json_lines(&raw).unwrap();
        for line in &lines {
            assert_eq!(line["pair"], "1700000000000-5");
            assert_eq!(
                settings(line),
                [&json!(2), &json!(3), &json!(4), &Value::Null]
            );
        }
        assert_eq!(summaries(&lines, &[]).unwrap()[0].speed, [1.0]);
        assert!(session().parse::<u64>().unwrap() > 1_700_000_000_000);
    }
}
