//! Annotations that lead to no file: told by flag, first file and what to do.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{Answer, bmp, put_data, scratch, selfsame, text, tiny_run};

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

#[test]
fn what_was_mended_before_a_run_began_is_not_held_against_it() {
    let dir = scratch("unusable-mended");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let put = |content: &dyn Fn(u8) -> Vec<u8>| {
        for i in 0..16 {
            std::fs::write(pictures.join(format!("{i}.bmp")), content(i)).unwrap();
        }
    };
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.max_steps=1"]);
    put_data(&mut args, text(&pictures));
    put(&|_| b"no picture".to_vec());
    let answer = selfsame(&args);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let words = ["cannot be used", "check-data", "skipped.csv"];
    for word in words {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
    put(&|i| bmp(32, [i, 10, 100]));
    let answer = selfsame(&["resume", &text(&run), "--no-report", "--accept-data-change"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        !answer.stderr.contains("could not be used"),
        "{}",
        answer.stderr
    );
    let listed = std::fs::read_to_string(run.join("skipped.csv")).unwrap();
    assert_eq!(listed.lines().count(), 1, "{listed}");
}
