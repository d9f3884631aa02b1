//! The features that a report compares: trained, of random weights, and the pixels themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;
use selfsame_data::augment::{AugmentConfig, EvalCrop};
use selfsame_data::{Dataset, EvalTransform};
use selfsame_eval::Features;
use selfsame_models::{Backbone, Network};
use selfsame_train::{
    EVAL_BATCH, EmbedOptions, Embedder, Extractor, RunConfig, StopFlag, TrainError, ViewScore,
    ViewScorer,
};

use super::super::begin::start_weights;
use super::Facts;
use super::split::Split;
use crate::progress::CountProgress;
use crate::stderr::tell;
use crate::weights::Weights;

/// Name of the baseline without a network.
pub(super) const PIXELS: &str = "raw pixels";
/// Names of what a run may have begun with.
const DRAWN: &str = "random weights";
const GIVEN: &str = "weights it began with";

/// Features of one side, of unit length, with the numbers of their pictures.
pub(super) struct Rows {
    pub(super) features: Features,
    pub(super) samples: Vec<usize>,
}

/// One way to features.
pub(super) struct Subject {
    /// "after training", "weights it began with", "random weights", "raw pixels".
    pub(super) name: &'static str,
    pub(super) bank: Rows,
    /// `None`: leave one out of the bank.
    pub(super) test: Option<Rows>,
    /// The score without labels, where it can be taken.
    pub(super) views: Option<ViewScore>,
}

/// All that is compared.
pub(super) struct Subjects {
    /// After training first, then the weights that the run was given, if it was, random weights, and
    /// the pixels.
    pub(super) all: Vec<Subject>,
    pub(super) train: Arc<dyn Dataset>,
    pub(super) val: Option<Arc<dyn Dataset>>,
    /// The network that the seed draws.
    untrained: Network,
    /// The weights that the run was given to begin with.
    given: Option<Weights>,
    pub(super) crop: EvalCrop,
    /// Whether `views` are of held-out pictures.
    pub(super) views_held_out: bool,
}

impl Subjects {
    /// Embeds both sides; `None` if fewer than two training pictures can be used. Held-out pictures
    /// of which that is so are told and left out.
    ///
    /// # Errors
    /// From the loader or a network.
    pub(super) fn embed(
        facts: &Facts<'_>,
        train: &Arc<dyn Dataset>,
        weights: &Weights,
    ) -> anyhow::Result<Option<Self>> {
        let config = facts.config;
        let crop = config.eval_crop();
        let raw = EvalCrop {
            mean: [0.0; 3],
            std: [1.0; 3],
            image_size: crop.image_size.min(64),
            ..crop.clone()
        };
        // With its head, which decides some first values of the backbone.
        let (untrained, _) = Network::new(&config.model, &config.head, config.seed, facts.device)?;
        let given = given(config, facts.device);
        let drawn = Extractor::Backbone(untrained.backbone());
        let mut compared = vec![("after training", weights.extractor(), &crop)];
        compared.extend(
            given
                .as_ref()
                .map(|given| (GIVEN, given.extractor(), &crop)),
        );
        compared.extend([(DRAWN, drawn, &crop), (PIXELS, Extractor::Pixels, &raw)]);
        let Split {
            learned_from,
            tested_on,
        } = Split::of(
            (train, &config.data.train),
            facts.val.as_ref().map(|val| (val, &*config.data.val)),
        );
        let tested_on = tested_on.unwrap_or_default();
        let mut val = facts.val.clone().filter(|_| !tested_on.is_empty());
        let mut all = Vec::new();
        for (name, extractor, crop) in compared {
            let side = |set: &Arc<dyn Dataset>, samples: &[usize]| {
                rows(set, samples, extractor, crop, facts.device, name)
            };
            let Some(bank) = side(train, &learned_from)? else {
                return Ok(None);
            };
            let test = match &val {
                Some(val) => side(val, &tested_on)?,
                None => None,
            };
            if test.is_none() && val.take().is_some() {
                let spec = &config.data.val;
                tell!("warning: without pictures of {spec}: fewer than two can be used");
            }
            all.push(Subject {
                name,
                bank,
                test,
                views: views(extractor, crop, facts, train, val.as_ref())?,
            });
        }
        Ok(Some(Self {
            all,
            train: train.clone(),
            views_held_out: val.is_some(),
            val,
            untrained,
            given,
            crop,
        }))
    }

