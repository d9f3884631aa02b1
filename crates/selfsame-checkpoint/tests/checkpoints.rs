//! Saving, loading, falling back and forgetting, on small runs in temporary folders.
#![expect(
    clippy::unwrap_used,
    reason = "helper functions of tests are tests too"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use selfsame_checkpoint::{
    Checkpoint, CheckpointError, RunLock, checkpoint_dir, is_empty_run_dir, list, load,
    load_newest, load_newest_files, save, verify_file,
};
use serde_json::json;

const CPU: &Device = &Device::Cpu;

fn checkpoint(step: u64) -> Checkpoint {
    let weight = |offset: f32| {
        let values: Vec<f32> = (0..6)
            .map(|i| offset + step as f32 / 3.0 + i as f32)
            .collect();
        Tensor::from_vec(values, (2, 3), CPU).unwrap()
    };
    let count = Tensor::new(step as i64, CPU).unwrap();
    Checkpoint {
        step,
        epoch: step / 10,
        config: "seed = 42\n\n[train]\nbatch_size = 32\n".to_string(),
        extra: json!({ "batches_done": 7, "best": 0.1 + 0.2 }),
        files: BTreeMap::from([
            (
                "student".to_string(),
                BTreeMap::from([
                    ("backbone.norm.weight".to_string(), weight(0.25)),
                    ("backbone.bn1.num_batches_tracked".to_string(), count),
                ]),
            ),
            (
                "teacher".to_string(),
                BTreeMap::from([("backbone.norm.weight".to_string(), weight(-0.75))]),
            ),
            ("optimizer".to_string(), BTreeMap::new()),
        ]),
    }
}

/// Everything a checkpoint says, in a form that can be compared bit for bit.
fn told(checkpoint: &Checkpoint) -> String {
    let mut text = format!(
        "{} {} {:?} {}",
        checkpoint.step, checkpoint.epoch, checkpoint.config, checkpoint.extra
    );
    for (file, tensors) in &checkpoint.files {
        text += &format!("\n{file}");
        for (name, tensor) in tensors {
            let bytes = safetensors::View::data(tensor);
            text += &format!(" {name} {:?} {:?} {bytes:?}", tensor.dims(), tensor.dtype());
        }
    }
    text
}

fn steps(run_dir: &Path) -> Vec<u64> {
    list(run_dir)
        .unwrap()
        .into_iter()
        .map(|(step, _)| step)
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn flip_byte(path: &Path, at: usize, mask: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= mask;
    fs::write(path, bytes).unwrap();
}

fn damage(run_dir: &Path, step: u64, file: &str) -> PathBuf {
    let path = checkpoint_dir(run_dir, step).join(file);
    let last = fs::read(&path).unwrap().len() - 1;
    flip_byte(&path, last, 1);
    path
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &checkpoint(123), 3).unwrap();
    assert_eq!(dir, run.path().join("checkpoints/step-00000123"));
    let expected = [
        "manifest.json",
        "optimizer.safetensors",
        "student.safetensors",
        "teacher.safetensors",
    ];
    assert_eq!(names(&dir), expected);
    assert_eq!(told(&load(&dir, CPU).unwrap()), told(&checkpoint(123)));
    let (newest, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
    assert_eq!(told(&newest), told(&checkpoint(123)));
    assert!(warnings.is_empty());
}

#[test]
fn the_same_state_gives_the_same_files_in_another_run() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir_a = save(a.path(), &checkpoint(5), 3).unwrap();
    let dir_b = save(b.path(), &checkpoint(5), 3).unwrap();
    for name in names(&dir_a) {
        assert_eq!(
            fs::read(dir_a.join(&name)).unwrap(),
            fs::read(dir_b.join(&name)).unwrap()
        );
    }
}

