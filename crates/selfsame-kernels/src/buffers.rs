//! Large buffers that are used again instead of being asked of the system, which would zero them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::locked::locked;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Numbers that hold whatever the last user left; goes back on drop.
#[derive(Debug)]
pub(crate) struct Buffer {
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` numbers of any value.
    ///
    /// Free buffers of other sizes are let go before a new one is made, so that never more memory
    /// is held than was once in use.
    pub(crate) fn take(len: usize) -> Self {
        let mut free = locked(&FREE);
        let fits = |data: &Vec<f32>| data.len() >= len && data.len() / 2 <= len;
        let data = match free.iter().position(fits) {
            Some(index) => free.swap_remove(index),
            None => {
                let mut room = 0;
                while room < len
                    && let Some(other) = free.pop()
                {
                    room += other.len();
                }
                drop(free);
                vec![0.0; len]
            }
        };
        Self { data, len }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        locked(&FREE).push(data);
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `len` numbers of any value that belong to this thread.
///
/// # Panics
/// If `f` asks for them again.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            // What stands there need not be copied.
            *scratch = vec![0.0; len];
        }
        f(&mut scratch[..len])
    })
}
