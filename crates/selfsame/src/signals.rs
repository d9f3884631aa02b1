//! SIGINT, SIGTERM and SIGHUP: the first asks for a checkpoint and an orderly end, the second ends at
//! once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use selfsame_train::StopFlag;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A flag that is set by the first signal; a second one of the same kind ends the process.
///
/// # Errors
/// If the handlers cannot be installed.
pub(crate) fn stop_flag() -> std::io::Result<Arc<StopFlag>> {
    let stop = Arc::new(StopFlag::default());
    // A terminal that is closed sends SIGHUP; `nohup` has it ignored, and so it must stay.
    let hangup = (!ignores(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
        let seen = Arc::new(AtomicBool::new(false));
        // Registered in this order, the first delivery only sets the flag.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, seen.clone())?;
        signal_hook::flag::register(signal, seen.clone())?;
        let stop = stop.clone();
        thread::spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(50));
            }
            stop.request(signal);
        });
    }
    Ok(stop)
}

/// Whether the process was started with a signal ignored. Where that cannot be read (there is no
/// `/proc`), as if it were.
fn ignores(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| ignored_in(&status, signal))
        .unwrap_or(true)
}

/// What the line `SigIgn` of proc(5) says: bits of signals, the lowest that of signal 1.
fn ignored_in(status: &str, signal: i32) -> Option<bool> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_their_mask() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_in(status, SIGHUP), Some(true));
        assert_eq!(ignored_in(status, SIGINT), Some(false));
        assert_eq!(ignored_in("Name:\tx\n", SIGHUP), None);
    }
}
