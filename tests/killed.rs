//! `kill -9` at any moment, half the time while a checkpoint is being written: the run goes on to
//! the bits of one that was never disturbed.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{checkpoint_bytes, command, done, metrics, scratch, tiny_run};

/// Steps of every run; five an epoch, a checkpoint after each epoch.
const STEPS: u64 = 150;
const SETS: [&str; 3] = [
    "train.epochs=30",
    "train.checkpoint_every_epochs=1",
    "train.checkpoint_every_minutes=0",
];

/// A small generator for moments and thread counts, so that a failure can be run again.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// A trainer in `run`, with other numbers of threads and workers each time.
fn begin(run: &Path, draws: &mut Draws) -> Child {
    let threads = format!("train.threads={}", [1, 2][draws.below(2) as usize]);
    let workers = format!("data.workers={}", [0, 2, 4][draws.below(3) as usize]);
    let mut args = tiny_run(run, &SETS);
    for set in [threads, workers] {
        args.extend(["--set".to_owned(), set]);
    }
    args.push("--resume".to_owned());
    command(&args).stderr(Stdio::null()).spawn().unwrap()
}

/// Whether a checkpoint lies half written.
fn is_saving(run: &Path) -> bool {
    std::fs::read_dir(run.join("checkpoints")).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
        })
    })
}

/// Kills the trainer: as soon as it is seen saving, or after a time drawn by chance. Gives false
/// if it was done before.
fn kill(trainer: &mut Child, run: &Path, while_saving: bool, draws: &mut Draws) -> bool {
    let end = Instant::now() + Duration::from_millis(draws.below(1500));
    loop {
        if trainer.try_wait().unwrap().is_some() {
            return false;
        }
        let due = if while_saving {
            is_saving(run)
        } else {
            Instant::now() >= end
        };
        if due {
            trainer.kill().unwrap();
            trainer.wait().unwrap();
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Loss and gradient norm of each step, as they were written.
fn logged(run: &Path) -> Vec<(u64, String, String)> {
    let lines = metrics(run);
    let entry = |line: &serde_json::Value| {
        let text = |key: &str| line[key].to_string();
        (
            line["step"].as_u64().unwrap(),
            text("loss"),
            text("grad_norm"),
        )
    };
    lines.iter().map(entry).collect()
}

fn killed(kills: usize, seed: u64) {
    let dir = scratch(&format!("killed-{kills}"));
    let whole = dir.join("whole");
    done(&tiny_run(&whole, &SETS));
    let (bits, losses) = (checkpoint_bytes(&whole, STEPS), logged(&whole));
    assert_eq!(losses.len() as u64, STEPS);

    let mut draws = Draws(seed);
    let (mut all, mut within, mut runs) = (0, 0, 0);
    while all < kills || within < kills / 2 {
        assert!(
            runs < 10 * kills,
            "{within} of {all} kills met a checkpoint being written"
        );
        let run = dir.join(format!("run-{runs}"));
        runs += 1;
        loop {
            let mut trainer = begin(&run, &mut draws);
            if all >= kills && within >= kills / 2 {
                assert!(trainer.wait().unwrap().success());
                break;
            }
            let while_saving = within * 2 <= all;
            if !kill(&mut trainer, &run, while_saving, &mut draws) {
                assert!(trainer.wait().unwrap().success(), "seed {seed}, run {runs}");
                break;
            }
            all += 1;
            within += usize::from(is_saving(&run));
        }
        assert!(
            checkpoint_bytes(&run, STEPS) == bits,
            "seed {seed}, run {runs}: other bits"
        );
        assert_eq!(logged(&run), losses, "seed {seed}, run {runs}");
        assert!(
            !is_saving(&run),
            "seed {seed}, run {runs}: something half written is left"
        );
        std::fs::remove_dir_all(&run).unwrap();
    }
    eprintln!(
        "{all} kills, {within} of them while saving, in {runs} runs: all went on to the same bits"
    );
}

#[test]
fn twenty_kills_cost_no_bit() {
    killed(20, 1);
}

#[test]
#[ignore = "takes minutes: 200 kills"]
fn two_hundred_kills_cost_no_bit() {
    killed(200, 2);
}
