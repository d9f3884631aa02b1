use rayon::prelude::*;

use super::*;
use crate::{OpenOptions, open};

fn set(count: usize, seed: u64) -> Portraits {
    Portraits::new(count, seed)
}

#[test]
fn a_portrait_is_a_pure_function_of_seed_and_index() {
    let (short, long) = (set(5, 3), set(50, 3));
    assert_eq!(short.decode(4).unwrap(), long.decode(4).unwrap());
    assert_eq!(short.labels(4), long.labels(4));
    assert_ne!(short.decode(3).unwrap(), short.decode(4).unwrap());
    assert_ne!(short.decode(4).unwrap(), set(5, 4).decode(4).unwrap());
    assert_eq!(
        short.decode(0).unwrap().dimensions(),
        (PORTRAIT_SIZE, PORTRAIT_SIZE)
    );
}

#[test]
fn labels_are_balanced_and_four_pictures_share_a_person() {
    let portraits = set(1600, 0);
    let mut women = 0;
    let (mut youngest, mut oldest) = (99, 0);
    for i in 0..1600 {
        let labels = portraits.labels(i);
        women += usize::from(labels["gender"] == "f");
        let age: u32 = labels["age"].parse().unwrap();
        (youngest, oldest) = (youngest.min(age), oldest.max(age));
        let first = portraits.labels(i / 4 * 4);
        assert_eq!(
            (&labels["name"], &labels["gender"]),
            (&first["name"], &first["gender"])
        );
        assert_eq!(portraits.label(i, "age").unwrap(), labels["age"]);
    }
    assert_eq!(women, 800);
    assert!(
        (18..=22).contains(&youngest) && (76..=80).contains(&oldest),
        "{youngest} {oldest}"
    );
    assert_ne!(portraits.label(3, "name"), portraits.label(4, "name"));
}

#[test]
fn a_wrong_specification_says_what_is_wrong() {
    let open = |spec: &str| open(spec, &OpenOptions::default());
    assert_eq!(open("synthetic:portraits").unwrap().len(), 2000);
    assert_eq!(open("synthetic:portraits?seed=7&count=3").unwrap().len(), 3);
    for (spec, word) in [
        ("synthetic:cats", "\"cats\" is no"),
        ("synthetic:portraits?count=0", "count 0 is not within"),
        ("synthetic:portraits?count=-1", "whole number"),
        ("synthetic:portraits?count=99999999999", "within"),
        ("synthetic:portraits?size=3", "\"size\" is neither"),
        ("synthetic:portraits?seed=1&seed=2", "twice"),
        ("synthetic:portraits?seed", "seed \"\" is not"),
    ] {
        let error = open(spec).unwrap_err();
        // The text names the specification as well.
        let DataError::Spec { problem, .. } = &error else {
            panic!("{spec}: {error}");
        };
        assert!(
            error.is_usage() && problem.contains(word),
            "{spec}: {error}"
        );
    }
}

#[test]
fn the_fingerprint_tells_count_and_seed() {
    assert_eq!(set(5, 1).fingerprint(), set(5, 1).fingerprint());
    assert_ne!(set(5, 1).fingerprint(), set(5, 2).fingerprint());
    assert_ne!(set(5, 1).fingerprint(), set(6, 1).fingerprint());
}

/// 64×64 pixels as one vector of length 1.
fn pixels(portraits: &Portraits, index: usize) -> Vec<f32> {
    let picture = portraits.decode(index).unwrap();
    let small = image::imageops::thumbnail(&picture, 64, 64);
    let mut values: Vec<f32> = small.as_raw().iter().map(|&byte| f32::from(byte)).collect();
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    values.iter_mut().for_each(|v| *v /= norm);
    values
}

#[test]
fn neighbours_on_pixels_hardly_tell_gender() {
    // Different seeds: no person is in both. k = 20, majority.
    let (bank, test) = (set(800, 100), set(300, 101));
    let all = |portraits: &Portraits| -> Vec<(Vec<f32>, bool)> {
        (0..portraits.len())
            .into_par_iter()
            .map(|i| (pixels(portraits, i), portraits.labels(i)["gender"] == "f"))
            .collect()
    };
    let (bank, test) = (all(&bank), all(&test));
    let right: usize = test
        .par_iter()
        .map(|(query, woman)| {
            let mut similar: Vec<(f32, bool)> = bank
                .iter()
                .map(|(image, woman)| (query.iter().zip(image).map(|(a, b)| a * b).sum(), *woman))
                .collect();
            similar.sort_by(|a, b| b.0.total_cmp(&a.0));
            let women = similar[..20].iter().filter(|(_, woman)| *woman).count();
            usize::from((women > 10) == *woman)
        })
        .sum();
    let accuracy = right as f64 / test.len() as f64;
    assert!(
        (0.45..=0.70).contains(&accuracy),
        "k-NN on pixels: {accuracy}"
    );
}
