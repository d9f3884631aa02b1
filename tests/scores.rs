//! Training and test pictures that do not go together: told or refused, never a silent figure.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{Answer, bmp, done, scratch, selfsame, text, tiny_run};
use serde_json::Value;

/// `knn` or `linear` on raw pixels, `--label class`.
fn score(command: &str, train: &str, test: &str, extra: &[&str]) -> Answer {
    let flags = [
        "--weights",
        "pixels",
        "--image-size",
        "16",
        "--threads",
        "1",
    ];
    let data = ["--train", train, "--test", test];
    selfsame(&[&[command], &flags[..], &data, extra].concat())
}

fn value(answer: &Answer) -> Value {
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    serde_json::from_str(&answer.stdout).unwrap()
}

/// An annotation file of the pictures of these columns: name and class.
fn annotations(dir: &std::path::Path, name: &str, rows: &[(&str, &str)]) -> String {
    let mut lines = "Images,Class\n".to_owned();
    for (image, class) in rows {
        let shade = image.bytes().map(u64::from).sum::<u64>() as u8;
        std::fs::write(dir.join(image), common::bmp(32, [shade, 0, 255 - shade])).unwrap();
        lines.push_str(&format!("{image},{class}\n"));
    }
    std::fs::write(dir.join(name), lines).unwrap();
    text(&dir.join(name))
}

#[test]
fn leave_one_out_is_told_by_the_pictures_not_by_the_spelling() {
    let knn = |train: &str, test: &str| {
        let flags = ["--label", "gender", "--k", "1", "--json"];
        let answer = score("knn", train, test, &flags);
        (value(&answer), answer.stderr)
    };
    let (all, short) = (
        "synthetic:portraits?count=64&seed=0",
        "synthetic:portraits?count=64",
    );
    let (by_text, _) = knn(all, all);
    let (by_pictures, told) = knn(all, short);
    assert_eq!(by_text["protocol"]["leave_one_out"], true);
    assert_eq!(by_text, by_pictures);
    assert!(!told.contains("warning"), "{told}");

    let (part, told) = knn(short, "synthetic:portraits?count=80");
    assert_eq!(part["protocol"]["leave_one_out"], false);
    assert!(
        told.contains("64 of the 80 pictures of --test are also in --train"),
        "{told}"
    );
    let (_, told) = knn(short, "synthetic:portraits?count=16&seed=7");
    assert!(!told.contains("warning"), "{told}");
}

#[test]
fn other_labels_for_the_same_pictures_are_not_left_out_one_by_one() {
    let dir = scratch("scores-relabelled");
    let (a, b) = (("a.bmp", "x"), ("b.bmp", "y"));
    let train = annotations(&dir, "train.csv", &[a, b]);
    let test = annotations(&dir, "test.csv", &[("a.bmp", "y"), ("b.bmp", "y")]);
    let flags = ["--label", "class", "--k", "1", "--json"];
    let answer = score("knn", &train, &test, &flags);
    assert_eq!(value(&answer)["knn"]["1"], 50.0);
    assert!(
        answer.stderr.contains("2 of the 2 pictures"),
        "{}",
        answer.stderr
    );
    // Nobody learns from a picture without a label.
    let test = annotations(&dir, "other.csv", &[("a.bmp", "x"), ("c.bmp", "")]);
    let train = annotations(&dir, "some.csv", &[("a.bmp", ""), b, ("c.bmp", "x")]);
    let answer = score("knn", &train, &test, &flags);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(!answer.stderr.contains("warning"), "{}", answer.stderr);
}

