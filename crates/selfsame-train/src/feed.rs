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

    /// Fetches the batches that the next [`Feed::take`] will give; how long the loader was waited
    /// for, which that call does not tell again.
    pub(crate) fn prepare(&mut self) -> Duration {
        let next = self.next();
        let (ahead, waited) = match next {
            Ok((batches, waited)) => (Ok((batches, Duration::ZERO)), waited),
            Err(error) => (Err(error), Duration::ZERO),
        };
        self.ahead = Some(ahead);
        waited
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;
    use selfsame_data::augment::{AugmentConfig, MultiCrop};
    use selfsame_data::{Ledger, Loader, LoaderConfig, OpenOptions, open};

    use super::*;

    #[test]
    fn the_wait_for_a_batch_is_told_when_it_was_waited() {
        let mut augment = AugmentConfig::default();
        (augment.global_size, augment.local_crops) = (16, 0);
        let set = open(
            "synthetic:portraits?count=8&seed=0",
            &OpenOptions::default(),
        )
        .unwrap();
        let settings = LoaderConfig {
            batch_size: 2,
            workers: 0,
            ..LoaderConfig::default()
        };
        let multi_crop = MultiCrop::new(augment.clone()).unwrap();
        let loader = Loader::new(set, multi_crop, settings, Arc::new(Ledger::default())).unwrap();
        let uploader = Uploader::new(&Device::Cpu, &augment).unwrap();
        let mut feed = Feed::new(loader.batches(4, 0..4), uploader, 1);
        // Without workers a batch is drawn while one waits.
        assert!(feed.prepare() > Duration::ZERO);
        assert_eq!(feed.take().unwrap().1, Duration::ZERO);
        assert!(feed.take().unwrap().1 > Duration::ZERO);
    }
}
