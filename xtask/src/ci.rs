//! `cargo xtask ci`: the same steps as continuous integration.

use std::process::Command;

use anyhow::{Context, ensure};

pub(crate) fn run() -> anyhow::Result<()> {
    let status = Command::new("bash")
        .arg(".ci/run")
        .status()
        .context("starting .ci/run")?;
    ensure!(status.success(), ".ci/run failed: {status}");
    Ok(())
}
