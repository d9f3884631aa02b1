//! What is drawn of which pictures, and what is refused: `attention`, `neighbors`, `pca`, `tsne`,
//! `preview`, and the pages of a small ResNet and of odd runs.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{Answer, done, holds, put_data, scratch, selfsame, text, tiny_run};
use serde_json::Value;

const WEIGHTS: &str = "random:vit_tiny/8@16";

/// A folder of small pictures that differ.
fn pictures(dir: &Path, count: usize) -> PathBuf {
    let folder = dir.join("pictures");
    std::fs::create_dir(&folder).unwrap();
    for i in 0..count {
        let value = |x: u32, y: u32| (i as u32 * 37 + x * 5 * (i as u32 + 1) + y * 3) as u8;
        let picture = image::RgbImage::from_fn(24, 24, |x, y| image::Rgb([value(x, y), 90, 200]));
        picture.save(folder.join(format!("{i}.png"))).unwrap();
    }
    folder
}

fn with<'a>(args: &[&'a str], out: &'a str) -> Vec<&'a str> {
    let mut all = args.to_vec();
    all.extend(["--out", out]);
    all
}

fn refused(args: &[&str], words: &[&str]) {
    let answer = selfsame(args);
    assert_eq!(answer.code, 2, "{args:?}: {}", answer.stderr);
    for word in words {
        assert!(holds(&answer.stderr, word), "{word}: {}", answer.stderr);
    }
}

fn drawn(args: &[&str]) -> Answer {
    let answer = selfsame(args);
    assert_eq!(answer.code, 0, "{args:?}: {}", answer.stderr);
    answer
}

#[test]
fn a_file_of_the_data_is_not_its_own_neighbour() {
    let dir = scratch("looking-own");
    let folder = pictures(&dir, 5);
    let (data, out) = (text(&folder), text(&dir.join("near.png")));
    let file = text(&folder.join("3.png"));
    let roundabout = text(&folder.join("../pictures/3.png"));
    #[cfg(not(unix))]
    let links: [String; 0] = [];
    #[cfg(unix)]
    let links = {
        let link = dir.join("elsewhere.png");
        std::os::unix::fs::symlink(folder.join("3.png"), &link).unwrap();
        [text(&link)]
    };
    for path in [file, roundabout].iter().chain(&links) {
        let args = ["neighbors", "--weights", WEIGHTS, "--data", &data];
        let mut args = with(&args, &out);
        args.extend(["--image", path, "--threads", "1", "--json"]);
        let answer = drawn(&args);
        let told: Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!((&told["n"], &told["index"]), (&4.into(), &3.into()));
        let near = told["neighbors"].as_array().unwrap();
        assert!(near.iter().all(|n| n["file"] != "3.png"), "{path}: {told}");
        assert!(answer.stderr.contains("is picture 3 of --data"), "{path}");
        assert!(
            answer
                .stderr
                .contains("4 of 4 pictures, fewer than --count 9")
        );
    }
    // A copy is another picture, and the nearest.
    let copy = dir.join("copy.png");
    std::fs::copy(folder.join("3.png"), &copy).unwrap();
    let copy = text(&copy);
    let args = ["neighbors", "--weights", WEIGHTS, "--data", &data];
    let mut args = with(&args, &out);
    args.extend(["--image", &copy, "--threads", "1", "--json"]);
    let told: Value = serde_json::from_str(&done(&args)).unwrap();
    assert_eq!((&told["n"], &told["index"]), (&5.into(), &Value::Null));
    assert_eq!(told["neighbors"][0]["file"], "3.png");
}

#[test]
fn a_picture_that_is_not_there_is_a_wrong_flag() {
    let dir = scratch("looking-missing");
    let folder = text(&pictures(&dir, 2));
    let out = text(&dir.join("none.png"));
    for path in ["/no/such/photo.jpg", &folder] {
        refused(
            &with(&["preview", "--image", path], &out),
            &["--image", path],
        );
        let args = ["attention", "--weights", WEIGHTS, "--image", path];
        refused(&with(&args, &out), &["--image", path]);
        let mut args = vec!["neighbors", "--weights", WEIGHTS, "--data", &folder];
        args.extend(["--image", path]);
        refused(&with(&args, &out), &["--image", path]);
    }
    // What is there and cannot be decoded is no mistake in the command, but its flag is named.
    let words = text(&dir.join("words.txt"));
    std::fs::write(&words, "words").unwrap();
    let answer = selfsame(&with(&["preview", "--image", &words], &out));
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(answer.stderr.contains("--image"), "{}", answer.stderr);
    assert!(!dir.join("none.png").exists());
}

