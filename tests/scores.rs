//! Training and test pictures that do not go together: told or refused, never a silent figure.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{Answer, scratch, selfsame, text, tiny_run};
use serde_json::Value;

/// `knn` or `linear` on raw pixels, `--label class`.
fn score(command: &str, train: &str, test: &str, extra: &[&str]) -> Answer {
    let flags = [
        "--weights",
        "pixels",
        "--image-size",
        "16",
        "--threads",
        "1",
    ];
    let data = ["--train", train, "--test", test];
    selfsame(&[&[command], &flags[..], &data, extra].concat())
}

fn value(answer: &Answer) -> Value {
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    serde_json::from_str(&answer.stdout).unwrap()
}

/// An annotation file of the pictures of these columns: name and class.
fn annotations(dir: &std::path::Path, name: &str, rows: &[(&str, &str)]) -> String {
    let mut lines = "Images,Class\n".to_owned();
    for (image, class) in rows {
        let shade = image.bytes().map(u64::from).sum::<u64>() as u8;
        std::fs::write(dir.join(image), common::bmp(32, [shade, 0, 255 - shade])).unwrap();
        lines.push_str(&format!("{image},{class}\n"));
    }
    std::fs::write(dir.join(name), lines).unwrap();
    text(&dir.join(name))
}

#[test]
fn leave_one_out_is_told_by_the_pictures_not_by_the_spelling() {
    let knn = |train: &str, test: &str| {
        let flags = ["--label", "gender", "--k", "1", "--json"];
        let answer = score("knn", train, test, &flags);
        (value(&answer), answer.stderr)
    };
    let (all, short) = (
        "synthetic:portraits?count=64&seed=0",
        "synthetic:portraits?count=64",
    );
    let (by_text, _) = knn(all, all);
    let (by_pictures, told) = knn(all, short);
    assert_eq!(by_text["protocol"]["leave_one_out"], true);
    assert_eq!(by_text, by_pictures);
    assert!(!told.contains("warning"), "{told}");

    let (part, told) = knn(short, "synthetic:portraits?count=80");
    assert_eq!(part["protocol"]["leave_one_out"], false);
    assert!(
        told.contains("64 of the 80 pictures of --test are also in --train"),
        "{told}"
    );
    let (_, told) = knn(short, "synthetic:portraits?count=16&seed=7");
    assert!(!told.contains("warning"), "{told}");
}

#[test]
fn other_labels_for_the_same_pictures_are_not_left_out_one_by_one() {
    let dir = scratch("scores-relabelled");
    let (a, b) = (("a.bmp", "x"), ("b.bmp", "y"));
    let train = annotations(&dir, "train.csv", &[a, b]);
    let test = annotations(&dir, "test.csv", &[("a.bmp", "y"), ("b.bmp", "y")]);
    let flags = ["--label", "class", "--k", "1", "--json"];
    let answer = score("knn", &train, &test, &flags);
    assert_eq!(value(&answer)["knn"]["1"], 50.0);
    assert!(
        answer.stderr.contains("2 of the 2 pictures"),
        "{}",
        answer.stderr
    );
}

#[test]
fn classes_that_training_never_saw_are_told_and_refused_if_all_are() {
    let dir = scratch("scores-classes");
    let [a, b] = [("a.bmp", "cat"), ("b.bmp", "dog")];
    let train = annotations(&dir, "train.csv", &[a, b]);
    let some = annotations(&dir, "some.csv", &[("c.bmp", "cat"), ("d.bmp", "horse")]);
    let none = annotations(
        &dir,
        "none.csv",
        &[("e.bmp", "images"), ("f.bmp", "images")],
    );
    for (command, extra) in [("knn", &["--k", "1"]), ("linear", &["--epochs", "1"])] {
        let flags = [&["--label", "class"], &extra[..]].concat();
        let answer = score(command, &train, &some, &flags);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let told = "1 of the 2 pictures of --test have a class that --train never has";
        assert!(answer.stderr.contains(told), "{}", answer.stderr);
        assert!(answer.stderr.contains("horse"), "{}", answer.stderr);

        let answer = score(command, &train, &none, &flags);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        for word in ["--label class", "--train has cat, dog, --test has images"] {
            assert!(answer.stderr.contains(word), "{}", answer.stderr);
        }
        let answer = score(command, &train, &train, &flags);
        assert_eq!(
            answer.stderr.contains("the pictures learned from"),
            command == "linear",
            "{}",
            answer.stderr
        );
    }
}

#[test]
fn logistic_regression_refuses_the_flags_of_sgd() {
    let data = "synthetic:portraits?count=8";
    let flags = ["--label", "gender", "--method", "logistic"];
    for (extra, named) in [
        (
            &["--protocol", "official"][..],
            "--protocol official: for --method sgd",
        ),
        (&["--epochs", "7"], "--epochs 7: for --method sgd"),
        (
            &["--protocol", "official", "--epochs", "7"],
            "--protocol official and --epochs 7: for --method sgd",
        ),
    ] {
        let answer = score("linear", data, data, &[&flags, extra].concat());
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        assert!(answer.stderr.contains(named), "{}", answer.stderr);
    }
}

#[test]
fn validation_on_training_pictures_is_told() {
    let dir = scratch("scores-val");
    let train = |name: &str, val: &str| {
        let sets = ["train.max_steps=1", "train.knn_every_epochs=1"];
        let mut args = tiny_run(&dir.join(name), &sets);
        args.extend(["--val".to_owned(), val.to_owned()]);
        let answer = selfsame(&args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer.stderr
    };
    // The first ten of the forty that are trained on, then others.
    let stderr = train("same", "synthetic:portraits?seed=3&count=10");
    assert!(stderr.contains("10 of 10 pictures of --val"), "{stderr}");
    let stderr = train("other", "synthetic:portraits?seed=4&count=10");
    assert!(!stderr.contains("--val are in"), "{stderr}");
}
