//! Long runs and many interruptions, on demand:
//! `cargo test -p selfsame --test endurance -- --ignored --nocapture`
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{checkpoints, command, metrics, scratch, tiny_run};

/// Reads a run's progress lines until one says that so many steps are done.
fn reach(lines: &mut impl Iterator<Item = String>, step: u64) {
    let done = |line: &str| {
        let steps = line.strip_prefix("step ")?.split('/').next()?;
        steps.parse::<u64>().ok()
    };
    assert!(
        lines.any(|line| done(&line).is_some_and(|done| done >= step)),
        "it ended before step {step}"
    );
}

fn lines_of(child: &mut Child) -> impl Iterator<Item = String> + Send + use<> {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.map(|line| line.unwrap())
}

/// Resident memory of a process in MB.
fn resident_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[test]
#[ignore = "takes minutes: 5,000 steps"]
fn five_thousand_steps_do_not_leak() {
    let run = scratch("leak").join("run");
    let sets = ["train.epochs=1000", "train.checkpoint_every_epochs=50"];
    let mut child = command(&tiny_run(&run, &sets))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = lines_of(&mut child);
    reach(&mut lines, 500);
    let early = resident_mb(child.id()).unwrap();
    // Before the end, where curves are drawn.
    reach(&mut lines, 4900);
    let late = resident_mb(child.id()).unwrap();
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    assert_eq!(metrics(&run).last().unwrap()["step"], 4999);
    eprintln!("resident memory: {early:.1} MB after step 500, {late:.1} MB after step 4900");
    assert!(
        late - early < f64::max(0.01 * early, 8.0),
        "{early} MB, then {late} MB"
    );
}

#[test]
#[ignore = "takes minutes: 50 runs"]
fn fifty_signals_leave_a_checkpoint_within_a_step_and_five_seconds() {
    let dir = scratch("fifty-signals");
    let mut slowest = Duration::ZERO;
    for i in 0..50_u64 {
        let (name, code) = [("INT", 130), ("TERM", 143)][i as usize % 2];
        let run = dir.join(i.to_string());
        let mut child = command(&tiny_run(&run, &["train.epochs=100000"]))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = lines_of(&mut child);
        reach(&mut lines, 1);
        // The rest must be read, or a full pipe would hold the run up.
        std::thread::spawn(move || lines.for_each(drop));
        std::thread::sleep(Duration::from_millis(i * 37 % 400));
        let began = Instant::now();
        let signal = format!("-{name}");
        let kill = Command::new("kill")
            .args([&signal, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "run {i}");
        slowest = slowest.max(began.elapsed());
        assert!(slowest < Duration::from_secs(5), "run {i} took {slowest:?}");
        assert_eq!(checkpoints(&run).len(), 1, "run {i}");
    }
    eprintln!("50 signals, the slowest end after {slowest:?}");
}
