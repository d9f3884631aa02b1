//! What the features are worth where nobody has labelled a picture: whether two views of a picture are
//! told to belong together, and how many directions the features use.

use std::sync::Arc;

use candle_core::Device;
use selfsame_data::augment::{AugmentConfig, MultiCrop};
use selfsame_data::{Dataset, EvalTransform, Ledger};
use selfsame_eval::{Features, choose, effective_rank, view_auc};

use crate::config::RunConfig;
use crate::embed::{EmbedOptions, Embedder, Extractor};
use crate::error::TrainError;
use crate::stop::StopFlag;

/// Pictures at most. Both figures depend on their number, hence it is the same wherever there are so
/// many.
const MAX_PICTURES: usize = 500;

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
        let mut samples = choose(dataset.len(), MAX_PICTURES, 0);
        samples.sort_unstable();
        // Of a picture that is listed twice, one view is as near as the other.
        let again = selfsame_data::repeated(dataset.as_ref(), samples.iter().copied());
        samples.retain(|sample| again.binary_search(sample).is_err());
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

    /// Scores features; `None` if a stop was requested meanwhile. A picture of which one view cannot be
    /// had goes to the ledger and counts in neither.
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
    ) -> Result<Option<ViewScore>, TrainError> {
        let view = |view: usize| {
            let embedder = Embedder {
                extractor,
                options: EmbedOptions {
                    batch_size: 64,
                    workers: self.workers,
                    transform: EvalTransform::View {
                        crops: self.crops.clone(),
                        view,
                        seed: self.seed,
                        epoch: EPOCH,
                    },
                },
                device,
                ledger: ledger.clone(),
            };
            embedder.embed_unless(stop, &self.dataset, &self.samples, |_| ())
        };
        let (Some(first), Some(second)) = (view(0)?, view(1)?) else {
            return Ok(None);
        };
        let rows_of = |samples: &[usize], others: &[usize]| -> Vec<usize> {
            let both = |row: &usize| others.binary_search(&samples[*row]).is_ok();
            (0..samples.len()).filter(both).collect()
        };
        let (of_first, of_second) = (
            rows_of(&first.samples, &second.samples),
            rows_of(&second.samples, &first.samples),
        );
        if of_first.len() < 2 {
            let dataset = self.dataset.as_ref();
            return Err(TrainError::unusable(
                "pictures",
                of_first.len(),
                dataset,
                &self.samples,
                ledger,
            ));
        }
        let first: Features = first.features.subset(&of_first);
        let second = second.features.subset(&of_second);
        Ok(Some(ViewScore {
            auc: view_auc(&first, &second)?,
            effective_rank: effective_rank(&first)?,
        }))
    }
}