#[test]
fn flags_without_effect_are_refused_or_listed_as_such() {
    let dir = scratch("looking-flags");
    let folder = pictures(&dir, 3);
    let file = text(&folder.join("0.png"));
    let (folder, out) = (text(&folder), text(&dir.join("out.png")));
    let preview = ["preview", "--image", &file, "--index", "0"];
    refused(&with(&preview, &out), &["--image", "--index"]);
    for flag in ["--count", "--seed"] {
        let args = [
            "attention",
            "--weights",
            WEIGHTS,
            "--image",
            &file,
            flag,
            "3",
        ];
        refused(&with(&args, &out), &["--image", flag]);
    }
    let args = [
        "pca",
        "--weights",
        WEIGHTS,
        "--data",
        &folder,
        "--count",
        "3",
    ];
    refused(&with(&args, &out), &["--patches"]);
    let args = [
        "tsne",
        "--weights",
        WEIGHTS,
        "--data",
        &folder,
        "--iterations",
        "0",
    ];
    refused(&with(&args, &out), &["--iterations"]);
    assert!(!dir.join("out.png").exists());

    // One command line serves train, plan and preview: theirs are listed apart.
    let help = done(&["preview", "--help"]);
    let (own, of_train) = help
        .split_once("Flags of train, without effect here:")
        .unwrap();
    for flag in [
        "--val",
        "--device",
        "--precision",
        "--threads",
        "--max-memory",
    ] {
        let flag = format!("{flag} <");
        assert!(of_train.contains(&flag) && !own.contains(&flag), "{flag}");
    }
    assert!(own.contains("--index <") && own.contains("--layout <"));
}

#[test]
fn how_many_are_shown_is_told_and_a_sheet_too_large_refused() {
    let dir = scratch("looking-count");
    let folder = text(&pictures(&dir, 3));
    let out = text(&dir.join("out.png"));
    let flags = ["--weights", WEIGHTS, "--threads", "1"];
    let draw = |args: &[&str]| drawn(&with(&[args, &flags].concat(), &out)).stderr;
    let told = draw(&["attention", "--data", &folder, "--count", "2"]);
    assert!(told.contains("2 of 3 pictures\n"), "{told}");
    for command in [&["attention"][..], &["pca", "--patches"]] {
        let told = draw(&[command, &["--data", &folder, "--count", "99999"]].concat());
        assert!(
            told.contains("3 of 3 pictures, fewer than --count 99999"),
            "{told}"
        );
    }
    let many = "synthetic:portraits?count=5000&seed=0";
    std::fs::remove_file(&out).unwrap();
    for command in [
        &["attention", "--count", "5000"][..],
        &["pca", "--patches", "--count", "5000"],
        &["neighbors", "--index", "0", "--count", "4999"],
    ] {
        let args = [command, &flags, &["--data", many]].concat();
        refused(&with(&args, &out), &["--count", "is the most that fits"]);
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_map_of_one_cell_is_no_map_of_zeros() {
    let dir = scratch("looking-cell");
    let out = dir.join("out.png");
    let file = dir.join("grey.png");
    image::RgbImage::from_pixel(40, 40, image::Rgb([150; 3]))
        .save(&file)
        .unwrap();
    let (file, out_text) = (text(&file), text(&out));
    let args = [
        "attention",
        "--weights",
        "random:resnet18",
        "--image",
        &file,
    ];
    let mut args = with(&args, &out_text);
    args.extend(["--image-size", "32"]);
    let told = drawn(&args).stderr;
    assert!(
        told.contains("one cell") && told.contains("--image-size"),
        "{told}"
    );
    // The picture, and the panel beside it that has no colour to give it.
    let sheet = image::open(&out).unwrap().to_rgb8();
    let grey = sheet.pixels().filter(|pixel| pixel.0 == [150; 3]).count();
    assert!(grey >= 2 * 224 * 224, "{grey}");
}

#[test]
fn a_picture_too_small_for_one_cell_is_left_out_of_a_set() {
    let dir = scratch("looking-tiny");
    let folder = pictures(&dir, 2);
    let tiny = folder.join("tiny.png");
    image::RgbImage::new(24, 4).save(&tiny).unwrap();
    let (data, tiny) = (text(&folder), text(&tiny));
    let out = text(&dir.join("maps.png"));
    let whole = ["attention", "--weights", WEIGHTS, "--whole"];
    let all = [&whole[..], &["--data", &data]].concat();
    let answer = drawn(&with(&all, &out));
    for words in [
        "tiny.png: a picture of 24 × 4 is smaller",
        "2 of 3 pictures",
    ] {
        assert!(answer.stderr.contains(words), "{words}: {}", answer.stderr);
    }
    let alone = [&whole[..], &["--image", &tiny]].concat();
    let answer = selfsame(&with(&alone, &out));
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("than a patch of 8"),
        "{}",
        answer.stderr
    );
}

#[test]
fn values_are_counted_where_pictures_are_and_small_resnets_shown_larger() {
    let dir = scratch("report-resnet");
    let folder = |name: &str, first: u8| {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        for i in first..first + 12 {
            let picture = image::RgbImage::from_fn(32, 32, |x, y| {
                image::Rgb([i * 9, (x * 7) as u8, (y * 3) as u8 ^ i])
            });
            let file = format!("{i}_Person{i}_{}_f.png", 20 + i);
            picture.save(folder.join(file)).unwrap();
        }
        text(&folder)
    };
    let (train, val) = (folder("train", 0), folder("val", 12));
    let run = dir.join("run");
    // The last weights are those of the snapshot too.
    let sets = ["model.arch=resnet18", "train.snapshot_every_epochs=1"];
    let mut args = tiny_run(&run, &[&sets[..], &["train.epochs=1"]].concat());
    args.retain(|arg| arg != "--no-report");
    // A ResNet has none of these.
    for key in ["model.embed_dim", "model.depth", "model.num_heads"] {
        let at = args.iter().position(|arg| arg.starts_with(key)).unwrap();
        args.drain(at - 1..=at);
    }
    put_data(&mut args, train);
    args.extend(["--val".to_owned(), val]);
    done(&args);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("12 values among 12 pictures to learn from: too many"));
    assert!(page.contains("with 64 pixels, twice what it was trained at"));
}

