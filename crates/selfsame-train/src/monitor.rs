//! k-NN on the teacher while it trains: the earliest honest sign of whether features improve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Device;
use selfsame_data::{Dataset, EvalTransform, Ledger};
use selfsame_eval::metrics::accuracy;
use selfsame_eval::{KnnConfig, LabelEncoder, Own, choose, knn};
use selfsame_models::Backbone;

use crate::config::RunConfig;
use crate::embed::{EVAL_BATCH, EmbedOptions, Embedder, Extractor};
use crate::error::TrainError;
use crate::stop::StopFlag;

/// Most images used of each side, drawn from all, so that the evaluation stays short beside an epoch.
pub const MAX_SCORED: usize = 10_000;

/// Neighbours that vote (the notebook's k).
const K: usize = 20;

/// Evaluates a backbone on labelled images by k-NN.
pub struct Monitor {
    label: String,
    bank: Labelled,
    queries: Option<Labelled>,
    options: EmbedOptions,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("label", &self.label)
            .field("num_images", &self.num_images())
            .finish_non_exhaustive()
    }
}

struct Labelled {
    dataset: Arc<dyn Dataset>,
    samples: Vec<usize>,
    labels: BTreeMap<usize, String>,
}

impl Labelled {
    fn new(dataset: &Arc<dyn Dataset>, label: &str, most: usize) -> Self {
        let all: Vec<(usize, String)> = (0..dataset.len())
            .filter_map(|i| Some((i, dataset.labels(i).get(label)?.clone())))
            .collect();
        // Pictures often stand in the order of their classes.
        let chosen = choose(all.len(), most, 0);
        let mut labels: BTreeMap<usize, String> =
            chosen.into_iter().map(|i| all[i].clone()).collect();
        // A picture that is listed twice would vote on itself.
        for again in selfsame_data::repeated(dataset.as_ref(), labels.keys().copied()) {
            labels.remove(&again);
        }
        Self {
            dataset: dataset.clone(),
            samples: labels.keys().copied().collect(),
            labels,
        }
    }
}

impl Monitor {
    /// Chooses the label (`train.knn_label`, else gender, class, or the only one) and the images.
    /// `Ok(Err(why))` if there is nothing to evaluate on.
    ///
    /// # Errors
    /// [`TrainError::Label`] if the label asked for does not exist.
    pub fn new(
        config: &RunConfig,
        train: &Arc<dyn Dataset>,
        val: Option<&Arc<dyn Dataset>>,
    ) -> Result<Result<Self, String>, TrainError> {
        let names = train.label_names();
        let wanted = &config.train.knn_label;
        if config.train.knn_every_epochs == 0 {
            return Ok(Err("k-NN is off (train.knn_every_epochs = 0)".to_owned()));
        }
        let label = if !wanted.is_empty() {
            if !names.contains(wanted) {
                return Err(TrainError::Label(format!(
                    "train.knn_label: there is no label {wanted:?}; the data has {}",
                    list_names(&names)
                )));
            }
            wanted.clone()
        } else if let Some(name) = ["gender", "class"]
            .iter()
            .find(|n| names.iter().any(|m| m == **n))
        {
            (*name).to_owned()
        } else if let [only] = names.as_slice() {
            only.clone()
        } else if names.is_empty() {
            return Ok(Err("k-NN is off: the data has no labels".to_owned()));
        } else {
            return Ok(Err(format!(
                "k-NN is off: the data has {}; choose one with train.knn_label",
                list_names(&names)
            )));
        };
        let bank = Labelled::new(train, &label, MAX_SCORED);
        if let Some(val) = val
            && !val.label_names().contains(&label)
        {
            return Ok(Err(format!(
                "k-NN is off: the held-out pictures (data.val) have {}, not {label}",
                list_names(&val.label_names())
            )));
        }
        let queries = val.map(|val| Labelled::new(val, &label, MAX_SCORED));
        if bank.samples.len() < 2 || queries.as_ref().is_some_and(|q| q.samples.is_empty()) {
            return Ok(Err(format!(
                "k-NN is off: too few images carry the label {label}"
            )));
        }
        let values: BTreeSet<&String> = bank.labels.values().collect();
        if values.len() < 2 {
            return Ok(Err(format!(
                "k-NN is off: all pictures have the same {label}"
            )));
        }
        let options = EmbedOptions {
            batch_size: EVAL_BATCH,
            workers: config.data.workers,
            transform: EvalTransform::Center(config.eval_crop()),
        };
        Ok(Ok(Self {
            label,
            bank,
            queries,
            options,
        }))
    }

