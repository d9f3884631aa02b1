//! With the feature `cuda`: compiles `src/cuda/*.cu` to PTX. Without it there is nothing to do.
//!
//! nvcc is needed by candle's own kernels anyway, and PTX made here needs no compiler where the
//! program runs. It is made for compute capability 8.0, the first with bf16; drivers translate it
//! for every later one.

use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHITECTURE: &str = "compute_80";
const SOURCES: [&str; 19] = [
    "attention",
    "attention_bf16",
    "batch_norm",
    "branch",
    "channels_last",
    "conv",
    "crops",
    "gelu",
    "layer_norm",
    "normalize",
    "patches",
    "pool",
    "relu",
    "rounded",
    "row_norm",
    "running_stats",
    "softmax",
    "sums",
    "update",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for header in ["device", "eight", "moments", "tensor_core", "windows"] {
        println!("cargo::rerun-if-changed=src/cuda/{header}.cuh");
    }
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    for name in SOURCES {
        let source = format!("src/cuda/{name}.cu");
        println!("cargo::rerun-if-changed={source}");
        let done = Command::new(nvcc())
            .args(["-ptx", "-std=c++17", "-O3", "-arch", ARCHITECTURE, "-o"])
            .arg(Path::new(&out).join(format!("{name}.ptx")))
            .arg(&source)
            .status();
        match done {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc on {source}: {status}"),
            Err(error) => panic!(
                "the feature cuda needs nvcc ({error}): set NVCC or CUDA_HOME, see docs/cuda.md"
            ),
        }
    }
}

/// `$NVCC`, or the one below `$CUDA_HOME`, or the one on the path.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    match std::env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => "nvcc".into(),
    }
}
