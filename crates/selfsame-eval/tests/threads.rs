//! Results must not depend on the number of threads. candle and rayon read it once per process, from the environment,
//! so this test runs itself again with other values.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use selfsame_eval::linear_probe::{ProbeConfig, sgd};
use selfsame_eval::logistic::{Logistic, LogisticConfig};
use selfsame_eval::metrics::{BootstrapConfig, bootstrap_mean, correct};
use selfsame_eval::ridge::Ridge;
use selfsame_eval::{
    Features, KnnConfig, Pca, TsneConfig, effective_rank, knn, knn_regress, tsne, view_auc,
};
use std::process::Command;

const THREADS: &str = "RAYON_NUM_THREADS";

/// Rows around one centre per class, large enough that matrix products are split among threads.
fn rows(n: usize, d: usize, num_classes: usize, phase: f32) -> (Features, Vec<usize>) {
    let labels: Vec<usize> = (0..n).map(|i| i % num_classes).collect();
    let data = (0..n * d).map(|at| {
        let (i, j) = (at / d, at % d);
        let centre = ((labels[i] * 7 + j) as f32).sin();
        centre + 2.0 * ((at as f32) * 12.9898 + phase).sin().fract()
    });
    (Features::new(n, d, data.collect()).unwrap(), labels)
}

/// FNV-1a over the bits of every result.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bits: u64| hash = (hash ^ bits).wrapping_mul(0x100_0000_01b3);
    let (bank, labels) = rows(5000, 96, 20, 0.0);
    let (queries, truth) = rows(333, 96, 20, 1.0);
    let values: Vec<f64> = labels.iter().map(|&label| label as f64).collect();

    let answers = knn(&bank, &labels, &queries, &KnnConfig::default()).unwrap();
    answers
        .iter()
        .flat_map(|a| &a.predictions)
        .for_each(|&class| add(class as u64));
    let numbers = knn_regress(&bank, &values, &queries, &KnnConfig::default()).unwrap();
    numbers
        .iter()
        .flat_map(|a| &a.predictions)
        .for_each(|value| add(value.to_bits()));

    let config = LogisticConfig {
        max_iter: 5,
        ..LogisticConfig::default()
    };
    let model = Logistic::fit(&bank, &labels, &config).unwrap();
    model
        .coef
        .iter()
        .chain(&model.intercept)
        .for_each(|x| add(x.to_bits()));
    let model = Ridge::fit(&bank, &values, 1.0).unwrap();
    model.coef.iter().for_each(|x| add(x.to_bits()));
    let wide = rows(250, 300, 4, 2.0).0; // fewer rows than columns, several panels
    let model = Ridge::fit(&wide, &values[..250], 1.0).unwrap();
    model.coef.iter().for_each(|x| add(x.to_bits()));

    let config = ProbeConfig {
        epochs: 2,
        batch_size: 256,
        ..ProbeConfig::default()
    };
    let outcome = sgd(
        (&bank, &labels),
        (&queries, &truth),
        20,
        &config,
        &mut |_| (),
    )
    .unwrap();
    outcome
        .classifier
        .weight
        .iter()
        .for_each(|x| add(u64::from(x.to_bits())));
    let scores = correct(&truth, &outcome.predictions).unwrap();
    let interval = bootstrap_mean(&scores, &BootstrapConfig::default()).unwrap();
    add(interval.low.to_bits() ^ interval.standard_error.to_bits());

    let pca = Pca::fit(&bank, 3, 0).unwrap();
    let places = pca.transform(&queries).unwrap();
    let of_pca = [pca.mean, pca.components, pca.variances, pca.shares, places];
    of_pca.iter().flatten().for_each(|x| add(x.to_bits()));
    add(effective_rank(&bank).unwrap().to_bits());
    let other = rows(333, 96, 20, 3.0).0;
    let aucs = view_auc(&queries, &other).unwrap();
    aucs.iter().for_each(|x| add(x.to_bits()));
    for exact_up_to in [5000, 0] {
        let config = TsneConfig {
            iterations: 60,
            exact_up_to,
            ..TsneConfig::default()
        };
        let map = tsne(&queries, &config, &mut |_| ()).unwrap();
        let places = map.points.iter().flatten();
        places.for_each(|x| add(u64::from(x.to_bits())));
        add(map.kl.to_bits());
    }
    hash
}

#[test]
fn every_result_is_the_same_bits_for_one_two_and_five_threads() {
    let of = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "prints_its_fingerprint",
                "--nocapture",
            ])
            .env(THREADS, threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text
            .lines()
            .find_map(|line| line.split_once("fingerprint ").map(|x| x.1));
        found
            .unwrap_or_else(|| panic!("no fingerprint in {text}"))
            .trim()
            .to_owned()
    };
    let one = of("1");
    assert_eq!(one, of("2"));
    assert_eq!(one, of("5"));
}

#[test]
#[ignore = "the other test runs it, with a number of threads in the environment"]
#[expect(clippy::print_stdout, reason = "read by the other test")]
fn prints_its_fingerprint() {
    assert!(
        std::env::var_os(THREADS).is_some(),
        "run by the other test only"
    );
    println!("\nfingerprint {:016x}", fingerprint());
}
