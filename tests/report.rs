//! Looking at a run: its page and its pictures, from one tiny run.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use common::{done, metrics, scratch, selfsame, text, tiny_run};
use serde_json::Value;

const DATA: &str = "synthetic:portraits?count=24&seed=1";

const NEWEST: &str = "checkpoints/step-00000015";

/// One run for all tests, with its page; nothing below changes it.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let run = scratch("report").join("run");
    let mut args = tiny_run(
        &run,
        &["train.snapshot_every_epochs=1", "train.knn_every_epochs=1"],
    );
    args.retain(|arg| arg != "--no-report");
    done(&args);
    run
});

fn run() -> &'static str {
    RUN.to_str().unwrap()
}

/// The one JSON object that stdout must be.
fn json(args: &[&str]) -> Value {
    let stdout = done(args);
    let value: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{args:?}: not one JSON value ({error}): {stdout:?}"));
    assert!(value.is_object(), "{value}");
    value
}

/// The run again, with its newest checkpoint alone.
fn copy_to(dir: &Path) {
    std::fs::create_dir_all(dir.join(NEWEST)).unwrap();
    let checkpoint = std::fs::read_dir(RUN.join(NEWEST)).unwrap();
    let files = checkpoint.map(|entry| Path::new(NEWEST).join(entry.unwrap().file_name()));
    for file in files.chain(["config.toml", "metrics.jsonl"].map(PathBuf::from)) {
        std::fs::copy(RUN.join(&file), dir.join(&file)).unwrap();
    }
}

fn page() -> String {
    std::fs::read_to_string(RUN.join("report.html")).unwrap()
}

/// The text between `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before}"))
        .1;
    rest.split_once(after).unwrap().0
}

fn numbers(text: &str) -> Vec<f64> {
    text.split(' ')
        .map(|number| number.parse().unwrap())
        .collect()
}

#[test]
fn the_page_holds_every_section_and_asks_for_nothing() {
    let page = page();
    for heading in [
        "Verdict",
        "Scores",
        "Curves",
        "Map of the features",
        "Attention",
        "Nearest neighbours",
        "Augmentation",
        "Data",
        "Configuration",
        "Environment and how to do it again",
    ] {
        assert!(page.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    for part in ["<script", "src=\"http", "href=\"http", "url(", "@import"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.matches("<img ").count() > 3 && page.matches("<svg ").count() > 3);
    for tag in page.split("<img ").skip(1) {
        let tag = tag.split('>').next().unwrap();
        assert!(tag.starts_with("src=\"data:image/png;base64,") && !tag.contains("alt=\"\""));
        assert!(tag.contains("alt=\""));
    }
    assert_eq!(
        page.matches("<svg ").count(),
        page.matches("<svg role=\"img\" aria-label=").count()
    );
    // Set by the tiny run, hence listed with its source.
    assert!(page.contains("<th scope=\"row\">head.out_dim</th><td>32</td><td>--set</td>"));
    for name in ["after training", "random weights", "raw pixels"] {
        assert!(page.contains(name), "{name}");
    }
    assert!(page.contains("each with the 6 of 39 others whose features are nearest"));
    assert!(page.contains("one standard error of the last point is"));
    assert!(page.contains("logistic regression is not fitted, since no pictures are held out"));
    for key in ["feature_std", "grad_norm", "images_per_s", "data_wait_frac"] {
        assert!(!page.contains(&format!(">{key}<")), "{key} in words");
    }
}

#[test]
fn the_loss_curve_is_that_of_the_log() {
    let page = page();
    let chart = between(&page, "<g data-chart=\"Training loss\" ", "<h2>");
    let pixels = numbers(between(chart, "data-box=\"", "\""));
    let (top, bottom) = (pixels[2], pixels[3]);
    let range = numbers(between(chart, "data-y=\"", "\""));
    let path = between(
        between(chart, "data-series=\"loss\"", "</g>"),
        " d=\"",
        "\"",
    );
    let drawn = path.split(['M', 'L']).skip(1).map(|point| {
        let y: f64 = point.split(' ').nth(1).unwrap().parse().unwrap();
        range[0] + (bottom - y) / (bottom - top) * (range[1] - range[0])
    });
    let drawn: Vec<f64> = drawn.collect();
    let logged: Vec<f64> = metrics(&RUN)
        .iter()
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert_eq!(drawn.len(), 15);
    assert_eq!(drawn.len(), logged.len());
    let step = 0.01 / (bottom - top) * (range[1] - range[0]); // what a coordinate's last digit is
    for (drawn, logged) in drawn.iter().zip(&logged) {
        assert!((drawn - logged).abs() <= step, "{drawn} {logged}");
    }
}

#[test]
fn a_page_is_made_again_on_demand_with_the_same_bytes() {
    let out = text(&scratch("report-again").join("page.html"));
    done(&["report", run(), "--out", &out]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), page());
    let answer = selfsame(&["report", &text(&scratch("report-none"))]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("is not a run"), "{}", answer.stderr);
}

#[test]
fn a_run_without_a_checkpoint_has_a_page_with_its_curves() {
    let dir = scratch("report-going").join("run");
    std::fs::create_dir(&dir).unwrap();
    for file in ["config.toml", "metrics.jsonl"] {
        std::fs::copy(RUN.join(file), dir.join(file)).unwrap();
    }
    done(&["report", &text(&dir)]);
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("There are none yet") && page.contains("Training loss"));
}

