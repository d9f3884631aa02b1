//! Locks whose contents are whole at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a mutex holds, after a panic elsewhere too: only for contents that are replaced, pushed or
/// taken out as a whole, so that no panic leaves them half-written.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
