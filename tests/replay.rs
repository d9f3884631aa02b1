//! Captured PyTorch runs, replayed step by step (tests/golden/README.md says how they were made).

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use selfsame_checkpoint::read_tensor_file;
use serde_json::Value;

/// PyTorch against itself with another thread count and instruction set differs by 1e-6 in loss.
const LOSS_TOLERANCE: f64 = 2e-5;
/// The same for weights, norm-wise: 7e-6 between instruction sets.
const WEIGHT_TOLERANCE: f64 = 1e-4;
/// Of norms of gradients.
const NORM_TOLERANCE: f64 = 1e-3;

fn replay(capture: &str, changes: &[(&str, &str)]) -> (Vec<Value>, PathBuf, tempfile::TempDir) {
    let dir = copy_of(capture);
    let source = captures().join(capture);
    let config = dir.path().join("config.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replace(from, to);
    }
    std::fs::write(&config, text).unwrap();
    let (out, save) = (
        dir.path().join("out.jsonl"),
        dir.path().join("end.safetensors"),
    );
    let steps = lines(&source.join("expected.jsonl")).len();
    let status = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["replay", "--steps", &steps.to_string()])
        .arg(dir.path())
        .arg("--out")
        .arg(&out)
        .arg("--save")
        .arg(&save)
        .status()
        .unwrap();
    assert!(status.success());
    (lines(&out), save, dir)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The largest relative difference of a figure over all steps from what PyTorch wrote into `file`.
fn difference_from(file: &str, capture: &str, ours: &[Value], figure: &str) -> f64 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/captures");
    let theirs = lines(&root.join(capture).join(file));
    assert_eq!(ours.len(), theirs.len());
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    ours.iter()
        .zip(&theirs)
        .map(|(a, b)| {
            for key in ["step", "lr", "weight_decay", "momentum", "teacher_temp"] {
                assert!(
                    (number(a, key) - number(b, key)).abs() < 1e-12,
                    "{key}: {a} {b}"
                );
            }
            (number(a, figure) / number(b, figure) - 1.0).abs()
        })
        .fold(0.0, largest)
}

/// The larger of two differences; what is no number is the largest.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::INFINITY
    } else {
        a.max(b)
    }
}

/// That of the loss from the expected result.
fn loss_difference(capture: &str, ours: &[Value]) -> f64 {
    difference_from("expected.jsonl", capture, ours, "loss")
}