#[test]
fn weights_that_cannot_be_used_are_told_on_the_page_and_beside_it() {
    let dir = scratch("report-damaged");
    for name in ["damaged", "other"] {
        let other = dir.join(name);
        copy_to(&other);
        let words = match name {
            "damaged" => {
                let file = other.join(NEWEST).join("teacher.safetensors");
                let mut bytes = std::fs::read(&file).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(file, bytes).unwrap();
                "teacher.safetensors"
            }
            _ => {
                let config = std::fs::read_to_string(other.join("config.toml")).unwrap();
                let config = config.replace("embed_dim = 64", "embed_dim = 96");
                std::fs::write(other.join("config.toml"), config).unwrap();
                "backbone."
            }
        };
        let answer = selfsame(&["report", &text(&other)]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let told = &answer.stderr;
        assert!(told.contains("warning: without scores: "), "{told}");
        assert!(told.contains(words), "{told}");
        let page = std::fs::read_to_string(other.join("report.html")).unwrap();
        assert!(!page.contains("There are none yet"), "{name}");
        let scores = between(
            &page,
            "There are none, since the weights cannot be used: ",
            "</p>",
        );
        assert!(scores.contains(words), "{scores}");
        assert!(page.contains("Training loss"));
    }
}

#[test]
fn pictures_that_are_gone_are_told_on_the_page() {
    let dir = scratch("report-moved").join("run");
    copy_to(&dir);
    let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
    let moved = config.replace("synthetic:portraits?count=40&seed=3", "/no/such/folder");
    std::fs::write(dir.join("config.toml"), moved).unwrap();
    done(&["report", &text(&dir)]);
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    let told = "There are none, since the pictures of /no/such/folder cannot be opened.";
    assert!(page.contains(told));
}

#[test]
fn maps_come_as_pictures_and_as_coordinates() {
    let dir = scratch("report-maps");
    for command in ["tsne", "pca"] {
        for kind in ["svg", "png", "csv"] {
            let out = dir.join(format!("{command}.{kind}"));
            let out_text = text(&out);
            let mut args = vec![
                command,
                "--weights",
                run(),
                "--data",
                DATA,
                "--out",
                &out_text,
            ];
            args.extend(["--label", "gender", "--threads", "1"]);
            if command == "tsne" {
                args.extend(["--perplexity", "5", "--iterations", "300"]);
            }
            done(&args);
            let bytes = std::fs::read(&out).unwrap();
            match kind {
                "svg" => {
                    let svg = String::from_utf8(bytes).unwrap();
                    assert!(svg.contains("gender") && svg.matches("<circle").count() >= 24 + 2);
                    assert!(svg.contains("run (teacher)"), "which weights: {svg}");
                }
                "png" => assert!(bytes.starts_with(b"\x89PNG")),
                _ => {
                    let csv = String::from_utf8(bytes).unwrap();
                    assert_eq!(csv.lines().count(), 1 + 24);
                    assert!(csv.starts_with("file,x,y,label\n"), "{csv}");
                }
            }
        }
    }
    let out = text(&dir.join("map.csv"));
    let many = [
        "tsne",
        "--weights",
        run(),
        "--data",
        DATA,
        "--perplexity",
        "24",
        "--out",
        &out,
    ];
    assert_eq!(
        selfsame(&many).code,
        2,
        "perplexity of as many as there are points"
    );
    let label = [
        "pca",
        "--weights",
        run(),
        "--data",
        DATA,
        "--label",
        "height",
        "--out",
        &out,
    ];
    let answer = selfsame(&label);
    assert!(
        answer.code == 2 && answer.stderr.contains("age"),
        "{}",
        answer.stderr
    );
}

#[test]
fn attention_and_neighbours_are_pictures() {
    let dir = scratch("report-looks");
    let size = |name: &str| image::image_dimensions(dir.join(name)).unwrap();
    let draw = |name: &str, args: &[&str]| {
        let out = text(&dir.join(name));
        let mut all = args.to_vec();
        all.extend(["--weights", run(), "--threads", "1", "--out", &out]);
        done(&all);
        size(name)
    };
    let one = draw(
        "one.png",
        &["attention", "--data", DATA, "--count", "1", "--mass", "0.6"],
    );
    let two = draw(
        "two.png",
        &["attention", "--data", DATA, "--count", "2", "--block", "0"],
    );
    assert!(
        two.1 > one.1 + 200,
        "a row for each picture: {one:?} {two:?}"
    );
    let grown = draw(
        "grown.png",
        &["attention", "--data", DATA, "--count", "1", "--snapshots"],
    );
    assert!(
        (4 * 224..5 * 224).contains(&grown.0),
        "the picture and a column for each snapshot: {grown:?}"
    );
    draw(
        "whole.png",
        &["attention", "--data", DATA, "--count", "1", "--whole"],
    );
    draw(
        "odd.png",
        &[
            "attention",
            "--data",
            DATA,
            "--count",
            "1",
            "--image-size",
            "45",
        ],
    );
    draw(
        "patches.png",
        &["pca", "--patches", "--data", DATA, "--count", "3"],
    );
    let few = draw(
        "few.png",
        &["neighbors", "--data", DATA, "--index", "3", "--count", "4"],
    );
    let many = draw(
        "many.png",
        &["neighbors", "--data", DATA, "--index", "3", "--count", "9"],
    );
    assert!(many.1 > few.1 && many.0 == few.0, "{few:?} {many:?}");
    let out = text(&dir.join("none.png"));
    let beyond = [
        "attention",
        "--weights",
        run(),
        "--data",
        DATA,
        "--block",
        "2",
        "--out",
        &out,
    ];
    assert_eq!(selfsame(&beyond).code, 2);
}

#[test]
fn maps_in_json_are_the_figures_beside_the_picture() {
    let dir = scratch("report-json-maps");
    let out = text(&dir.join("map.csv"));
    let flags = |command: &'static str| {
        let mut args = vec![command, "--weights", run(), "--data", DATA];
        args.extend(["--threads", "1", "--json"]);
        args
    };
    let mut args = flags("tsne");
    args.extend([
        "--label",
        "gender",
        "--perplexity",
        "5",
        "--iterations",
        "300",
        "--out",
        &out,
    ]);
    let value = json(&args);
    assert!(value["tsne"]["kl"].as_f64().unwrap() > 0.0, "{value}");
    assert_eq!(value["tsne"]["iterations"], 300);
    assert_eq!((&value["n"], &value["skipped"]), (&24.into(), &0.into()));
    assert_eq!(
        (&value["label"], &value["out"]),
        (&"gender".into(), &out.as_str().into())
    );

    let mut args = flags("pca");
    args.extend(["--label", "gender", "--out", &out]);
    let value = json(&args);
    let along: Vec<f64> = std::fs::read_to_string(&out)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.rsplit(',').nth(2).unwrap().parse().unwrap())
        .collect();
    let variance = along.iter().map(|x| x * x).sum::<f64>() / (along.len() - 1) as f64;
    let told = value["pca"]["variances"][0].as_f64().unwrap();
    assert!((variance / told - 1.0).abs() < 1e-4, "{variance} {told}");

    let out = text(&dir.join("patches.png"));
    let mut args = flags("pca");
    args.extend(["--patches", "--count", "3", "--out", &out]);
    let value = json(&args);
    assert_eq!(
        value["pca"]["shares"].as_array().unwrap().len(),
        3,
        "{value}"
    );
    assert_eq!(value["files"].as_array().unwrap().len(), 3, "{value}");
}

