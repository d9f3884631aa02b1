//! `selfsame knn`

use selfsame_eval::metrics::{
    BootstrapConfig, accuracy, accuracy_among, bootstrap_mean, correct, paired_bootstrap,
};
use selfsame_eval::{KnnConfig, Own, Vote, knn, knn_ranked, knn_regress};
use serde_json::json;

use crate::cli::{Knn, Labelled, VoteArg};
use crate::exit::{Done, by_flag, usage};
use crate::scores::{Kind, NumberScore, Sets, Side, TOP, print_json, print_text, top_in_words};
use crate::weights::Weights;

pub(crate) fn run(args: &Knn) -> anyhow::Result<Done> {
    let vote = match args.vote {
        VoteArg::Weighted => Vote::Weighted,
        VoteArg::Majority => Vote::Majority,
    };
    let sets = Sets::open(&args.data)?.each_once(&args.data);
    let config = KnnConfig {
        ks: args.k.clone(),
        temperature: args.temperature,
        vote,
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
    if args.regress {
        let protocol = protocol(args, &sets, &weights)?;
        return regress(args, &sets, &config, (&train, &test), &protocol);
    }
    let truth = sets.encode(&test.labels);
    let answers = knn_ranked(
        &train.features,
        &sets.encode(&train.labels),
        &test.features,
        &config,
        TOP,
    )?;
    let against = match &args.against {
        None => None,
        Some(spec) => {
            let (_, train, test) =
                features(&sets, &args.data, spec).map_err(|error| by_flag("--against", error))?;
            Some(knn(
                &train.features,
                &sets.encode(&train.labels),
                &test.features,
                &config,
            )?)
        }
    };

    let mut scores = serde_json::Map::new();
    let mut errors = serde_json::Map::new();
    let mut differences = serde_json::Map::new();
    let mut among_five = serde_json::Map::new();
    for (i, answer) in answers.iter().enumerate() {
        let k = answer.k.to_string();
        let predicted: Vec<usize> = answer.predictions.iter().map(|best| best[0]).collect();
        let percent = 100.0 * accuracy(&truth, &predicted)?;
        let hits = correct(&truth, &predicted)?;
        let interval = bootstrap_mean(&hits, &BootstrapConfig::default())?;
        let mut line = format!(
            "k = {k:>3}: {percent:5.1} %  (95 % interval {:.1} to {:.1})",
            100.0 * interval.low,
            100.0 * interval.high
        );
        if sets.encoder.num_classes() > TOP {
            let among = 100.0 * accuracy_among(&truth, &answer.predictions)?;
            line.push_str(&top_in_words(Some(among)));
            among_five.insert(k.clone(), json!(among));
        }
        if answer.k_used < answer.k {
            line.push_str(&format!(
                "  the bank holds only {} neighbours",
                answer.k_used
            ));
        }
        if let Some(other) = &against {
            let others = correct(&truth, &other[i].predictions)?;
            let gap = paired_bootstrap(&hits, &others, &BootstrapConfig::default())?;
            let (gain, error) = (100.0 * gap.estimate, 100.0 * gap.standard_error);
            line.push_str(&format!(
                "  {gain:+.1} ± {error:.1} (standard error) against the other"
            ));
            differences.insert(k.clone(), json!({"gain": gain, "standard_error": error}));
        }
        if !args.data.json {
            print_text(&line);
        }
        errors.insert(k.clone(), json!(100.0 * interval.standard_error));
        scores.insert(k, json!(percent));
    }
    let skipped = sets.skipped();
    if args.data.json {
        let mut result = json!({
            "knn": scores,
            "standard_error": errors,
            "n_train": train.labels.len(),
            "n_test": test.labels.len(),
            "skipped": skipped,
            "protocol": protocol(args, &sets, &weights)?,
        });
        if !among_five.is_empty() {
            result["top5"] = among_five.into();
        }
        if let Some(spec) = &args.against {
            result["against"] = json!({"weights": spec, "knn": differences});
        }
        print_json(&result);
    }
    Ok(Done::Well)
}

fn features(sets: &Sets, args: &Labelled, spec: &str) -> anyhow::Result<(Weights, Side, Side)> {
    let flags = &args.weights;
    // A baseline to compare with takes no --arch.
    let arch = flags.arch.as_deref();
    let arch = arch.filter(|_| spec == flags.weights || !Weights::is_baseline(spec));
    let weights = Weights::open(spec, flags.which, arch, &sets.device)?;
    // Scaled here and scaled again for the search; those of --weights stay beside those of --against.
    let copies = if spec == flags.weights { 2 } else { 3 };
    let copies = [copies; 2];
    let (train, test) = sets.embed(&weights, weights.extractor(), args, copies)?;
    let normalized = |side: Side| Side {
        features: side.features.l2_normalized(),
        ..side
    };
    Ok((weights, normalized(train), normalized(test)))
}

fn regress(
    args: &Knn,
    sets: &Sets,
    config: &KnnConfig,
    (train, test): (&Side, &Side),
    protocol: &serde_json::Value,
) -> anyhow::Result<Done> {
    let (bank, truth) = (train.numbers(), test.numbers());
    let mut scores = serde_json::Map::new();
    for answer in knn_regress(&train.features, &bank, &test.features, config)? {
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
            "protocol": protocol,
        }));
    }
    Ok(Done::Well)
}

fn protocol(args: &Knn, sets: &Sets, weights: &Weights) -> anyhow::Result<serde_json::Value> {
    let kind = match args.regress {
        true => Kind::Numbers,
        false => Kind::Classes,
    };
    let mut protocol = sets.protocol(weights, &args.data.weights, &args.data.label, kind)?;
    protocol["vote"] = json!(format!("{:?}", args.vote).to_lowercase());
    protocol["temperature"] = json!(args.temperature);
    protocol["leave_one_out"] = json!(sets.same);
    Ok(protocol)
}
