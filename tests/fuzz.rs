//! Damaged annotation files, checkpoints and captures: whatever the bytes, the reader answers with
//! a value or an error, soon. Picture files and `.pth` are damaged in the crates that read them,
//! and what `--set` is given in `crates/selfsame/src/config/tests.rs`.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

#[path = "common/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Device;
use mutate::{Dice, Mutations};
use selfsame_data::OpenOptions;
use selfsame_train::{Capture, RunConfig};

/// Far above what any of these small files needs, on a machine that stops for seconds too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Damages a file again and again and has it read; the count of each outcome.
fn fuzz(
    seed: u64,
    mut enough: impl FnMut(u64) -> bool,
    mut case: impl FnMut(&mut Dice) -> &'static str,
) -> BTreeMap<&'static str, u64> {
    let mut dice = Dice(seed);
    let mut outcomes = BTreeMap::new();
    let mut done = 0;
    while !enough(done) {
        let began = Instant::now();
        let outcome = case(&mut dice);
        assert!(began.elapsed() < PATIENCE, "case {done} of seed {seed}");
        *outcomes.entry(outcome).or_insert(0) += 1;
        done += 1;
    }
    outcomes
}

/// Runs a target for a moment; all `expected` outcomes must come up, or the changes do not reach
/// what they are meant to.
fn briefly(expected: &[&str], case: impl FnMut(&mut Dice) -> &'static str) {
    let outcomes = fuzz(0x5e1f_5a3e, |done| done == 400, case);
    for outcome in expected {
        assert!(outcomes.contains_key(outcome), "{outcome}: {outcomes:?}");
    }
}

/// Runs a target for half an hour.
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn at_length(name: &str, case: impl FnMut(&mut Dice) -> &'static str) {
    let began = Instant::now();
    let seed = u64::from(std::process::id()) | 1;
    let outcomes = fuzz(seed, |_| began.elapsed() > Duration::from_secs(1800), case);
    println!("{name}, seed {seed}: {outcomes:?}");
}

/// Opens damaged annotation files of two headers.
fn annotations(dir: &Path) -> impl FnMut(&mut Dice) -> &'static str {
    let files: [&[u8]; 3] = [
        b"Images,Name,Age,Gender\na.jpg,Ann,31,f\n\"b, c.jpg\",\"O'\"\"Neil\",4,m\nd/e.jpg,,,\n",
        b"\xef\xbb\xbffile,class,age\r\nx.png,cat,1.5\r\ny.png,dog,2\r\nz.png,\xc3\xbc,3\r\n",
        b"path\n../up.jpg\n/abs.jpg\n\"two\nlines.jpg\"\n",
    ];
    let mutations = Mutations {
        telling: b"\"\",,\n\r\0;\t./\\\xff\xfe",
        header: 60,
    };
    let path = dir.join("annotations.csv");
    move |dice| {
        let mut bytes = files[dice.below(files.len())].to_vec();
        let other = files[dice.below(files.len())];
        mutations.apply(&mut bytes, other, dice);
        std::fs::write(&path, &bytes).unwrap();
        match selfsame_data::open(path.to_str().unwrap(), &OpenOptions::default()) {
            Ok(set) => {
                for index in 0..set.len() {
                    let _ = set.labels(index);
                }
                "opened"
            }
            Err(error) if error.to_string().contains("annotations.csv:") => "a line is named",
            Err(_) => "refused",
        }
    }
}

/// Loads a checkpoint with a damaged list of its files, and damaged tensor files by themselves.
fn checkpoint(dir: &Path) -> impl FnMut(&mut Dice) -> &'static str {
    let golden = golden("format-1/checkpoints/step-00000007");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let (manifest, tensors) = (read("manifest.json"), read("state.safetensors"));
    for name in ["student", "teacher", "optimizer", "state"] {
        let name = format!("{name}.safetensors");
        std::fs::copy(golden.join(&name), dir.join(&name)).unwrap();
    }
    let mutations = Mutations {
        telling: b"{}[]:,\"\"0919-+eE.\\nut\0\xff",
        header: 160,
    };
    let dir = dir.to_owned();
    move |dice| {
        if dice.below(2) == 0 {
            let mut bytes = manifest.clone();
            mutations.apply(&mut bytes, &manifest, dice);
            std::fs::write(dir.join("manifest.json"), &bytes).unwrap();
            match selfsame_checkpoint::load(&dir, &Device::Cpu) {
                Ok(_) => "loaded",
                Err(_) => "checkpoint refused",
            }
        } else {
            let mut bytes = tensors.clone();
            mutations.apply(&mut bytes, &tensors, dice);
            let path = dir.join("alone.safetensors");
            std::fs::write(&path, &bytes).unwrap();
            match selfsame_checkpoint::read_tensors(&path) {
                Ok(_) => "tensors",
                Err(_) => "tensors refused",
            }
        }
    }
}

/// Replays a step of a capture one of whose files is damaged; the configuration is sound.
fn capture(dir: &Path) -> impl FnMut(&mut Dice) -> &'static str {
    let golden = golden("captures/notebook-tiny");
    let names = [
        "capture.json",
        "state.safetensors",
        "batch-000000.safetensors",
    ];
    let sound = names.map(|name| std::fs::read(golden.join(name)).unwrap());
    let text = std::fs::read_to_string(golden.join("config.toml")).unwrap();
    let config: RunConfig = toml::from_str(&text).unwrap();
    std::fs::write(dir.join("config.toml"), &text).unwrap();
    let mutations = Mutations {
        telling: b"{}[]:,\"\"0919-+eE.\\nut\0\xff",
        header: 300,
    };
    let dir = dir.to_owned();
    move |dice| {
        let damaged = dice.below(names.len());
        for (index, (name, bytes)) in names.iter().zip(&sound).enumerate() {
            let mut bytes = bytes.clone();
            if index == damaged {
                let whole = bytes.clone();
                mutations.apply(&mut bytes, &whole, dice);
            }
            std::fs::write(dir.join(name), &bytes).unwrap();
        }
        let replayed = Capture::open(&dir).and_then(|capture| {
            selfsame_train::replay(&capture, &config, 1, &Device::Cpu, |_| Ok(()))
        });
        match replayed {
            Ok(_) => "replayed",
            Err(_) => "refused",
        }
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

#[test]
fn damaged_annotations_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    briefly(&["opened", "a line is named"], annotations(dir.path()));
}

#[test]
fn damaged_checkpoints_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let outcomes = ["checkpoint refused", "tensors", "tensors refused"];
    briefly(&outcomes, checkpoint(dir.path()));
}

#[test]
fn damaged_captures_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    briefly(&["replayed", "refused"], capture(dir.path()));
}

/// `cargo test --release -p selfsame --test fuzz -- --ignored --nocapture`
#[test]
#[ignore = "takes half an hour"]
fn damaged_annotations_are_answered_for_half_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    at_length("annotations", annotations(dir.path()));
}

#[test]
#[ignore = "takes half an hour"]
fn damaged_checkpoints_are_answered_for_half_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    at_length("checkpoint", checkpoint(dir.path()));
}

#[test]
#[ignore = "takes half an hour"]
fn damaged_captures_are_answered_for_half_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    at_length("capture", capture(dir.path()));
}
