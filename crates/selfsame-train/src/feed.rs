//! Batches on their way from the loader to the device.

use std::time::{Duration, Instant};

use selfsame_data::Batches;

use crate::device_batch::{DeviceBatch, Uploader};
use crate::error::TrainError;

/// Batches of the run, on the device.
pub(crate) struct Feed {
    batches: Batches,
    uploader: Uploader,
    accumulate: usize,
    /// Those of the next step, if they were asked for early.
    ahead: Option<Result<Step, TrainError>>,
}

/// The batches of a step, and how long the loader was waited for.
pub(crate) type Step = (Vec<DeviceBatch>, Duration);

impl Feed {
    /// Batches that are uploaded as they are wanted, `accumulate` for a step.
    pub(crate) fn new(batches: Batches, uploader: Uploader, accumulate: usize) -> Self {
        Self {
            batches,
            uploader,
            accumulate,
            ahead: None,
        }
    }

    /// The batches of the next step.
    ///
    /// # Errors
    /// Of the loader or of the device.
    pub(crate) fn take(&mut self) -> Result<Step, TrainError> {
        match self.ahead.take() {
            Some(step) => step,
            None => self.next(),
        }
    }

    /// Fetches the batches that the next [`Feed::take`] will give.
    pub(crate) fn prepare(&mut self) {
        self.ahead = Some(self.next());
    }

    fn next(&mut self) -> Result<Step, TrainError> {
        let (mut step, mut waited) = (Vec::with_capacity(self.accumulate), Duration::ZERO);
        for _ in 0..self.accumulate {
            let waiting = Instant::now();
            let batch = self
                .batches
                .next()
                .expect("the sampler gives every step its batches")?;
            // Without the upload, which may wait for the device to be done with a batch.
            waited += waiting.elapsed();
            step.push(self.uploader.upload(&batch)?);
        }
        Ok((step, waited))
    }
}
