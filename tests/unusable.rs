//! Annotations that lead to no file: told by flag, first file and what to do.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{Answer, scratch, selfsame, text};

fn told(answer: &Answer, words: &[&str]) {
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let always = ["e.bmp: no such file", "root.txt", "--images-root"];
    for word in words.iter().chain(&always) {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
}

#[test]
fn pictures_none_of_which_can_be_used_are_told_with_what_to_do() {
    let dir = scratch("unusable");
    let missing = text(&dir.join("missing.csv"));
    std::fs::write(&missing, "Images,Gender\nno/e.bmp,f\nno/f.bmp,m\n").unwrap();
    let good = "synthetic:portraits?count=12&seed=1";
    let run = text(&dir.join("run"));
    let network = ["--weights", "random:vit_tiny/8@16", "--epochs", "1"];
    for (command, extra) in [
        ("knn", &["--weights", "pixels", "--k", "1"][..]),
        ("linear", &["--weights", "pixels", "--epochs", "1"]),
        (
            "linear",
            &[&network[..], &["--protocol", "official"]].concat(),
        ),
        ("finetune", &[&network[..], &["--run", &run]].concat()),
    ] {
        for (flag, [train, test]) in [("--test", [good, &missing]), ("--train", [&missing, good])] {
            let _ = std::fs::remove_dir_all(&run);
            let mut args = vec![command, "--train", train, "--test", test];
            args.extend(["--label", "gender", "--threads", "1"]);
            args.extend(extra);
            let answer = selfsame(&args);
            told(&answer, &[&format!("{flag} {missing}: 0 of 2 pictures")]);
            assert!(!answer.stderr.contains("epoch 1/"), "{}", answer.stderr);
        }
    }
    let out = text(&dir.join("f.npy"));
    let mut args = vec!["embed", "--weights", "pixels", "--data", &missing];
    args.extend(["--out", &out]);
    told(
        &selfsame(&args),
        &[&format!("--data {missing}: 0 of 2 pictures")],
    );
}
