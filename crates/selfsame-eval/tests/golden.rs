//! Against scikit-learn and PyTorch: `tests/golden/make.py` wrote the expected values, `versions.json` says with what.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use selfsame_eval::linear_probe::{LinearClassifier, ProbeConfig, ProbeTrainer};
use selfsame_eval::logistic::{Logistic, LogisticConfig};
use selfsame_eval::metrics::{
    ClassificationReport, ReportOptions, ZeroDivision, mean_absolute_error, r2,
};
use selfsame_eval::ridge::Ridge;
use selfsame_eval::{Features, KnnConfig, Own, Pca, Vote, knn, knn_regress};
use serde_json::Value;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn cases(text: &str, count: usize) -> Vec<Value> {
    let cases = golden(text).as_array().unwrap().clone();
    assert_eq!(cases.len(), count);
    cases
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

fn singles(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn whole(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn indices(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(whole).collect()
}

fn features(values: &Value, d: &Value) -> Features {
    let (data, d) = (singles(values), whole(d));
    Features::new(data.len() / d, d, data).unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // `f64::max` passes over what is not a number.
    assert!(a.iter().chain(b).all(|x| x.is_finite()), "{a:?} {b:?}");
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn knn_equals_scikit_learn() {
    let all = golden(include_str!("golden/knn.json"));
    let (bank, queries) = (
        features(&all["bank"], &all["d"]),
        features(&all["queries"], &all["d"]),
    );
    let (labels, values) = (indices(&all["labels"]), numbers(&all["values"]));
    for (name, vote) in [("weighted", Vote::Weighted), ("majority", Vote::Majority)] {
        let config = KnnConfig {
            ks: indices(&all["ks"]),
            vote,
            ..KnnConfig::default()
        };
        let classes = knn(&bank, &labels, &queries, &config).unwrap();
        let regressed = knn_regress(&bank, &values, &queries, &config).unwrap();
        for (i, k) in config.ks.iter().enumerate() {
            let expected = indices(&all["classes"][name][i]);
            assert_eq!(classes[i].predictions, expected, "{name}, k = {k}");
            // Similarities are f32 here and f64 there: 1e-7 / 0.07 relative in each weight.
            let expected = numbers(&all["numbers"][name][i]);
            let difference = largest_difference(&regressed[i].predictions, &expected);
            assert!(difference < 1e-4, "{name}, k = {k}: {difference}");
        }
        let config = KnnConfig {
            ks: vec![1, 5, 20],
            own: Own::LeaveOut,
            ..config
        };
        for (i, answers) in knn(&bank, &labels, &bank, &config)
            .unwrap()
            .iter()
            .enumerate()
        {
            let expected = indices(&all["leave_one_out"][name][i]);
            assert_eq!(
                answers.predictions, expected,
                "{name}, leave one out, k = {}",
                answers.k
            );
        }
    }
}

#[test]
fn logistic_coefficients_equal_scikit_learn_also_when_stopped_early() {
    for input in cases(include_str!("golden/logistic.json"), 3) {
        let (xs, labels) = (
            features(&input["xs"], &input["d"]),
            indices(&input["labels"]),
        );
        let fits = input["fits"].as_array().unwrap();
        assert_eq!(fits.len(), 6);
        for fit in fits {
            let (c, tol) = (fit["c"].as_f64().unwrap(), fit["tol"].as_f64().unwrap());
            let config = LogisticConfig {
                c,
                tol,
                ..LogisticConfig::default()
            };
            let model = Logistic::fit(&xs, &labels, &config).unwrap();
            let what = format!("{} classes, C {c}, tol {tol}", model.classes.len());
            assert!(model.converged, "{what}");
            // At tol 1e-4 scikit-learn stops up to 4e-3 from its figures at 1e-8: only the same path gives the same.
            // At 1e-8 the last iterations are lost in rounding, so their count may differ.
            if tol > 1e-6 {
                assert_eq!(model.iterations, whole(&fit["iterations"]), "{what}");
            }
            for (ours, theirs) in [(&model.coef, "coef"), (&model.intercept, "intercept")] {
                let difference = largest_difference(ours, &numbers(&fit[theirs]));
                assert!(
                    difference < 1e-6,
                    "{what}: {theirs} differs by {difference}"
                );
            }
            assert_eq!(
                model.predict(&xs).unwrap(),
                indices(&fit["predictions"]),
                "{what}"
            );
            let ten = xs.subset(&(0..10).collect::<Vec<_>>());
            let ours = model.probabilities(&ten).unwrap();
            assert!(
                largest_difference(&ours, &numbers(&fit["probabilities"])) < 1e-6,
                "{what}"
            );
        }
    }
}

#[test]
fn ridge_equals_scikit_learn() {
    for case in cases(include_str!("golden/ridge.json"), 4) {
        let xs = features(&case["xs"], &case["d"]);
        let values = numbers(&case["values"]);
        let model = Ridge::fit(&xs, &values, case["alpha"].as_f64().unwrap()).unwrap();
        assert!(largest_difference(&model.coef, &numbers(&case["coef"])) < 1e-9);
        assert!((model.intercept - case["intercept"].as_f64().unwrap()).abs() < 1e-9);
        let predictions = model.predict(&xs).unwrap();
        assert!(largest_difference(&predictions, &numbers(&case["predictions"])) < 1e-9);
        let mae = mean_absolute_error(&values, &predictions).unwrap();
        assert!((mae - case["mae"].as_f64().unwrap()).abs() < 1e-9);
        assert!((r2(&values, &predictions).unwrap() - case["r2"].as_f64().unwrap()).abs() < 1e-9);
    }
}

#[test]
fn linear_probe_equals_pytorch_sgd_with_cosine_annealing() {
    for case in cases(include_str!("golden/probe.json"), 3) {
        let xs = features(&case["xs"], &case["d"]);
        let labels = indices(&case["labels"]);
        let start = LinearClassifier {
            d: xs.d,
            num_classes: whole(&case["classes"]),
            weight: singles(&case["start_weight"]),
            bias: singles(&case["start_bias"]),
        };
        let orders = case["orders"].as_array().unwrap();
        let config = ProbeConfig {
            lr: case["lr"].as_f64().unwrap(),
            weight_decay: case["weight_decay"].as_f64().unwrap(),
            batch_size: whole(&case["batch_size"]),
            epochs: orders.len(),
            ..ProbeConfig::default()
        };
        let mut trainer = ProbeTrainer::from_classifier(config, start).unwrap();
        for (i, order) in orders.iter().enumerate() {
            let epoch = trainer
                .train_epoch_in_order(&xs, &labels, &indices(order))
                .unwrap();
            assert!((epoch.lr - case["lrs"][i].as_f64().unwrap()).abs() < 1e-12);
            assert!((epoch.loss - case["losses"][i].as_f64().unwrap()).abs() < 1e-5);
        }
        // f32 on both sides, another order of summation: 35 updates of at most 1e-6 each.
        let ours = trainer.classifier();
        assert!(largest_difference(&widened(&ours.weight), &numbers(&case["weight"])) < 2e-5);
        assert!(largest_difference(&widened(&ours.bias), &numbers(&case["bias"])) < 2e-5);
        assert_eq!(ours.predict(&xs).unwrap(), indices(&case["predictions"]));
    }
}

#[test]
fn report_text_is_scikit_learns_to_the_letter() {
    let cases = golden(include_str!("golden/report.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 20);
    for (i, case) in cases.iter().enumerate() {
        let names = case["names"].as_array().unwrap();
        let names: Vec<String> = names
            .iter()
            .map(|n| n.as_str().unwrap().to_owned())
            .collect();
        let options = ReportOptions {
            labels: (!case["labels"].is_null()).then(|| indices(&case["labels"])),
            digits: whole(&case["digits"]),
            zero_division: match case["zero_division"].as_str().unwrap() {
                "zero" => ZeroDivision::Zero,
                "one" => ZeroDivision::One,
                _ => ZeroDivision::NaN,
            },
        };
        let (truth, predicted) = (indices(&case["truth"]), indices(&case["predicted"]));
        let report = ClassificationReport::new(&truth, &predicted, &names, &options).unwrap();
        assert_eq!(
            report.to_string(),
            case["text"].as_str().unwrap(),
            "case {i}"
        );
    }
}

#[test]
fn principal_components_are_those_of_scikit_learn_with_their_signs() {
    for case in cases(include_str!("golden/pca.json"), 3) {
        let xs = features(&case["xs"], &case["d"]);
        let (d, k) = (whole(&case["d"]), whole(&case["k"]));
        let pca = Pca::fit(&xs, k, 0).unwrap();
        // Products are f32 here and f64 there; values are up to 20, directions are of length 1.
        assert!(largest_difference(&pca.mean, &numbers(&case["mean"])) < 1e-6);
        for (ours, theirs) in [
            (&pca.variances, numbers(&case["variances"])),
            (&pca.shares, numbers(&case["shares"])),
        ] {
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a / b - 1.0).abs() < 1e-5, "{ours:?} {theirs:?}");
            }
            assert_eq!(ours.len(), k);
        }
        let (components, places) = (numbers(&case["components"]), numbers(&case["places"]));
        let ours = pca.transform(&xs).unwrap();
        for (i, theirs) in components.chunks(d).enumerate() {
            let component = &pca.components[i * d..(i + 1) * d];
            let apart = largest_difference(component, theirs);
            assert!(apart < 1e-4, "component {i}: {apart:e}");
            let of_column = |all: &[f64]| all.chunks(k).map(|row| row[i]).collect::<Vec<_>>();
            let apart = largest_difference(&of_column(&ours), &of_column(&places));
            assert!(apart < 1e-3, "places along {i}: {apart:e}");
        }
    }
}
