//! `selfsame replay`

use std::path::{Path, PathBuf};

use anyhow::Context;
use selfsame_checkpoint::write_bytes;
use selfsame_train::{Capture, replay, write_state};

use crate::cli::Replay;
use crate::config::Merged;
use crate::device;
use crate::exit::{Done, usage};
use crate::out::{check_writable, is_same_file};
use crate::overwriting::refuse_overwriting;
use crate::run_dir::CONFIG_FILE;
use crate::scores::print_text;

/// What every capture holds.
const DESCRIPTION: &str = "capture.json";

pub(crate) fn run(args: &Replay) -> anyhow::Result<Done> {
    if !args.capture.join(DESCRIPTION).is_file() {
        return Err(usage(format!(
            "{} is not a capture: there is no {DESCRIPTION} in it; `train --capture-step N` makes \
             one, and so does a step that was not finite, in RUN/captures",
            args.capture.display()
        )));
    }
    let files = files(&args.capture)?;
    let inputs: Vec<(&str, &Path)> = files
        .iter()
        .map(|file| ("the capture", file.as_path()))
        .collect();
    for (flag, out) in [("--out", &args.out), ("--save", &args.save)] {
        if let Some(out) = out {
            refuse_overwriting((flag, out), &inputs)?;
            check_writable(flag, out)?;
        }
    }
    if let (Some(out), Some(save)) = (&args.out, &args.save)
        && is_same_file(out, save)
    {
        return Err(usage(format!(
            "--save {}: --out names the same file; the figures and the state need one each",
            save.display()
        )));
    }
    device::set_threads(args.threads)?;
    let capture = Capture::open(&args.capture)?;
    let name = args.capture.join(CONFIG_FILE).display().to_string();
    let mut merged = Merged::from_text(&capture.config_text, &name)?;
    // The capture's own count of epochs is what its schedules span.
    let epochs = toml::Value::Integer(capture.info.epochs as i64);
    merged.put("train.epochs", epochs, "capture.json")?;
    let device = toml::Value::String(args.device.clone());
    merged.put("train.device", device, "--device")?;
    let config = merged.resolve()?;
    let device = device::open_for_training(&config)?;
    let mut lines = String::new();
    let replayed = replay(&capture, &config, args.steps, &device, |line| {
        let line = serde_json::to_string(line).expect("figures always serialise");
        match args.out {
            Some(_) => lines.extend([line.as_str(), "\n"]),
            None => print_text(&line),
        }
        Ok(())
    });
    // The figures of the steps before one that failed tell what led to it.
    let written = match &args.out {
        Some(path) if !lines.is_empty() => write_bytes(path, lines.as_bytes()),
        _ => Ok(()),
    };
    // Neither file is lost for want of the other.
    let saved = match (&replayed, &args.save) {
        (Ok(learner), Some(path)) => write_state(path, learner),
        _ => Ok(()),
    };
    replayed?;
    written?;
    saved?;
    Ok(Done::Well)
}

/// What is read of a capture; other files in its folder are nobody's.
fn files(capture: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", capture.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(capture).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_read = [DESCRIPTION, CONFIG_FILE, "state.safetensors"].contains(&&*name)
            || (name.starts_with("batch-") && name.ends_with(".safetensors"));
        if is_read {
            files.push(entry.path());
        }
    }
    Ok(files)
}
