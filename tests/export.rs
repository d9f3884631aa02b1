//! What `export` writes, for whom, and what it leaves alone.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::Device;
use common::{Answer, done, scratch, selfsame, text, tiny_run};
use selfsame_checkpoint::read_tensor_file;
use serde_json::Value;

const DATA: &str = "synthetic:portraits?count=12&seed=1";

/// One run for all tests; nothing below changes it.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let run = scratch("export").join("run");
    done(&tiny_run(&run, &["train.max_steps=2", "optim.lr=0.01"]));
    run
});

fn run() -> &'static str {
    RUN.to_str().unwrap()
}

/// Features in bytes.
fn features(dir: &Path, weights: &str, extra: &[&str]) -> Vec<u8> {
    let out = text(&dir.join("f.npy"));
    let args = ["embed", "--weights", weights, "--data", DATA, "--out", &out];
    done(&[&args, extra].concat());
    std::fs::read(out).unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn refused(answer: &Answer, code: i32, words: &[&str]) {
    assert_eq!(answer.code, code, "{}", answer.stderr);
    for word in words {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
}

#[test]
fn an_exported_folder_opens_again_with_the_same_features() {
    let dir = scratch("export-again");
    let out = dir.join("timm");
    for which in ["teacher", "student"] {
        let to = text(&out);
        let flags = ["--format", "timm", "--which", which, "--out", &to];
        assert_eq!(
            done(&[&["export", "--weights", run()], &flags[..]].concat()),
            ""
        );
        // As a killed export leaves it for the next.
        std::fs::write(out.join(".tmp-4000000-model.safetensors"), "half").unwrap();
        let config = read_json(&out.join("config.json"));
        assert_eq!(config["architecture"], "vit_tiny_patch16_224");
        assert_eq!(config["model_args"]["patch_size"], 8);
        assert_eq!(
            config["pretrained_cfg"]["input_size"],
            serde_json::json!([3, 32, 32])
        );
        assert_eq!(
            features(&dir, &text(&out.join("model.safetensors")), &[]),
            features(&dir, run(), &["--which", which])
        );
    }
    let exported = text(&out.join("model.safetensors"));
    let value: Value = serde_json::from_str(&done(&["inspect", &exported, "--json"])).unwrap();
    assert_eq!(value["layout"], "timm");
    assert_eq!(value["other_tensors"], serde_json::json!({}));
    let snapshot = dir.join("resnet");
    done(&[
        "export",
        "--weights",
        "random:resnet18",
        "--format",
        "timm",
        "--out",
        &text(&snapshot),
    ]);
    assert_eq!(
        features(
            &dir,
            &text(&snapshot.join("model.safetensors")),
            &["--image-size", "64"]
        ),
        features(&dir, "random:resnet18", &["--image-size", "64"])
    );
}

/// Trained on crops of 48 pixels with positions of 64: evaluated, and so exported, at 48.
#[test]
fn an_export_has_the_size_at_which_the_weights_are_evaluated() {
    let dir = scratch("export-sizes");
    let run = dir.join("run");
    let sets = [
        "model.image_size=64",
        "augment.global_size=48",
        "train.max_steps=1",
    ];
    done(&tiny_run(&run, &sets));
    let (run, out) = (text(&run), text(&dir.join("timm")));
    done(&["export", "--weights", &run, "--format=timm", "--out", &out]);
    let config = read_json(&dir.join("timm/config.json"));
    assert_eq!(config["model_args"]["img_size"], 48);
    assert_eq!(config["pretrained_cfg"]["input_size"][1], 48);
    assert_eq!(features(&dir, &out, &[]), features(&dir, &run, &[]));
}

#[test]
fn an_export_replaces_only_one_of_the_same_kind() {
    let dir = scratch("export-replaced");
    let export = |weights: &str, format: &str, out: &str| {
        let out = text(&dir.join(out));
        let args = ["export", "--weights", weights, "--format", format];
        selfsame(&[&args[..], &["--out", &out]].concat())
    };
    for format in ["timm", "hf", "dino", "onnx"] {
        for _ in 0..2 {
            let answer = export(run(), format, format);
            assert_eq!(answer.code, 0, "{format}: {}", answer.stderr);
        }
    }
    let before = std::fs::read(dir.join("timm/model.safetensors")).unwrap();
    let other = "random:vit_tiny/8@32";
    refused(&export(other, "timm", "timm"), 2, &["--out"]);
    refused(&export(run(), "dino", "timm"), 2, &["--out"]);
    refused(&export(run(), "hf", "timm"), 2, &["--out"]);
    refused(&export(run(), "dino", "onnx"), 2, &["--out", "model.onnx"]);
    // Somebody's own file of a name that an export has too.
    std::fs::create_dir(dir.join("mine")).unwrap();
    std::fs::write(dir.join("mine/config.json"), "{}").unwrap();
    refused(&export(run(), "timm", "mine"), 2, &["--out", "config.json"]);
    refused(&export(run(), "onnx", "hf"), 2, &["--out"]);
    std::fs::write(dir.join("onnx/notes.md"), "mine").unwrap();
    refused(
        &export(run(), "onnx", "onnx"),
        2,
        &["notes.md", "new folder"],
    );
    assert_eq!(
        std::fs::read(dir.join("timm/model.safetensors")).unwrap(),
        before
    );
}

#[cfg(unix)]
#[test]
fn an_export_without_room_leaves_no_empty_folder() {
    let dir = scratch("export-no-room");
    let export = |out: &Path| {
        let program = common::command::<&str>(&[]).get_program().to_owned();
        let mut shell = std::process::Command::new("sh");
        let script = "ulimit -f 8; exec \"$0\" \"$@\"";
        shell.args(["-c", script]).arg(program);
        shell.args([
            "export",
            "--weights",
            run(),
            "--format",
            "dino",
            "--out",
            &text(out),
        ]);
        Answer::from(shell.output().unwrap())
    };
    let made = dir.join("made");
    refused(&export(&made), 1, &["model.safetensors"]);
    assert!(!made.exists());
    // Not this program's to remove.
    let given = dir.join("given");
    std::fs::create_dir(&given).unwrap();
    refused(&export(&given), 1, &["model.safetensors"]);
    assert!(given.exists());
    assert_eq!(std::fs::read_dir(&given).unwrap().count(), 0);
}

/// Where 1 + registers + patches is a square too: positions of all of them would be read as those of
/// a grid alone.
#[test]
fn registers_come_back_whatever_their_number() {
    let dir = scratch("export-registers");
    let run = dir.join("run");
    let sets = [
        "model.image_size=32",
        "model.patch_size=16",
        "model.num_registers=4",
        "train.max_steps=1",
    ];
    done(&tiny_run(&run, &sets));
    let (run, out) = (text(&run), dir.join("timm"));
    let to = text(&out);
    done(&["export", "--weights", &run, "--format=timm", "--out", &to]);
    assert_eq!(
        read_json(&out.join("config.json"))["model_args"]["no_embed_class"],
        true
    );
    let file = read_tensor_file(&out.join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(file.tensors["pos_embed"].dims(), [1, 4, 64]);
    assert_eq!(features(&dir, &to, &[]), features(&dir, &run, &[]));
}
