//! Every command that uses weights, on one tiny run: what it answers, and in which form.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use common::{bmp, checkpoints, done, put_data, scratch, selfsame, text, tiny_run};
use selfsame_checkpoint::read_tensor_file;
use serde_json::Value;

const TRAIN: &str = "synthetic:portraits?count=24&seed=1";
const TEST: &str = "synthetic:portraits?count=16&seed=2";

/// One run for all tests; nothing below changes it.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let run = scratch("commands").join("run");
    done(&tiny_run(
        &run,
        &["optim.lr=0.01", "objective.momentum_teacher=0.9"],
    ));
    run
});

/// A folder for one test's results.
fn results(name: &str) -> PathBuf {
    scratch(&format!("commands-{name}"))
}

fn run() -> &'static str {
    RUN.to_str().unwrap()
}

/// Adds `--train`, `--test` and `--label gender`.
fn labelled<'a>(command: &'a str, weights: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        command,
        "--weights",
        weights,
        "--train",
        TRAIN,
        "--test",
        TEST,
    ];
    args.extend(["--label", "gender", "--threads", "1"]);
    args.extend(extra);
    args
}

/// The one JSON object that stdout must be.
fn json(args: &[&str]) -> Value {
    let stdout = done(args);
    let value: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{args:?}: not one JSON value ({error}): {stdout:?}"));
    assert!(value.is_object(), "{value}");
    value
}

fn is_percent(value: &Value) -> bool {
    value
        .as_f64()
        .is_some_and(|percent| (0.0..=100.0).contains(&percent))
}

/// Features by `embed` into a safetensors file.
fn features(dir: &Path, weights: &str, extra: &[&str]) -> Vec<Vec<f32>> {
    let out = text(&dir.join("features.safetensors"));
    let mut args = vec!["embed", "--weights", weights, "--data", TEST, "--out", &out];
    args.extend(extra);
    assert_eq!(done(&args), "");
    let file = read_tensor_file(Path::new(&out), &Device::Cpu).unwrap();
    let files: Vec<String> = serde_json::from_str(&file.metadata["files"]).unwrap();
    let rows: Vec<Vec<f32>> = file.tensors["features"].to_vec2().unwrap();
    assert_eq!(rows.len(), files.len());
    rows
}

fn backbone(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    let tensors = read_tensor_file(path, &Device::Cpu).unwrap().tensors;
    let ours = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("backbone."));
    ours.map(|(name, tensor)| (name.clone(), values(tensor)))
        .collect()
}

#[test]
fn knn_gives_one_json_object() {
    let value = json(&labelled("knn", run(), &["--k", "1,5,100", "--json"]));
    for k in ["1", "5", "100"] {
        assert!(is_percent(&value["knn"][k]), "{value}");
    }
    assert_eq!(value["n_train"], 24);
    assert_eq!(value["n_test"], 16);
    assert_eq!(value["skipped"], 0);
    assert_eq!(value["protocol"]["label"], "gender");
    assert_eq!(value["protocol"]["classes"], serde_json::json!(["f", "m"]));
    assert_eq!(value["protocol"]["image_size"], 32);
    // What holds where nothing is said (cli.md, section 2).
    let value = json(&labelled("knn", run(), &["--json"]));
    let ks: Vec<&String> = value["knn"].as_object().unwrap().keys().collect();
    assert_eq!(ks, ["10", "100", "20", "200"], "{value}");
    let protocol = &value["protocol"];
    assert_eq!(protocol["vote"], "weighted", "{value}");
    assert_eq!(protocol["temperature"], 0.07, "{value}");
    assert_eq!(protocol["interpolation"], "bicubic", "{value}");
    let majority = labelled("knn", run(), &["--k", "5", "--vote", "majority", "--json"]);
    assert_eq!(json(&majority)["protocol"]["vote"], "majority");

    let mut args = labelled("knn", run(), &["--regress", "--k", "5", "--json"]);
    let label = args.iter().position(|arg| *arg == "gender").unwrap();
    args[label] = "age";
    let value = json(&args);
    assert!(value["knn"]["5"]["mae"].as_f64().unwrap() > 0.0, "{value}");
    assert!(value["knn"]["5"]["r2"].as_f64().unwrap() < 1.0, "{value}");
    assert_eq!(value["protocol"]["label"], "age", "{value}");
    assert_eq!(value["protocol"]["leave_one_out"], false);
    for figure in ["mae", "r2"] {
        let score = &value["knn"]["5"];
        let [low, high] = [0, 1].map(|i| score[format!("{figure}_interval")][i].as_f64().unwrap());
        let estimate = score[figure].as_f64().unwrap();
        assert!(low < estimate && estimate < high, "{figure}: {value}");
    }
}