    /// The network as it was at the first step, and what it is called.
    pub(super) fn begun(&self) -> (&'static str, &dyn Backbone) {
        match self.given.as_ref().map(Weights::backbone) {
            Some(Ok(loaded)) => (GIVEN, loaded.backbone.as_ref()),
            _ => (DRAWN, self.untrained.backbone()),
        }
    }

    /// The pictures that are looked at: held out if there are any.
    pub(super) fn shown(&self) -> (&Arc<dyn Dataset>, &Rows) {
        let trained = &self.all[0];
        match (&self.val, &trained.test) {
            (Some(val), Some(test)) => (val, test),
            _ => (&self.train, &trained.bank),
        }
    }
}

/// The score by views, whose pixels are as those of `crop`; `None` for want of pictures or of features
/// that are numbers.
fn views(
    extractor: Extractor<'_>,
    crop: &EvalCrop,
    facts: &Facts<'_>,
    train: &Arc<dyn Dataset>,
    val: Option<&Arc<dyn Dataset>>,
) -> anyhow::Result<Option<ViewScore>> {
    let recipe = AugmentConfig {
        global_size: crop.image_size,
        mean: crop.mean,
        std: crop.std,
        ..facts.config.augment.clone()
    };
    let scorer = ViewScorer::with_recipe(recipe, facts.config, train, val)?;
    let (ledger, stop) = (Arc::default(), StopFlag::default());
    let mut progress = CountProgress::new("views", 2 * scorer.num_pictures());
    let told = |n| progress.set(n);
    match scorer.score(extractor, facts.device, &ledger, &stop, told) {
        Err(TrainError::Unusable { .. } | TrainError::Eval(_)) => Ok(None),
        score => Ok(score?),
    }
}

/// The weights that a run was given to begin with; told, if they cannot be opened any more.
fn given(config: &RunConfig, device: &Device) -> Option<Weights> {
    let spec = config.train.init.as_str();
    if spec.is_empty() {
        return None;
    }
    start_weights(spec, config, device)
        .inspect_err(|error| tell!("note: the page is without the weights begun with: {error:#}"))
        .ok()
}

/// Features of some pictures of a side; `None` if fewer than two can be used.
fn rows(
    set: &Arc<dyn Dataset>,
    samples: &[usize],
    extractor: Extractor<'_>,
    crop: &EvalCrop,
    device: &Device,
    name: &'static str,
) -> anyhow::Result<Option<Rows>> {
    let options = EmbedOptions {
        batch_size: EVAL_BATCH,
        workers: 2,
        transform: EvalTransform::Center(crop.clone()),
    };
    let embedder = Embedder {
        extractor,
        options,
        device,
        ledger: Arc::default(),
    };
    let mut progress = CountProgress::new(name, samples.len());
    let done = match embedder.embed(set, samples, |n| progress.set(n)) {
        Err(TrainError::Unusable { .. }) => return Ok(None),
        done => done?,
    };
    Ok((done.features.n > 1).then(|| Rows {
        features: done.features.l2_normalized(),
        samples: done.samples,
    }))
}

/// The rows of a side that have a label, and its texts.
pub(super) fn labelled(
    rows: &Rows,
    set: &Arc<dyn Dataset>,
    label: &str,
) -> (Features, Vec<String>) {
    let texts: BTreeMap<usize, String> = rows
        .samples
        .iter()
        .enumerate()
        .filter_map(|(row, sample)| Some((row, set.label(*sample, label)?)))
        .collect();
    let kept: Vec<usize> = texts.keys().copied().collect();
    (rows.features.subset(&kept), texts.into_values().collect())
}
