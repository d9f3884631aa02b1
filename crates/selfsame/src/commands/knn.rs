//! `selfsame knn`

use selfsame_eval::metrics::{
    BootstrapConfig, Interval, accuracy, accuracy_among, bootstrap_mean, correct, paired_bootstrap,
};
use selfsame_eval::{KnnAnswers, KnnConfig, Own, Vote, knn, knn_ranked, knn_regress};
use serde_json::{Map, Value, json};

use crate::cli::{Knn, Labelled, VoteArg};
use crate::exit::{Done, by_flag, usage};
use crate::scores::{
    Kind, LabelledFeatures, NumberScore, Sets, TOP, print_json, print_text, top_in_words,
};
use crate::weights::Weights;

pub(crate) fn run(args: &Knn) -> anyhow::Result<Done> {
    let sets = Sets::open(&args.data)?.without_repeated(&args.data);
    let config = KnnConfig {
        ks: args.k.clone(),
        temperature: args.temperature,
        vote: match args.vote {
            VoteArg::Weighted => Vote::Weighted,
            VoteArg::Majority => Vote::Majority,
        },
        own: match sets.same {
            true => Own::LeaveOut,
            false => Own::Keep,
        },
    };
    if let [problem, ..] = config.check().as_slice() {
        return Err(usage(problem.clone()));
    }
    if args.regress {
        sets.need_numbers(&args.data.label)?;
    } else {
        sets.need_classes(&args.data.label)?;
        sets.suggest_regression(&args.data.label, "--regress");
    }
    let (weights, train, test) = features(&sets, &args.data, &args.data.weights.weights)?;
    let search = Search {
        args,
        sets: &sets,
        config,
        weights,
        train,
        test,
    };
    match args.regress {
        true => search.regress()?,
        false => search.classify()?,
    }
    Ok(Done::Well)
}

/// Features of unit length of both sides.
fn features(
    sets: &Sets,
    args: &Labelled,
    spec: &str,
) -> anyhow::Result<(Weights, LabelledFeatures, LabelledFeatures)> {
    let flags = &args.weights;
    // A baseline to compare with takes no --arch.
    let arch = flags.arch.as_deref();
    let arch = arch.filter(|_| spec == flags.weights || !Weights::is_baseline(spec));
    let weights = Weights::open(spec, flags.which, arch, &sets.device)?;
    // Scaled here and scaled again for the search; those of --weights stay beside those of --against.
    let copies = if spec == flags.weights { 2 } else { 3 };
    let copies = [copies; 2];
    let (train, test) = sets.embed(&weights, weights.extractor(), args, copies)?;
    let normalized = |side: LabelledFeatures| LabelledFeatures {
        features: side.features.l2_normalized(),
        ..side
    };
    Ok((weights, normalized(train), normalized(test)))
}

/// What is asked of the neighbours, and the features that they are found by.
struct Search<'a> {
    args: &'a Knn,
    sets: &'a Sets,
    config: KnnConfig,
    weights: Weights,
    train: LabelledFeatures,
    test: LabelledFeatures,
}