#[test]
fn any_flipped_bit_truncation_or_surplus_byte_in_any_file_is_noticed() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &checkpoint(5), 3).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    for name in names(&dir) {
        let path = dir.join(&name);
        let good = fs::read(&path).unwrap();
        let noticed = |bytes: &[u8], what: String| {
            fs::write(&path, bytes).unwrap();
            let error = load(&dir, CPU)
                .map(|_| ())
                .expect_err(&format!("{name}: {what}"));
            assert!(error.to_string().contains(&name), "{what}: {error}");
        };
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << below(8);
            noticed(&bytes, format!("byte {at} flipped"));
        }
        for _ in 0..40 {
            let cut = below(good.len());
            noticed(&good[..cut], format!("cut to {cut} bytes"));
        }
        noticed(&[&good[..], b"\n"].concat(), "a byte too many".to_string());
        fs::write(&path, &good).unwrap();
    }
    load(&dir, CPU).unwrap();
    for name in names(&dir) {
        let path = dir.join(&name);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = load(&dir, CPU).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before_and_names_both() {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20, 30] {
        save(run.path(), &checkpoint(step), 3).unwrap();
    }
    damage(run.path(), 30, "student.safetensors");
    fs::remove_file(checkpoint_dir(run.path(), 20).join("manifest.json")).unwrap();
    let (newest, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
    assert_eq!(told(&newest), told(&checkpoint(10)));
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2);
    assert!(
        texts[0].contains("step-00000030") && texts[0].contains("BLAKE3"),
        "{texts:?}"
    );
    assert!(texts[1].contains("step-00000020"), "{texts:?}");
    assert!(
        texts.iter().all(|text| text.ends_with("step-00000010")),
        "{texts:?}"
    );
}

#[test]
fn a_thousand_damages_are_all_seen_and_the_checkpoint_before_is_used() {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20] {
        save(run.path(), &checkpoint(step), 3).unwrap();
    }
    let dir = checkpoint_dir(run.path(), 20);
    let files: Vec<(PathBuf, Vec<u8>)> = names(&dir)
        .iter()
        .map(|name| (dir.join(name), fs::read(dir.join(name)).unwrap()))
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    for i in 0..1000 {
        let (path, good) = &files[below(files.len())];
        let at = below(good.len());
        let mut bytes = good.clone();
        match i % 2 {
            0 => bytes[at] ^= 1 << below(8),
            _ => bytes.truncate(at),
        }
        fs::write(path, bytes).unwrap();
        let (newest, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
        assert_eq!(
            newest.step,
            10,
            "damage {i} at byte {at} of {}",
            path.display()
        );
        let text = warnings[0].to_string();
        assert!(
            text.contains("step-00000020") && text.ends_with("step-00000010"),
            "{text}"
        );
        fs::write(path, good).unwrap();
    }
    assert_eq!(load_newest(run.path(), CPU).unwrap().unwrap().0.step, 20);
}

#[test]
fn a_run_with_only_damaged_checkpoints_is_not_begun_anew_in_silence() {
    let run = tempfile::tempdir().unwrap();
    assert!(load_newest(run.path(), CPU).unwrap().is_none());
    for step in [1, 2] {
        save(run.path(), &checkpoint(step), 3).unwrap();
        damage(run.path(), step, "teacher.safetensors");
    }
    let error = load_newest(run.path(), CPU).unwrap_err().to_string();
    assert!(
        error.contains("step-00000001") && error.contains("step-00000002"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_not_believed() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), &checkpoint(1), 3).unwrap();
    let dir = save(run.path(), &checkpoint(2), 3).unwrap();
    fs::rename(dir, checkpoint_dir(run.path(), 9)).unwrap();
    let (newest, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
    assert_eq!(newest.step, 1);
    assert!(warnings[0].reason.contains("step 2"), "{warnings:?}");
}

#[test]
fn a_newer_format_is_refused_and_not_passed_over() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), &checkpoint(1), 3).unwrap();
    let path = save(run.path(), &checkpoint(2), 3)
        .unwrap()
        .join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 1,", "\"format\": 7,")).unwrap();
    let error = load_newest(run.path(), CPU).unwrap_err().to_string();
    assert!(
        error.contains("format 7") && error.contains("up to 1"),
        "{error}"
    );
}

#[test]
fn one_file_can_be_loaded_without_the_others() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), &checkpoint(4), 3).unwrap();
    fs::remove_file(checkpoint_dir(run.path(), 4).join("student.safetensors")).unwrap();
    let (partial, warnings) = load_newest_files(run.path(), &["teacher"], CPU)
        .unwrap()
        .unwrap();
    assert!(warnings.is_empty());
    assert_eq!(partial.files.keys().collect::<Vec<_>>(), ["teacher"]);
    assert_eq!(partial.manifest.config, checkpoint(4).config);
    let error = load_newest_files(run.path(), &["centre"], CPU)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"centre\"") && error.contains("teacher"),
        "{error}"
    );
}

