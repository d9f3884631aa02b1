//! A result never goes over what it is made from.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use selfsame_checkpoint::CHECKPOINTS;
use selfsame_data::Dataset;
use selfsame_train::{CAPTURES, METRICS_FILE, PICTURES_FILE, SKIPPED_FILE, SNAPSHOTS};

use crate::exit::usage;
use crate::run_dir::CONFIG_FILE;
use crate::weights::{FINETUNED, RESULT_FILE, without_prefix};

/// What is read of a run.
const OF_RUN: [&str; 5] = [
    CONFIG_FILE,
    METRICS_FILE,
    PICTURES_FILE,
    SKIPPED_FILE,
    RESULT_FILE,
];
/// Folders of a run that hold its weights.
const FOLDERS_OF_RUN: [&str; 3] = [CHECKPOINTS, SNAPSHOTS, CAPTURES];
/// What is read of a folder of weights, other programs' included.
const OF_WEIGHTS: [&str; 7] = [
    FINETUNED,
    "model.safetensors",
    "student.safetensors",
    "teacher.safetensors",
    "pytorch_model.bin",
    "config.json",
    "manifest.json",
];

/// Refuses to write over what flags name: a file, or in a folder what is read of a run or of
/// weights. What names no file, such as `pixels`, is passed over.
///
/// # Errors
/// A usage error that names both flags.
pub(crate) fn refuse_overwriting(
    (flag, out): (&str, &Path),
    inputs: &[(&str, &Path)],
) -> anyhow::Result<()> {
    let Ok(out_at) = out.canonicalize() else {
        return Ok(());
    };
    for (input_flag, input) in inputs {
        let input = input
            .to_str()
            .map_or(*input, |spec| Path::new(without_prefix(spec)));
        let Ok(input) = input.canonicalize() else {
            continue;
        };
        if out_at == input || is_read_of(&input, &out_at) {
            return Err(refusal(flag, out, input_flag));
        }
    }
    Ok(())
}

/// Refuses to write over one of the pictures of a data set.
///
/// # Errors
/// As [`refuse_overwriting`].
pub(crate) fn refuse_overwriting_pictures(
    (flag, out): (&str, &Path),
    (input_flag, set): (&str, &dyn Dataset),
) -> anyhow::Result<()> {
    let (Ok(out_at), Some(name)) = (out.canonicalize(), out.file_name()) else {
        return Ok(());
    };
    // Some disks tell names in another case from one another, some do not.
    let folded = |name: &OsStr| name.to_string_lossy().to_lowercase();
    let name = folded(name);
    let is_it = |path: PathBuf| {
        // Asked of few: where links lead takes long for a million files.
        let may_be = path.file_name().is_some_and(|its| folded(its) == name) || path.is_symlink();
        may_be && path.canonicalize().is_ok_and(|path| path == out_at)
    };
    match (0..set.len()).any(|index| set.path(index).is_some_and(is_it)) {
        true => Err(refusal(flag, out, input_flag)),
        false => Ok(()),
    }
}

/// Whether a path lies, or will lie, within a folder that is there, wherever links and `..` lead.
pub(crate) fn lies_within(path: &Path, folder: &Path) -> bool {
    let (Ok(path), Ok(folder)) = (std::path::absolute(path), folder.canonicalize()) else {
        return false;
    };
    // As much as there is of it already.
    let existing = path.ancestors().find_map(|at| at.canonicalize().ok());
    folder.is_dir() && existing.is_some_and(|existing| existing.starts_with(folder))
}

fn is_read_of(folder: &Path, file: &Path) -> bool {
    let Ok(within) = file.strip_prefix(folder) else {
        return false;
    };
    let is_one_of = |names: &[&str]| names.iter().any(|name| within == Path::new(name));
    is_one_of(&OF_WEIGHTS)
        || is_one_of(&OF_RUN)
        || FOLDERS_OF_RUN.iter().any(|name| within.starts_with(name))
}

fn refusal(flag: &str, out: &Path, input: &str) -> anyhow::Error {
    usage(format!(
        "{flag} {}: that is read, as {input} says, and stays as it is; name another file",
        out.display()
    ))
}

#[cfg(test)]
mod tests {
    use selfsame_data::{OpenOptions, open};

    use super::*;

    fn refused(out: &Path, spec: &str) -> bool {
        let error = refuse_overwriting(("--out", out), &[("--weights", Path::new(spec))]).err();
        error.is_some_and(|error| {
            let text = error.to_string();
            assert!(
                text.contains("--out") && text.contains("--weights"),
                "{text}"
            );
            true
        })
    }

    #[test]
    fn what_is_read_of_a_folder_is_told_from_what_else_lies_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
            path
        };
        let spec = dir.path().to_str().unwrap();
        for read in [
            "model.safetensors",
            "finetuned.safetensors",
            "config.toml",
            "skipped.csv",
            "checkpoints/step-00000001/teacher.safetensors",
            "snapshots/epoch-0001.safetensors",
        ] {
            let path = put(read);
            assert!(refused(&path, spec), "{read}");
        }
        for result in ["features.safetensors", "map.png", "report.html"] {
            assert!(!refused(&put(result), spec), "{result}");
        }
        assert!(!refused(&dir.path().join("new.png"), spec));
        let file = put("w.safetensors");
        let reference = format!("reference:{}", file.display());
        assert!(refused(&file, file.to_str().unwrap()) && refused(&file, &reference));
        assert!(!refused(&file, "pixels"));
    }

    #[test]
    fn a_place_within_a_folder_is_told_wherever_its_path_leads() {
        let dir = tempfile::tempdir().unwrap();
        let photos = dir.path().join("photos");
        std::fs::create_dir_all(photos.join("more")).unwrap();
        let within = |path: &str| lies_within(&dir.path().join(path), &photos);
        for path in [
            "photos",
            "photos/more",
            "photos/new/newer",
            "photos/more/../new",
        ] {
            assert!(within(path), "{path}");
        }
        for path in [
            "",
            "new",
            "photos2",
            "photos/../new",
            "photos/more/../../new",
        ] {
            assert!(!within(path), "{path}");
        }
        assert!(!lies_within(&photos, &dir.path().join("not-there")));
    }

    #[test]
    fn pictures_of_a_folder_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let picture = dir.path().join("a.png");
        image::RgbImage::new(4, 4).save(&picture).unwrap();
        std::fs::write(dir.path().join("rows.csv"), "x").unwrap();
        let set = open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let check = |name: &str| {
            let out = dir.path().join(name);
            refuse_overwriting_pictures(("--out", &out), ("--data", set.as_ref()))
        };
        assert!(check("a.png").is_err());
        assert!(check("b.png").is_ok() && check("rows.csv").is_ok());
    }
}
