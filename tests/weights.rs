//! What `--weights` opens, what `--arch` changes, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use common::{Answer, checkpoints, done, holds, scratch, selfsame, text, tiny_run};
use selfsame_checkpoint::{read_tensor_file, write_tensors};

const DATA: &str = "synthetic:portraits?count=12&seed=1";

/// A run whose heads are not 64 wide, which shapes do not tell.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let run = scratch("weights").join("run");
    let narrow = ["model.embed_dim=48", "model.num_heads=3", "train.epochs=2"];
    done(&tiny_run(&run, &narrow));
    run
});

fn run() -> &'static str {
    RUN.to_str().unwrap()
}

fn newest() -> PathBuf {
    let step = *checkpoints(&RUN).last().unwrap();
    RUN.join(format!("checkpoints/step-{step:08}"))
}

fn embed(out: &Path, weights: &str, extra: &[&str]) -> Answer {
    let out = text(out);
    let args = ["embed", "--weights", weights, "--data", DATA, "--out", &out];
    selfsame(&[&args, extra].concat())
}

/// Features in bytes.
fn features(name: &str, weights: &str, extra: &[&str]) -> Vec<u8> {
    let out = scratch(&format!("weights-{name}")).join("f.npy");
    let answer = embed(&out, weights, extra);
    assert_eq!(answer.code, 0, "{weights} {extra:?}: {}", answer.stderr);
    std::fs::read(out).unwrap()
}

fn refused(answer: &Answer, code: i32, words: &[&str]) {
    assert_eq!(answer.code, code, "{}", answer.stderr);
    for word in words {
        assert!(holds(&answer.stderr, word), "{word}: {}", answer.stderr);
    }
}

