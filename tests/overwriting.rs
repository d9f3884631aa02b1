//! No command writes its result over what the result is made from.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use common::{bmp, done, scratch, selfsame, text, tiny_run};

const TEST: &str = "synthetic:portraits?count=16&seed=2";

#[test]
fn a_result_never_goes_over_what_it_is_made_from() {
    let dir = scratch("overwriting");
    let whole_run = dir.join("run");
    done(&tiny_run(&whole_run, &["train.epochs=1"]));
    let run = &*text(&whole_run);
    let at = |name: &str| text(&dir.join(name));
    let features = done(&[
        "embed",
        "--weights",
        run,
        "--data",
        TEST,
        "--out",
        &at("f.csv"),
    ]);
    assert_eq!(features, "");
    std::fs::create_dir(dir.join("pictures")).unwrap();
    for name in ["a.png", "b.bmp", "c.bmp"] {
        std::fs::write(dir.join("pictures").join(name), bmp(32, [9, 90, 200])).unwrap();
    }
    let rows = "Images\npictures/a.png\npictures/b.bmp\npictures/c.bmp\n";
    std::fs::write(dir.join("a.csv"), rows).unwrap();
    let folder = at("timm");
    done(&[
        "export",
        "--weights",
        run,
        "--format",
        "timm",
        "--out",
        &folder,
    ]);
    let (weights, csv, picture) = (
        at("timm/model.safetensors"),
        at("a.csv"),
        at("pictures/a.png"),
    );
    let reference = format!("reference:{weights}");
    let (pictures, pixels) = (at("pictures"), "pixels");
    let newest = whole_run.join("checkpoints/step-00000005/teacher.safetensors");
    let teacher = text(&newest);
    // Portraits that are drawn have none.
    let list = text(&whole_run.join("pictures.csv"));
    std::fs::write(&list, "file,bytes,blake3_of_start\n").unwrap();
    for (args, out, named) in [
        (
            &["embed", "--weights", &weights, "--data", TEST][..],
            &weights,
            "--weights",
        ),
        (
            &["embed", "--weights", &reference, "--data", TEST],
            &weights,
            "--weights",
        ),
        (
            &["embed", "--weights", &folder, "--data", TEST],
            &weights,
            "--weights",
        ),
        (
            &["embed", "--weights", run, "--data", TEST],
            &teacher,
            "--weights",
        ),
        (
            &["embed", "--weights", run, "--data", TEST],
            &list,
            "--weights",
        ),
        (
            &["embed", "--weights", pixels, "--data", &csv],
            &csv,
            "--data",
        ),
        (
            &["tsne", "--weights", pixels, "--data", &csv],
            &csv,
            "--data",
        ),
        (
            &["pca", "--weights", pixels, "--data", &csv],
            &csv,
            "--data",
        ),
        (
            &["pca", "--patches", "--weights", run, "--data", &csv],
            &picture,
            "--data",
        ),
        (
            &["pca", "--weights", pixels, "--data", &pictures],
            &picture,
            "--data",
        ),
        (
            &["attention", "--weights", run, "--data", &csv],
            &picture,
            "--data",
        ),
        (
            &["attention", "--weights", run, "--image", &picture],
            &picture,
            "--image",
        ),
        (
            &[
                "neighbors",
                "--index",
                "0",
                "--weights",
                pixels,
                "--data",
                &csv,
            ],
            &picture,
            "--data",
        ),
        (&["preview", "--data", &pictures], &picture, "--data"),
        (
            &["report", run],
            &text(&whole_run.join("metrics.jsonl")),
            "the run",
        ),
        (
            &["export", "--weights", &folder, "--format", "timm"],
            &folder,
            "--weights",
        ),
        (
            &["export", "--weights", &weights, "--format", "dino"],
            &folder,
            "--weights",
        ),
    ] {
        let bytes = || -> Vec<Vec<u8>> {
            let files = [&weights, &teacher, &csv, &picture, &list].into_iter();
            let metrics = text(&whole_run.join("metrics.jsonl"));
            files
                .chain([&metrics])
                .map(|file| std::fs::read(file).unwrap())
                .collect()
        };
        let before = bytes();
        let answer = selfsame(&[args, &["--out", out]].concat());
        assert_eq!(answer.code, 2, "{args:?} {out}: {}", answer.stderr);
        let told = &answer.stderr;
        assert!(
            told.contains("--out") && told.contains(named),
            "{args:?}: {told}"
        );
        assert!(bytes() == before, "{args:?} wrote over {out}");
    }
}