#[test]
fn neighbours_in_json_are_named_nearest_first() {
    let out = text(&scratch("report-json-neighbours").join("near.png"));
    let value = json(&[
        "neighbors",
        "--weights",
        run(),
        "--data",
        DATA,
        "--index",
        "3",
        "--count",
        "4",
        "--threads",
        "1",
        "--out",
        &out,
        "--json",
    ]);
    let near = value["neighbors"].as_array().unwrap();
    let distances: Vec<f64> = near
        .iter()
        .map(|n| n["distance"].as_f64().unwrap())
        .collect();
    assert_eq!(distances.len(), 4);
    assert!(distances.is_sorted(), "{distances:?}");
    assert!(
        near.iter()
            .all(|n| n["file"] != value["of"] && n["index"] != 3),
        "{value}"
    );
    assert!(near[0]["labels"]["gender"].is_string(), "{value}");
    assert_eq!(value["n"], 23);
}

#[test]
fn attention_in_json_holds_the_maps() {
    let out = text(&scratch("report-json-attention").join("maps.png"));
    let value = json(&[
        "attention",
        "--weights",
        run(),
        "--data",
        DATA,
        "--count",
        "2",
        "--mass",
        "0.6",
        "--threads",
        "1",
        "--out",
        &out,
        "--json",
    ]);
    assert_eq!((&value["block"], &value["mass"]), (&1.into(), &0.6.into()));
    let told = value["attention"].as_array().unwrap();
    assert_eq!(told.len(), 2);
    for picture in told {
        let maps = &picture["maps"];
        assert_eq!((&maps["rows"], &maps["columns"]), (&4.into(), &4.into()));
        assert_eq!(maps["heads"].as_array().unwrap().len(), 1);
        // A row of a softmax without its first entry, the class token's look at itself.
        let mean = maps["mean"].as_array().unwrap();
        let sum: f64 = mean.iter().map(|cell| cell.as_f64().unwrap()).sum();
        assert!(mean.len() == 16 && sum > 0.0 && sum < 1.0, "{maps}");
        let held = maps["cells_holding_mass"].as_u64().unwrap();
        assert!(
            (1..=10).contains(&held),
            "six tenths of 16 cells at most: {maps}"
        );
    }
}

