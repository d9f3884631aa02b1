//! Where a run begins: weights it was given, and pictures that are others when it goes on.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use common::{checkpoints, done, put_data, scratch, selfsame, text, tiny_run};
use selfsame_checkpoint::read_tensors;

fn tensors(run: &Path, step: u64, file: &str) -> BTreeMap<String, Tensor> {
    let dir = run.join(format!("checkpoints/step-{step:08}"));
    read_tensors(&dir.join(format!("{file}.safetensors"))).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A run of one epoch whose teacher others begin with.
fn first_run(dir: &Path) -> PathBuf {
    let run = dir.join("first");
    done(&tiny_run(&run, &["train.max_steps=5"]));
    run
}

#[test]
fn a_run_begins_with_the_weights_it_is_given() {
    let dir = scratch("begin-with");
    let first = first_run(&dir);
    let teacher = tensors(&first, 5, "teacher");

    let second = dir.join("second");
    let mut args = tiny_run(&second, &["train.max_steps=3", "seed=7"]);
    args.extend(["--init".to_owned(), text(&first)]);
    done(&args);
    for file in ["student", "teacher"] {
        let begun = tensors(&second, 0, file);
        let mut backbone = 0;
        for (name, tensor) in &begun {
            if name.starts_with("backbone.") {
                assert_eq!(values(tensor), values(&teacher[name]), "{file}: {name}");
                backbone += 1;
            }
        }
        assert!(backbone > 20);
        let head = |tensors: &BTreeMap<String, Tensor>| {
            let (_, tensor) = tensors
                .iter()
                .find(|(name, _)| name.starts_with("head."))
                .unwrap();
            values(tensor)
        };
        assert_ne!(head(&begun), head(&teacher), "heads are drawn");
    }

    // The flag is a value of the configuration, which other commands tell and check too.
    let config = done(&["config", "--init", &text(&first)]);
    let value = toml::Value::from(text(&std::path::absolute(&first).unwrap()));
    let line = format!("init = {value}  # --init");
    assert!(config.contains(&line), "{config}");
    let set = format!("train.init={}", text(&dir.join("nowhere")));
    let data = "synthetic:portraits?count=40";
    let answer = selfsame(&["plan", "--no-trial", "--data", data, "--set", &set]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("nowhere"), "{}", answer.stderr);

    // Killed before its first checkpoint after step 0, or before any at all, it goes on alike.
    let expected = tensors(&second, 3, "student");
    let folder = second.join("checkpoints");
    for lost in [folder.join("step-00000003"), folder.clone()] {
        std::fs::remove_dir_all(lost).unwrap();
        done(&["resume", &text(&second), "--no-report"]);
        let again = tensors(&second, 3, "student");
        assert_eq!(expected.len(), again.len());
        for (name, tensor) in &expected {
            assert_eq!(values(tensor), values(&again[name]), "{name}");
        }
    }

    // Its page says how to do it again from its configuration, which names the weights.
    let config = std::fs::read_to_string(second.join("config.toml")).unwrap();
    let whole = text(&std::path::absolute(&first).unwrap());
    assert!(config.contains(&whole), "{config}");
    std::fs::rename(&first, dir.join("moved")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let answer = selfsame(&["resume", &text(&second), "--no-report"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("first"), "{}", answer.stderr);
    assert_eq!(checkpoints(&second), [0; 0]);
}

#[test]
fn fewer_pictures_than_steps_done_end_nothing_in_silence() {
    let dir = scratch("begin-fewer");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let write = |i: usize| {
        let picture = image::RgbImage::from_pixel(40, 40, image::Rgb([i as u8 * 5, 90, 120]));
        picture.save(pictures.join(format!("{i:02}.png"))).unwrap();
    };
    (0..40).for_each(write);
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.max_steps=12"]);
    put_data(&mut args, text(&pictures));
    done(&args);
    assert_eq!(checkpoints(&run).last(), Some(&12));

    let go_on = |flag: &[&str]| {
        let run = text(&run);
        let args = ["resume", &run, "--no-report", "--set", "train.max_steps=13"];
        selfsame(&[&args[..], flag].concat())
    };
    // 4 steps an epoch instead of 5: 12 of 12 are done.
    (32..40).for_each(|i| std::fs::remove_file(pictures.join(format!("{i:02}.png"))).unwrap());
    let answer = go_on(&["--accept-data-change"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(answer.stderr.contains("12 are done"), "{}", answer.stderr);
    // What was not accepted in a checkpoint is asked about again, with its differences.
    let answer = go_on(&[]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("39.png: gone"), "{}", answer.stderr);

    // One picture more than there were: the same number of steps.
    (32..41).for_each(write);
    let answer = go_on(&["--accept-data-change"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("12 of now 15 steps"),
        "{}",
        answer.stderr
    );
    assert_eq!(checkpoints(&run).last(), Some(&13));
    assert_eq!(go_on(&[]).code, 0);
}

#[test]
fn the_end_of_a_run_says_how_it_stands_and_that_nothing_is_left() {
    let run = scratch("begin-end").join("run");
    let answer = selfsame(&tiny_run(&run, &["optim.lr=0", "train.max_steps=6"]));
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    for words in ["verdict: not yet moving", "optim.lr = 0: raise it"] {
        assert!(answer.stderr.contains(words), "{}", answer.stderr);
    }
    let run = text(&run);
    let answer = selfsame(&["resume", &run, "--no-report"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let words = "6 of 6 steps are done already: nothing is left to train";
    assert!(answer.stderr.contains(words), "{}", answer.stderr);
}

#[test]
fn a_run_cannot_end_before_the_steps_that_are_done() {
    let run = scratch("begin-earlier").join("run");
    let args = tiny_run(&run, &["train.max_steps=6"]);
    done(&args);
    let config = run.join("config.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let again = [
        &tiny_run(&run, &["train.max_steps=4"])[..],
        &["--resume".to_owned()],
    ]
    .concat();
    let run = text(&run);
    let resume = ["resume", &run, "--no-report", "--set", "train.max_steps=4"].map(str::to_owned);
    for args in [&again[..], &resume] {
        let answer = selfsame(args);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        let words = "train.max_steps = 4 is below the 6 steps that are done";
        assert!(answer.stderr.contains(words), "{}", answer.stderr);
        assert_eq!(std::fs::read_to_string(&config).unwrap(), before);
    }
}

#[test]
fn the_page_compares_with_the_weights_that_the_run_began_with() {
    let dir = scratch("begin-page");
    let first = first_run(&dir);
    let run = dir.join("run");
    let sets = [
        "seed=7",
        "train.max_steps=1",
        "optim.lr=0",
        "optim.min_lr=0",
    ];
    let mut args = tiny_run(&run, &sets);
    args.extend(["--init".to_owned(), text(&first)]);
    done(&args);
    let told = done(&["report", &text(&run), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let of = |name: &str| &told["scores"]["gender"][name]["knn"];
    assert!(of("after training").is_object(), "{told}");
    // Nothing was learned, so both are the same, and not those of random weights.
    assert_eq!(of("after training"), of("weights it began with"));
    assert!(of("random weights").is_object(), "{told}");
    let rank = |name: &str| told["views"][name]["effective_rank"].as_f64().unwrap();
    let apart = |a: &str, b: &str| (rank(a) / rank(b) - 1.0).abs();
    assert!(apart("after training", "weights it began with") < 1e-5);
    assert!(apart("random weights", "weights it began with") > 1e-3);
}

#[test]
fn the_page_learns_from_no_picture_that_it_tests_on() {
    let dir = scratch("begin-shared");
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.max_steps=1"]);
    args.retain(|arg| arg != "--no-report");
    let told_of = |val: &str| {
        let _ = std::fs::remove_dir_all(&run);
        let args = [&args[..], &["--val".to_owned(), val.to_owned()]].concat();
        let answer = selfsame(&args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let page = done(&["report", &text(&run), "--json"]);
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        (answer.stderr, page)
    };
    // Those of tiny_run, and the first of them among others.
    let (told, page) = told_of("synthetic:portraits?count=40&seed=3");
    assert!(page["scores"]["name"].is_object(), "{page}");
    assert!(
        told.contains("the page takes those of --data once"),
        "{told}"
    );
    let (told, _) = told_of("synthetic:portraits?count=12&seed=3");
    assert!(
        told.contains("12 pictures of --val are in --data too; the page"),
        "{told}"
    );
    let (told, page) = told_of("synthetic:portraits?count=12&seed=4");
    assert!(!told.contains("are in --data"), "{told}");
    // Other people, whose names nobody could know.
    assert!(page["scores"]["gender"].is_object(), "{page}");
    assert!(page["scores"]["name"].is_null(), "{page}");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("there is nothing to tell"));
}

#[test]
fn held_out_pictures_that_have_moved_are_told_with_their_key() {
    let dir = scratch("begin-moved");
    let held_out = dir.join("held-out");
    std::fs::create_dir(&held_out).unwrap();
    for i in 0..4 {
        std::fs::write(
            held_out.join(format!("{i}.bmp")),
            common::bmp(32, [i, 9, 90]),
        )
        .unwrap();
    }
    let run = dir.join("run");
    let mut args = tiny_run(&run, &["train.max_steps=1"]);
    args.extend(["--val".to_owned(), text(&held_out)]);
    done(&args);
    std::fs::rename(&held_out, dir.join("elsewhere")).unwrap();
    args.push("--resume".to_owned());
    let resume = ["resume", &text(&run), "--no-report"].map(str::to_owned);
    for args in [&args[..], &resume] {
        let answer = selfsame(args);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        for words in ["held-out", "to data.val in"] {
            assert!(answer.stderr.contains(words), "{}", answer.stderr);
        }
    }
}

#[test]
fn a_run_that_goes_on_keeps_whole_paths() {
    let dir = scratch("begin-paths");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for i in 0..16u8 {
        std::fs::write(
            pictures.join(format!("{i:02}.bmp")),
            common::bmp(32, [i, 10, 100]),
        )
        .unwrap();
    }
    let mut args = tiny_run(&dir.join("run"), &["train.max_steps=1"]);
    put_data(&mut args, text(&pictures));
    done(&args);
    let config = || std::fs::read_to_string(dir.join("run/config.toml")).unwrap();
    let args = [
        "resume",
        "run",
        "--no-report",
        "--set",
        "data.train=pictures",
    ];
    let args = [&args[..], &["--set", "train.max_steps=2"]].concat();
    let output = common::command(&args).current_dir(&dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let whole = text(&std::path::absolute(&pictures).unwrap());
    let train = format!("train = {}", toml::Value::from(whole));
    assert!(config().contains(&train), "{}", config());
}
