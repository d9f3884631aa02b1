//! `selfsame preview` draws both sheets for a file and for a data set, and the same ones again.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::path::Path;
use std::process::{Command, Output};

fn preview(out: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selfsame"))
        .args(["preview", "--out", out.to_str().unwrap()])
        .args(args)
        .output()
        .unwrap()
}

fn drawn(dir: &Path, args: &[&str]) -> Vec<u8> {
    let out = dir.join("sheet.png");
    let output = preview(&out, args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}");
    std::fs::read(out).unwrap()
}

const PORTRAITS: &str = "synthetic:portraits?count=20&seed=0";

#[test]
fn a_sheet_is_a_function_of_picture_configuration_and_seed() {
    let dir = tempfile::tempdir().unwrap();
    let data = ["--data", PORTRAITS, "--preset", "cpu"];
    let first = drawn(dir.path(), &data);
    assert_eq!(first, drawn(dir.path(), &data));
    for other in [
        ["--seed", "7"],
        ["--index", "3"],
        ["--set", "augment.local_crops=3"],
    ] {
        let args: Vec<&str> = data.iter().chain(&other).copied().collect();
        assert_ne!(first, drawn(dir.path(), &args), "{other:?} changes nothing");
    }
}

#[test]
fn both_sheets_show_a_file_at_a_legible_size() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("photo.png");
    let photo = image::RgbImage::from_fn(300, 200, |x, y| image::Rgb([x as u8, y as u8, 90]));
    photo.save(&file).unwrap();
    let png = drawn(dir.path(), &["--image", file.to_str().unwrap()]);
    let sheet = image::load_from_memory(&png).unwrap().to_rgb8();
    // The default is two global and eight local crops of 128 pixels, shown at twice their size.
    assert!(
        sheet.width() > 4 * 256 && sheet.height() > 4 * 256 + 540,
        "{:?}",
        sheet.dimensions()
    );
    // Something is drawn in the last row: the local crops with their notes.
    let dark = sheet
        .rows()
        .rev()
        .take(100)
        .flatten()
        .filter(|pixel| pixel.0.iter().all(|&v| v < 60))
        .count();
    assert!(dark > 200, "{dark} dark pixels in the notes at the end");
}

#[test]
fn wrong_use_is_refused_and_a_missing_file_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sheet.png");
    for args in [
        &[][..],
        &["--image", "a.png", "--data", PORTRAITS],
        &["--data", PORTRAITS, "--index", "20"],
        &["--data", PORTRAITS, "--set", "augment.local_crop=1"],
    ] {
        let output = preview(&out, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    // The picture itself, and a name that tells another format.
    let photo = dir.path().join("photo.png");
    let before = drawn(dir.path(), &["--data", PORTRAITS]);
    std::fs::write(&photo, &before).unwrap();
    let _ = std::fs::remove_file(&out);
    let beside = dir.path().join("sheet.jpg");
    for out in [&photo, &beside] {
        let output = preview(out, &["--image", photo.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--out"), "{text}");
    }
    assert_eq!(std::fs::read(&photo).unwrap(), before);
    assert!(!beside.exists());
    let huge = [
        "augment.global_size=16384",
        "augment.local_size=16384",
        "augment.local_crops=1000",
    ];
    let sets = huge.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["--data", PORTRAITS].into_iter().chain(sets).collect();
    let output = preview(&out, &args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let output = preview(&out, &["--image", "/no/such/photo.jpg"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--image /no/such/photo.jpg"), "{text}");
    assert!(!out.exists());
}
