//! What the features are worth where nobody has labelled a picture: whether two views of a picture are
//! told to belong together, and how many directions the features use.

use std::sync::Arc;

use candle_core::Device;
use selfsame_data::augment::{AugmentConfig, MultiCrop};
use selfsame_data::{Dataset, EvalTransform, Ledger};
use selfsame_eval::{effective_rank, view_auc};

use crate::config::RunConfig;
use crate::embed::{EmbedOptions, Embedder, Extractor, each_once};
use crate::error::TrainError;
use crate::stop::StopFlag;

/// Pictures at most. Both figures depend on their number, hence it is the same wherever there are so
/// many.
const MAX_PICTURES: usize = 500;

/// Pictures that go through the network together, each twice.
const PICTURES_A_BATCH: usize = 32;

/// Counts as an epoch that no run reaches, so that these views are none that it was trained on.
const EPOCH: u64 = u64::MAX;

/// Scores a backbone by pictures alone.
pub struct ViewScorer {
    dataset: Arc<dyn Dataset>,
    samples: Vec<usize>,
    is_held_out: bool,
    crops: MultiCrop,
    seed: u64,
    workers: usize,
}

/// What a [`ViewScorer`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewScore {
    /// [`view_auc`] of each picture: how often another picture's second view was further from its first
    /// one than its own.
    pub auc: Vec<f64>,
    /// [`effective_rank`] of the first views' features.
    pub effective_rank: f64,
}

impl ViewScore {
    /// The mean over pictures in per cent; 50 is chance.
    pub fn percent(&self) -> f64 {
        100.0 * self.auc.iter().sum::<f64>() / self.auc.len() as f64
    }
}

impl std::fmt::Debug for ViewScorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewScorer")
            .field("pictures", &self.samples.len())
            .field("is_held_out", &self.is_held_out)
            .finish_non_exhaustive()
    }
}

impl ViewScorer {
    /// What scores a run while it trains; `None` if scores are off (`train.knn_every_epochs = 0`) or
    /// there are fewer than two pictures.
    pub(crate) fn of_run(
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        val: Option<&Arc<dyn Dataset>>,
    ) -> Result<Option<Self>, TrainError> {
        let scorer = Self::new(config, train, val)?;
        let is_on = config.train.knn_every_epochs > 0 && scorer.num_pictures() > 1;
        Ok(is_on.then_some(scorer))
    }

    /// Of a run: at most 500 of its held-out pictures, or of those it is trained on if there are none,
    /// each in both global views of its own recipe.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a recipe that makes no sense.
    pub fn new(
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        val: Option<&Arc<dyn Dataset>>,
    ) -> Result<Self, TrainError> {
        Self::with_recipe(config.augment.clone(), config, train, val)
    }

    /// The same with views of another recipe, such as one without normalisation.
    ///
    /// # Errors
    /// As [`ViewScorer::new`].
    pub fn with_recipe(
        recipe: AugmentConfig,
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        val: Option<&Arc<dyn Dataset>>,
    ) -> Result<Self, TrainError> {
        let crops = MultiCrop::new(recipe);
        let crops = crops.map_err(|error| TrainError::Config(vec![error.to_string()]))?;
        let dataset = val.unwrap_or(train);
        // Of a picture that is listed twice, one view is as near as the other.
        let (samples, _) = each_once(dataset.as_ref(), MAX_PICTURES);
        Ok(Self {
            dataset: dataset.clone(),
            samples,
            is_held_out: val.is_some(),
            crops,
            seed: config.seed,
            workers: config.data.workers,
        })
    }

    /// Pictures that are looked at, each twice.
    pub fn num_pictures(&self) -> usize {
        self.samples.len()
    }

    /// Whether the pictures are held out.
    pub fn is_held_out(&self) -> bool {
        self.is_held_out
    }

    /// Scores features; `None` if a stop was requested meanwhile. A picture that cannot be had goes to the
    /// ledger and does not count. `progress` is told how many views are done, two of each picture.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] if fewer than two pictures can be used, [`TrainError::Data`],
    /// [`TrainError::Eval`] for features that are not finite, and [`TrainError::Tensor`].
    pub fn score(
        &self,
        extractor: Extractor<'_>,
        device: &Device,
        ledger: &Arc<Ledger>,
        stop: &StopFlag,
        progress: impl FnMut(usize),
    ) -> Result<Option<ViewScore>, TrainError> {
        let embedder = Embedder {
            extractor,
            options: EmbedOptions {
                batch_size: PICTURES_A_BATCH,
                workers: self.workers,
                transform: EvalTransform::GlobalViews {
                    crops: self.crops.clone(),
                    seed: self.seed,
                    epoch: EPOCH,
                },
            },
            device,
            ledger: ledger.clone(),
        };
        let done = embedder.embed_unless(stop, &self.dataset, &self.samples, progress)?;
        let Some(done) = done else {
            return Ok(None);
        };
        // Both views of a picture, one behind the other.
        let pictures = done.features.n / 2;
        if pictures < 2 {
            let (dataset, samples) = (self.dataset.as_ref(), &self.samples);
            let error = TrainError::unusable("pictures", pictures, dataset, samples, ledger);
            return Err(error);
        }
        let rows = |view: usize| -> Vec<usize> { (0..pictures).map(|i| 2 * i + view).collect() };
        let (first, second) = (
            done.features.subset(&rows(0)),
            done.features.subset(&rows(1)),
        );
        Ok(Some(ViewScore {
            auc: view_auc(&first, &second)?,
            effective_rank: effective_rank(&first)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use selfsame_data::augment::image::{Rgb, RgbImage};

    use super::*;

    /// Pictures of one colour each, of which every fourth is none.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..12u8 {
            let path = folder.path().join(format!("{i:02}.png"));
            if i % 4 == 1 {
                std::fs::write(path, "text").unwrap();
            } else {
                let colour = [20 * i, 255 - 20 * i, 10 * (i % 5)];
                RgbImage::from_fn(24, 24, |x, y| {
                    let shade = ((x * 7 + y * 3 + u32::from(i) * 5) % 40) as u8;
                    Rgb(colour.map(|c| c.saturating_add(shade)))
                })
                .save(path)
                .unwrap();
            }
        }
        folder
    }

    #[test]
    fn views_go_with_their_pictures_although_some_cannot_be_used() {
        let folder = folder();
        let spec = folder.path().to_str().unwrap();
        let dataset = selfsame_data::open(spec, &Default::default()).unwrap();
        let mut config = RunConfig::default();
        config.data.workers = 0;
        // Nothing is changed but where the crop lies: a picture's views have its colours.
        config.augment.global_size = 16;
        (config.augment.global1, config.augment.global2) = (Vec::new(), Vec::new());
        let scorer = ViewScorer::new(&config, &dataset, None).unwrap();
        assert_eq!((scorer.num_pictures(), scorer.is_held_out()), (12, false));
        let (ledger, stop) = (Arc::new(Ledger::new()), StopFlag::default());
        let done = std::cell::Cell::new(0);
        let score = |stop: &StopFlag| {
            let pixels = Extractor::Pixels;
            let told = |views| {
                assert!(views % 2 == 0 && views <= 24);
                done.set(views);
            };
            scorer
                .score(pixels, &Device::Cpu, &ledger, stop, told)
                .unwrap()
        };
        let found = score(&stop).unwrap();
        assert_eq!((found.auc.len(), ledger.len(), done.get()), (9, 3, 18));
        assert!(found.percent() > 90.0, "{found:?}");
        stop.request(15);
        assert_eq!(score(&stop), None);
    }
}
