//! The request to end a run early.

use std::sync::atomic::{AtomicI32, Ordering};

/// A request to stop: what is under way is given up as soon as may be, and a checkpoint written.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicI32);

impl StopFlag {
    /// Asks for a stop; `signal` is handed back in [`crate::Outcome::Interrupted`].
    pub fn request(&self, signal: i32) {
        self.0.store(signal, Ordering::SeqCst);
    }

    /// The signal asked for, if any.
    pub fn requested(&self) -> Option<i32> {
        Some(self.0.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}
