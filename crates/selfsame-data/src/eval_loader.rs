//! Batches of one view an image, the evaluation transform or random crops for supervised training, or
//! of two.

use std::fmt;
use std::sync::Arc;

use selfsame_augment::{EvalCrop, MultiCrop, SampleKey, StandardCrop, Workspace};

use crate::batch::EvalBatch;
use crate::dataset::{Dataset, picture_of};
use crate::decode::DecodeError;
use crate::error::DataError;
use crate::ledger::{Ledger, LedgerEntry};
use crate::ordered::Ordered;

/// What is done to each image.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EvalTransform {
    /// Resize, centre crop, normalise: the same each time.
    Center(EvalCrop),
    /// Random resized crop and flip: a function of seed, epoch and image.
    Random {
        /// The transform.
        crop: StandardCrop,
        /// The run's seed.
        seed: u64,
        /// Counts the passes over the data.
        epoch: u64,
    },
    /// Both global views as in pretraining, one behind the other, so that a batch names each image
    /// twice: functions of seed, epoch and image.
    GlobalViews {
        /// The recipe.
        crops: MultiCrop,
        /// The run's seed.
        seed: u64,
        /// Counts the passes over the data.
        epoch: u64,
    },
}

impl EvalTransform {
    /// Everything that makes no sense.
    fn check(&self) -> Vec<String> {
        match self {
            Self::Center(crop) => crop.check(),
            Self::Random { crop, .. } => crop.check(),
            Self::GlobalViews { .. } => Vec::new(), // of a recipe that was checked when it was made
        }
    }

    /// Side of what it makes, in pixels.
    fn image_size(&self) -> usize {
        match self {
            Self::Center(crop) => crop.image_size,
            Self::Random { crop, .. } => crop.image_size,
            Self::GlobalViews { crops, .. } => crops.config().global_size,
        }
    }

    /// How many it makes of an image.
    fn num_views(&self) -> usize {
        match self {
            Self::Center(_) | Self::Random { .. } => 1,
            Self::GlobalViews { .. } => MultiCrop::NUM_GLOBAL,
        }
    }
}

/// Turns images into batches by worker threads, in the order of the indices asked for.
#[derive(Clone, Debug)]
pub struct EvalLoader {
    /// Where images come from.
    pub dataset: Arc<dyn Dataset>,
    /// What is done to them.
    pub transform: EvalTransform,
    /// Images in a batch; the last one may have fewer, as may one with undecodable images.
    pub batch_size: usize,
    /// Threads; 0 does it in the consumer's thread.
    pub workers: usize,
    /// Takes undecodable images, which are left out.
    pub ledger: Arc<Ledger>,
}

impl EvalLoader {
    /// The batches of these images; a batch without a usable image is passed over.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a batch size of 0 or an image that the set does not have,
    /// [`DataError::Augment`] for a transform that makes no sense, [`DataError::Io`] if the system
    /// gives no thread.
    pub fn batches(&self, indices: Vec<usize>) -> Result<EvalBatches, DataError> {
        let problems = self.transform.check();
        if !problems.is_empty() {
            return Err(selfsame_augment::AugmentError::Config(problems).into());
        }
        if self.batch_size == 0 {
            return Err(DataError::Setting("batch_size: 0 is not a size".to_owned()));
        }
        let len = self.dataset.len();
        if let Some(index) = indices.iter().find(|index| **index >= len) {
            return Err(DataError::Setting(format!(
                "image {index}: the data set has {len}, counted from 0"
            )));
        }
        let num_batches = indices.len().div_ceil(self.batch_size);
        let loader = self.clone();
        let job = move |batch: usize| {
            let start = batch * loader.batch_size;
            let end = indices.len().min(start + loader.batch_size);
            loader.make(&indices[start..end])
        };
        let batches = Ordered::new(
            0..num_batches,
            self.workers,
            self.workers.saturating_mul(2),
            job,
        )
        .map_err(|source| DataError::Io {
            doing: "starting a loader thread".into(),
            source,
        })?;
        Ok(EvalBatches {
            batches,
            next: 0,
            ledger: self.ledger.clone(),
            dataset: self.dataset.clone(),
        })
    }

