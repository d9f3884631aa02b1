//! `cargo xtask cuda-env`: what a CUDA build needs, from Python packages, on a machine without a
//! CUDA toolkit, a driver or a GPU.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Not newer: PTX of a later nvcc asks for a later driver.
const TOOLKIT: &str = "cuda-toolkit[nvcc,cudart,cccl,cublas,curand,nvrtc,nvptxcompiler]==13.0.3";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the toolkit is put; about 2 GiB.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// An interpreter of Python 3.10 or newer, with pip and venv.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// What candle's kernels are compiled for, 8.0 being 80; they run on every later GPU too.
    #[arg(long, default_value_t = 80)]
    compute_cap: u32,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let venv = args.folder.join("venv");
    if !venv.join("bin/python").exists() {
        done(Command::new(&args.python).args(["-m", "venv"]).arg(&venv))?;
    }
    let mut pip = Command::new(venv.join("bin/python"));
    done(pip.args(["-m", "pip", "install", "--quiet", TOOLKIT]))?;
    let home = home(&args.folder)?;
    link_libraries(&home)?;
    write_driver_shim(&home)?;
    print(&home, args.compute_cap);
    Ok(())
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// The toolkit within a folder that `cuda-env` has filled.
pub(crate) fn home(folder: &Path) -> anyhow::Result<PathBuf> {
    let lib = folder.join("venv/lib");
    let pythons = lib
        .read_dir()
        .with_context(|| format!("listing {}", lib.display()))?;
    for python in pythons {
        let home = python?.path().join("site-packages/nvidia/cu13");
        if home.exists() {
            return home
                .canonicalize()
                .with_context(|| format!("finding {}", home.display()));
        }
    }
    anyhow::bail!(
        "{}: no CUDA toolkit in it; run cargo xtask cuda-env",
        folder.display()
    )
}

/// Packages bring `lib/libx.so.13`; linkers look for `lib64/libx.so`.
fn link_libraries(home: &Path) -> anyhow::Result<()> {
    let lib = home.join("lib");
    link("lib", &home.join("lib64"))?;
    let mut names = Vec::new();
    for entry in lib.read_dir().context("listing the toolkit's libraries")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in names {
        if let Some((stem, _version)) = name.split_once(".so.") {
            link(&name, &lib.join(format!("{stem}.so")))?;
        }
    }
    Ok(())
}

fn link(target: &str, link: &Path) -> anyhow::Result<()> {
    if link.exists() {
        return Ok(());
    }
    symlink(target, link).with_context(|| format!("linking {}", link.display()))
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// The wheels it unpacks are Linux's.
#[cfg(not(unix))]
fn symlink(_: &str, _: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other("cuda-env is for Linux"))
}

/// Puts a `libcuda.a` where cudarc looks: it loads the driver at the first call, so that a program
/// linked with it starts without one, and every call says that there is no device.
fn write_driver_shim(home: &Path) -> anyhow::Result<()> {
    let stubs = home.join("lib/stubs");
    std::fs::create_dir_all(&stubs).context("making the folder for the driver's shim")?;
    let bindings = cudarc()?.join("src/driver/sys/mod.rs");
    let bindings = std::fs::read_to_string(&bindings)
        .with_context(|| format!("reading {}", bindings.display()))?;
    let names = driver_functions(&bindings);
    ensure!(
        !names.is_empty(),
        "cudarc declares no function of the driver"
    );
    let (source, object) = (stubs.join("cuda.c"), stubs.join("cuda.o"));
    std::fs::write(&source, shim(&names)).context("writing the driver's shim")?;
    let mut cc = Command::new("cc");
    done(
        cc.args(["-c", "-O1", "-fPIC", "-o"])
            .arg(&object)
            .arg(&source),
    )?;
    let archive = stubs.join("libcuda.a");
    if archive.exists() {
        std::fs::remove_file(&archive).context("removing the last shim")?;
    }
    done(Command::new("ar").arg("rcs").arg(&archive).arg(&object))
}

/// Where cargo keeps the sources of cudarc.
fn cudarc() -> anyhow::Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--features",
            "selfsame/cuda",
        ])
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array();
    let manifest = packages
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "cudarc")
        .and_then(|package| package["manifest_path"].as_str())
        .context("cargo metadata does not list cudarc")?;
    let folder = Path::new(manifest)
        .parent()
        .context("a manifest without a folder")?;
    Ok(folder.to_owned())
}

/// Names of the driver's functions that the bindings declare.
fn driver_functions(bindings: &str) -> BTreeSet<&str> {
    bindings
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub "))
        .filter_map(|line| Some(line.split_once("fn ")?.1))
        .filter_map(|line| line.split(['(', '<']).next())
        .filter(|name| {
            name.strip_prefix("cu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
        })
        .collect()
}

/// C that hands each call on to the driver. All functions of it that are called take integers and
/// addresses, at most eleven, and return an integer.
fn shim(names: &BTreeSet<&str>) -> String {
    let mut source = String::from(
        "#define _GNU_SOURCE\n\
         #include <dlfcn.h>\n\
         typedef long (*call)(long, long, long, long, long, long, long, long, long, long, long);\n\
         static call find(const char *name) {\n\
         \x20   static void *driver;\n\
         \x20   if (!driver) driver = dlopen(\"libcuda.so.1\", RTLD_NOW | RTLD_GLOBAL);\n\
         \x20   return driver ? (call)dlsym(driver, name) : 0;\n\
         }\n\
         /* 100 is CUDA_ERROR_NO_DEVICE. */\n\
         #define FORWARD(name) \\\n\
         \x20   long name(long a, long b, long c, long d, long e, long f, long g, long h, long i, \\\n\
         \x20             long j, long k) { \\\n\
         \x20       static call own; \\\n\
         \x20       if (!own) own = find(#name); \\\n\
         \x20       return own ? own(a, b, c, d, e, f, g, h, i, j, k) : 100; \\\n\
         \x20   }\n",
    );
    for name in names {
        // Writing to a string cannot fail.
        let _ = writeln!(source, "FORWARD({name})");
    }
    source
}

fn print(home: &Path, compute_cap: u32) {
    let home = home.display();
    println!("export CUDA_HOME={home}");
    println!("export NVCC={home}/bin/nvcc");
    println!("export PATH={home}/bin:$PATH");
    println!("export CUDA_COMPUTE_CAP={compute_cap}");
    println!("export LD_LIBRARY_PATH={home}/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_the_driver_are_told_from_others() {
        let bindings = "extern \"C\" {\n    pub fn cuInit(Flags: u32) -> CUresult;\n}\n\
                        pub extern fn cuMemAlloc_v2(\n pub fn culib() -> u8;\n fn cuHidden();";
        let names = driver_functions(bindings);
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["cuInit", "cuMemAlloc_v2"]
        );
    }

    #[test]
    fn the_shim_forwards_every_function() {
        let source = shim(&BTreeSet::from(["cuInit", "cuLaunchKernel"]));
        assert!(source.ends_with("FORWARD(cuInit)\nFORWARD(cuLaunchKernel)\n"));
        assert!(source.contains("dlopen(\"libcuda.so.1\""));
    }

    #[test]
    fn a_folder_that_was_not_filled_says_how() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("venv/lib/python3.12")).unwrap();
        let error = home(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cargo xtask cuda-env"), "{error}");
    }
}
