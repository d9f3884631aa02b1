//! Looking at a run: its page and its pictures, from one tiny run.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::PathBuf;
use std::sync::LazyLock;

use common::{done, metrics, scratch, selfsame, text, tiny_run};

const DATA: &str = "synthetic:portraits?count=24&seed=1";

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
        grown.0 > one.0 + 200,
        "a column for each snapshot: {one:?} {grown:?}"
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