#[test]
fn weights_that_are_a_snapshot_too_are_shown_once() {
    let dir = scratch("report-snapshots");
    let out = text(&dir.join("grown.png"));
    let titles = |run: &str| {
        let value = json(&[
            "attention",
            "--weights",
            run,
            "--data",
            DATA,
            "--count",
            "1",
            "--snapshots",
            "--threads",
            "1",
            "--out",
            &out,
            "--json",
        ]);
        let snapshots = value["attention"][0]["snapshots"].as_array().unwrap();
        let maps: Vec<&Value> = snapshots.iter().map(|s| &s["maps"]["mean"]).collect();
        for (i, map) in maps.iter().enumerate() {
            assert!(!maps[..i].contains(map), "the same map twice: {value}");
        }
        let titles = snapshots
            .iter()
            .map(|s| s["weights"].as_str().unwrap().to_owned());
        (
            titles.collect::<Vec<_>>(),
            image::image_dimensions(&out).unwrap().0,
        )
    };
    // A snapshot after each of three epochs, the last of which ended the run.
    let (ended_on_one, narrow) = titles(run());
    assert_eq!(ended_on_one, ["epoch 1", "epoch 2", "epoch 3, newest"]);
    let other = dir.join("run");
    copy_to(&other);
    std::fs::create_dir_all(other.join("snapshots")).unwrap();
    for epoch in ["0001", "0002"] {
        let file = format!("snapshots/epoch-{epoch}.safetensors");
        std::fs::copy(RUN.join(&file), other.join(&file)).unwrap();
    }
    let (went_on, wide) = titles(&text(&other));
    assert_eq!(went_on, ["epoch 1", "epoch 2", "newest"]);
    assert_eq!(narrow, wide);
}