#[test]
fn a_picture_that_is_listed_twice_counts_once() {
    let dir = scratch("scores-repeated");
    let rows = [
        ("a.bmp", "x"),
        ("b.bmp", "y"),
        ("c.bmp", "x"),
        ("d.bmp", "y"),
    ];
    let once = annotations(&dir, "once.csv", &rows);
    let twice = annotations(&dir, "twice.csv", &[rows, rows].concat());
    for (command, extra) in [("knn", ["--k", "1"]), ("linear", ["--epochs", "2"])] {
        let flags = [&["--label", "class", "--json"], &extra[..]].concat();
        let [once, twice] = [&once, &twice].map(|set| score(command, set, set, &flags));
        assert_eq!(value(&once), value(&twice), "{command}");
        let told = "4 of 8 pictures with the label are listed before";
        assert_eq!(twice.stderr.matches(told).count(), 1, "{}", twice.stderr);
        assert!(!once.stderr.contains("listed"), "{}", once.stderr);
    }
    let out = text(&dir.join("near.png"));
    let mut args = vec![
        "neighbors",
        "--weights",
        "pixels",
        "--data",
        &twice,
        "--json",
    ];
    args.extend(["--index", "5", "--out", &out]);
    let near = value(&selfsame(&args));
    assert_eq!(
        (&near["n"], &near["index"]),
        (&3.into(), &5.into()),
        "{near}"
    );
}

#[test]
fn classes_that_training_never_saw_are_told_and_refused_if_all_are() {
    let dir = scratch("scores-classes");
    let [a, b] = [("a.bmp", "cat"), ("b.bmp", "dog")];
    let train = annotations(&dir, "train.csv", &[a, b]);
    let some = annotations(&dir, "some.csv", &[("c.bmp", "cat"), ("d.bmp", "horse")]);
    let none = annotations(
        &dir,
        "none.csv",
        &[("e.bmp", "images"), ("f.bmp", "images")],
    );
    let alike = annotations(&dir, "alike.csv", &[a, ("g.bmp", "cat")]);
    for (command, extra) in [("knn", &["--k", "1"]), ("linear", &["--epochs", "1"])] {
        let flags = [&["--label", "class"], &extra[..]].concat();
        let answer = score(command, &train, &some, &flags);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let told = "the class of 1 of the 2 pictures of --test is one that --train never has";
        assert!(answer.stderr.contains(told), "{}", answer.stderr);
        assert!(answer.stderr.contains("horse"), "{}", answer.stderr);

        let answer = score(command, &alike, &train, &flags);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        let told = "all pictures of --train have the same one";
        assert!(answer.stderr.contains(told), "{}", answer.stderr);

        let answer = score(command, &train, &none, &flags);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        for word in ["--label class", "--train has cat, dog, --test has images"] {
            assert!(answer.stderr.contains(word), "{}", answer.stderr);
        }
        let answer = score(command, &train, &train, &flags);
        assert_eq!(
            answer.stderr.contains("the pictures learned from"),
            command == "linear",
            "{}",
            answer.stderr
        );
    }
}

#[test]
fn logistic_regression_refuses_the_flags_of_sgd() {
    let data = "synthetic:portraits?count=8";
    let flags = ["--label", "gender", "--method", "logistic"];
    for (extra, named) in [
        (
            &["--protocol", "official"][..],
            "--protocol official: for --method sgd",
        ),
        (&["--epochs", "7"], "--epochs 7: for --method sgd"),
        (
            &["--protocol", "official", "--epochs", "7"],
            "--protocol official and --epochs 7: for --method sgd",
        ),
        (&["--lr", "0.1"], "--lr 0.1: for --method sgd"),
    ] {
        let answer = score("linear", data, data, &[&flags, extra].concat());
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        assert!(answer.stderr.contains(named), "{}", answer.stderr);
    }
}