#[test]
fn inspect_tells_the_head_of_a_backbone_that_shapes_do_not_tell() {
    let value = done(&["inspect", run(), "--json"]);
    assert!(
        value.contains(r#""head":"notebook, 32 prototypes""#),
        "{value}"
    );
}

#[test]
fn a_checkpoint_and_its_files_open_like_the_run() {
    let whole = features("run", run(), &[]);
    assert_eq!(features("checkpoint", &text(&newest()), &[]), whole);
    let teacher = text(&newest().join("teacher.safetensors"));
    assert_eq!(features("teacher", &teacher, &[]), whole);
    let student = text(&newest().join("student.safetensors"));
    let of_student = features("student", run(), &["--which", "student"]);
    assert_eq!(features("student-file", &student, &[]), of_student);
    let flags = ["--which", "student"];
    assert_eq!(features("folder", &text(&newest()), &flags), of_student);
    assert_eq!(features("of-file", &student, &flags), of_student);
    let words = ["--which student", "one network"];
    let out = scratch("weights-which").join("f.npy");
    refused(&embed(&out, &teacher, &flags), 2, &words);
    let mut args = vec![
        "attention",
        "--weights",
        run(),
        "--data",
        DATA,
        "--snapshots",
    ];
    args.extend(["--which", "student", "--out", "weights-grown.png"]);
    refused(&selfsame(&args), 2, &["--snapshots", "--which student"]);
    let told = done(&["inspect", &teacher]);
    assert!(told.contains("width 48, depth 2, heads 3"), "{told}");
}

#[test]
fn what_are_no_weights_of_the_network_is_told_in_few_lines() {
    let out = scratch("weights-misfit").join("f.npy");
    for file in ["optimizer", "state"] {
        let path = text(&newest().join(format!("{file}.safetensors")));
        let words = [&*path, "state of training"];
        refused(&embed(&out, &path, &[]), 2, &words);
    }
    let init = [
        "--init",
        run(),
        "--data",
        DATA,
        "--set",
        "train.batch_size=4",
    ];
    let init = [&init[..], &["--set", "model.arch=vit_tiny"]].concat();
    let answer = selfsame(&[&["plan", "--no-trial"], &init[..]].concat());
    let words = [
        "--init",
        "they are of vit_tiny/8 (width 48",
        "not those of vit_tiny/16",
        "2 of them: the model",
    ];
    refused(&answer, 2, &words);
    assert!(answer.stderr.lines().count() < 50, "{}", answer.stderr);
}

#[test]
fn arch_gives_a_run_another_patch_or_image_size_and_nothing_else() {
    let own = features("own", run(), &[]);
    assert_eq!(features("same", run(), &["--arch", "vit_tiny/8@32"]), own);
    let other = features("other", run(), &["--arch", "vit_tiny/4"]);
    assert_ne!(other, own);
    let file = text(&newest().join("teacher.safetensors"));
    assert_eq!(features("file", &file, &["--arch", "vit_tiny/4"]), other);
    let out = scratch("weights-arch").join("f.npy");
    for weights in [run(), &file, "pixels", "random:vit_tiny/8@32"] {
        for arch in ["resnet50", "nonsense", "vit_small/8", "vit_tiny/5"] {
            let answer = embed(&out, weights, &["--arch", arch]);
            refused(&answer, 2, &["--arch", arch]);
        }
    }
    assert!(!out.exists());
}

#[test]
fn a_file_of_a_checkpoint_that_is_not_as_written_is_refused() {
    let dir = scratch("weights-flipped");
    for name in ["manifest.json", "teacher.safetensors"] {
        std::fs::copy(newest().join(name), dir.join(name)).unwrap();
    }
    let file = dir.join("teacher.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let words = ["teacher.safetensors is damaged", "BLAKE3"];
    refused(&embed(&dir.join("f.npy"), &text(&file), &[]), 1, &words);
    refused(&selfsame(&["inspect", &text(&file)]), 1, &words);
}

#[test]
fn weights_that_are_not_finite_are_for_looking_at_only() {
    let dir = scratch("weights-nan");
    let timm = text(&dir.join("timm"));
    let flags = ["--format", "timm", "--out", &timm];
    done(&[&["export", "--weights", run()], &flags[..]].concat());
    let path = dir.join("timm/model.safetensors");
    let tensors = read_tensor_file(&path, &Device::Cpu).unwrap().tensors;
    let mut tensors: BTreeMap<_, _> = tensors.into_iter().collect();
    let broken = Tensor::full(f32::NAN, 48, &Device::Cpu).unwrap();
    tensors.insert("norm.bias".to_owned(), broken);
    let tensors: std::collections::HashMap<_, _> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let file = text(&path);

    let words = ["backbone.norm.bias", "not finite"];
    refused(&embed(&dir.join("f.npy"), &file, &[]), 1, &words);
    let out = text(&dir.join("out"));
    let export = ["export", "--weights", &file, "--format", "timm", "--out"];
    refused(&selfsame(&[&export[..], &[&out]].concat()), 1, &words);
    assert!(!Path::new(&out).exists());
    let told = done(&["inspect", &file]);
    assert!(
        told.contains("NOT FINITE") && told.contains(words[0]),
        "{told}"
    );
}

#[test]
fn a_folder_that_is_no_run_names_the_weights_in_it() {
    let dir = scratch("weights-folder");
    let inside = dir.join("someones.safetensors");
    std::fs::copy(newest().join("teacher.safetensors"), &inside).unwrap();
    let answer = embed(&dir.join("f.npy"), &text(&dir), &[]);
    refused(&answer, 2, &["is not a run", &text(&inside)]);
    let of_run = text(&RUN.join("checkpoints"));
    let answer = embed(&dir.join("f.npy"), &of_run, &[]);
    refused(&answer, 2, &["is not a run", &text(&newest())]);
}

/// A folder of timm's with the run's weights and a configuration of the test's.
fn timm_folder(name: &str, change: impl Fn(&mut serde_json::Value)) -> PathBuf {
    let dir = scratch(&format!("weights-timm-{name}"));
    let to = text(&dir);
    done(&["export", "--weights", run(), "--format=timm", "--out", &to]);
    let path = dir.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    // Without our own metadata, as timm writes it.
    let file = dir.join("model.safetensors");
    let tensors = read_tensor_file(&file, &Device::Cpu).unwrap().tensors;
    let nothing = BTreeMap::new();
    selfsame_checkpoint::write_tensors(&file, &tensors, &nothing).unwrap();
    dir
}

#[test]
fn what_a_config_beside_weights_says_is_followed_or_refused() {
    let pairs = timm_folder("pairs", |config| {
        config["model_args"]["img_size"] = serde_json::json!([32, 32]);
        config["pretrained_cfg"]["input_size"] = serde_json::json!([3, 224, 224]);
    });
    assert_eq!(
        features("pairs", &text(&pairs), &[]),
        features("run", run(), &[])
    );
    let other = timm_folder("mean", |config| {
        config["pretrained_cfg"]["mean"] = serde_json::json!([0.9, 0.1, 0.5]);
    });
    assert_ne!(
        features("mean", &text(&other), &[]),
        features("run", run(), &[])
    );
    let relu = timm_folder("relu", |config| {
        config["model_args"]["act_layer"] = serde_json::json!("relu");
    });
    let out = scratch("weights-refused").join("f.npy");
    refused(&embed(&out, &text(&relu), &[]), 2, &["act_layer", "--arch"]);
    let absurd = timm_folder("absurd", |config| {
        config["model_args"]["img_size"] = serde_json::json!(1_000_000_000_000u64);
    });
    refused(&embed(&out, &text(&absurd), &[]), 2, &["model.image_size"]);
    let flat = timm_folder("flat", |config| {
        config["pretrained_cfg"]["std"] = serde_json::json!([0.2, 0.0, 0.2]);
    });
    refused(&embed(&out, &text(&flat), &[]), 2, &["config.json", "std"]);
    std::fs::write(pairs.join("config.json"), "{").unwrap();
    refused(
        &embed(&out, &text(&pairs), &[]),
        2,
        &["config.json", "cannot be read as JSON: EOF"],
    );
}

#[test]
fn a_drawn_resnet_is_given_pictures_of_the_size_that_is_said() {
    assert_eq!(
        features("said", "random:resnet18@32", &[]),
        features("asked", "random:resnet18", &["--image-size=32"])
    );
    let out = scratch("weights-patches").join("f.npy");
    let answer = embed(&out, "random:resnet18/16@32", &[]);
    refused(&answer, 2, &["resnet18 has no patches"]);
}

#[test]
fn weights_begin_no_run_with_another_number_of_heads() {
    let dir = scratch("weights-heads");
    let begin = |sets: &[&str]| {
        let mut args = tiny_run(
            &dir.join("begun"),
            &["model.embed_dim=48", "train.max_steps=1"],
        );
        args.extend(["--init".to_owned(), run().to_owned()]);
        for set in sets {
            args.extend(["--set".to_owned(), (*set).to_owned()]);
        }
        selfsame(&args)
    };
    refused(
        &begin(&["model.num_heads=4"]),
        2,
        &["3 attention heads", "model.num_heads"],
    );
    assert!(!dir.join("begun").exists());
    assert_eq!(begin(&["model.num_heads=3"]).code, 0);
}

#[test]
fn finetuning_takes_a_rate_above_nothing() {
    let dir = scratch("weights-lr");
    let out = text(&dir.join("run"));
    for lr in ["-1", "nan", "0", "inf"] {
        let lr = format!("--lr={lr}");
        let mut args = vec![
            "finetune",
            "--weights",
            run(),
            "--train",
            DATA,
            "--test",
            DATA,
        ];
        args.extend(["--label", "gender", "--run", &out, &lr]);
        refused(&selfsame(&args), 2, &["--lr"]);
    }
    assert!(!dir.join("run").exists());
    let mut args = vec![
        "finetune",
        "--weights",
        run(),
        "--train",
        DATA,
        "--test",
        DATA,
    ];
    args.extend(["--label", "gender", "--run", &out, "--lr=1e300"]);
    refused(&selfsame(&args), 1, &["--lr below 1e300"]);
}

#[test]
fn what_takes_more_memory_than_there_is_is_refused_before_work() {
    let out = scratch("weights-memory").join("f.npy");
    let many = "synthetic:portraits?count=4000&seed=1";
    let size = ["--image-size", "16384"];
    let args = ["embed", "--weights", run(), "--data", many, "--batch-size"];
    let rest = ["4000", "--out", &text(&out)];
    let answer = selfsame(&[&args[..], &rest, &size].concat());
    refused(&answer, 2, &["--image-size", "memory"]);
    let args = ["knn", "--weights", "pixels", "--label", "gender"];
    let rest = ["--train", many, "--test", many];
    let answer = selfsame(&[&args[..], &rest, &size].concat());
    refused(&answer, 2, &["--image-size", "features"]);
}

#[test]
fn counts_and_blocks_that_cannot_be_are_named() {
    let dir = scratch("weights-counts");
    let out = text(&dir.join("out.png"));
    let attention = |weights: &str, extra: &[&str]| {
        let args = [
            "attention",
            "--weights",
            weights,
            "--data",
            DATA,
            "--out",
            &out,
        ];
        selfsame(&[&args[..], extra].concat())
    };
    refused(&attention(run(), &["--count", "0"]), 2, &["--count 0"]);
    refused(
        &attention(run(), &["--block", "2"]),
        2,
        &["2 blocks, 0 to 1"],
    );
    let answer = attention("random:resnet18@32", &["--block", "1"]);
    refused(&answer, 2, &["resnet18 has no blocks"]);
    let mut args = vec!["pca", "--weights", run(), "--data", DATA, "--patches"];
    args.extend(["--count", "0", "--out", &out]);
    refused(&selfsame(&args), 2, &["--count 0"]);
    let one = "synthetic:portraits?count=1&seed=1";
    let mut args = vec!["neighbors", "--weights", run(), "--data", one];
    args.extend(["--index", "0", "--out", &out]);
    refused(&selfsame(&args), 2, &["no picture beside"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn weights_that_are_not_there_are_named_by_the_flag_they_came_by() {
    let dir = scratch("weights-flags");
    let data = "synthetic:portraits?count=40&seed=3";
    let sides = ["--train", data, "--test", data, "--label", "gender"];
    let run = text(&dir.join("run"));
    let knn = |weights: &str, against: &str| {
        let flags = ["knn", "--weights", weights, "--image-size", "8", "--k", "1"];
        selfsame(&[&flags[..], &sides, &["--against", against]].concat())
    };
    let begin = |command: &str, weights: &str| {
        let mut args = tiny_run(&dir.join("run"), &[]);
        args.extend(["--init".to_owned(), weights.to_owned()]);
        args[0] = command.to_owned();
        selfsame(&args)
    };
    for (answer, words) in [
        (
            knn("nosuch", "pixels"),
            "error: --weights nosuch: no such run",
        ),
        (
            knn("pixels", "nosuch"),
            "error: --against nosuch: no such run",
        ),
        (
            knn("pixels", "random:x"),
            "error: --against random:x: \"x\" is not",
        ),
        (
            begin("train", "nosuch"),
            "error: --init nosuch: no such run",
        ),
        (begin("plan", "nosuch"), "error: --init nosuch: no such run"),
        (
            begin("train", "random:x"),
            "error: --init random:x: \"x\" is not",
        ),
        (
            begin("train", "pixels"),
            "error: --init pixels: this command needs",
        ),
        (
            selfsame(&["inspect", "nosuch"]),
            "error: nosuch: no such run",
        ),
        (
            selfsame(&[
                "attention",
                "--weights",
                "pixels",
                "--data",
                data,
                "--out",
                "x.png",
            ]),
            "error: --weights pixels: this command needs",
        ),
    ] {
        refused(&answer, 2, &[words]);
    }
    assert!(!Path::new(&run).exists());
}

#[test]
fn a_picture_is_no_file_of_weights() {
    let dir = scratch("weights-kinds");
    let picture = text(&dir.join("picture.jpg"));
    std::fs::write(&picture, common::bmp(8, [1, 2, 3])).unwrap();
    let words = ["picture.jpg", "neither a .safetensors file nor a .pth file"];
    refused(&selfsame(&["inspect", &picture]), 1, &words);
    refused(&embed(&dir.join("f.npy"), &picture, &[]), 1, &words);
    let random = embed(&dir.join("f.npy"), "random:vit_huge", &[]);
    let words = [
        "--weights random:vit_huge: \"vit_huge\" is not",
        "vit_base, resnet18",
    ];
    refused(&random, 2, &words);
}

/// The run's export for timm with other tensors and more metadata.
fn changed(dir: &Path, of: impl Fn(&str, &Tensor) -> Tensor, metadata: &[(&str, &str)]) -> String {
    let folder = dir.join("timm");
    let out = text(&folder);
    done(&["export", "--weights", run(), "--format=timm", "--out", &out]);
    let path = folder.join("model.safetensors");
    let mut file = read_tensor_file(&path, &Device::Cpu).unwrap();
    for (name, tensor) in &mut file.tensors {
        *tensor = of(name, tensor);
    }
    let metadata = metadata.iter();
    file.metadata
        .extend(metadata.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    write_tensors(&path, &file.tensors, &file.metadata).unwrap();
    text(&path)
}

#[test]
fn features_that_are_no_numbers_are_not_written() {
    let dir = scratch("weights-huge");
    let huge = |name: &str, tensor: &Tensor| match name {
        "norm.weight" => (tensor.ones_like().unwrap() * 3e38).unwrap(),
        _ => tensor.clone(),
    };
    let file = changed(&dir, huge, &[]);
    for out in ["f.npy", "f.csv", "f.safetensors"] {
        let answer = embed(&dir.join(out), &file, &[]);
        refused(&answer, 1, &["of its 48 features are not finite"]);
        assert!(!dir.join(out).exists());
    }
}

#[test]
fn what_a_file_says_of_itself_gives_a_terminal_no_orders() {
    let dir = scratch("weights-escapes");
    let odd = "\u{1b}[2J\n";
    let file = changed(&dir, |_, tensor| tensor.clone(), &[("note", odd)]);
    let told = done(&["inspect", &file]);
    assert!(told.contains("metadata note: \\u{1b}[2J\\n\n"), "{told:?}");

    let mut tensors = read_tensor_file(Path::new(&file), &Device::Cpu).unwrap();
    let name = format!("blocks.0.{odd}");
    tensors
        .tensors
        .insert(name, Tensor::new(1f32, &Device::Cpu).unwrap());
    write_tensors(Path::new(&file), &tensors.tensors, &tensors.metadata).unwrap();
    let answer = selfsame(&["inspect", &file]);
    refused(&answer, 1, &["\\u{1b}[2J"]);
    assert!(!answer.stderr.contains('\u{1b}'), "{:?}", answer.stderr);
}