impl Search<'_> {
    /// Predicts classes, and prints how good that is.
    fn classify(&self) -> anyhow::Result<()> {
        let Self { args, sets, .. } = self;
        let truth = sets.encode(&self.test.labels);
        let answers = knn_ranked(
            &self.train.features,
            &sets.encode(&self.train.labels),
            &self.test.features,
            &self.config,
            TOP,
        )?;
        let against = args.against.as_deref();
        let against = against.map(|spec| self.answers_of(spec)).transpose()?;
        let mut scores = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            let other = against.as_ref().map(|answers| &answers[i]);
            let among_five = sets.encoder.num_classes() > TOP;
            let score = Score::of(&truth, answer, other, among_five)?;
            if !args.data.json {
                print_text(&score.to_string());
            }
            scores.push(score);
        }
        let skipped = sets.skipped();
        if args.data.json {
            print_json(&self.json(&scores, skipped)?);
        }
        Ok(())
    }

    /// What other weights answer.
    fn answers_of(&self, spec: &str) -> anyhow::Result<Vec<KnnAnswers<usize>>> {
        let (_, train, test) = features(self.sets, &self.args.data, spec)
            .map_err(|error| by_flag("--against", error))?;
        Ok(knn(
            &train.features,
            &self.sets.encode(&train.labels),
            &test.features,
            &self.config,
        )?)
    }

    fn json(&self, scores: &[Score], skipped: usize) -> anyhow::Result<Value> {
        let by_k = |value: fn(&Score) -> Option<Value>| -> Map<String, Value> {
            let entry = |score: &Score| Some((score.k.to_string(), value(score)?));
            scores.iter().filter_map(entry).collect()
        };
        let mut result = json!({
            "knn": by_k(|score| Some(json!(score.percent))),
            "standard_error": by_k(|score| Some(json!(100.0 * score.interval.standard_error))),
            "n_train": self.train.labels.len(),
            "n_test": self.test.labels.len(),
            "skipped": skipped,
            "protocol": self.protocol()?,
        });
        let among_five = by_k(|score| score.among_five.map(Value::from));
        if !among_five.is_empty() {
            result["top5"] = among_five.into();
        }
        if let Some(spec) = &self.args.against {
            let differences = by_k(|score| {
                let (gain, error) = score.gain?;
                Some(json!({"gain": gain, "standard_error": error}))
            });
            result["against"] = json!({"weights": spec, "knn": differences});
        }
        Ok(result)
    }

    /// Predicts numbers, and prints how good that is.
    fn regress(&self) -> anyhow::Result<()> {
        let Self { args, sets, .. } = self;
        let (bank, truth) = (self.train.numbers(), self.test.numbers());
        let (train, test) = (&self.train.features, &self.test.features);
        let mut scores = Map::new();
        for answer in knn_regress(train, &bank, test, &self.config)? {
            let score = NumberScore::of(&truth, &answer.predictions)?;
            if !args.data.json {
                print_text(&format!("k = {:>3}: {score}", answer.k));
            }
            scores.insert(answer.k.to_string(), score.json());
        }
        let skipped = sets.skipped();
        if args.data.json {
            print_json(&json!({
                "knn": scores,
                "n_train": bank.len(),
                "n_test": truth.len(),
                "skipped": skipped,
                "protocol": self.protocol()?,
            }));
        }
        Ok(())
    }

    fn protocol(&self) -> anyhow::Result<Value> {
        let Self { args, sets, .. } = self;
        let kind = match args.regress {
            true => Kind::Numbers,
            false => Kind::Classes,
        };
        let (flags, label) = (&args.data.weights, &args.data.label);
        let mut protocol = sets.protocol(&self.weights, flags, label, kind)?;
        protocol["vote"] = json!(format!("{:?}", args.vote).to_lowercase());
        protocol["temperature"] = json!(args.temperature);
        protocol["leave_one_out"] = json!(sets.same);
        Ok(protocol)
    }
}

/// How good the classes are that so many neighbours vote for.
struct Score {
    k: usize,
    k_used: usize,
    /// Accuracy in per cent.
    percent: f64,
    /// Of the accuracy as a share.
    interval: Interval,
    /// Accuracy at five in per cent, where there are more classes.
    among_five: Option<f64>,
    /// What it is better by than the other weights, in points, with its standard error.
    gain: Option<(f64, f64)>,
}

impl Score {
    fn of(
        truth: &[usize],
        answer: &KnnAnswers<Vec<usize>>,
        other: Option<&KnnAnswers<usize>>,
        among_five: bool,
    ) -> anyhow::Result<Self> {
        let predicted: Vec<usize> = answer.predictions.iter().map(|best| best[0]).collect();
        let percent = 100.0 * accuracy(truth, &predicted)?;
        let hits = correct(truth, &predicted)?;
        let interval = bootstrap_mean(&hits, &BootstrapConfig::default())?;
        let among_five = match among_five {
            true => Some(100.0 * accuracy_among(truth, &answer.predictions)?),
            false => None,
        };
        let gain = match other {
            Some(other) => {
                let others = correct(truth, &other.predictions)?;
                let gap = paired_bootstrap(&hits, &others, &BootstrapConfig::default())?;
                Some((100.0 * gap.estimate, 100.0 * gap.standard_error))
            }
            None => None,
        };
        Ok(Self {
            k: answer.k,
            k_used: answer.k_used,
            percent,
            interval,
            among_five,
            gain,
        })
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "k = {:>3}: {:5.1} %  (95 % interval {:.1} to {:.1}){}",
            self.k,
            self.percent,
            100.0 * self.interval.low,
            100.0 * self.interval.high,
            top_in_words(self.among_five)
        )?;
        if self.k_used < self.k {
            write!(f, "  the bank holds only {} neighbours", self.k_used)?;
        }
        if let Some((gain, error)) = self.gain {
            write!(
                f,
                "  {gain:+.1} ± {error:.1} (standard error) against the other"
            )?;
        }
        Ok(())
    }
}
