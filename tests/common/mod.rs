//! Running the program from tests: a tiny model on drawn portraits.

#![allow(dead_code, reason = "not every test file needs every part")]

#[cfg(unix)]
pub(crate) mod running;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether a text holds another, whichever separators its paths have.
pub(crate) fn holds(text: &str, words: &str) -> bool {
    let alike = |text: &str| text.replace('\\', "/");
    text.contains(words) || alike(text).contains(&alike(words))
}

/// The program's answer.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs `selfsame` with these arguments.
pub(crate) fn selfsame<S: AsRef<str>>(args: &[S]) -> Answer {
    command(args).output().unwrap().into()
}

/// Runs `selfsame`, which must end well; what it wrote to stdout.
pub(crate) fn done<S: AsRef<str>>(args: &[S]) -> String {
    let answer = selfsame(args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    answer.stdout
}

pub(crate) fn command<S: AsRef<str>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfsame"));
    command.args(args.iter().map(AsRef::as_ref));
    command
}

/// The flags of a run of a ViT of two blocks, 64 wide, 5 steps an epoch.
pub(crate) fn tiny_run(run: &Path, sets: &[&str]) -> Vec<String> {
    let data = "synthetic:portraits?count=40&seed=3";
    let mut args = [
        "train",
        "--no-report",
        "--data",
        data,
        "--threads",
        "1",
        "--run",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(text(run));
    let fixed = [
        "augment.global_size=32",
        "augment.local_size=16",
        "augment.local_crops=2",
        "model.arch=vit_tiny",
        "model.patch_size=8",
        "model.image_size=32",
        "model.embed_dim=64",
        "model.depth=2",
        "model.num_heads=1",
        "head.out_dim=32",
        "objective.warmup_teacher_temp_epochs=0",
        "optim.warmup_epochs=1",
        "train.batch_size=8",
        "train.epochs=3",
        "train.log_every_steps=1",
        "train.knn_every_epochs=0",
    ];
    for set in fixed.iter().chain(sets) {
        args.push("--set".to_owned());
        args.push((*set).to_owned());
    }
    args
}

/// Has a run of [`tiny_run`] learn from other pictures.
pub(crate) fn put_data(args: &mut [String], spec: String) {
    let flag = args.iter().position(|arg| arg == "--data").unwrap();
    args[flag + 1] = spec;
}

/// An empty folder for `name`, below the build directory.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The lines of a run's metrics.jsonl.
pub(crate) fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The steps of a run's checkpoints, oldest first.
pub(crate) fn checkpoints(run: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// The bytes of the tensor files of one checkpoint.
pub(crate) fn checkpoint_bytes(run: &Path, step: u64) -> Vec<Vec<u8>> {
    let dir = run.join(format!("checkpoints/step-{step:08}"));
    ["student", "teacher", "optimizer", "state"]
        .map(|file| std::fs::read(dir.join(format!("{file}.safetensors"))).unwrap())
        .to_vec()
}

/// A 24-bit BMP of one colour.
pub(crate) fn bmp(side: u32, [r, g, b]: [u8; 3]) -> Vec<u8> {
    assert!(side.is_multiple_of(4), "rows are padded to 4 bytes");
    let pixels = side * side * 3;
    let mut bytes = b"BM".to_vec();
    for field in [54 + pixels, 0, 54, 40, side, side] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    for field in [0, pixels, 2835, 2835, 0, 0] {
        bytes.extend(u32::to_le_bytes(field));
    }
    for _ in 0..side * side {
        bytes.extend([b, g, r]);
    }
    bytes
}

/// A line of `metrics.jsonl` about a step has every figure that it promises, and they agree.
pub(crate) fn check_step_line(line: &serde_json::Value) {
    let number = |key: &str| {
        let value = line[key].as_f64();
        value.unwrap_or_else(|| panic!("{key} is missing: {line}"))
    };
    for key in [
        "step",
        "epoch",
        "lr",
        "weight_decay",
        "momentum",
        "teacher_temp",
        "grad_norm",
        "feature_std",
    ] {
        assert!(number(key).is_finite(), "{key}: {line}");
    }
    assert!((number("loss") - number("loss_floor") - number("kl")).abs() < 1e-9);
    assert!(number("images_per_s") > 0.0, "{line}");
    assert!((0.0..=1.0).contains(&number("data_wait_frac")), "{line}");
}