    fn make(&self, indices: &[usize]) -> Made {
        let image_size = self.transform.image_size();
        let num_views = self.transform.num_views();
        let mut workspace = Workspace::new();
        let view_len = 3 * image_size * image_size;
        let mut images = vec![0f32; indices.len() * num_views * view_len];
        let (mut samples, mut failed) = (Vec::new(), Vec::new());
        let mut places = images.chunks_exact_mut(num_views * view_len);
        for &sample in indices {
            let image = match picture_of(self.dataset.as_ref(), sample) {
                Ok(image) => image,
                Err(error) => {
                    failed.push((sample, error));
                    continue;
                }
            };
            let out = places.next().expect("there is a place for each index");
            let key = |seed: u64, epoch: u64| SampleKey {
                run_seed: seed,
                epoch,
                sample: sample as u64,
            };
            match &self.transform {
                EvalTransform::Center(crop) => crop.write(&image, out, &mut workspace),
                EvalTransform::Random { crop, seed, epoch } => {
                    crop.write(&image, key(*seed, *epoch), out, &mut workspace);
                }
                EvalTransform::GlobalViews { crops, seed, epoch } => {
                    let (width, height) = (image.width() as usize, image.height() as usize);
                    for (view, out) in out.chunks_exact_mut(view_len).enumerate() {
                        let drawn = crops.draw_view(width, height, key(*seed, *epoch), view);
                        crops
                            .apply(&drawn, &image, out, &mut workspace)
                            .expect("a place has the size of a view");
                    }
                }
            }
            samples.extend(std::iter::repeat_n(sample, num_views));
        }
        images.truncate(samples.len() * view_len);
        Made {
            batch: EvalBatch {
                samples,
                images,
                image_size,
            },
            failed,
        }
    }
}

struct Made {
    batch: EvalBatch,
    failed: Vec<(usize, DecodeError)>,
}

/// Iterator over evaluation batches; see [`EvalLoader::batches`].
pub struct EvalBatches {
    batches: Ordered<Made>,
    next: usize,
    ledger: Arc<Ledger>,
    dataset: Arc<dyn Dataset>,
}