#[test]
fn leave_one_out_finds_no_picture_beside_itself() {
    let mut args = labelled("knn", run(), &["--k", "1", "--json"]);
    let same = args.iter().position(|arg| *arg == TEST).unwrap();
    args[same] = TRAIN;
    let value = json(&args);
    assert_eq!(value["protocol"]["leave_one_out"], true);
    assert_ne!(
        value["knn"]["1"], 100.0,
        "every picture was its own neighbour"
    );
}

#[test]
fn baselines_are_scored_like_a_run() {
    for (weights, size) in [("pixels", 64), ("random:vit_tiny/8@64", 64)] {
        let value = json(&labelled("knn", weights, &["--k", "5", "--json"]));
        assert!(is_percent(&value["knn"]["5"]), "{value}");
        assert_eq!(value["protocol"]["image_size"], size, "{value}");
    }
    let dir = results("random");
    let zero = features(&dir, "random:resnet18@32", &[]);
    assert_eq!(zero[0].len(), 512);
    assert_eq!(zero, features(&dir, "random:resnet18@32?seed=0", &[]));
    assert_ne!(zero, features(&dir, "random:resnet18@32?seed=1", &[]));
    for wrong in [
        "random:vit_huge/8",
        "random:vit_tiny/8@60",
        "random:vit_tiny/8?seed=x",
    ] {
        let answer = selfsame(&labelled("knn", wrong, &[]));
        assert_eq!(answer.code, 2, "{wrong}: {}", answer.stderr);
    }
}

#[test]
fn student_and_teacher_are_told_apart() {
    let dir = results("which");
    let teacher = features(&dir, run(), &[]);
    let student = features(&dir, run(), &["--which", "student"]);
    assert_ne!(teacher, student);
    assert_eq!(teacher, features(&dir, run(), &["--which", "teacher"]));
    let newest = RUN.join(format!(
        "checkpoints/step-{:08}",
        checkpoints(&RUN).last().unwrap()
    ));
    for (file, expected) in [("student", student), ("teacher", teacher)] {
        let path = text(&newest.join(format!("{file}.safetensors")));
        assert_eq!(features(&dir, &path, &[]), expected, "{file}.safetensors");
    }
}

