//! SIGINT, SIGTERM and SIGHUP, on Windows Ctrl-C and Ctrl-Break: the first asks for a checkpoint and an orderly end, one that comes
//! some time later ends at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use selfsame_train::StopFlag;
#[cfg(windows)]
use signal_hook::consts::SIGBREAK;
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGXFSZ};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What comes as soon after the first signal is no second wish: `timeout` signals the program and then
/// its group, a service manager may do alike.
const GRACE: Duration = Duration::from_millis(500);

/// Whether a signal ends the process at once: after the first, or where nothing can be lost.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on the first signal ends the process too.
pub(crate) fn end_at_once() {
    AT_ONCE.store(true, Ordering::SeqCst);
}

/// A flag that is set by the first signal; a second one, of whichever kind and not at the same
/// moment, ends the process.
///
/// # Errors
/// If the handlers cannot be installed.
pub(crate) fn stop_flag() -> std::io::Result<Arc<StopFlag>> {
    let stop = Arc::new(StopFlag::default());
    AT_ONCE.store(false, Ordering::SeqCst);
    let first = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup()) {
        flag::register_conditional_shutdown(signal, 128 + signal, AT_ONCE.clone())?;
        flag::register_usize(signal, first.clone(), signal as usize)?;
    }
    let for_watcher = stop.clone();
    thread::spawn(move || {
        loop {
            match first.load(Ordering::SeqCst) {
                0 => thread::sleep(Duration::from_millis(50)),
                signal => {
                    for_watcher.request(signal as i32);
                    thread::sleep(GRACE);
                    return end_at_once();
                }
            }
        }
    });
    Ok(stop)
}

/// What a terminal that is closed sends, unless it is ignored: so `nohup` has it, and so it must stay.
#[cfg(unix)]
fn hangup() -> Option<i32> {
    (!ignores(SIGHUP)).then_some(SIGHUP)
}

/// What Ctrl-Break sends.
#[cfg(windows)]
fn hangup() -> Option<i32> {
    Some(SIGBREAK)
}

#[cfg(not(any(unix, windows)))]
fn hangup() -> Option<i32> {
    None
}

/// From now on a file that reaches the limit on file sizes (`ulimit -f`) is an error of the write,
/// which names it, where the system would end the process without a word.
///
/// # Errors
/// If the handler cannot be installed.
pub(crate) fn survive_file_limit() -> std::io::Result<()> {
    #[cfg(unix)]
    flag::register(SIGXFSZ, Arc::default())?;
    Ok(())
}

/// Whether the process was started with a signal ignored. Where that cannot be read (there is no
/// `/proc`), as if it were.
#[cfg(unix)]
fn ignores(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| ignored_in(&status, signal))
        .unwrap_or(true)
}

/// What the line `SigIgn` of proc(5) says: bits of signals, the lowest that of signal 1.
#[cfg(unix)]
fn ignored_in(status: &str, signal: i32) -> Option<bool> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal - 1) & 1 == 1)
}

#[cfg(all(test, unix))]
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