/// The largest norm-wise relative difference of a weight of student or teacher, or of the centre, and
/// its name; everything that was expected must be there.
fn weight_difference(capture: &str, saved: &Path) -> (f64, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/captures");
    let expected = root.join(capture).join("expected_final.safetensors");
    let expected = read_tensor_file(&expected, &Device::Cpu).unwrap().tensors;
    let ours = read_tensor_file(saved, &Device::Cpu).unwrap().tensors;
    let values = |tensor: &Tensor| -> Vec<f64> {
        tensor
            .to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    let mut worst = (0.0, String::new());
    for (name, tensor) in &expected {
        assert!(ours.contains_key(name), "{name} was not saved");
        if name.starts_with("optim.") {
            continue; // rounding decides where gradients are nearly zero
        }
        let (mut a, mut b) = (values(&ours[name]), values(tensor));
        if name.ends_with("attn.qkv.bias") {
            // The gradient of the key part is zero by theory, so Adam moves it by rounding noise.
            let d = a.len() / 3;
            a.drain(d..2 * d);
            b.drain(d..2 * d);
        }
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let gap: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let relative = norm(&gap) / norm(&b).max(1e-12);
        assert!(relative.is_finite(), "{name}");
        if relative > worst.0 {
            worst = (relative, name.clone());
        }
    }
    worst
}

fn agrees(capture: &str) {
    let (ours, saved, _dir) = replay(capture, &[]);
    let loss = loss_difference(capture, &ours);
    assert!(loss < LOSS_TOLERANCE, "{capture}: loss differs by {loss:e}");
    let norm = difference_from("expected.jsonl", capture, &ours, "grad_norm");
    assert!(norm < NORM_TOLERANCE, "{capture}: norm differs by {norm:e}");
    let (weight, name) = weight_difference(capture, &saved);
    assert!(
        weight < WEIGHT_TOLERANCE,
        "{capture}: {name} differs by {weight:e}"
    );
}

#[test]
fn the_notebook_recipe_follows_pytorch_step_by_step() {
    agrees("notebook-tiny");
}

#[test]
fn the_official_recipe_follows_pytorch_step_by_step() {
    agrees("official-tiny");
}

#[test]
fn a_run_continued_with_moments_follows_pytorch() {
    agrees("official-tiny-s7");
}

/// PyTorch made the same steps with a mistake in it. We must be as far from that run as the right
/// PyTorch run is: then a `selfsame` with this mistake would be as far from the right one, and red.
fn would_be_noticed(mistake: &str) {
    for capture in ["notebook-tiny", "official-tiny"] {
        let (ours, _, dir) = replay(capture, &[]);
        let right = lines(&dir.path().join("expected.jsonl"));
        let file = format!("mistake_{mistake}.jsonl");
        let from_ours = difference_from(&file, capture, &ours, "loss");
        let from_right = difference_from(&file, capture, &right, "loss");
        assert!(
            from_ours > 5.0 * LOSS_TOLERANCE,
            "{capture}: {mistake} changes the loss by {from_ours:e} only"
        );
        assert!(
            (from_ours - from_right).abs() < LOSS_TOLERANCE,
            "{capture}: {mistake} is {from_ours:e} from us, {from_right:e} from PyTorch"
        );
    }
}

#[test]
fn another_form_of_gelu_would_be_noticed() {
    would_be_noticed("gelu_tanh");
}

#[test]
fn another_eps_of_layer_norm_would_be_noticed() {
    would_be_noticed("layer_norm_eps");
}

#[test]
fn a_teacher_updated_before_the_loss_would_be_noticed() {
    would_be_noticed("ema_order");
}

#[test]
fn another_clip_mode_is_noticed() {
    let changes = [("clip_mode = \"per_parameter\"", "clip_mode = \"global\"")];
    let (ours, saved, _dir) = replay("official-tiny", &changes);
    let loss = loss_difference("official-tiny", &ours);
    let (weight, _) = weight_difference("official-tiny", &saved);
    assert!(
        loss > LOSS_TOLERANCE || weight > WEIGHT_TOLERANCE,
        "{loss:e} {weight:e}"
    );
}

#[test]
fn other_decay_groups_are_noticed() {
    let changes = [("decay_bias_and_norm = false", "decay_bias_and_norm = true")];
    let (_, saved, _dir) = replay("official-tiny", &changes);
    let (weight, name) = weight_difference("official-tiny", &saved);
    assert!(weight > WEIGHT_TOLERANCE, "{name} {weight:e}");
}

#[test]
fn more_steps_than_the_schedules_span_are_refused() {
    for steps in ["24", "18446744073709551615"] {
        let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
            .args(["replay", "--steps", steps])
            .arg(captures().join("official-tiny-s7"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("go past the schedules' 30"), "{text}");
    }
}

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/captures")
}

/// A copy of a capture, to be changed.
fn copy_of(capture: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(captures().join(capture)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn refused(capture: &Path, code: i32, words: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["replay", "--device", "cpu"])
        .arg(capture)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_precision_that_the_device_does_not_have_is_refused() {
    let dir = copy_of("official-tiny-s7");
    let config = dir.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = text.replace("precision = \"f32\"", "precision = \"tf32\"");
    assert_ne!(changed, text);
    std::fs::write(&config, changed).unwrap();
    refused(dir.path(), 2, "tf32");
}

#[test]
fn local_crops_of_other_pictures_than_the_global_ones_are_refused() {
    let dir = copy_of("official-tiny-s7");
    let path = dir.path().join("batch-000000.safetensors");
    let mut tensors = selfsame_checkpoint::read_tensors(&path).unwrap();
    let local = &tensors["local"];
    let images = local.dims()[1];
    let fewer = local.narrow(1, 0, images - 1).unwrap();
    tensors.insert("local".to_owned(), fewer.contiguous().unwrap());
    selfsame_checkpoint::write_tensors(&path, &tensors, &Default::default()).unwrap();
    refused(dir.path(), 1, "local has shape");
}

#[test]
fn a_batch_without_local_crops_or_without_pictures_is_no_panic() {
    let dir = copy_of("official-tiny-s7");
    let path = dir.path().join("batch-000000.safetensors");
    let tensors = selfsame_checkpoint::read_tensors(&path).unwrap();
    let with = |name: &str, dim: usize| {
        let mut tensors = tensors.clone();
        let none = tensors[name].narrow(dim, 0, 0).unwrap();
        tensors.insert(name.to_owned(), none.contiguous().unwrap());
        selfsame_checkpoint::write_tensors(&path, &tensors, &Default::default()).unwrap();
    };
    with("global", 1);
    refused(dir.path(), 1, "global has shape [2, 0, 3");
    // As none at all.
    let loss = || {
        let output = replayed(dir.path(), &["--steps", "1"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    with("local", 0);
    let empty = loss();
    let mut without = tensors.clone();
    without.remove("local");
    selfsame_checkpoint::write_tensors(&path, &without, &Default::default()).unwrap();
    assert_eq!(loss(), empty);
}

/// Runs `selfsame replay` of a capture with these flags.
fn replayed(capture: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfsame"));
    command.args(["replay", "--device", "cpu", "--threads", "1"]);
    command.arg(capture).args(flags);
    command
}

#[test]
fn figures_that_were_there_stay_where_a_capture_cannot_be_replayed() {
    let dir = copy_of("official-tiny-s7");
    let results = tempfile::tempdir().unwrap();
    let out = results.path().join("figures.jsonl");
    std::fs::write(&out, "earlier").unwrap();
    std::fs::write(dir.path().join("state.safetensors"), "damaged").unwrap();
    let output = replayed(dir.path(), &["--out", out.to_str().unwrap()]).output();
    assert_eq!(output.unwrap().status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "earlier");
}

#[test]
fn figures_and_state_in_one_file_are_refused() {
    let results = tempfile::tempdir().unwrap();
    let folder = results.path();
    let roundabout = folder.join("..").join(folder.file_name().unwrap());
    let [out, save] = [folder.join("one"), roundabout.join("one")];
    let flags = [
        "--out",
        out.to_str().unwrap(),
        "--save",
        save.to_str().unwrap(),
    ];
    let output = replayed(&captures().join("official-tiny-s7"), &flags).output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("--save") && told.contains("--out"), "{told}");
    assert_eq!(std::fs::read_dir(results.path()).unwrap().count(), 0);
}

#[test]
fn a_state_is_saved_although_nobody_reads_the_figures() {
    let results = tempfile::tempdir().unwrap();
    let save = results.path().join("end.safetensors");
    let flags = ["--steps", "1", "--save", save.to_str().unwrap()];
    let mut child = replayed(&captures().join("official-tiny-s7"), &flags)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(save.exists());
}

#[test]
fn figures_and_states_never_go_over_the_capture() {
    let dir = copy_of("official-tiny-s7");
    let files = || -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
        paths.into_iter().map(read).collect()
    };
    let before = files();
    for flag in ["--out", "--save"] {
        for name in [
            "capture.json",
            "config.toml",
            "state.safetensors",
            "batch-000000.safetensors",
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
                .args([
                    "replay",
                    dir.path().to_str().unwrap(),
                    "--threads",
                    "1",
                    flag,
                ])
                .arg(dir.path().join(name))
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{flag} {name}: {told}");
            assert!(told.contains(flag) && told.contains(name), "{told}");
            assert!(files() == before, "{flag} wrote over {name}");
        }
    }
}
