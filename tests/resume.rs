//! A run stopped and continued equals the run that was never stopped, bit for bit.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::path::Path;
use std::process::{Command, Output};

fn selfsame(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(args)
        .output()
        .unwrap()
}

fn train(dir: &Path, model: &[&str], extra: &[&str]) -> Output {
    let run = dir.to_str().unwrap();
    let mut args = vec![
        "train",
        "--data",
        "synthetic:portraits?count=40&seed=3",
        "--run",
        run,
    ];
    let sets = [
        "augment.global_size=32",
        "augment.local_size=16",
        "augment.local_crops=2",
        "head.kind=official",
        "head.out_dim=32",
        "head.hidden_dim=32",
        "head.bottleneck_dim=16",
        "objective.warmup_teacher_temp_epochs=0",
        "optim.warmup_epochs=1",
        "optim.freeze_last_layer_epochs=1",
        "train.batch_size=8",
        "train.epochs=3",
        "train.log_every_steps=1",
        "train.knn_every_epochs=0",
    ];
    for set in sets.iter().chain(model) {
        args.extend(["--set", set]);
    }
    args.extend(extra);
    let output = selfsame(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

const VIT: [&str; 7] = [
    "model.arch=vit_tiny",
    "model.patch_size=8",
    "model.image_size=32",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path_rate=0.2",
];

/// The tensor files of the last checkpoint and the losses of every step, as bytes.
fn end_state(dir: &Path) -> (Vec<Vec<u8>>, Vec<u64>) {
    let checkpoint = dir.join("checkpoints/step-00000015");
    let files = ["student", "teacher", "optimizer", "state"];
    let bytes = |file| std::fs::read(checkpoint.join(format!("{file}.safetensors"))).unwrap();
    let metrics = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let losses = metrics.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["loss"].as_f64().unwrap().to_bits()
    });
    (files.into_iter().map(bytes).collect(), losses.collect())
}

fn stopped_runs_equal_the_whole_one(model: &[&str], stops: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train(&whole, model, &["--threads", "2"]);
    let expected = end_state(&whole);
    assert_eq!(expected.1.len(), 15);
    for (i, stop) in stops.iter().enumerate() {
        let run = dir.path().join(stop);
        let max = format!("train.max_steps={stop}");
        let workers = format!("data.workers={}", 2 * (i % 2));
        train(
            &run,
            model,
            &["--threads", "1", "--set", &max, "--set", &workers],
        );
        let run_text = run.to_str().unwrap();
        let output = selfsame(&[
            "resume",
            run_text,
            "--set",
            "train.max_steps=0",
            "--threads",
            "2",
        ]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            end_state(&run) == expected,
            "stopped after {stop} steps: other bits"
        );
    }
}

#[test]
fn a_vit_with_drop_path_resumes_to_the_same_bits() {
    stopped_runs_equal_the_whole_one(&VIT, &["1", "5", "7", "8", "14"]);
}

#[test]
fn a_resnet_resumes_to_the_same_bits() {
    stopped_runs_equal_the_whole_one(&["model.arch=resnet18"], &["7"]);
}

#[test]
fn every_optimizer_and_accumulated_batches_resume_to_the_same_bits() {
    let accumulated = ["train.batch_size=4", "train.accumulate=2"];
    for (optim, head) in [("lars", "head.use_bn=false"), ("sgd", "head.use_bn=true")] {
        let optim = format!("optim.name={optim}");
        let mut sets = [&VIT[..], &[&optim, head]].concat();
        if head == "head.use_bn=false" {
            sets.extend(accumulated); // with batch norm it is refused
        }
        stopped_runs_equal_the_whole_one(&sets, &["7"]);
    }
}

#[test]
fn accumulated_batches_equal_the_large_one_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let figures = |name: &str, sets: &[&str]| {
        let run = dir.path().join(name);
        let mut extra = vec![
            "--set",
            "model.drop_path_rate=0",
            "--set",
            "train.max_steps=4",
        ];
        for set in sets {
            extra.extend(["--set", set]);
        }
        train(&run, &VIT, &extra);
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let of_line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            ["loss", "grad_norm", "feature_std"].map(|key| line[key].as_f64().unwrap())
        };
        text.lines().map(of_line).collect::<Vec<_>>()
    };
    let whole = figures("whole", &[]);
    let parts = figures("parts", &["train.batch_size=4", "train.accumulate=2"]);
    assert_eq!((whole.len(), parts.len()), (4, 4));
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a[0] / b[0] - 1.0).abs() < 1e-5, "losses {a:?} {b:?}");
        assert!((a[1] / b[1] - 1.0).abs() < 1e-4, "norms {a:?} {b:?}");
        assert!((a[2] / b[2] - 1.0).abs() < 1e-4, "spreads {a:?} {b:?}");
    }
}

/// `tests/golden/format-1` was written by the first version that had keys `train.non_finite` and
/// none for memory, after 7 of 15 steps. Whoever has such a run must be able to go on.
#[test]
fn a_checkpoint_of_format_1_still_goes_on() {
    /// Loss of step 14 in the version that wrote the checkpoint.
    const LOSS_AT_THE_END: f64 = 3.020_229_816_436_767_6;

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/format-1");
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let checkpoint = "checkpoints/step-00000007";
    std::fs::create_dir_all(run.join(checkpoint)).unwrap();
    for entry in std::fs::read_dir(golden.join(checkpoint)).unwrap() {
        let entry = entry.unwrap();
        let copy = run.join(checkpoint).join(entry.file_name());
        std::fs::copy(entry.path(), copy).unwrap();
    }
    std::fs::copy(golden.join("config.toml"), run.join("config.toml")).unwrap();

    let run_text = run.to_str().unwrap();
    let args = [
        "resume",
        run_text,
        "--no-report",
        "--set",
        "train.max_steps=0",
        // What is set counts before what a flag says.
        "--device",
        "nowhere",
        "--set",
        "train.device=cpu",
    ];
    let output = selfsame(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("continuing after 7 steps"), "{said}");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["step"], 14);
    let loss = last["loss"].as_f64().unwrap();
    let difference = (loss / LOSS_AT_THE_END - 1.0).abs();
    // As replay allows; all seven steps together move the loss by 2e-4.
    assert!(difference < 2e-5, "{loss}: {difference:e}");
    let out = dir.path().join("features.npy");
    let args = [
        "embed",
        "--weights",
        run_text,
        "--data",
        "synthetic:portraits?count=4&seed=0",
        "--out",
        out.to_str().unwrap(),
    ];
    assert!(selfsame(&args).status.success() && out.exists());
}
