//! `selfsame shrink`: copies that a run takes instead of its pictures.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{done, put_data, selfsame, text, tiny_run};
use serde_json::Value;

/// Pictures in AgeDB's naming, one of them small, one of them none, and a list of three of them.
fn pictures(dir: &Path) -> PathBuf {
    let folder = dir.join("photos");
    std::fs::create_dir_all(folder.join("more")).unwrap();
    let draw = |width: u32, height: u32| {
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]))
    };
    let save = |name: &str, width, height| draw(width, height).save(folder.join(name)).unwrap();
    save("0_Ann_30_f.png", 200, 100);
    save("1_Bob_41_m.png", 90, 300);
    save("more/2_Cat_52_f.png", 30, 40);
    std::fs::write(folder.join("3_Dan_63_m.jpg"), "no picture").unwrap();
    let rows = "Images,Name,Age\nmore/2_Cat_52_f.png,Cat,52\n3_Dan_63_m.jpg,Dan,63\n\
                0_Ann_30_f.png,\"Ann, A.\",\n";
    std::fs::write(folder.join("annot.csv"), rows).unwrap();
    folder
}

fn shrunk(data: &Path, out: &Path, flags: &[&str]) -> Value {
    let (data, out) = (text(data), text(out));
    let args = [
        &["shrink", &data, "--out", &out, "--side", "50", "--json"],
        flags,
    ]
    .concat();
    serde_json::from_str(&done(&args)).unwrap()
}

fn refused(data: &Path, out: &Path, flags: &[&str], words: &str) {
    let (data, out) = (text(data), text(out));
    let answer = selfsame(&[&["shrink", &data, "--out", &out], flags].concat());
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains(words), "{words}: {}", answer.stderr);
}

#[test]
fn copies_are_a_data_set_with_the_same_names_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    let report = shrunk(&folder, &out, &[]);
    assert_eq!(
        (&report["shrunk"], &report["copied"]),
        (&2.into(), &1.into())
    );
    assert_eq!(report["unusable"][0]["file"], "3_Dan_63_m.jpg");
    assert_eq!(report["annotations"], Value::Null);
    let checked = done(&["check-data", &text(&out), "--json"]);
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["usable"], 3);
    assert_eq!(
        checked["labels"]["gender"]["counts"],
        serde_json::json!({"f": 2, "m": 1})
    );
    let ann = image::open(out.join("0_Ann_30_f.png")).unwrap();
    assert_eq!((ann.width(), ann.height()), (100, 50));

    // Once more: nothing is done again, and what it says is for people.
    let told = done(&[
        "shrink",
        &text(&folder),
        "--out",
        &text(&out),
        "--side",
        "50",
    ]);
    assert!(
        told.contains("0 made smaller, 0 small enough and copied, 3 there already, 1 left out"),
        "{told}"
    );
    assert!(
        told.contains("3_Dan_63_m.jpg: ") && told.contains("--data "),
        "{told}"
    );
}

#[test]
fn the_rows_of_an_annotation_file_follow_their_copies() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    let report = shrunk(&folder.join("annot.csv"), &out, &[]);
    let rows = out.join("annot.csv");
    assert_eq!(report["annotations"], text(&rows));
    let expected = "Images,name,age\n0_Ann_30_f.png,\"Ann, A.\",\nmore/2_Cat_52_f.png,Cat,52\n";
    assert_eq!(std::fs::read_to_string(&rows).unwrap(), expected);
    let checked: Value =
        serde_json::from_str(&done(&["check-data", &text(&rows), "--json"])).unwrap();
    assert_eq!(
        (&checked["usable"], &checked["unusable"]),
        (&2.into(), &0.into())
    );
    assert_eq!(checked["labels"]["age"]["missing"], 1);
    // Another list of the same pictures may join.
    let other = folder.join("other.csv");
    std::fs::write(&other, "Images\n1_Bob_41_m.png\n0_Ann_30_f.png\n").unwrap();
    let report = shrunk(&other, &out, &[]);
    assert_eq!((&report["shrunk"], &report["kept"]), (&1.into(), &1.into()));
    assert!(out.join("other.csv").is_file() && rows.is_file());
}

