//! Batches of crops for training, made by worker threads in the sampler's order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use image::RgbImage;
use selfsame_augment::{AugmentError, MultiCrop, SampleKey, Workspace};

use crate::batch::{HostBatch, PixelType, Pixels};
use crate::dataset::{Dataset, picture_of};
use crate::error::DataError;
use crate::ledger::{Ledger, LedgerEntry};
use crate::ordered::Ordered;
use crate::sampler::{self, Sampler};

/// Stand-ins tried for one undecodable image before the loader gives up.
const MAX_ATTEMPTS: u64 = 100;

/// How batches are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// The run's seed: order, crops and stand-ins follow from it.
    pub seed: u64,
    /// Images in a batch of this rank.
    pub batch_size: usize,
    /// Threads that decode and crop; 0 does it in the consumer's thread.
    pub workers: usize,
    /// Batches made ahead of the one asked for; at least one for each worker.
    pub prefetch_batches: usize,
    /// Fraction of the data set that may be undecodable.
    pub max_bad_fraction: f64,
    /// What pixels are handed out as.
    pub pixels: PixelType,
    /// This process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
}

impl Default for LoaderConfig {
    /// The values of the notebook's configuration.
    fn default() -> Self {
        Self {
            seed: 42,
            batch_size: 32,
            workers: 2,
            prefetch_batches: 4,
            max_bad_fraction: 0.05,
            pixels: PixelType::Normalized,
            rank: 0,
            world_size: 1,
        }
    }
}

/// Makes the batches of any epoch, from any batch on; holds no position.
///
/// The same configuration gives the same bytes for any number of workers.
pub struct Loader(Arc<Inner>);

struct Inner {
    dataset: Arc<dyn Dataset>,
    multi_crop: MultiCrop,
    config: LoaderConfig,
    sampler: Sampler,
    ledger: Arc<Ledger>,
    /// Different images that failed so far, in any epoch.
    bad: Mutex<BTreeSet<usize>>,
    /// Buffers that no thread is using; as many as have ever been used at once.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Images of a batch and the pixels of their views.
struct Crops<T> {
    samples: Vec<usize>,
    global: Vec<T>,
    local: Vec<T>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("dataset", &self.0.dataset)
            .field("config", &self.0.config)
            .field("sampler", &self.0.sampler)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Takes what batches are made of; undecodable images will be entered in `ledger`.
    ///
    /// # Errors
    /// [`DataError::TooFewImages`] if not one batch can be made; [`DataError::Setting`].
    pub fn new(
        dataset: Arc<dyn Dataset>,
        multi_crop: MultiCrop,
        config: LoaderConfig,
        ledger: Arc<Ledger>,
    ) -> Result<Self, DataError> {
        if !(0.0..=1.0).contains(&config.max_bad_fraction) {
            return Err(DataError::Setting(format!(
                "max_bad_fraction: {} is not within 0 and 1",
                config.max_bad_fraction
            )));
        }
        let sampler = Sampler {
            seed: config.seed,
            len: dataset.len(),
            batch_size: config.batch_size,
            rank: config.rank,
            world_size: config.world_size,
        };
        sampler.check()?;
        let bad = Mutex::default();
        Ok(Self(Arc::new(Inner {
            dataset,
            multi_crop,
            config,
            sampler,
            ledger,
            bad,
            workspaces: Mutex::default(),
        })))
    }

    /// Batches in an epoch; the last incomplete one is dropped.
    pub fn steps_per_epoch(&self) -> usize {
        self.0.sampler.steps_per_epoch()
    }

    /// Which images each batch takes before stand-ins.
    pub fn sampler(&self) -> &Sampler {
        &self.0.sampler
    }

    /// The batches of an epoch from `first_batch` on; threads work until it is dropped.
    ///
    /// After an error it ends. An undecodable image is replaced by one drawn from (seed, epoch,
    /// position, attempt), and entered in the ledger when its batch is handed out.
    pub fn epoch(&self, epoch: u64, first_batch: usize) -> Batches {
        let steps = self.steps_per_epoch();
        let start = usize::try_from(epoch).unwrap_or(usize::MAX);
        let start = start.saturating_mul(steps);
        let first = start.saturating_add(first_batch.min(steps));
        self.batches(steps, first..start.saturating_add(steps))
    }

