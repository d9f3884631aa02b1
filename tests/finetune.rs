//! Fine-tuning that is stopped goes on where it was.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;

use common::running::begin_with;
use common::{checkpoints, done, scratch, selfsame, text, tiny_run};

#[test]
fn fine_tuning_ends_after_a_checkpoint_and_goes_on_to_the_same_bits() {
    let dir = scratch("stopped-fine-tuning");
    let from = dir.join("from");
    done(&tiny_run(&from, &["train.max_steps=1"]));
    for resume in [&[][..], &["--resume"]] {
        let from = text(&from);
        let sides = "synthetic:portraits?count=16";
        let mut args = vec!["finetune", "--weights", &from, "--run", &from];
        args.extend(["--train", sides, "--test", sides, "--label", "gender"]);
        args.extend(resume);
        let answer = selfsame(&args);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        let told = "holds a pretraining run; name another folder";
        assert!(answer.stderr.contains(told), "{}", answer.stderr);
    }
    let weights = format!("--weights={}", text(&from));
    let tune = |run: &Path, more: &[&str]| -> Vec<String> {
        let run = text(run);
        let mut args = vec![
            "finetune",
            &weights,
            "--train=synthetic:portraits?count=64&seed=3",
            "--test=synthetic:portraits?count=16&seed=4",
            "--label=gender",
            "--threads=1",
            "--batch-size=8",
            "--epochs=20",
            "--run",
            &run,
        ];
        args.extend(more);
        args.into_iter().map(str::to_owned).collect()
    };
    let (run, whole) = (dir.join("run"), dir.join("whole"));
    let running = begin_with(&tune(&run, &[]), |line| line.starts_with("epoch 1/20"));
    running.signal(&["INT"]);
    let (status, stderr) = running.end();
    assert_eq!(status, 130, "{stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    assert_eq!(checkpoints(&run).len(), 1, "{stderr}");
    assert!(!run.join("result.json").exists());

    // It is no run of pretraining that lost its configuration.
    let answer = selfsame(&["resume", &text(&run)]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let told = "a fine-tuning that was stopped";
    assert!(answer.stderr.contains(told), "{}", answer.stderr);

    // Neither without being asked to nor with other settings.
    let answer = selfsame(&tune(&run, &[]));
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("--resume"), "{}", answer.stderr);
    let answer = selfsame(&tune(&run, &["--resume", "--lr=1e-3"]));
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let told = "--lr: 0.001 instead of 0.0001";
    assert!(answer.stderr.contains(told), "{}", answer.stderr);

    let end = done(&tune(&run, &["--resume", "--json"]));
    assert!(!run.join("checkpoints").exists());
    assert_eq!(end, done(&tune(&whole, &["--json"])));
    let weights = |run: &Path| std::fs::read(run.join("finetuned.safetensors")).unwrap();
    assert!(weights(&run) == weights(&whole));

    // What is done is told again, and stays.
    assert_eq!(end, done(&tune(&run, &["--resume", "--json"])));
    let answer = selfsame(&tune(&run, &["--resume", "--seed=1"]));
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let report = std::fs::read_to_string(run.join("classification_report.txt")).unwrap();
    assert_eq!(
        done(&tune(&run, &["--resume"])).trim_end(),
        report.trim_end()
    );
}

#[test]
fn pictures_that_cannot_be_used_are_not_forgotten_when_it_goes_on() {
    let dir = scratch("stopped-fine-tuning-broken");
    let pictures = dir.join("pictures");
    for class in ["cat", "dog"] {
        let folder = pictures.join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 1..=4u8 {
            let picture = common::bmp(32, [50 * i, 10, 100]);
            std::fs::write(folder.join(format!("{i}.bmp")), picture).unwrap();
        }
    }
    std::fs::write(pictures.join("cat/1.bmp"), "no picture").unwrap();
    // Many to test on, one of them broken, so that the signal comes while they are predicted.
    let test = dir.join("test.csv");
    let rows = "pictures/cat/2.bmp,cat\n".repeat(1500);
    std::fs::write(&test, format!("Images,Class\nbad.bmp,cat\n{rows}")).unwrap();
    std::fs::write(dir.join("bad.bmp"), "no picture").unwrap();
    let tune: Vec<String> = [
        "finetune",
        "--weights=random:vit_tiny/16@32",
        "--label=class",
        "--threads=1",
        "--epochs=1",
        "--resume",
        "--json",
        &format!("--train={}", text(&pictures)),
        &format!("--test={}", text(&test)),
        &format!("--run={}", text(&dir.join("run"))),
    ]
    .map(str::to_owned)
    .to_vec();
    let running = begin_with(&tune, |line| line.starts_with("epoch 1/1"));
    running.signal(&["INT"]);
    let (status, stderr) = running.end();
    assert_eq!(status, 130, "{stderr}");
    let value: serde_json::Value = serde_json::from_str(&done(&tune)).unwrap();
    let counts = ["n_train", "n_test", "skipped"].map(|count| value[count].as_u64().unwrap());
    assert_eq!(counts, [7, 1500, 2]);
    let skipped = std::fs::read_to_string(dir.join("run/skipped.csv")).unwrap();
    for file in ["bad.bmp", "cat/1.bmp"] {
        assert!(skipped.contains(file), "{skipped}");
    }

    // A run among the pictures would be taken for one of them.
    let within = text(&pictures.join("run"));
    let moved: Vec<String> = tune
        .iter()
        .map(|flag| match flag.starts_with("--run") {
            true => format!("--run={within}"),
            false => flag.clone(),
        })
        .collect();
    let answer = selfsame(&moved);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let told = format!("--run {within} lies within --train");
    assert!(answer.stderr.contains(&told), "{}", answer.stderr);
    assert!(!pictures.join("run").exists());
}

#[test]
fn what_was_fine_tuned_tells_classes_of_pictures() {
    let dir = scratch("fine-tuning-applied");
    let folder = |name: &str, shift: u8| {
        for (class, red) in [("cat", 20u8), ("dog", 200)] {
            let folder = dir.join(name).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..8u8 {
                let color = |x: u32, y: u32| image::Rgb([red, 20 * i + shift, (x * y) as u8]);
                let picture = image::RgbImage::from_fn(32, 32, color);
                picture.save(folder.join(format!("{i}.bmp"))).unwrap();
            }
        }
        text(&dir.join(name))
    };
    let (train, test) = (folder("train", 0), folder("test", 9));
    std::fs::write(dir.join("test/cat/8.bmp"), "no picture").unwrap();
    let run = text(&dir.join("run"));
    let tuned: serde_json::Value = serde_json::from_str(&done(&[
        "finetune",
        "--weights=random:vit_tiny/16@32",
        "--label=class",
        "--threads=1",
        "--epochs=2",
        "--batch-size=4",
        "--lr=1e-3",
        // What `predict` does too without being told.
        "--resize=2",
        "--interpolation=bilinear",
        "--json",
        &format!("--train={train}"),
        &format!("--test={test}"),
        &format!("--run={run}"),
    ]))
    .unwrap();
    let out = dir.join("kinds.csv");
    let predict = |weights: &str, filter: &[&str]| {
        let out = text(&out);
        let args = [
            "predict",
            "--weights",
            weights,
            "--data",
            &test,
            "--out",
            &out,
        ];
        selfsame(&[&args[..], &["--json"], filter].concat())
    };
    // As a fine-tuning leaves it whose checkpoints could not be removed.
    std::fs::create_dir(dir.join("run/checkpoints")).unwrap();
    let answer = predict(&run, &[]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stderr.contains("cat/8.bmp"), "{}", answer.stderr);
    let told: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let counts = ["pictures", "left_out"].map(|key| told[key].as_u64().unwrap());
    assert_eq!(counts, [16, 1]);
    let read = || std::fs::read_to_string(&out).unwrap();
    let by_itself = read();
    for (filter, is_same) in [("bilinear", true), ("bicubic", false)] {
        let answer = predict(&run, &["--interpolation", filter]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        assert_eq!(read() == by_itself, is_same, "{filter}");
    }
    predict(&run, &[]);
    let mut rows = by_itself.lines();
    assert_eq!(rows.next().unwrap(), "file,class,probability,p_cat,p_dog");
    let mut right = 0;
    for row in rows {
        let cells: Vec<&str> = row.split(',').collect();
        let [cat, dog] = [3, 4].map(|column: usize| cells[column].parse::<f64>().unwrap());
        assert!((cat + dog - 1.0).abs() < 1e-5, "{row}");
        let best = if cat >= dog {
            ("cat", cat)
        } else {
            ("dog", dog)
        };
        assert_eq!((cells[1], cells[2].parse().unwrap()), best, "{row}");
        right += usize::from(cells[0].starts_with(cells[1]));
    }
    // The same pictures, of which fine-tuning told how many it knows.
    assert_eq!(tuned["accuracy"], 100.0 * right as f64 / 16.0);
    // What was predicted is a list of labels.
    let list = text(&out);
    let root = ["--images-root", &test];
    let checked = done(&[&["check-data", &list, "--json"], &root[..]].concat());
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["usable"], 16);

    let answer = predict("random:vit_tiny/16@32", &[]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("there is no classifier"),
        "{}",
        answer.stderr
    );
}