#[test]
fn validation_on_training_pictures_is_told() {
    let dir = scratch("scores-val");
    let train = |name: &str, val: &str| {
        let sets = ["train.max_steps=1", "train.knn_every_epochs=1"];
        let mut args = tiny_run(&dir.join(name), &sets);
        args.extend(["--val".to_owned(), val.to_owned()]);
        let answer = selfsame(&args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer.stderr
    };
    // The first ten of the forty that are trained on, then others.
    let stderr = train("same", "synthetic:portraits?seed=3&count=10");
    assert!(stderr.contains("10 of 10 pictures of --val"), "{stderr}");
    let stderr = train("other", "synthetic:portraits?seed=4&count=10");
    assert!(!stderr.contains("--val are in"), "{stderr}");
}

/// Folders `train` and `test` of two classes of four pictures, of which `cat/1.bmp` is none in both.
fn twins(name: &str) -> [String; 2] {
    let dir = scratch(name);
    ["train", "test"].map(|side| {
        for class in ["cat", "dog"] {
            let folder = dir.join(side).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 1..=4u8 {
                let shade = 20 * i + u8::from(class == "dog") * 100;
                let picture = bmp(32, [shade, 200 - shade, 7 * i]);
                std::fs::write(folder.join(format!("{i}.bmp")), picture).unwrap();
            }
        }
        std::fs::write(dir.join(side).join("cat/1.bmp"), "no picture").unwrap();
        text(&dir.join(side))
    })
}

#[test]
fn pictures_that_cannot_be_used_are_counted_on_both_sides_and_not_as_used() {
    let [train, test] = twins("scores-twins");
    for (command, extra) in [
        ("knn", &["--k", "1"][..]),
        ("knn", &["--k", "1", "--vote", "majority"]),
        ("linear", &["--epochs", "2"]),
        ("linear", &["--epochs", "2", "--protocol", "official"]),
        ("linear", &["--method", "logistic"]),
    ] {
        let flags = [&["--label", "class", "--json"], extra].concat();
        let told = |test: &str| {
            let answer = score(command, &train, test, &flags);
            let value = value(&answer);
            ["n_train", "n_test", "skipped"].map(|count| value[count].as_u64().unwrap())
        };
        assert_eq!(told(&test), [7, 7, 2], "{command} {extra:?}");
        assert_eq!(told(&train), [7, 7, 1], "{command} {extra:?}");
    }
    let run = scratch("scores-twins-tuned");
    let (run, weights) = (text(&run.join("run")), "random:vit_tiny/8@16");
    let mut args = vec!["finetune", "--weights", weights, "--threads", "1", "--json"];
    args.extend(["--train", &train, "--test", &test, "--label", "class"]);
    args.extend(["--epochs", "1", "--run", &run]);
    let value: Value = serde_json::from_str(&done(&args)).unwrap();
    let counts = ["n_train", "n_test", "skipped"].map(|count| value[count].as_u64().unwrap());
    assert_eq!(counts, [7, 7, 2]);
}

#[test]
fn skipped_csv_tells_training_pictures_from_those_of_val() {
    let [train, val] = twins("scores-skipped");
    let run = scratch("scores-skipped-run").join("run");
    let data = [
        format!("data.train={train}"),
        format!("data.val={val}"),
        "data.max_bad_fraction=0.5".to_owned(),
        "train.knn_every_epochs=1".to_owned(),
        "train.max_steps=2".to_owned(),
    ];
    let sets: Vec<&str> = data.iter().map(String::as_str).collect();
    done(&tiny_run(&run, &sets));
    let check = || {
        let csv = std::fs::read_to_string(run.join("skipped.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3, "{csv}");
        assert_eq!(lines[0], "file,reason");
        let files = [&val, &train].map(|folder| {
            let file = std::path::Path::new(folder).join("cat/1.bmp");
            text(&file.canonicalize().unwrap())
        });
        for (line, file) in lines[1..].iter().zip(&files) {
            assert!(line.starts_with(file), "{line}: {file}");
        }
    };
    check();
    done(&[
        "resume",
        &text(&run),
        "--no-report",
        "--set",
        "train.max_steps=0",
    ]);
    check();
}

#[test]
fn the_official_protocol_says_what_it_took() {
    let data = "synthetic:portraits?count=16";
    let test = "synthetic:portraits?count=8&seed=1";
    let linear = |weights: &str, flags: &[&str]| {
        let mut args = vec!["linear", "--weights", weights, "--threads", "1"];
        args.extend(["--train", data, "--test", test, "--label", "gender"]);
        args.extend(["--protocol", "official", "--epochs", "1"]);
        args.extend(flags);
        done(&args)
    };
    let told = linear("pixels", &["--image-size", "16"]);
    let last = told.lines().last().unwrap();
    let other = linear("pixels", &["--image-size", "16", "--lr", "0.5"]);
    assert!(other.lines().last().unwrap().contains("lr 0.5,"), "{other}");
    for words in ["lr 0.001,", "resize 1.142857", "batch size 256"] {
        assert!(last.contains(words), "{last}");
    }
    let best = last.split("best epoch 1 on --test: ").nth(1).unwrap();
    let best = best.split(" %").next().unwrap();
    assert_eq!(best.split('.').nth(1).map(str::len), Some(1), "{last}");

    let dir = scratch("scores-official");
    let run = dir.join("run");
    done(&tiny_run(&run, &["train.max_steps=1"]));
    let run = text(&run);
    for (weights, features) in [
        (run.clone(), "class tokens of the last 2 blocks"),
        (format!("reference:{run}"), "class token of the last block"),
        (
            "random:vit_tiny/8@16".to_owned(),
            "class tokens of the last 4 blocks",
        ),
    ] {
        let value: Value = serde_json::from_str(&linear(&weights, &["--json"])).unwrap();
        assert_eq!(value["protocol"]["features"], features, "{weights}");
    }
}

#[test]
fn a_label_of_numbers_is_predicted_by_ridge_regression() {
    let dir = scratch("scores-ridge");
    // The more red, the less blue.
    let shades = |name: &str, first: usize| {
        let rows = (first..250).step_by(4).map(|shade| {
            let picture = bmp(32, [shade as u8, 0, 255 - shade as u8]);
            std::fs::write(dir.join(format!("{shade}.bmp")), picture).unwrap();
            format!(
                "{shade}.bmp,{shade},{}
",
                ["f", "m"][shade / 4 % 2]
            )
        });
        let csv = format!(
            "Images,Red,Gender
{}",
            rows.collect::<String>()
        );
        std::fs::write(dir.join(name), csv).unwrap();
        text(&dir.join(name))
    };
    let (train, test) = (&*shades("train.csv", 0), &*shades("test.csv", 2));
    let flags = ["--label", "Red", "--regress"];
    let answer = score("linear", train, test, &[&flags[..], &["--json"]].concat());
    assert!(
        !answer.stderr.contains("a class of its own"),
        "{}",
        answer.stderr
    );
    let value = value(&answer);
    let figures = &value["linear"];
    for figure in ["mae", "r2"] {
        let [low, high] =
            [0, 1].map(|i| figures[format!("{figure}_interval")][i].as_f64().unwrap());
        let estimate = figures[figure].as_f64().unwrap();
        assert!(low < estimate && estimate < high, "{figure}: {value}");
    }
    assert!(
        figures["r2_interval"][0].as_f64().unwrap() > 0.95,
        "{value}"
    );
    assert_eq!(value["protocol"]["method"], "ridge");
    assert!(
        value["protocol"]["alpha"].as_f64().unwrap() > 0.0,
        "{value}"
    );
    assert!(value["protocol"]["classes"].is_null(), "{value}");
    assert_eq!([&value["n_train"], &value["n_test"]], [63, 62]);

    let answer = score("linear", train, test, &flags);
    assert!(
        answer.stdout.starts_with("mean absolute error"),
        "{}",
        answer.stdout
    );
    assert!(
        answer.stdout.contains("alpha 0.1, held out mae"),
        "{}",
        answer.stdout
    );
    for command in ["knn", "linear"] {
        let answer = score(command, train, test, &["--label", "gender", "--regress"]);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        let told = "--regress: the label gender has the value \"f\", which is no number";
        assert!(answer.stderr.contains(told), "{}", answer.stderr);
    }
    for other in [
        ["--method", "logistic"],
        ["--protocol", "official"],
        ["--epochs", "3"],
    ] {
        let answer = score("linear", train, test, &[&flags[..], &other].concat());
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        assert!(answer.stderr.contains(other[0]), "{}", answer.stderr);
    }
}

#[test]
fn who_takes_numbers_for_classes_is_told_what_predicts_them() {
    let (train, test) = (
        "synthetic:portraits?count=120",
        "synthetic:portraits?count=40&seed=1",
    );
    let dir = scratch("scores-numbers");
    for (command, extra, instead) in [
        ("knn", vec!["--k", "1"], "; --regress predicts"),
        ("linear", vec!["--epochs", "1"], "; --regress predicts"),
    ] {
        let answer = score(
            command,
            train,
            test,
            &[&["--label", "age"], &extra[..]].concat(),
        );
        assert!(
            answer.stderr.contains("different numbers"),
            "{}",
            answer.stderr
        );
        assert!(answer.stderr.contains(instead), "{}", answer.stderr);
        let answer = score(
            command,
            train,
            test,
            &[&["--label", "gender"], &extra[..]].concat(),
        );
        assert!(
            !answer.stderr.contains("different numbers"),
            "{}",
            answer.stderr
        );
    }
    let run = text(&dir.join("run"));
    let mut args = vec![
        "finetune",
        "--weights",
        "random:vit_tiny/8@16",
        "--threads",
        "1",
    ];
    args.extend(["--train", train, "--test", test, "--label", "age"]);
    args.extend(["--freeze", "--epochs", "1", "--run", &run]);
    let answer = selfsame(&args);
    assert!(
        answer.stderr.contains("linear --regress predicts"),
        "{}",
        answer.stderr
    );
}

#[test]
fn linear_says_of_every_method_what_knn_says() {
    let (train, test) = (
        "synthetic:portraits?count=24",
        "synthetic:portraits?count=8&seed=1",
    );
    let told = |command: &str, extra: &[&str]| {
        let flags = [&["--label", "gender", "--json"], extra].concat();
        value(&score(command, train, test, &flags))
    };
    let knn = told("knn", &["--k", "1"]);
    let common = [
        "weights",
        "label",
        "classes",
        "image_size",
        "resize",
        "interpolation",
    ];
    for extra in [&["--epochs", "1"][..], &["--method", "logistic"]] {
        let linear = told("linear", extra);
        for key in common {
            assert!(!knn["protocol"][key].is_null(), "{key}: {knn}");
            assert_eq!(
                linear["protocol"][key], knn["protocol"][key],
                "{extra:?}, {key}"
            );
        }
        assert_eq!(linear["weights"], knn["protocol"]["weights"]);
    }
    let official = told("linear", &["--epochs", "1", "--protocol", "official"]);
    assert_eq!(official["protocol"]["resize"], 256.0 / 224.0);
    assert_eq!(official["protocol"]["label"], "gender");
}

#[test]
fn numbers_that_cannot_be_are_named_by_their_flag() {
    let data = "synthetic:portraits?count=16";
    let score =
        |flags: &[&str]| score("knn", data, data, &[&["--label", "gender"], flags].concat());
    let map = |perplexity: &str| {
        let flags = [
            "tsne",
            "--weights",
            "pixels",
            "--image-size",
            "8",
            "--data",
            data,
        ];
        selfsame(
            &[
                &flags[..],
                &["--out", "never.svg", "--perplexity", perplexity],
            ]
            .concat(),
        )
    };
    for (answer, words) in [
        (score(&["--k", "5,0"]), "--k: 0 is not"),
        (score(&["--temperature", "0"]), "--temperature: 0 is not"),
        (score(&["--resize", "0"]), "--resize <RATIO>': 0 times"),
        (score(&["--resize", "256"]), "write 256/224"),
        (score(&["--image-size", "0"]), "--image-size"),
        (
            score(&["--batch-size", "0"]),
            "--batch-size <N>': at least 1",
        ),
        (score(&["--batch-size", "x"]), "write a whole number"),
        (map("0"), "--perplexity: 0 is not"),
        (map("500"), "--perplexity: 500 is not below the 16"),
    ] {
        assert_eq!(answer.code, 2, "{words}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{words}: {}", answer.stderr);
    }
}

#[test]
fn a_side_without_the_label_is_refused_before_work() {
    let dir = scratch("scores-none");
    let some = annotations(&dir, "some.csv", &[("a.bmp", "cat"), ("b.bmp", "dog")]);
    let none = annotations(&dir, "none.csv", &[("c.bmp", ""), ("d.bmp", "")]);
    for (flag, train, test) in [("--test", &some, &none), ("--train", &none, &some)] {
        for command in ["knn", "linear"] {
            let answer = score(command, train, test, &["--label", "class"]);
            assert_eq!(answer.code, 2, "{}", answer.stderr);
            let told = format!("{flag} {none}: not one of the 2 pictures has a value");
            assert!(answer.stderr.contains(&told), "{}", answer.stderr);
        }
    }
}

#[test]
fn numbers_are_not_compared_with_other_weights() {
    let data = "synthetic:portraits?count=16";
    let flags = ["--label", "age", "--regress", "--against", "pixels"];
    let answer = score("knn", data, data, &flags);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    for flag in ["--regress", "--against"] {
        assert!(answer.stderr.contains(flag), "{}", answer.stderr);
    }
}
