//! What a run only tells by, its lists and curves: without them it ends as well, and goes on.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;

use common::{Answer, bmp, checkpoints, done, put_data, scratch, selfsame, text, tiny_run};

fn go_on(run: &Path, max_steps: u64, flags: &[&str]) -> Answer {
    let (run, set) = (text(run), format!("train.max_steps={max_steps}"));
    let args = ["resume", &run, "--no-report", "--set", &set];
    selfsame(&[&args[..], flags].concat())
}

fn told(answer: &Answer, code: i32, words: &[&str]) {
    assert_eq!(answer.code, code, "{}", answer.stderr);
    for word in words {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
}

/// Folders, where a run would write files.
fn in_the_way(run: &Path, names: &[&str]) {
    for name in names {
        let path = run.join(name);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
    }
}

#[test]
fn a_run_whose_list_and_curves_cannot_be_written_is_done_all_the_same() {
    let run = scratch("lists-not-written").join("run");
    done(&tiny_run(&run, &["train.max_steps=1"]));
    in_the_way(&run, &["curves.png", "skipped.csv"]);
    let answer = go_on(&run, 2, &[]);
    told(
        &answer,
        0,
        &["no curves were drawn", "skipped.csv", "verdict:"],
    );
    assert_eq!(checkpoints(&run).last(), Some(&2));
}

#[test]
fn a_run_whose_lists_are_damaged_goes_on() {
    let dir = scratch("lists-damaged");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let put = |i: u8| std::fs::write(pictures.join(format!("{i}.bmp")), bmp(32, [i, 10, 100]));
    (0..16).for_each(|i| put(i).unwrap());
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.max_steps=1"]);
    put_data(&mut args, text(&pictures));
    done(&args);

    std::fs::write(run.join("skipped.csv"), "file,reason\na,b,c\n").unwrap();
    told(&go_on(&run, 2, &[]), 0, &["skipped.csv:2", "is forgotten"]);

    std::fs::write(run.join("pictures.csv"), "nonsense\n").unwrap();
    put(16).unwrap();
    told(
        &go_on(&run, 3, &[]),
        2,
        &["pictures.csv:1", "--accept-data-change"],
    );
    told(
        &go_on(&run, 3, &["--accept-data-change"]),
        0,
        &["changed pictures"],
    );
    assert_eq!(checkpoints(&run).last(), Some(&3));
    let list = std::fs::read_to_string(run.join("pictures.csv")).unwrap();
    assert!(list.contains("16.bmp"), "{list}");

    // A list that cannot be written either costs no checkpoint, and one that cannot be read no page.
    in_the_way(&run, &["pictures.csv", "skipped.csv"]);
    put(17).unwrap();
    let answer = go_on(&run, 4, &["--accept-data-change"]);
    told(&answer, 0, &["warning: writing", "pictures.csv"]);
    assert_eq!(checkpoints(&run).last(), Some(&4));
    done(&["report", &text(&run)]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("could not be used is not known"));
}
