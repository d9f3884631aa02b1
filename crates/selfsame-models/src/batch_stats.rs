//! What batch norms saw in a forward pass, for running statistics that move only behind the step.

use std::cell::RefCell;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{RunningStats, move_running_stats};

/// Share of a running statistic that a batch replaces: PyTorch's default.
const MOMENTUM: f64 = 0.1;

thread_local! {
    /// Of the forward pass that runs on this thread, if it is recorded.
    static ACTIVE: RefCell<Option<Vec<Seen>>> = const { RefCell::new(None) };
}

/// Statistics of batches towards which the running ones have yet to move.
///
/// Batch norm in training does not read its running statistics, so they may wait until it is known
/// whether the step is to be done. Dropped, they leave everything as it was.
#[derive(Debug, Default)]
pub struct BatchStats {
    seen: Vec<Seen>,
}

/// What one batch norm saw in one pass.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) running_mean: Var,
    pub(crate) running_var: Var,
    pub(crate) num_batches_tracked: Var,
    /// Mean and unbiased variance.
    pub(crate) batch: [Tensor; 2],
}

impl BatchStats {
    /// Runs forward passes in training whose batch norms leave their running statistics as they
    /// are, and keeps what they saw behind what it has already.
    pub fn recording<R>(&mut self, forward: impl FnOnce() -> R) -> R {
        let outer = ACTIVE.replace(Some(std::mem::take(&mut self.seen)));
        let seen = &mut self.seen;
        let _recording = Recording { seen, outer };
        forward()
    }

    /// Moves the running statistics, pass by pass as without a recording; not if `done` is 0. The
    /// host does not wait for the device.
    ///
    /// # Shape
    /// `done`: one number, f32, on the networks' device.
    /// # Errors
    /// [`candle_core::Error`] if `done` is of another shape or type.
    pub fn apply(self, done: Option<&Tensor>) -> Result<()> {
        move_all(&self.seen, done)
    }
}

/// On drop, which a panic brings about too, the thread is as it was and what was seen is kept.
struct Recording<'a> {
    seen: &'a mut Vec<Seen>,
    outer: Option<Vec<Seen>>,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        *self.seen = ACTIVE.replace(self.outer.take()).unwrap_or_default();
    }
}

/// Keeps what batch norms saw for whoever records, or else moves their running statistics at once.
pub(crate) fn track(seen: Vec<Seen>) -> Result<()> {
    let left = ACTIVE.with_borrow_mut(|active| match active {
        Some(recorded) => {
            recorded.extend(seen);
            None
        }
        None => Some(seen),
    });
    left.map_or(Ok(()), |seen| move_all(&seen, None))
}

fn move_all(seen: &[Seen], done: Option<&Tensor>) -> Result<()> {
    let stats = seen.iter().map(|seen| RunningStats {
        mean: &seen.running_mean,
        variance: &seen.running_var,
        num_batches_tracked: &seen.num_batches_tracked,
        batch: [&seen.batch[0], &seen.batch[1]],
    });
    move_running_stats(&stats.collect::<Vec<_>>(), MOMENTUM, done)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::Device;

    use super::*;

    #[test]
    fn a_panic_ends_a_recording_and_loses_nothing_seen() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let (mean, count) = (var(&[0.0]), Tensor::new(0i64, &Device::Cpu).unwrap());
        let count = Var::from_tensor(&count).unwrap();
        let seen = || Seen {
            running_mean: mean.clone(),
            running_var: var(&[1.0]),
            num_batches_tracked: count.clone(),
            batch: [10f32, 1.0].map(|x| Tensor::new(&[x], &Device::Cpu).unwrap()),
        };
        let mut stats = BatchStats::default();
        let forward = || {
            track(vec![seen()]).unwrap();
            panic!("on the way");
        };
        assert!(catch_unwind(AssertUnwindSafe(|| stats.recording(forward))).is_err());
        assert_eq!(stats.seen.len(), 1);
        assert_eq!(mean.to_vec1::<f32>().unwrap(), [0.0]);
        // Nobody records any more.
        track(vec![seen()]).unwrap();
        assert_eq!(mean.to_vec1::<f32>().unwrap(), [1.0]);
    }
}
