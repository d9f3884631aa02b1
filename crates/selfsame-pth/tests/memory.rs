//! How much memory a small file may take. Alone in its program, whose whole memory is looked at.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{Pickle, read_all, with_pickle};

/// The most memory that this process has held, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

#[test]
fn one_long_key_of_many_pairs_is_not_copied_for_each() {
    let pairs = Pickle::new()
        .text(&"k".repeat(5000))
        .op("q\x00")
        .op("0}q\x01(");
    // In two parts: so many are not taken from the stack at once.
    let half = b"h\x00h\x01".repeat(200_000);
    let pairs = pairs.op(&half).op("u(").op(&half).op("u.");
    let before = peak_mib();
    let error = read_all(&with_pickle(&pairs.0)).unwrap_err().to_string();
    assert!(error.contains("visits of shared objects"), "{error}");
    let taken = peak_mib() - before;
    assert!(taken < 200, "{taken} MiB");
}