#[test]
fn only_the_newest_are_kept() {
    let run = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        save(run.path(), &checkpoint(step), 2).unwrap();
    }
    assert_eq!(steps(run.path()), [4, 5]);
    save(run.path(), &checkpoint(6), 0).unwrap();
    assert_eq!(steps(run.path()), [4, 5, 6], "0 keeps all");
    assert_eq!(
        names(&run.path().join("checkpoints")).len(),
        3,
        "nothing else is left"
    );
}

#[test]
fn one_file_can_be_checked_against_the_manifest_beside_it() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &checkpoint(1), 3).unwrap();
    let teacher = dir.join("teacher.safetensors");
    assert!(verify_file(&teacher).unwrap());
    damage(run.path(), 1, "teacher.safetensors");
    let error = verify_file(&teacher).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(verify_file(&dir.join("student.safetensors")).unwrap());

    let other = dir.join("other.safetensors");
    fs::copy(&teacher, &other).unwrap();
    assert!(!verify_file(&other).unwrap(), "no file of the checkpoint");
    let manifest = dir.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (from, to, part) in [
        ("seed = 42", "seed = 43", "checksum"),
        ("\"format\": 1", "\"format\": 9", "newer program"),
    ] {
        fs::write(&manifest, text.replace(from, to)).unwrap();
        let error = verify_file(&teacher).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    fs::write(&manifest, "{ \"files\": {} }").unwrap();
    assert!(!verify_file(&teacher).unwrap(), "of another program");
    fs::remove_file(&manifest).unwrap();
    assert!(!verify_file(&teacher).unwrap(), "nothing to check against");
    assert!(!verify_file(&run.path().join("none.safetensors")).unwrap());
}

#[test]
fn damaged_checkpoints_do_not_push_out_the_good_ones() {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20, 30] {
        save(run.path(), &checkpoint(step), 0).unwrap();
    }
    let cut = checkpoint_dir(run.path(), 30).join("student.safetensors");
    fs::write(&cut, "cut").unwrap();
    // Going on from 20, as a resumed run would: 30 is a damaged future, then a damaged past.
    save(run.path(), &checkpoint(25), 2).unwrap();
    assert_eq!(steps(run.path()), [20, 25, 30]);
    save(run.path(), &checkpoint(40), 2).unwrap();
    assert_eq!(steps(run.path()), [25, 30, 40]);
    assert_eq!(load_newest(run.path(), CPU).unwrap().unwrap().0.step, 40);
}