#[test]
fn a_folder_that_is_not_for_copies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    let among = "pictures that are read lie in";
    let within = [
        folder.clone(),
        folder.join("more/new"),
        folder.join("annot.csv"),
        dir.path().to_owned(),
    ];
    for out in within {
        refused(&folder, &out, &[], among);
    }
    // Where an annotation file's pictures lie.
    refused(&folder.join("annot.csv"), &folder.join("small"), &[], among);
    let refused = |out: &Path, flags: &[&str], words: &str| refused(&folder, out, flags, words);
    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("thesis.pdf"), "mine").unwrap();
    refused(&taken, &[], "something else in it");
    refused(&out, &["--side", "0"], "--side");
    refused(&out, &["--quality", "0"], "--quality");
    assert!(!out.exists());
    shrunk(&folder, &out, &[]);
    refused(&out, &["--side", "60"], "--side 50 --quality 92");
    std::fs::write(out.join("shrink.json"), "{}").unwrap();
    refused(&out, &["--side", "50"], "shrink.json");
    let drawn = selfsame(&[
        "shrink",
        "synthetic:portraits?count=4",
        "--out",
        &text(&dir.path().join("d")),
    ]);
    assert_eq!(drawn.code, 2, "{}", drawn.stderr);
    assert!(!dir.path().join("d").exists());
}

#[test]
fn pictures_of_which_none_can_be_used_are_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("photos");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.jpg"), "no picture").unwrap();
    let answer = selfsame(&[
        "shrink",
        &text(&folder),
        "--out",
        &text(&dir.path().join("small")),
    ]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("not one picture"),
        "{}",
        answer.stderr
    );
    assert!(!answer.stdout.contains("train on"), "{}", answer.stdout);
}

#[test]
fn a_new_run_says_that_its_pictures_are_large() {
    let dir = tempfile::tempdir().unwrap();
    let noted = |side: u32| {
        let folder = dir.path().join(format!("of-{side}"));
        std::fs::create_dir(&folder).unwrap();
        for i in 0..8 {
            let picture = image::RgbImage::from_pixel(side + 10, side, image::Rgb([i; 3]));
            picture.save(folder.join(format!("{i}.png"))).unwrap();
        }
        let mut args = tiny_run(
            &dir.path().join(format!("run-{side}")),
            &["train.max_steps=1"],
        );
        put_data(&mut args, text(&folder));
        let answer = selfsame(&args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer
            .stderr
            .contains(&format!("note: pictures have {side} pixels"))
    };
    assert!(noted(1001) && !noted(1000));
}

#[test]
fn copies_of_one_set_are_not_taken_for_those_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    let refused = |data: &Path, words: &str| refused(data, &out, &["--side", "50"], words);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join(".DS_Store"), "a desktop's").unwrap();
    shrunk(&folder, &out, &[]);
    let other = pictures(&dir.path().join("other"));
    refused(&other, "its copies are of the pictures in");

    // A list of the same name, and the list that was written.
    let rows = shrunk(&folder.join("annot.csv"), &out, &[]);
    assert_eq!(rows["kept"], 2);
    let written = std::fs::read(out.join("annot.csv")).unwrap();
    let elsewhere = folder.join("more/annot.csv");
    std::fs::write(folder.join("more/root.txt"), text(&folder)).unwrap();
    std::fs::write(&elsewhere, "Images\n./more/2_Cat_52_f.png\n").unwrap();
    refused(&elsewhere, "its annot.csv was not made from");
    std::fs::rename(&elsewhere, folder.join("more/second.csv")).unwrap();
    let second = shrunk(&folder.join("more/second.csv"), &out, &[]);
    assert_eq!((&second["kept"], &second["shrunk"]), (&1.into(), &0.into()));
    assert_eq!(std::fs::read(out.join("annot.csv")).unwrap(), written);

    // Pictures that are gone keep their copies and rows.
    std::fs::remove_file(folder.join("0_Ann_30_f.png")).unwrap();
    std::fs::remove_file(folder.join("more/2_Cat_52_f.png")).unwrap();
    let annot = text(&folder.join("annot.csv"));
    let answer = selfsame(&["shrink", &annot, "--out", &text(&out), "--side", "50"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert_eq!(std::fs::read(out.join("annot.csv")).unwrap(), written);
    assert!(out.join("0_Ann_30_f.png").is_file());
}

#[test]
fn a_name_that_leads_out_is_refused_and_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    let list = folder.join("more/list.csv");
    std::fs::write(&list, "Images\n../0_Ann_30_f.png\n").unwrap();
    let words = "error: \"../0_Ann_30_f.png\": ";
    refused(&list, &out, &["--allow-outside"], words);
    assert!(!out.exists());
}

#[test]
fn two_calls_do_not_write_into_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (pictures(dir.path()), dir.path().join("small"));
    shrunk(&folder, &out, &[]);
    let lock = std::fs::File::open(out.join(".lock")).unwrap();
    lock.lock().unwrap();
    refused(&folder, &out, &["--side", "50"], "another call is writing");
    drop(lock);
    shrunk(&folder, &out, &[]);
}