impl fmt::Debug for EvalBatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvalBatches")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Iterator for EvalBatches {
    type Item = Result<EvalBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (outcome, _) = self.batches.next()?;
            let batch = self.next;
            self.next += 1;
            match outcome {
                Err(message) => return Some(Err(DataError::Panicked { batch, message })),
                Ok(made) => {
                    for (sample, error) in &made.failed {
                        let entry = LedgerEntry::of(self.dataset.as_ref(), *sample, error);
                        self.ledger.enter(entry);
                    }
                    if !made.batch.samples.is_empty() {
                        return Some(Ok(made.batch));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use selfsame_augment::AugmentConfig;

    use super::*;
    use crate::{OpenOptions, open};

    fn crop() -> EvalCrop {
        EvalCrop {
            image_size: 16,
            ..EvalCrop::default()
        }
    }

    /// Five good pictures, three that are none.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..8u8 {
            let path = folder.path().join(format!("{i}.png"));
            if [1, 4, 5].contains(&i) {
                std::fs::write(path, "text").unwrap();
            } else {
                image::RgbImage::from_pixel(20, 24, image::Rgb([i * 20; 3]))
                    .save(path)
                    .unwrap();
            }
        }
        folder
    }

    fn loader(folder: &tempfile::TempDir, transform: EvalTransform, workers: usize) -> EvalLoader {
        let spec = folder.path().to_str().unwrap();
        let dataset = open(spec, &OpenOptions::default()).unwrap();
        EvalLoader {
            dataset,
            transform,
            batch_size: 2,
            workers,
            ledger: Arc::new(Ledger::new()),
        }
    }

    fn all(loader: &EvalLoader, indices: &[usize]) -> Vec<EvalBatch> {
        loader
            .batches(indices.to_vec())
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn undecodable_images_are_left_out_and_recorded_and_the_last_batch_is_kept() {
        let folder = folder();
        let order = [7, 0, 1, 2, 4, 5, 3];
        for workers in [0, 1, 3] {
            let loader = loader(&folder, EvalTransform::Center(crop()), workers);
            let batches = all(&loader, &order);
            let samples: Vec<Vec<usize>> = batches.iter().map(|b| b.samples.clone()).collect();
            assert_eq!(samples, [vec![7, 0], vec![2], vec![3]]);
            assert_eq!(batches[1].images.len(), 3 * 16 * 16);
            assert_eq!(loader.ledger.len(), 3);
            let image = loader.dataset.decode(2).unwrap();
            assert_eq!(batches[1].images, crop().apply(&image).data);
        }
    }

    /// A data set whose second picture has no pixels.
    #[derive(Debug)]
    struct Own;

    impl Dataset for Own {
        fn len(&self) -> usize {
            2
        }
        fn name(&self, index: usize) -> &str {
            ["good", "bare"][index]
        }
        fn labels(&self, _: usize) -> BTreeMap<String, String> {
            BTreeMap::new()
        }
        fn label_names(&self) -> Vec<String> {
            Vec::new()
        }
        fn path(&self, _: usize) -> Option<PathBuf> {
            None
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
        fn decode(&self, index: usize) -> Result<image::RgbImage, DecodeError> {
            Ok(image::RgbImage::new([8, 0][index], 8))
        }
    }

    #[test]
    fn a_picture_without_pixels_is_left_out_like_one_that_cannot_be_decoded() {
        for workers in [0, 1] {
            let loader = EvalLoader {
                dataset: Arc::new(Own),
                ..loader(&folder(), EvalTransform::Center(crop()), workers)
            };
            assert_eq!(all(&loader, &[1, 0])[0].samples, [0]);
            assert_eq!(loader.ledger.len(), 1);
        }
    }

    #[test]
    fn random_crops_are_a_function_of_seed_and_epoch() {
        let folder = folder();
        let crop = StandardCrop {
            image_size: 16,
            ..StandardCrop::default()
        };
        let of = |seed, epoch, workers| {
            let crop = crop.clone();
            let set = "synthetic:portraits?count=4";
            let loader = EvalLoader {
                dataset: open(set, &OpenOptions::default()).unwrap(),
                ..loader(
                    &folder,
                    EvalTransform::Random { crop, seed, epoch },
                    workers,
                )
            };
            all(&loader, &[0, 1, 2, 3])
        };
        assert_eq!(of(1, 2, 0), of(1, 2, 3));
        assert_ne!(of(1, 2, 0), of(1, 3, 0));
        assert_ne!(of(1, 2, 0), of(2, 2, 0));
    }

    #[test]
    fn both_global_views_are_those_of_pretraining() {
        let crops = MultiCrop::new(AugmentConfig {
            global_size: 24,
            ..AugmentConfig::default()
        })
        .unwrap();
        let transform = EvalTransform::GlobalViews {
            crops: crops.clone(),
            seed: 3,
            epoch: 1,
        };
        let folder = folder();
        let loader = loader(&folder, transform, 2);
        let batches = all(&loader, &[0, 1, 2, 3]);
        let samples: Vec<Vec<usize>> = batches.iter().map(|b| b.samples.clone()).collect();
        assert_eq!(samples, [vec![0, 0], vec![2, 2, 3, 3]]);
        for batch in batches {
            assert_eq!(batch.image_size, 24);
            let views = batch.images.chunks_exact(3 * 24 * 24);
            assert_eq!(views.len(), batch.samples.len());
            for (row, (sample, found)) in batch.samples.iter().zip(views).enumerate() {
                let image = loader.dataset.decode(*sample).unwrap();
                let key = SampleKey {
                    run_seed: 3,
                    epoch: 1,
                    sample: *sample as u64,
                };
                assert_eq!(found, crops.crops(&image, key)[row % 2].data);
            }
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let folder = folder();
        let no_size = EvalCrop {
            image_size: 0,
            ..crop()
        };
        let refused = |loader: &EvalLoader| loader.batches(vec![0]).unwrap_err().to_string();
        let text = refused(&loader(&folder, EvalTransform::Center(no_size), 0));
        assert!(text.contains("eval_crop.image_size: 0"), "{text}");
        let mut no_batch = loader(&folder, EvalTransform::Center(crop()), 0);
        no_batch.batch_size = 0;
        assert_eq!(refused(&no_batch), "batch_size: 0 is not a size");
        no_batch.batch_size = 1;
        let beyond = no_batch.batches(vec![0, usize::MAX]).unwrap_err();
        assert!(beyond.to_string().contains("counted from 0"), "{beyond}");
    }

    #[test]
    fn more_workers_than_batches_are_not_started() {
        let folder = folder();
        let loader = loader(&folder, EvalTransform::Center(crop()), usize::MAX);
        assert_eq!(all(&loader, &[0, 2, 3])[0].samples, [0, 2]);
        let shown = format!("{loader:?} {:?}", loader.batches(vec![0]).unwrap());
        assert!(
            shown.contains("images: 8") && shown.contains("next: 0"),
            "{shown}"
        );
    }
}