#[test]
fn features_are_the_same_in_all_three_formats() {
    let dir = results("embed");
    let rows = features(&dir, run(), &[]);
    assert_eq!((rows.len(), rows[0].len()), (16, 64));
    let embed = |name: &str| {
        let out = dir.join(name);
        assert_eq!(
            done(&[
                "embed",
                "--weights",
                run(),
                "--data",
                TEST,
                "--out",
                &text(&out)
            ]),
            ""
        );
        std::fs::read(out).unwrap()
    };

    let csv = String::from_utf8(embed("features.csv")).unwrap();
    let mut lines = csv.lines();
    assert!(lines.next().unwrap().starts_with("file,f0,f1,"));
    for (line, row) in lines.zip(&rows) {
        let cells = line
            .split(',')
            .skip(1)
            .map(|cell| cell.parse::<f32>().unwrap());
        assert_eq!(cells.collect::<Vec<_>>(), *row);
    }
    assert_eq!(csv.lines().count(), 17);

    let npy = embed("features.npy");
    assert_eq!(&npy[..8], b"\x93NUMPY\x01\x00");
    let data = npy[npy.len() - 16 * 64 * 4..].chunks(4);
    let values: Vec<f32> = data
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(values, rows.concat());

    let long = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(rows.iter().any(|row| (long(row) - 1.0).abs() > 0.01));
    for row in features(&dir, run(), &["--normalize"]) {
        assert!((long(&row) - 1.0).abs() < 1e-5);
    }
    let out = text(&dir.join("features.xlsx"));
    let answer = selfsame(&["embed", "--weights", run(), "--data", TEST, "--out", &out]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
}

#[test]
fn every_linear_protocol_gives_one_json_object() {
    for (flags, method) in [
        (&["--protocol", "notebook", "--epochs", "3"][..], "sgd"),
        (&["--protocol", "official", "--epochs", "3"], "sgd"),
        (&["--method", "logistic"], "logistic"),
    ] {
        let mut args = labelled("linear", run(), flags);
        args.push("--json");
        let value = json(&args);
        assert!(is_percent(&value["linear"]), "{value}");
        assert_eq!(value["n_train"], 24);
        assert_eq!(value["n_test"], 16);
        assert_eq!(value["skipped"], 0);
        assert_eq!(value["protocol"]["method"], method);
    }
    // A ResNet has one layer where the official protocol looks at four blocks.
    let flags = ["--protocol", "official", "--epochs", "1", "--json"];
    json(&labelled("linear", "random:resnet18@32", &flags));
    let report = done(&labelled("linear", run(), &["--epochs", "2"]));
    assert!(
        report.contains("precision") && report.contains("accuracy"),
        "{report}"
    );
}

#[test]
fn finetuning_leaves_a_report_and_weights_that_open_again() {
    let dir = results("finetune");
    let teacher = backbone(&RUN.join("checkpoints/step-00000015/teacher.safetensors"));
    let mut counts = Vec::new();
    // The defaults are the notebook's: steps of 32 images.
    let short_steps = &["--batch-size", "8"][..];
    let mut losses = Vec::new();
    for (name, flags) in [
        ("all", &[][..]),
        ("head", &["--freeze"]),
        ("short-steps", short_steps),
    ] {
        let out = dir.join(name);
        let to = text(&out);
        let mut args = labelled("finetune", run(), flags);
        args.extend(["--run", &to, "--epochs", "2", "--lr", "1e-3", "--json"]);
        let value = json(&args);
        assert!(is_percent(&value["accuracy"]), "{value}");
        assert_eq!(value["n_test"], 16);
        assert_eq!(value["epochs"].as_array().unwrap().len(), 2);
        losses.push(value["epochs"].clone());
        counts.push(value["trainable_parameters"].as_u64().unwrap());
        let report = std::fs::read_to_string(out.join("classification_report.txt")).unwrap();
        assert!(
            report.contains("precision") && report.contains("support"),
            "{report}"
        );
        let weights = out.join("finetuned.safetensors");
        assert_eq!(backbone(&weights) == teacher, name == "head");
        assert_eq!(features(&dir, &text(&weights), &[])[0].len(), 64);
        let value = json(&["inspect", &text(&weights), "--json"]);
        assert_eq!(value["layout"], "selfsame");
        assert_eq!(
            value["other_tensors"]["new_head.6.bias"],
            serde_json::json!([2])
        );

        let again = selfsame(&args);
        assert_eq!(
            again.code, 2,
            "an earlier result was overwritten: {}",
            again.stderr
        );
    }
    // Linear(64, 256), Linear(256, 128), Linear(128, 2).
    assert_eq!(counts[1], 64 * 256 + 256 + 256 * 128 + 128 + 128 * 2 + 2);
    assert!(counts[0] > counts[1]);
    assert!(losses[0] != losses[2], "{losses:?}");
}

#[test]
fn inspect_lists_every_name_and_shape() {
    let value = json(&["inspect", run(), "--json"]);
    assert_eq!(value["model"]["arch"], "vit_tiny");
    assert_eq!(value["image_size"], 32);
    let tensors = value["tensors"].as_object().unwrap();
    assert_eq!(
        tensors["backbone.pos_embed"],
        serde_json::json!([1, 17, 64])
    );
    assert_eq!(value["layout"], "run");
    let others = &value["other_tensors"];
    assert_eq!(
        others["head.last_layer.weight"],
        serde_json::json!([32, 64])
    );
    let text = done(&["inspect", run(), "--which", "student"]);
    assert!(text.contains("  head.mlp.0.bias [64]"), "{text}");
    assert!(
        text.starts_with("vit_tiny/8 (width 64, depth 2, heads 1)"),
        "{text}"
    );
    for name in tensors.keys() {
        assert!(
            text.contains(&format!("  {name} [")),
            "{name} is not in {text}"
        );
    }
    let dir = results("inspect");
    std::fs::write(dir.join("broken.safetensors"), "not one").unwrap();
    let answer = selfsame(&["inspect", &common::text(&dir.join("broken.safetensors"))]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("broken.safetensors"),
        "{}",
        answer.stderr
    );
}

#[test]
fn check_data_says_by_its_exit_code_whether_all_is_usable() {
    let dir = results("check-data");
    let folder = text(&dir);
    let check = |extra: &[&str]| selfsame(&[&["check-data", &folder], extra].concat());
    assert_eq!(check(&[]).code, 2, "an empty folder");
    std::fs::write(dir.join("a.bmp"), bmp(8, [1, 2, 3])).unwrap();
    let answer = check(&[]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        answer.stdout.contains("1 usable, 0 unusable"),
        "{}",
        answer.stdout
    );

    #[cfg(unix)]
    {
        let odd = dir.join("\u{1b}[2J\r\nx.jpg");
        std::fs::write(&odd, "no picture").unwrap();
        let told = check(&[]).stdout;
        assert!(told.contains("\\u{1b}[2J\\r\\nx.jpg: "), "{told:?}");
        std::fs::remove_file(odd).unwrap();
    }

    std::fs::write(dir.join("b.jpg"), "no picture").unwrap();
    let answer = check(&[]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(answer.stdout.contains("b.jpg: "), "{}", answer.stdout);
    let answer = check(&["--json"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let value: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(
        (&value["usable"], &value["unusable"]),
        (&1.into(), &1.into())
    );
    assert_eq!(value["files"][0]["file"], "b.jpg");
    assert_eq!(value["shorter_side"][0], serde_json::json!(["below 32", 1]));
    assert_eq!(value["smaller_than_crop"]["images"], 1);
    std::fs::copy(dir.join("a.bmp"), dir.join("c.bmp")).unwrap();
    let same = check(&[]).stdout;
    for words in ["same bytes: a.bmp, c.bmp", "\n1 copy of another file\n"] {
        assert!(same.contains(words), "{same}");
    }
    std::fs::remove_file(dir.join("c.bmp")).unwrap();
    assert!(!same.contains("passed over"), "{same}");
    std::fs::create_dir(dir.join(".thumbs")).unwrap();
    std::fs::write(dir.join("notes.txt"), "notes").unwrap();
    let told = check(&[]).stdout;
    let passed = "passed over: 1 hidden folder, 1 file named .csv, .json, .txt or .md\n";
    assert!(told.contains(passed), "{told}");
    let value: Value = serde_json::from_str(&check(&["--json"]).stdout).unwrap();
    assert_eq!(value["passed_over"]["hidden_folders"], 1);
    assert_eq!(value["passed_over"]["dead_links"], 0);

    std::fs::remove_file(dir.join("a.bmp")).unwrap();
    assert_eq!(check(&[]).code, 1, "all unusable");
    assert_eq!(selfsame(&["check-data", "no/such/folder"]).code, 2);
    assert_eq!(
        selfsame(&["check-data", "synthetic:portraits?count=4"]).code,
        0
    );
}

#[test]
fn the_reference_gives_the_same_features_and_is_for_looking_only() {
    let dir = results("reference");
    let reference = format!("reference:{}", run());
    let (ours, theirs) = (features(&dir, run(), &[]), features(&dir, &reference, &[]));
    let (ours, theirs) = (ours.concat(), theirs.concat());
    assert_eq!(ours.len(), theirs.len());
    let apart: f32 = ours.iter().zip(&theirs).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f32 = theirs.iter().map(|b| b.powi(2)).sum();
    let relative = (apart / size).sqrt();
    assert!(relative < 1e-5, "{relative:e}");
    assert!(relative > 0.0, "other code rounds in other places");
    let out = text(&dir.join("out"));
    for args in [
        [
            "export",
            "--format",
            "timm",
            "--weights",
            &reference,
            "--out",
            &out,
        ],
        [
            "embed",
            "--data",
            "synthetic:portraits?count=2&seed=0",
            "--weights",
            "reference:random:resnet18",
            "--out",
            &out,
        ],
    ] {
        let answer = selfsame(&args);
        assert_eq!(answer.code, 2, "{args:?}: {}", answer.stderr);
        assert!(answer.stderr.contains("reference"), "{}", answer.stderr);
    }
}

#[test]
fn weights_for_another_patch_size_are_resampled_aloud() {
    let dir = results("patches");
    let (folder, out) = (text(&dir.join("timm")), text(&dir.join("f.npy")));
    let weights = "random:vit_tiny/16@32";
    done(&[
        "export",
        "--weights",
        weights,
        "--format",
        "timm",
        "--out",
        &folder,
    ]);
    let data = "synthetic:portraits?count=2&seed=0";
    let embed = |arch: &str| {
        let args = [
            "embed",
            "--weights",
            &folder,
            "--data",
            data,
            "--arch",
            arch,
            "--out",
            &out,
        ];
        let answer = selfsame(&args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer.stderr
    };
    let notes = embed("vit_tiny/8@32");
    assert!(
        notes.contains("patches of 16x16 pixels was resampled to 8x8"),
        "{notes}"
    );
    assert!(
        notes.contains("2x2 patches were resampled to 4x4"),
        "{notes}"
    );
    let notes = embed("vit_tiny/16@32");
    assert!(!notes.contains("resampled"), "{notes}");
}

#[test]
fn the_largest_picture_that_is_decoded_can_be_set() {
    let dir = scratch("largest-picture");
    let folder = dir.join("pictures");
    std::fs::create_dir(&folder).unwrap();
    for (name, side) in [("small", 40), ("large", 60)] {
        let picture = image::RgbImage::from_pixel(side, side, image::Rgb([9, 90, 200]));
        picture.save(folder.join(format!("{name}.png"))).unwrap();
    }
    let folder = text(&folder);
    let usable = |flags: &[&str]| -> serde_json::Value {
        let args = [&["check-data", &folder, "--json"], flags].concat();
        let told: serde_json::Value = serde_json::from_str(&selfsame(&args).stdout).unwrap();
        told["usable"].clone()
    };
    assert_eq!(usable(&[]), 2);
    assert_eq!(usable(&["--max-side", "50"]), 1);
    assert_eq!(usable(&["--max-pixels", "3599"]), 1);
    assert_eq!(usable(&["--max-pixels", "3600"]), 2);

    // As a key of a run's configuration.
    let run = dir.join("run");
    let sets = [
        "data.max_side=50",
        "data.max_bad_fraction=1",
        "train.max_steps=1",
    ];
    let mut args = tiny_run(
        &run,
        &[&sets[..], &["train.batch_size=1", "train.accumulate=2"]].concat(),
    );
    put_data(&mut args, folder);
    let answer = selfsame(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let skipped = std::fs::read_to_string(run.join("skipped.csv")).unwrap();
    assert!(skipped.contains("large.png,"), "{skipped}");
    let none = selfsame(&["config", "--set", "data.max_pixels=0"]);
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains("data.max_pixels"), "{}", none.stderr);
}
