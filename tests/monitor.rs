//! The k-NN score that training logs is the one that `selfsame knn` gives.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;

use common::{done, metrics, scratch, selfsame, text, tiny_run};
use serde_json::Value;

const TRAIN: &str = "synthetic:portraits?count=40&seed=3";
const VAL: &str = "synthetic:portraits?count=30&seed=4";

/// What a run of one epoch logged after its last step, and what `knn` says of its checkpoint.
fn both(run: &Path, val: &[&str], test: &str) -> (f64, f64) {
    let sets = ["train.knn_every_epochs=1", "train.epochs=1"];
    let mut args = tiny_run(run, &sets);
    args.extend(val.iter().map(|flag| (*flag).to_owned()));
    done(&args);
    let logged = metrics(run);
    let logged = logged.iter().rev().find(|line| !line["knn"].is_null());
    let logged = &logged.unwrap()["knn"]["20"];
    let args = [
        "knn",
        "--weights",
        &text(run),
        "--train",
        TRAIN,
        "--test",
        test,
    ];
    let flags = ["--label", "gender", "--k", "20", "--json"];
    let answer: Value = serde_json::from_str(&done(&[&args[..], &flags].concat())).unwrap();
    let asked = &answer["knn"]["20"];
    (
        logged.as_f64().unwrap(),
        asked.as_f64().unwrap_or_else(|| panic!("{answer}")),
    )
}

#[test]
fn held_out_pictures_are_asked_about_training_pictures_answer() {
    let run = scratch("monitor-val").join("run");
    let (logged, asked) = both(&run, &["--val", VAL], VAL);
    assert!((logged - asked).abs() < 1e-9, "{logged} {asked}");
}

#[test]
fn without_held_out_pictures_each_is_left_out_of_its_own_vote() {
    let run = scratch("monitor-alone").join("run");
    let (logged, asked) = both(&run, &[], TRAIN);
    assert!((logged - asked).abs() < 1e-9, "{logged} {asked}");
}

#[test]
fn held_out_pictures_without_the_label_turn_the_score_off_and_that_is_said() {
    let dir = scratch("monitor-no-label");
    let flat = dir.join("flat");
    std::fs::create_dir(&flat).unwrap();
    for i in 0..4 {
        let picture = image::RgbImage::from_pixel(32, 32, image::Rgb([i * 60, 9, 9]));
        picture.save(flat.join(format!("{i}.png"))).unwrap();
    }
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.knn_every_epochs=1", "train.max_steps=1"]);
    args.extend(["--val".to_owned(), text(&flat)]);
    let answer = selfsame(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stderr.contains("k-NN is off"), "{}", answer.stderr);
    assert!(metrics(&run).iter().all(|line| line["knn"].is_null()));
}