    /// The label that is predicted.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Pictures whose features a score needs.
    pub fn num_images(&self) -> usize {
        let queries = self.queries.as_ref();
        self.bank.samples.len() + queries.map_or(0, |queries| queries.samples.len())
    }

    /// k-NN accuracy in percent, by k: bank and queries, or leave-one-out within the bank; `None` if
    /// a stop was requested meanwhile.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] if no picture of a side can be decoded, [`TrainError::Data`] and
    /// [`TrainError::Tensor`].
    pub fn evaluate(
        &self,
        backbone: &dyn Backbone,
        device: &Device,
        ledger: &Arc<Ledger>,
        stop: &StopFlag,
    ) -> Result<Option<BTreeMap<String, f64>>, TrainError> {
        let embedder = Embedder {
            extractor: Extractor::Backbone(backbone),
            options: self.options.clone(),
            device,
            ledger: ledger.clone(),
        };
        let embedded = |set: &Labelled| {
            let done = embedder.embed_unless(stop, &set.dataset, &set.samples, |_| ())?;
            Ok::<_, TrainError>(done.map(|done| {
                let labels = done.samples.iter().map(|i| set.labels[i].clone());
                let labels: Vec<String> = labels.collect();
                (done.features.l2_normalized(), labels)
            }))
        };
        let Some((bank, bank_labels)) = embedded(&self.bank)? else {
            return Ok(None);
        };
        let queries = match &self.queries {
            Some(queries) => match embedded(queries)? {
                Some(queries) => Some(queries),
                None => return Ok(None),
            },
            None => None,
        };
        let all = bank_labels
            .iter()
            .chain(queries.iter().flat_map(|(_, labels)| labels));
        let encoder = LabelEncoder::fit(all);
        let encode = |labels: &[String]| -> Vec<usize> {
            labels
                .iter()
                .filter_map(|label| encoder.encode(label))
                .collect()
        };
        let bank_classes = encode(&bank_labels);
        let config = KnnConfig {
            ks: vec![K],
            own: match queries {
                None => Own::LeaveOut,
                Some(_) => Own::Keep,
            },
            ..KnnConfig::default()
        };
        let (features, truth) = match &queries {
            Some((features, labels)) => (features, encode(labels)),
            None => (&bank, bank_classes.clone()),
        };
        let mut scores = BTreeMap::new();
        for answers in knn(&bank, &bank_classes, features, &config)? {
            let percent = 100.0 * accuracy(&truth, &answers.predictions)?;
            scores.insert(answers.k.to_string(), percent);
        }
        Ok(Some(scores))
    }
}

fn list_names(names: &[String]) -> String {
    if names.is_empty() {
        "no labels".to_owned()
    } else {
        format!("the labels {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_of_many_pictures_is_of_all_of_them() {
        let spec = "synthetic:portraits?count=100&seed=0";
        let dataset = selfsame_data::open(spec, &Default::default()).unwrap();
        let few = Labelled::new(&dataset, "gender", 20);
        assert_eq!(few.samples.len(), 20);
        assert!(
            few.samples[9] > 20 && few.samples[19] > 60,
            "{:?}",
            few.samples
        );
        assert!(few.samples.is_sorted());
        let all = Labelled::new(&dataset, "gender", 1000);
        assert!(all.samples.into_iter().eq(0..100));
    }

    #[test]
    fn a_picture_that_is_listed_twice_counts_once_and_one_class_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut csv = "Images,Gender\n".to_owned();
        for (name, label) in [("a", "f"), ("b", "m"), ("a", "f"), ("c", "m")] {
            std::fs::write(dir.path().join(format!("{name}.png")), name).unwrap();
            csv.push_str(&format!("{name}.png,{label}\n"));
        }
        let path = dir.path().join("faces.csv");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            selfsame_data::open(path.to_str().unwrap(), &Default::default()).unwrap()
        };
        let dataset = open(&csv);
        assert_eq!(dataset.len(), 4);
        let labelled = Labelled::new(&dataset, "gender", 1000);
        assert_eq!(labelled.samples, [0, 2, 3]);

        let config = RunConfig::default();
        assert!(Monitor::new(&config, &dataset, None).unwrap().is_ok());
        let dataset = open(&csv.replace(",m", ",f"));
        let why = Monitor::new(&config, &dataset, None).unwrap().unwrap_err();
        assert!(why.contains("all pictures have the same gender"), "{why}");
    }
}