#[test]
fn a_report_in_json_says_what_the_page_says() {
    let out = text(&scratch("report-json").join("page.html"));
    let value = json(&["report", run(), "--out", &out, "--json"]);
    let page = page();
    let verdict = value["verdict"].as_str().unwrap();
    assert!(page.contains(verdict) && page.contains(value["why"].as_str().unwrap()));
    assert_eq!(value["steps"], 15);
    assert_eq!(
        value["knn_while_training"].as_array().unwrap().len(),
        4,
        "{value}"
    );
    assert_eq!(value["views_while_training"].as_array().unwrap().len(), 4);
    for features in ["after training", "random weights", "raw pixels"] {
        let views = &value["views"][features];
        let auc = views["view_auc"].as_f64().unwrap();
        let low = views["interval"][0].as_f64().unwrap();
        assert!(low <= auc && (0.0..=100.0).contains(&auc), "{views}");
        assert!(page.contains(&format!("{auc:.1} ({low:.1}")), "{views}");
    }
    let gender = &value["scores"]["gender"];
    for features in ["after training", "random weights", "raw pixels"] {
        let knn = &gender[features]["knn"];
        let accuracy = knn["accuracy"].as_f64().unwrap();
        let (low, high) = (knn["interval"][0].as_f64(), knn["interval"][1].as_f64());
        assert!(
            low.unwrap() <= accuracy && accuracy <= high.unwrap(),
            "{knn}"
        );
        assert!(
            page.contains(&format!("{accuracy:.1} ({:.1}", low.unwrap())),
            "{knn}"
        );
    }
    assert_eq!(gender["raw pixels"]["logistic"], Value::Null);
}

#[test]
fn an_age_is_told_as_a_number_with_intervals() {
    let out = text(&scratch("report-age").join("page.html"));
    let value = json(&["report", run(), "--out", &out, "--json"]);
    let page = page();
    assert!(page.contains("<td>ridge</td>") && page.contains("R² of age"));
    for features in ["after training", "random weights"] {
        for method in ["knn", "ridge"] {
            let score = &value["scores"]["age"][features][method];
            for (figure, digits) in [("mae", 2), ("r2", 3)] {
                let interval = &score[format!("{figure}_interval")];
                let [low, high] = [0, 1].map(|i| interval[i].as_f64().unwrap());
                let estimate = score[figure].as_f64().unwrap();
                assert!(low < estimate && estimate < high, "{method}: {score}");
                let shown = format!("{estimate:.digits$} ({low:.digits$} to {high:.digits$})");
                assert!(page.contains(&shown), "{shown}");
            }
        }
    }
    assert_eq!(value["scores"]["age"]["raw pixels"]["ridge"], Value::Null);
}
