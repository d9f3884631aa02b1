//! The accuracy at five, where there are more classes than that.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;

use common::{done, scratch, text};
use serde_json::Value;

/// A picture of one colour, at an angle between red and green.
fn picture(folder: &Path, class: usize, degrees: f32) {
    let dir = folder.join(format!("class{class}"));
    std::fs::create_dir_all(&dir).unwrap();
    let (green, red) = degrees.to_radians().sin_cos();
    let byte = |share: f32| (250.0 * share) as u8;
    let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([byte(red), byte(green), 0]));
    picture.save(dir.join(format!("{degrees}.png"))).unwrap();
}

#[test]
fn knn_and_linear_say_whether_the_class_is_among_five() {
    let dir = scratch("top-five");
    let (bank, test) = (dir.join("bank"), dir.join("test"));
    for class in 0..7 {
        picture(&bank, class, 12.0 * class as f32);
    }
    // The second nearest class and the last of seven.
    picture(&test, 1, 5.0);
    picture(&test, 6, 4.0);
    let (bank, test) = (text(&bank), text(&test));
    let score = |command: &str, flags: &[&str]| -> Value {
        let args = [
            command,
            "--weights",
            "pixels",
            "--train",
            &bank,
            "--test",
            &test,
        ];
        let flags = [&["--label", "class", "--json"], flags].concat();
        serde_json::from_str(&done(&[&args[..], &flags].concat())).unwrap()
    };
    let knn = score("knn", &["--k", "1,7", "--image-size", "8"]);
    assert_eq!(
        (&knn["knn"]["1"], &knn["top5"]["1"]),
        (&0.0.into(), &0.0.into())
    );
    assert_eq!(
        (&knn["knn"]["7"], &knn["top5"]["7"]),
        (&0.0.into(), &50.0.into())
    );
    let linear = score("linear", &["--epochs", "3", "--image-size", "8"]);
    let percent = |key: &str| linear[key].as_f64().unwrap();
    assert!(percent("linear") <= percent("top5"), "{linear}");
}

#[test]
fn two_classes_have_no_accuracy_at_five() {
    let data = "synthetic:portraits?count=30&seed=1";
    let args = [
        "--weights",
        "pixels",
        "--train",
        data,
        "--test",
        data,
        "--label",
        "gender",
    ];
    for command in ["knn", "linear"] {
        let told = done(&[&[command][..], &args, &["--json"]].concat());
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(told["top5"].is_null(), "{told}");
    }
}