    /// Batches of many epochs, one after the other, counted from the first of epoch 0: while the
    /// last ones of an epoch are waited for, those of the next are begun.
    ///
    /// An epoch hands out its first `per_epoch` batches, and as many as [`Loader::steps_per_epoch`]
    /// at most. See [`Loader::epoch`] for the rest.
    pub fn batches(&self, per_epoch: usize, numbers: Range<usize>) -> Batches {
        let per_epoch = per_epoch.clamp(1, self.steps_per_epoch());
        let inner = self.0.clone();
        let orders = Orders::default();
        let job = move |number: usize| {
            let epoch = (number / per_epoch) as u64;
            let order = orders.of(epoch, || {
                sampler::epoch_order(inner.config.seed, epoch, inner.sampler.len)
            });
            inner.make(epoch, number % per_epoch, &order)
        };
        let config = &self.0.config;
        let next = numbers.start;
        let batches = Ordered::new(numbers, config.workers, config.prefetch_batches, job);
        let (batches, failed) = match batches {
            Ok(batches) => (Some(batches), None),
            Err(source) => {
                let doing = "starting a loader thread".to_owned();
                (None, Some(DataError::Io { doing, source }))
            }
        };
        Batches {
            inner: self.0.clone(),
            per_epoch,
            next,
            batches,
            failed,
        }
    }
}

/// The orders of the epochs that batches are being made of.
#[derive(Default)]
struct Orders(Mutex<BTreeMap<u64, Arc<Vec<usize>>>>);

impl Orders {
    /// The order of an epoch, drawn by whoever asks first.
    fn of(&self, epoch: u64, draw: impl FnOnce() -> Vec<usize>) -> Arc<Vec<usize>> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let order = orders.entry(epoch).or_insert_with(|| Arc::new(draw()));
        let order = order.clone();
        // Batches are begun in order, so the epoch before the last is over or soon will be; a worker
        // that still holds it keeps its own.
        orders.retain(|&kept, _| kept + 1 >= epoch);
        order
    }
}

/// Iterator over batches; see [`Loader::epoch`] and [`Loader::batches`].
pub struct Batches {
    inner: Arc<Inner>,
    per_epoch: usize,
    next: usize,
    batches: Option<Ordered<Made>>,
    failed: Option<DataError>,
}

/// A batch and what failed while it was made, in the order of positions.
struct Made {
    batch: Result<HostBatch, DataError>,
    failed: Vec<(usize, LedgerEntry)>,
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches")
            .field("per_epoch", &self.per_epoch)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Iterator for Batches {
    type Item = Result<HostBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let (outcome, wait) = self.batches.as_mut()?.next()?;
        let result = match outcome {
            Ok(made) => self.inner.account(made, wait),
            Err(message) => Err(DataError::Panicked {
                batch: self.next % self.per_epoch,
                message,
            }),
        };
        self.next += 1;
        if result.is_err() {
            self.batches = None;
        }
        Some(result)
    }
}

impl Inner {
    /// Enters what failed; done by the consumer, so that it happens in the order of batches.
    fn account(&self, made: Made, wait: Duration) -> Result<HostBatch, DataError> {
        let len = self.sampler.len;
        let tolerated = self.config.max_bad_fraction * len as f64 + 1e-9;
        for (sample, entry) in made.failed {
            self.ledger.enter(entry.clone());
            let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
            bad.insert(sample);
            if bad.len() as f64 > tolerated {
                return Err(DataError::TooManyBad {
                    bad: bad.len(),
                    len,
                    max_bad_fraction: self.config.max_bad_fraction,
                    name: entry.file,
                    reason: entry.reason,
                });
            }
        }
        made.batch.map(|batch| HostBatch { wait, ..batch })
    }