#[test]
fn a_result_that_cannot_be_written_is_refused_before_work() {
    let dir = scratch("looking-out");
    let data = text(&pictures(&dir, 3));
    // Which would be told after them.
    for i in 0..3 {
        std::fs::write(format!("{data}/{i}.png"), "no picture").unwrap();
    }
    let out = |kind: &str| text(&dir.join("none").join(format!("out.{kind}")));
    for (command, kind) in [
        (&["embed"][..], "npy"),
        (&["tsne"], "svg"),
        (&["pca"], "csv"),
        (&["pca", "--patches"], "png"),
        (&["attention"], "png"),
        (&["neighbors", "--index", "0"], "png"),
    ] {
        let args = [command, &["--weights", WEIGHTS, "--data", &data]].concat();
        refused(&with(&args, &out(kind)), &["--out", "looking-out/none: "]);
    }
    let preview = ["preview", "--data", &data];
    refused(
        &with(&preview, &out("png")),
        &["--out", "looking-out/none: "],
    );

    let tsne = ["tsne", "--weights", WEIGHTS, "--data", &data];
    let there = text(&dir.join("map.svg"));
    let mut args = with(&tsne, &there);
    args.extend(["--perplexity", "0"]);
    refused(&args, &["--perplexity: 0 is not"]);
}

#[test]
fn a_command_without_a_picture_names_every_flag_that_gives_one() {
    let data = "synthetic:portraits?count=3";
    let attention = ["attention", "--weights", WEIGHTS];
    let neighbors = ["neighbors", "--weights", WEIGHTS, "--data", data];
    let out = "looking-none.png";
    refused(&with(&attention, out), &["--image", "--data"]);
    refused(&with(&neighbors, out), &["--image", "--index"]);
    let both = [&attention[..], &["--image", "a.png", "--data", data]].concat();
    refused(&with(&both, out), &["cannot be used with"]);
    let one = ["--data", "synthetic:portraits?count=1"];
    let pca = [&["pca", "--weights", WEIGHTS], &one[..]].concat();
    refused(&with(&pca, "looking-one.svg"), &["--data", "two pictures"]);
}

#[test]
fn a_side_of_one_picture_costs_a_page_its_scores_and_no_more() {
    let dir = scratch("looking-few");
    let run = dir.join("run");
    done(&tiny_run(&run, &["train.max_steps=1"]));
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let report = |from: &str, to: &str| {
        assert!(config.contains(from), "{config}");
        std::fs::write(run.join("config.toml"), config.replace(from, to)).unwrap();
        let told = drawn(&["report", &text(&run)]).stderr;
        let page = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(page.contains("Training loss"));
        (told, page)
    };
    let one = "synthetic:portraits?count=1";
    let (_, page) = report("synthetic:portraits?count=40&seed=3", one);
    let words = format!("fewer than two pictures of {one} can be used");
    assert!(page.contains(&words), "{page}");
    let (told, page) = report("val = \"\"", &format!("val = \"{one}\""));
    let words = format!("without pictures of {one}: fewer than two can be used");
    assert!(told.contains(&words), "{told}");
    assert!(page.contains("40 pictures, each by the others"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_no_text_is_followed_or_refused() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let dir = scratch("looking-bytes");
    let plain = dir.join("plain");
    let sets = ["train.max_steps=1", "train.snapshot_every_epochs=1"];
    done(&tiny_run(&plain, &sets));
    let run = dir.join(OsString::from_vec(b"run-\xff".to_vec()));
    std::fs::rename(plain, &run).unwrap();
    let told = |args: &[&str], path: &Path| {
        Answer::from(common::command(args).arg(path).output().unwrap())
    };
    let answer = told(&["report", "--json"], &run);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let value: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert!(value["scores"].is_object(), "{value} {}", answer.stderr);
    assert!(value["out"].is_string(), "{value}");

    // A damaged snapshot costs its column.
    let snapshots = run.join("snapshots");
    std::fs::create_dir_all(&snapshots).unwrap();
    std::fs::write(snapshots.join("epoch-0001.safetensors"), "no weights").unwrap();
    let answer = told(&["report", "--json"], &run);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let left_out = "the snapshot of epoch 1 is left out";
    assert!(answer.stderr.contains(left_out), "{}", answer.stderr);

    let answer = told(&["config", "--images-root"], &run);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("--images-root"), "{}", answer.stderr);
}