#[test]
fn saving_a_step_again_replaces_it_if_it_was_damaged_or_differs() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &checkpoint(8), 3).unwrap();
    let when = || {
        fs::metadata(dir.join("manifest.json"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let first = when();
    save(run.path(), &checkpoint(8), 3).unwrap();
    assert_eq!(when(), first, "an equal checkpoint is left where it is");

    damage(run.path(), 8, "student.safetensors");
    save(run.path(), &checkpoint(8), 3).unwrap();
    assert_eq!(told(&load(&dir, CPU).unwrap()), told(&checkpoint(8)));

    let other = Checkpoint {
        epoch: 77,
        ..checkpoint(8)
    };
    save(run.path(), &other, 3).unwrap();
    assert_eq!(load(&dir, CPU).unwrap().epoch, 77);
    assert_eq!(names(&run.path().join("checkpoints")), ["step-00000008"]);
}

#[test]
fn a_replacement_that_was_whole_when_its_process_died_gets_the_name() {
    for cut in [false, true] {
        let run = tempfile::tempdir().unwrap();
        let dir = save(run.path(), &checkpoint(1), 3).unwrap();
        let old = dir.with_file_name(".old-step-00000001");
        fs::rename(&dir, &old).unwrap();
        let other = Checkpoint {
            epoch: 9,
            ..checkpoint(1)
        };
        save(run.path(), &other, 3).unwrap();
        let new = dir.with_file_name(".tmp-step-00000001");
        fs::rename(&dir, &new).unwrap();
        if cut {
            fs::write(new.join("student.safetensors"), "half").unwrap();
        }
        let _lock = RunLock::acquire(run.path()).unwrap();
        let expected = if cut { checkpoint(1) } else { other };
        assert_eq!(told(&load(&dir, CPU).unwrap()), told(&expected));
        assert!(!old.exists() && !new.exists());
    }
}

#[test]
fn a_failing_save_names_the_path_and_leaves_everything_as_it_was() {
    let run = tempfile::tempdir().unwrap();
    fs::write(
        run.path().join("checkpoints"),
        "a file where the folder should be",
    )
    .unwrap();
    let error = save(run.path(), &checkpoint(1), 1).unwrap_err();
    assert!(error.to_string().contains("checkpoints"), "{error}");
    assert_eq!(names(run.path()), ["checkpoints"]);
    fs::remove_file(run.path().join("checkpoints")).unwrap();

    save(run.path(), &checkpoint(1), 1).unwrap();
    fs::write(checkpoint_dir(run.path(), 2), "a file in the way").unwrap();
    fs::create_dir(run.path().join("checkpoints/.old-step-00000002")).unwrap();
    let mut nan = checkpoint(3);
    let tensor = Tensor::new(&[1f32, f32::NAN], CPU).unwrap();
    nan.files
        .get_mut("teacher")
        .unwrap()
        .insert("head.bias".to_string(), tensor);
    let mut bad_name = checkpoint(3);
    bad_name
        .files
        .insert("../outside".to_string(), BTreeMap::new());
    for (broken, word) in [(nan, "head.bias"), (bad_name, "../outside")] {
        let error = save(run.path(), &broken, 1).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        let left = names(&run.path().join("checkpoints"));
        assert_eq!(
            left,
            [".old-step-00000002", "step-00000001", "step-00000002"]
        );
        assert_eq!(load_newest(run.path(), CPU).unwrap().unwrap().0.step, 1);
    }
}

#[test]
fn infinite_values_are_not_saved_but_large_ones_are() {
    let run = tempfile::tempdir().unwrap();
    let with = |value: f64, dtype| {
        let tensor = Tensor::new(&[0., value], CPU).unwrap().to_dtype(dtype);
        let tensors = BTreeMap::from([("w".to_string(), tensor.unwrap())]);
        Checkpoint {
            files: BTreeMap::from([("state".to_string(), tensors)]),
            ..checkpoint(1)
        }
    };
    for (dtype, largest) in [
        (DType::F32, f64::from(f32::MAX)),
        (DType::F64, f64::MAX),
        (DType::F16, 65504.0),
        (DType::BF16, f64::from(f32::from_bits(0x7f7f_0000))),
    ] {
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            let error = save(run.path(), &with(value, dtype), 1).unwrap_err();
            assert!(
                matches!(error, CheckpointError::NotFinite { .. }),
                "{dtype:?}: {error}"
            );
        }
        save(run.path(), &with(largest, dtype), 1).unwrap();
    }
}

#[test]
fn a_killed_save_is_cleared_by_the_next_start_and_does_not_disturb_loading() {
    let run = tempfile::tempdir().unwrap();
    let left = run.path().join("checkpoints/.tmp-step-00000009");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("student.safetensors"), "half").unwrap();
    assert!(is_empty_run_dir(run.path()).unwrap());
    assert!(load_newest(run.path(), CPU).unwrap().is_none());
    let _lock = RunLock::acquire(run.path()).unwrap();
    assert!(!left.exists());
    assert!(is_empty_run_dir(run.path()).unwrap());
    save(run.path(), &checkpoint(9), 1).unwrap();
    assert!(!is_empty_run_dir(run.path()).unwrap());
}

#[test]
fn a_run_directory_that_was_moved_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    save(&run, &checkpoint(1), 3).unwrap();
    save(&run, &checkpoint(2), 3).unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&run, &moved).unwrap();
    let error = save(&run, &checkpoint(3), 3).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    assert!(!run.exists());
    assert_eq!(list(&moved).unwrap().len(), 2);
}

#[test]
fn a_damaged_checkpoint_is_set_aside_once_and_nothing_is_overwritten() {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20] {
        save(run.path(), &checkpoint(step), 0).unwrap();
    }
    damage(run.path(), 20, "student.safetensors");
    let (_, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
    let aside = warnings[0].set_aside().unwrap();
    assert_eq!(aside, run.path().join("checkpoints/damaged-step-00000020"));
    assert!(aside.join("student.safetensors").exists());
    assert_eq!(steps(run.path()), [10]);
    let (_, none) = load_newest(run.path(), CPU).unwrap().unwrap();
    assert!(none.is_empty());

    // The same step, damaged again: the first is kept, and this one stays where it is.
    save(run.path(), &checkpoint(20), 0).unwrap();
    damage(run.path(), 20, "teacher.safetensors");
    let (_, warnings) = load_newest(run.path(), CPU).unwrap().unwrap();
    assert_eq!(warnings[0].set_aside(), None);
    assert_eq!(steps(run.path()), [10, 20]);
}
