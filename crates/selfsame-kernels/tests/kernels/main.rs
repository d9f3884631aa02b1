//! The crate's operations seen from outside: values, gradients, thread counts, updates.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod blocks;
mod common;
mod conv_blocks;
mod gradients;
mod mixed;
mod threads;
mod updates;
