//! `cargo xtask cuda-check`: our CUDA kernels, checked without a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cuda_env;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also compile the kernels with NVRTC from this folder, which cuda-env has filled.
    #[arg(long, value_name = "DIR")]
    nvrtc: Option<PathBuf>,
    /// What NVRTC compiles for.
    #[arg(long, value_delimiter = ',', default_value = "compute_80,sm_90,sm_100")]
    architectures: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(folder) = &args.nvrtc {
        nvrtc(folder, &args.architectures)?;
    }
    let status = Command::new(env!("CARGO"))
        .args(["test", "--package", "selfsame-kernels", "--lib", "--"])
        .args(["--ignored", "cuda::emulated"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the emulated kernels failed: {status}");
    Ok(())
}

fn nvrtc(folder: &Path, architectures: &[String]) -> anyhow::Result<()> {
    let home = cuda_env::home(folder)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = root.join("../crates/selfsame-kernels/src/cuda");
    let mut sources = Vec::new();
    for entry in kernels.read_dir().context("listing the kernels")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    ensure!(!sources.is_empty(), "no kernels in {}", kernels.display());
    for architecture in architectures {
        let status = Command::new(folder.join("venv/bin/python"))
            .arg(root.join("cuda/nvrtc.py"))
            .args([home.join("lib/libnvrtc.so.13"), home.join("include")])
            .arg(architecture)
            .args(&sources)
            .status()
            .context("starting the interpreter of cuda-env")?;
        ensure!(
            status.success(),
            "NVRTC for {architecture} failed: {status}"
        );
    }
    Ok(())
}
