//! Scores made-up features: `cargo run -p selfsame-eval --example score_blobs`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use selfsame_eval::linear_probe::{self, ProbeConfig};
use selfsame_eval::logistic::{self, LogisticConfig};
use selfsame_eval::metrics::{self, BootstrapConfig, ClassificationReport, ConfusionMatrix};
use selfsame_eval::{EvalError, Features, KnnConfig, LabelEncoder, knn};

const NAMES: [&str; 3] = ["red", "green", "blue"];

/// `n` points in 8 dimensions, around one centre per colour.
fn blobs(n: usize, mut state: u64) -> (Features, Vec<&'static str>) {
    let mut data = Vec::new();
    for i in 0..n * 8 {
        let mut x = if (i % 8) % 3 == (i / 8) % 3 { 0.6 } else { 0.0 };
        for _ in 0..4 {
            // Knuth's linear congruential generator; four uniform numbers are nearly a normal one.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            x += (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        }
        data.push(x);
    }
    (
        Features { n, d: 8, data },
        (0..n).map(|i| NAMES[i % 3]).collect(),
    )
}

fn main() -> Result<(), EvalError> {
    let (train, train_texts) = blobs(600, 1);
    let (test, test_texts) = blobs(300, 2);
    let encoder = LabelEncoder::fit(&train_texts);
    let ids = |texts: &[&str]| {
        texts
            .iter()
            .filter_map(|t| encoder.encode(t))
            .collect::<Vec<_>>()
    };
    let (labels, truth) = (ids(&train_texts), ids(&test_texts));

    let answers = knn(&train, &labels, &test, &KnnConfig::default())?;
    for answer in &answers {
        let accuracy = metrics::accuracy(&truth, &answer.predictions)?;
        println!("k-NN, k = {:3}: {:.1} %", answer.k, 100.0 * accuracy);
    }
    let config = ProbeConfig {
        epochs: 20,
        ..ProbeConfig::default()
    };
    let probe = linear_probe::sgd((&train, &labels), (&test, &truth), 3, &config, &mut |_| ())?;
    println!("SGD probe: {:.1} %", 100.0 * probe.accuracy);
    let (grid, config) = (logistic::default_grid(), LogisticConfig::default());
    let (model, tried) =
        logistic::fit_with_best_c(&train, &labels, &grid, &config, 42, &mut |_| ())?;
    println!("logistic regression, C out of {} values:\n", tried.len());
    let (predicted, names) = (model.predict(&test)?, encoder.classes());
    println!(
        "{}",
        ClassificationReport::new(&truth, &predicted, names, &Default::default())?
    );
    println!(
        "{}",
        ConfusionMatrix::new(&truth, &predicted, 3)?.to_text(names)
    );
    let scores = metrics::correct(&truth, &predicted)?;
    let knn_scores = metrics::correct(&truth, &answers[0].predictions)?;
    let config = BootstrapConfig::default();
    let one = metrics::bootstrap_mean(&scores, &config)?;
    println!(
        "accuracy {:.3}, 95 % in {:.3} to {:.3}",
        one.estimate, one.low, one.high
    );
    let two = metrics::paired_bootstrap(&scores, &knn_scores, &config)?;
    println!(
        "better than k-NN (k = 10) by {:.3} ± {:.3}",
        two.estimate, two.standard_error
    );
    Ok(())
}
