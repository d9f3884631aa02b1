//! A second signal ends the program at once, whichever the first one was, unless both come together.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{checkpoints, command, put_data, scratch, tiny_run};

/// A mask of signals in proc(5)'s status, the lowest bit that of signal 1.
fn mask(child: &Child, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|l| l.strip_prefix(name));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
}

/// Whether the handlers of SIGINT and SIGTERM are there.
fn is_listening(child: &Child) -> bool {
    let caught = mask(child, "SigCgt:");
    caught >> 1 & 1 == 1 && caught >> 14 & 1 == 1
}

/// Whether a signal to the process waits for one of its threads to run.
fn is_pending(child: &Child) -> bool {
    mask(child, "ShdPnd:") != 0
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let status = Command::new("kill")
        .args([&format!("-{name}"), &id])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_second_signal_ends_at_once_after_one_of_another_kind() {
    for (first, second, code) in [("INT", "TERM", 143), ("TERM", "INT", 130)] {
        let run = scratch(&format!("second-signal-{second}")).join("run");
        // A program whose words nobody takes cannot end in order: its pipe is full.
        let (mut words, pipe) = std::io::pipe().unwrap();
        let mut filled = pipe.try_clone().unwrap();
        let filling = std::thread::spawn(move || filled.write_all(&[b'.'; 1 << 20]).unwrap());
        let mut program = command(&tiny_run(&run, &["train.epochs=100000"]));
        let mut child = program.stderr(pipe).spawn().unwrap();
        drop(program);
        while !is_listening(&child) {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        signal(&child, first);
        // Of two that wait the later one may be handled first.
        while is_pending(&child) {
            std::thread::yield_now();
        }
        // Well past the time within which two are one.
        std::thread::sleep(Duration::from_secs(3));
        signal(&child, second);
        let mut told = String::new();
        words.read_to_string(&mut told).unwrap();
        filling.join().unwrap();
        let told = told.trim_matches('.');
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{told}");
        assert!(!told.contains("stopped after"), "{told}");
        assert_eq!(checkpoints(&run), [0u64; 0], "{told}");
    }
}

/// As `timeout` does, to the program and to its group.
#[test]
fn two_signals_at_once_are_one() {
    for name in ["INT", "TERM"] {
        let run = scratch(&format!("two-signals-{name}")).join("run");
        let args = tiny_run(&run, &["train.epochs=100000"]);
        let mut child = command(&args).stderr(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        let mut lines = told.lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with("step 1/")));
        signal(&child, name);
        while is_pending(&child) {
            std::thread::yield_now();
        }
        signal(&child, name);
        let rest: Vec<String> = lines.collect();
        let code = if name == "INT" { 130 } else { 143 };
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest:?}");
        assert_eq!(checkpoints(&run).len(), 1, "{rest:?}");
    }
}

#[test]
fn a_signal_while_the_page_is_written_ends_at_once() {
    let run = scratch("signal-page").join("run");
    let mut args = tiny_run(&run, &["train.max_steps=1"]);
    args.retain(|arg| arg != "--no-report");
    // As many as the page looks at, which takes a while.
    put_data(
        &mut args,
        "synthetic:portraits?count=2000&seed=3".to_owned(),
    );
    let mut child = command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(child.stderr.take().unwrap());
    let mut lines = told.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("writing the page")));
    signal(&child, "TERM");
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{rest:?}");
    assert_eq!(checkpoints(&run), [1]);
    assert!(!run.join("report.html").exists());
}
