//! Bad input: one clear error that names the file, line or key, exit code 2, and no run directory.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::path::Path;
use std::process::Command;

/// Runs `selfsame train --run DIR/run` with these flags; its exit code and stderr.
fn train(dir: &Path, args: &[&str]) -> (i32, String) {
    let run = dir.join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["train", "--run", run.to_str().unwrap()])
        .args(args)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Exit code and all that was said.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_selfsame");
    let output = Command::new(program).args(args).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

fn refused(args: &[&str], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = train(dir.path(), args);
    assert_eq!(code, 2, "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: {word:?} is not in: {text}");
    }
    assert!(
        !dir.path().join("run").exists(),
        "{args:?} left a run directory"
    );
}

const DATA: [&str; 2] = ["--data", "synthetic:portraits?count=40&seed=0"];

#[test]
fn a_missing_folder_is_named() {
    let folder = std::path::absolute("/no/such/folder").unwrap();
    let folder = folder.to_str().unwrap();
    refused(&["--data", folder], &[folder]);
}

#[test]
fn an_empty_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    refused(&["--data", path], &[path]);
}

#[test]
fn a_bad_csv_row_is_named_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("annotations.csv");
    std::fs::write(&csv, "Images,Name,Age,Gender\na.jpg,Ann,3x,f\n").unwrap();
    refused(
        &["--data", csv.to_str().unwrap()],
        &["annotations.csv:2", "3x"],
    );
}

#[test]
fn unknown_presets_and_keys_come_with_the_nearest_known_one() {
    refused(
        &[&DATA[..], &["--preset", "oficial"]].concat(),
        &["oficial", "did you mean official"],
    );
    let set = ["--set", "optim.learning_rat=1"];
    refused(
        &[&DATA[..], &set].concat(),
        &["optim.learning_rat", "did you mean optim."],
    );
}

#[test]
fn an_impossible_schedule_names_both_numbers() {
    let args = [&DATA[..], &["--set", "train.epochs=5"]].concat();
    refused(&args, &["optim.warmup_epochs", "10", "5"]);
}

#[test]
fn a_crop_that_the_patch_does_not_divide_is_named() {
    let args = [&DATA[..], &["--set", "augment.local_size=50"]].concat();
    refused(&args, &["augment.local_size", "50", "16"]);
}

#[test]
fn fewer_images_than_a_batch_name_both_numbers() {
    refused(
        &[&DATA[..], &["--set", "train.batch_size=64"]].concat(),
        &["40", "64"],
    );
}

#[test]
fn a_directory_that_holds_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    std::fs::write(dir.path().join("run/thesis.txt"), "mine").unwrap();
    let (code, text) = train(dir.path(), &DATA);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("not empty"), "{text}");
    assert_eq!(
        std::fs::read_to_string(dir.path().join("run/thesis.txt")).unwrap(),
        "mine"
    );
}

#[test]
fn a_run_within_its_pictures_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().to_str().unwrap();
    let pixels = image::RgbImage::new(40, 40);
    for i in 0..9 {
        pixels.save(dir.path().join(format!("{i}.png"))).unwrap();
    }
    let batch = ["--set", "train.batch_size=8"];
    let (code, text) = train(dir.path(), &[&["--data", pictures], &batch[..]].concat());
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("--run") && text.contains("lies within --data"),
        "{text}"
    );
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_step_that_never_comes_cannot_be_captured() {
    let set = ["--capture-step", "500", "--set", "train.batch_size=8"];
    refused(
        &[&DATA[..], &set].concat(),
        &["--capture-step 500", "500 steps"],
    );
}

#[test]
fn a_learning_rate_is_shown_as_it_was_typed() {
    let set = ["--set", "optim.lr=-1", "--set", "train.batch_size=8"];
    refused(&[&DATA[..], &set].concat(), &["optim.lr: -1 is negative"]);
}

#[test]
fn a_label_that_does_not_exist_is_named_beside_those_that_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args([
            "knn",
            "--weights",
            "pixels",
            "--train",
            DATA[1],
            "--test",
            DATA[1],
        ])
        .args(["--label", "height"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("height") && text.contains("gender"), "{text}");
}

