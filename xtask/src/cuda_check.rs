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
    /// Also run the tests that need a GPU on an emulated driver; builds with the feature cuda.
    #[arg(long)]
    driver: bool,
    /// Only run clippy over the workspace with the feature cuda, which needs no CUDA.
    #[arg(long, conflicts_with_all = ["nvrtc", "driver"])]
    types: bool,
    /// What NVRTC compiles for.
    #[arg(long, value_delimiter = ',', default_value = "compute_80,sm_90,sm_100")]
    architectures: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.types {
        return types();
    }
    if let Some(folder) = &args.nvrtc {
        nvrtc(folder, &args.architectures)?;
    }
    let status = Command::new(env!("CARGO"))
        .args(["test", "--package", "selfsame-kernels", "--lib", "--"])
        .args(["--ignored", "cuda::emulated"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the emulated kernels failed: {status}");
    if args.driver { driver() } else { Ok(()) }
}

/// Stands in for nvcc where nothing is run: what it should make are empty files.
const NO_NVCC: &str = r#"#!/bin/sh
folder= source=
while [ $# -gt 0 ]; do
    case "$1" in
    -o) shift; : > "$1" ;;
    --output-directory) shift; folder=$1 ;;
    *.cu) source=${1##*/} ;;
    esac
    shift
done
if [ -n "$folder" ]; then : > "$folder/${source%.cu}.ptx"; fi
"#;

/// Types and lints of what only the feature cuda compiles, on a machine that has nothing of CUDA.
///
/// The target folder is the usual one, so that only what the feature touches is checked again.
fn types() -> anyhow::Result<()> {
    if cfg!(windows) {
        println!("left out: what stands in for nvcc is a script that Windows does not start");
        return Ok(());
    }
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    };
    let target = target
        .canonicalize()
        .with_context(|| format!("looking for {}", target.display()))?;
    // Another path each time, so that build scripts run again, now and in a real build.
    let nvcc = target.join(format!("no-nvcc-{}", std::process::id()));
    std::fs::write(&nvcc, NO_NVCC).with_context(|| format!("writing {}", nvcc.display()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&nvcc, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} a program", nvcc.display()))?;
    }
    let status = Command::new(env!("CARGO"))
        .args(["clippy", "--workspace", "--all-targets", "--features"])
        .args([
            "selfsame/cuda,selfsame-kernels/cuda",
            "--",
            "-D",
            "warnings",
        ])
        .env("CARGO_TARGET_DIR", &target)
        .env("NVCC", &nvcc)
        .env("CUDARC_CUDA_VERSION", "13000")
        .env("CUDA_COMPUTE_CAP", "80")
        .status()
        .context("starting cargo");
    let forgotten = forget_kernels(&target.join("debug/build"));
    // Left behind only if even this fails.
    let _ = std::fs::remove_file(&nvcc);
    let status = status?;
    ensure!(
        status.success(),
        "the feature cuda does not compile, or not without warnings: {status}"
    );
    forgotten
}

/// Removes the empty kernels, which a real build must not find.
fn forget_kernels(builds: &Path) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(builds).with_context(|| format!("reading {}", builds.display()))?;
    for entry in entries {
        let folder = entry
            .with_context(|| format!("reading {}", builds.display()))?
            .path()
            .join("out");
        let holds_kernels = folder.join("ptx.rs").exists() || folder.join("attention.ptx").exists();
        if holds_kernels {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    Ok(())
}

/// Compiles the emulated driver and puts it before the real libraries, in the tests' process alone.
fn driver() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = root.join("crates/selfsame-kernels/tests/cuda_emulation");
    let folder = std::env::temp_dir().join(format!("selfsame-driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("making a folder for the driver")?;
    let library = folder.join("libcuda.so.1");
    let compiled = Command::new("g++")
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off"])
        .arg("-I")
        .arg(&source)
        .arg(source.join("driver.cpp"))
        .arg("-o")
        .arg(&library)
        .status()
        .context("starting g++")?;
    let checked = match compiled.success() {
        true => on_driver(&library, &folder),
        false => Err(anyhow::anyhow!(
            "the emulated driver did not compile: {compiled}"
        )),
    };
    // Left behind only if even this fails.
    let _ = std::fs::remove_dir_all(&folder);
    checked
}

/// The tests that need a GPU, and whole runs, with this library in place of the driver.
fn on_driver(library: &Path, folder: &Path) -> anyhow::Result<()> {
    let paths = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let (library, libraries) = (library.display(), folder.display());
    let runner = format!("env LD_PRELOAD={library} LD_LIBRARY_PATH={libraries}:{paths}");
    let variable = runner_variable()?;
    let tested = Command::new(env!("CARGO"))
        // With the program's features, so that candle's kernels are those that it was built with.
        .args(["test", "--release", "--package", "selfsame"])
        .args([
            "--package",
            "selfsame-kernels",
            "--features",
            "selfsame/cuda",
        ])
        .args(["--test", "cuda", "--", "--ignored"])
        // One device, one thread.
        .arg("--test-threads=1")
        .env(&variable, &runner)
        .status()
        .context("starting cargo")?;
    ensure!(
        tested.success(),
        "the operations on the emulated driver failed: {tested}"
    );
    let reads = |steps: usize| reads_of_a_run(folder, steps, &variable, &runner);
    let (few, many) = (reads(2)?, reads(5)?);
    ensure!(
        few == many,
        "2 steps read {few} times from the device and 5 steps {many} times: a step must not wait"
    );
    println!("steps read nothing from the device");
    Ok(())
}

/// How often the host reads from the device in a run of a small vision transformer that tells
/// nothing on its way.
fn reads_of_a_run(
    folder: &Path,
    steps: usize,
    variable: &str,
    runner: &str,
) -> anyhow::Result<String> {
    let run = folder.join(format!("run-{steps}"));
    let mut command = Command::new(env!("CARGO"));
    command
        .args([
            "run",
            "--release",
            "--package",
            "selfsame",
            "--features",
            "cuda",
            "--",
        ])
        .args(["train", "--data", "synthetic:portraits?count=40&seed=3"])
        .args([
            "--preset",
            "cpu",
            "--no-report",
            "--device",
            "cuda",
            "--run",
        ])
        .arg(&run);
    for setting in [
        "augment.global_size=32",
        "augment.local_size=16",
        "augment.local_crops=2",
        "model.image_size=32",
        "model.embed_dim=64",
        "model.depth=2",
        "model.num_heads=2",
        "head.out_dim=32",
        "head.hidden_dim=32",
        "head.bottleneck_dim=16",
        "train.batch_size=8",
        "train.log_every_steps=100",
        "train.knn_every_epochs=0",
        &format!("train.max_steps={steps}"),
    ] {
        command.args(["--set", setting]);
    }
    let output = command
        .env(variable, runner)
        .env("EMULATED_READS", "1")
        .output()
        .context("starting cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    let told = said
        .lines()
        .find_map(|line| line.strip_prefix("emulated driver: "));
    Ok(told
        .context("the emulated driver told no reads")?
        .to_owned())
}

/// The variable that tells cargo how to start what it has built for this machine.
fn runner_variable() -> anyhow::Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("starting rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?;
    let host = host.to_uppercase().replace('-', "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
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
