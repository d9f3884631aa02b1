//! `cargo xtask ci`: the same steps as continuous integration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

pub(crate) fn run() -> anyhow::Result<()> {
    ensure!(
        cfg!(not(windows)),
        "Windows replaces no program that runs, and the steps build this one: run .ci/run in Git's bash"
    );
    let status = Command::new("bash")
        .arg(script())
        .status()
        .context("starting .ci/run")?;
    ensure!(status.success(), ".ci/run failed: {status}");
    Ok(())
}

/// Below the workspace, wherever in it the command was given.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_found_from_a_sub_folder() {
        // Tests run in the folder of their crate.
        assert!(!Path::new(".ci").exists());
        assert!(script().is_file(), "{}", script().display());
    }
}