    fn make(&self, epoch: u64, index: usize, order: &[usize]) -> Made {
        let mut failed = Vec::new();
        let batch = self.fill(epoch, index, order, &mut failed);
        Made { batch, failed }
    }

    fn fill(
        &self,
        epoch: u64,
        index: usize,
        order: &[usize],
        failed: &mut Vec<(usize, LedgerEntry)>,
    ) -> Result<HostBatch, DataError> {
        let views = &self.multi_crop;
        let (samples, [global, local]) = match self.config.pixels {
            PixelType::Normalized => {
                let write = |image: &_, key, out: &mut [&mut [f32]], workspace: &mut _| {
                    views.write_crops(image, key, out, workspace).map(drop)
                };
                let crops = self.crops(epoch, index, order, failed, write)?;
                let pixels = [crops.global, crops.local].map(Pixels::Normalized);
                (crops.samples, pixels)
            }
            PixelType::Bytes => {
                let write = |image: &_, key, out: &mut [&mut [u8]], workspace: &mut _| {
                    views.write_crops_u8(image, key, out, workspace).map(drop)
                };
                let crops = self.crops(epoch, index, order, failed, write)?;
                let pixels = [crops.global, crops.local].map(Pixels::Bytes);
                (crops.samples, pixels)
            }
        };
        Ok(HostBatch {
            epoch,
            index,
            samples,
            batch_size: self.config.batch_size,
            num_global: MultiCrop::NUM_GLOBAL,
            global_size: views.view_size(0),
            global,
            num_local: views.num_views() - MultiCrop::NUM_GLOBAL,
            local_size: views.config().local_size,
            local,
            wait: Duration::ZERO,
        })
    }

    /// Samples, global and local crops of a batch, each image's written by `write`.
    fn crops<T: Clone + Default>(
        &self,
        epoch: u64,
        index: usize,
        order: &[usize],
        failed: &mut Vec<(usize, LedgerEntry)>,
        write: impl Fn(
            &RgbImage,
            SampleKey,
            &mut [&mut [T]],
            &mut Workspace,
        ) -> Result<(), AugmentError>,
    ) -> Result<Crops<T>, DataError> {
        let views = &self.multi_crop;
        let b = self.config.batch_size;
        let [mut global, mut local] = views.batch_lens(b).map(|len| vec![T::default(); len]);
        let outputs = views.outputs(b, &mut global, &mut local)?;
        let mut samples = Vec::with_capacity(b);
        let mut workspace = self.lock_workspaces().pop().unwrap_or_default();
        for (position, mut out) in self.sampler.positions(index).zip(outputs) {
            let (sample, image) = self.decode(epoch, position, order[position], failed)?;
            let key = SampleKey {
                run_seed: self.config.seed,
                epoch,
                sample: sample as u64,
            };
            write(&image, key, &mut out, &mut workspace)?;
            samples.push(sample);
        }
        self.lock_workspaces().push(workspace);
        Ok(Crops {
            samples,
            global,
            local,
        })
    }

    fn lock_workspaces(&self) -> MutexGuard<'_, Vec<Workspace>> {
        self.workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The image at a position of the epoch, or its stand-in, whose views are its own of that epoch
    /// even where it is in the batch itself.
    fn decode(
        &self,
        epoch: u64,
        position: usize,
        first: usize,
        failed: &mut Vec<(usize, LedgerEntry)>,
    ) -> Result<(usize, RgbImage), DataError> {
        let mut sample = first;
        let mut attempt = 0;
        loop {
            let error = match picture_of(self.dataset.as_ref(), sample) {
                Ok(image) => return Ok((sample, image)),
                Err(error) => error,
            };
            let entry = LedgerEntry::of(self.dataset.as_ref(), sample, &error);
            if attempt == MAX_ATTEMPTS {
                let LedgerEntry {
                    file: name, reason, ..
                } = entry;
                return Err(DataError::NoReplacement {
                    attempts: attempt,
                    name,
                    reason,
                });
            }
            failed.push((sample, entry));
            let seed = self.config.seed;
            sample = sampler::replacement(seed, epoch, position as u64, attempt, self.sampler.len);
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests;
