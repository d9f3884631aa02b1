//! SIGINT and SIGTERM: the first asks for a checkpoint and an orderly end, the second ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use selfsame_train::StopFlag;
use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag that is set by the first signal; a second one of the same kind ends the process.
///
/// # Errors
/// If the handlers cannot be installed.
pub(crate) fn stop_flag() -> std::io::Result<Arc<StopFlag>> {
    let stop = Arc::new(StopFlag::default());
    for signal in [SIGINT, SIGTERM] {
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