#[test]
fn config_takes_the_flags_of_train_and_says_where_each_value_is_from() {
    let flags = [
        "--run",
        "there",
        "--init",
        "pixels",
        "--resume",
        "--no-report",
    ];
    let others = [
        "--accept-data-change",
        "--capture-step",
        "3",
        "--preset",
        "official",
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .arg("config")
        .args([&DATA[..], &flags, &others].concat())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.starts_with("# A value without a comment is the default"),
        "{shown}"
    );
    assert!(
        shown.contains("out_dim = 65536  # preset official"),
        "{shown}"
    );
    assert!(!Path::new("there").exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["config", "--preset", "official"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .arg("config")
        .stdout(full.unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("writing to standard output"), "{text}");
}

#[test]
fn tf32_and_resnets_in_bf16_are_not_for_a_cpu() {
    for device in ["cpu", "auto"] {
        let tf32 = ["--precision", "tf32", "--device", device];
        let bf16 = ["--precision", "bf16", "--set", "model.arch=resnet18"];
        // Where a GPU is found, `auto` is no mistake.
        if device == "cpu" || !cfg!(feature = "cuda") {
            refused(
                &[&DATA[..], &tf32].concat(),
                &["train.precision", "tf32", "CUDA"],
            );
            let args = [&DATA[..], &bf16, &["--device", device]].concat();
            refused(&args, &["train.precision", "bf16", "CUDA"]);
        }
    }
}

#[test]
fn pictures_are_named_absolutely_wherever_they_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = "[data]\nval = \"v\"\nimages_root = \"r/s\"\n";
    std::fs::write(dir.path().join("mine.toml"), file).unwrap();
    let config = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
            .arg("config")
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Where a link leads, as the program is told where it is.
    let here = match cfg!(unix) {
        true => std::fs::canonicalize(dir.path()).unwrap(),
        false => dir.path().to_owned(),
    };
    let of = |path: &str| {
        let path = std::path::absolute(here.join(path)).unwrap();
        toml::Value::from(path.to_str().unwrap()).to_string()
    };
    let shown = config(&["--config", "mine.toml", "--set", "data.train=p/q.csv"]);
    for line in [
        format!("train = {}  # --set", of("p/q.csv")),
        format!("val = {}  # mine.toml", of("v")),
        format!("images_root = {}  # mine.toml", of("r/s")),
    ] {
        assert!(shown.contains(&line), "{line} is not in {shown}");
    }
    let drawn = "synthetic:portraits?count=4";
    let shown = config(&["--set", &format!("data.train={drawn}")]);
    assert!(shown.contains(&format!("train = \"{drawn}\"")), "{shown}");
    assert!(
        shown.contains("val = \"\"") && shown.contains("images_root = \"\""),
        "{shown}"
    );
    let shown = config(&["--set", "train.init=/two", "--init", "/one"]);
    assert!(shown.contains("init = \"/two\"  # --set"), "{shown}");
}

#[test]
fn huge_numbers_are_refused_or_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let huge = u64::MAX.to_string();
    let few = "synthetic:portraits?count=4&seed=18446744073709551615";
    let (out, png) = (at("f.npy"), at("f.png"));
    let embed = ["embed", "--weights", "pixels", "--data", few, "--out", &out];
    let attention = [
        "attention",
        "--weights",
        "random:vit_tiny/8@16",
        "--data",
        few,
        "--out",
        &png,
    ];
    for (args, flag) in [
        (
            [&embed[..], &["--image-size", &huge]].concat(),
            "--image-size",
        ),
        (
            [&embed[..], &["--image-size", "20000"]].concat(),
            "--image-size",
        ),
        ([&embed[..], &["--resize", "1e300"]].concat(), "--resize"),
        ([&embed[..], &["--resize", "1e9"]].concat(), "--resize"),
        (
            [&attention[..], &["--image-size", &huge]].concat(),
            "--image-size",
        ),
        (
            [&attention[..], &["--image-size", "0"]].concat(),
            "--image-size",
        ),
        (vec!["demo", "--run", &png, "--seed", &huge], "--seed"),
        (
            [&["config"], &DATA[..], &["--threads", &huge]].concat(),
            "--threads",
        ),
    ] {
        let (code, text) = run(&args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.contains(flag), "{args:?}: {text}");
    }
    let (code, text) = run(&[&embed[..], &["--workers", &huge, "--image-size", "16"]].concat());
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_preset_may_be_spelled_with_capitals_and_help_names_all() {
    let selfsame = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfsame"));
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let config = |preset: &str| selfsame(&["config", "--preset", preset]);
    assert_eq!(config("CPU"), config("cpu"));
    let (code, text) = train(Path::new("never"), &["--preset", "nosuch"]);
    assert_eq!(code, 2, "{text}");
    let names = text.trim_end().split_once("There are: ").unwrap().1;
    let help = selfsame(&["train", "--help"]);
    for name in names.split(", ") {
        assert!(help.contains(name), "{name} is not in: {help}");
    }
    for words in ["default: notebook", "default: auto", "may be repeated"] {
        assert!(help.contains(words), "{words} is not in: {help}");
    }
}

#[test]
fn a_demo_takes_no_folder_away_that_is_not_a_demos() {
    let dir = tempfile::tempdir().unwrap();
    let thesis = dir.path().join("thesis.txt");
    std::fs::write(&thesis, "years").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["demo", "--run", dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("not an earlier demo"), "{told}");
    assert_eq!(std::fs::read_to_string(&thesis).unwrap(), "years");

    // Nor what somebody laid into one.
    std::fs::write(dir.path().join("demo.txt"), "made by selfsame demo").unwrap();
    std::fs::write(dir.path().join("summary.txt"), "scores").unwrap();
    let (code, told) = run(&["demo", "--run", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("holds thesis.txt, which is no demo's"),
        "{told}"
    );
    std::fs::rename(&thesis, dir.path().join("metrics-before-2.jsonl")).unwrap();
    std::fs::create_dir(dir.path().join("export")).unwrap();
    let thesis = dir.path().join("export/thesis.txt");
    std::fs::write(&thesis, "years").unwrap();
    let (code, told) = run(&["demo", "--run", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("holds export/thesis.txt"), "{told}");
    assert_eq!(std::fs::read_to_string(&thesis).unwrap(), "years");
}

#[test]
fn a_flag_with_nothing_behind_it_is_no_flag_left_out() {
    for command in ["config", "train", "plan"] {
        for flag in ["--init", "--val", "--device"] {
            let args = [&[command], &DATA[..], &["--run", "none", flag, ""]].concat();
            let (code, told) = run(&args);
            assert_eq!(code, Some(2), "{told}");
            assert!(told.contains(&format!("{flag}: it is empty")), "{told}");
        }
    }
}

#[test]
fn another_architecture_has_not_the_sizes_of_a_preset() {
    for (preset, arch) in [
        ("cpu-hour", "vit_base"),
        ("demo", "resnet18"),
        ("official", "resnet50"),
    ] {
        let arch = format!("model.arch={arch}");
        let (code, told) = run(&["config", "--preset", preset, "--set", &arch]);
        assert_eq!(code, Some(0), "{preset} {arch}: {told}");
        assert!(told.contains("so what the preset says of model."), "{told}");
        assert!(told.contains("\nembed_dim = 0\n"), "{told}");
    }
    let sets = ["--set", "model.arch=vit_small", "--set", "model.depth=6"];
    let (code, told) = run(&[&["config", "--preset", "cpu-hour"], &sets[..]].concat());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("\ndepth = 6 "), "{told}");
    let (_, told) = run(&["config", "--preset", "cpu-hour"]);
    assert!(told.contains("\nembed_dim = 128 "), "{told}");
}

#[test]
fn a_run_directory_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.csv");
    std::fs::write(&file, "Images\n").unwrap();
    let file = file.to_str().unwrap();
    let data = "synthetic:portraits?count=64";
    let scored = ["--train", data, "--test", data, "--label", "gender"];
    let tuned = [
        &["finetune", "--weights", "random:vit_tiny/8@16"],
        &scored[..],
    ]
    .concat();
    for args in [&["train", "--data", data][..], &["demo"], &tuned] {
        let output = Command::new(env!("CARGO_BIN_EXE_selfsame"))
            .args(args)
            .args(["--run", file])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains(&format!("--run {file}: that is a file")),
            "{told}"
        );
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "Images\n");
}
