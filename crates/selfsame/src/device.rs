//! From a device name and a thread count to candle's device and rayon's pool.

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use selfsame_train::{Precision, RunConfig};

use crate::exit::usage;
use crate::stderr::tell;

/// What an NVIDIA driver brings: its device on Linux, its library in a Linux within Windows and on
/// Windows itself.
const GPU_FILES: [&str; 3] = [
    "/dev/nvidiactl",
    "/usr/lib/wsl/lib/libcuda.so.1",
    r"C:\Windows\System32\nvcuda.dll",
];

/// Opens `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// A usage error for another name or if this build has no CUDA; one sentence if no GPU can be used.
pub(crate) fn open(name: &str) -> anyhow::Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if !cfg!(feature = "cuda") => {
            if GPU_FILES.iter().any(|file| Path::new(file).exists()) {
                tell!(
                    "note: this program was built without CUDA (--features cuda): the GPU of this \
                     machine is not used"
                );
            }
            Ok(Device::Cpu)
        }
        "auto" => Ok(open_cuda(0).unwrap_or_else(|error| {
            tell!("note: {error:#}; running on the CPU");
            Device::Cpu
        })),
        _ => {
            let index = match name {
                "cuda" => 0,
                other => other
                    .strip_prefix("cuda:")
                    .and_then(|index| index.parse().ok())
                    .ok_or_else(|| {
                        usage(format!(
                            "device {name:?} is not one of auto, cpu, cuda, cuda:N"
                        ))
                    })?,
            };
            if !cfg!(feature = "cuda") {
                return Err(usage(format!(
                    "device {name:?}: this program was built without CUDA; build it with \
                     --features cuda or use --device cpu"
                )));
            }
            open_cuda(index).with_context(|| format!("device {name:?}"))
        }
    }
}

/// Opens the device to train on and lets its products use TF32 if that is asked for.
///
/// # Errors
/// As [`open`]; a usage error if a CPU is asked for what only CUDA devices have.
pub(crate) fn open_for_training(config: &RunConfig) -> anyhow::Result<Device> {
    let device = open(&config.train.device)?;
    if !device.is_cuda()
        && let Some(problem) = config.problem_on_cpu()
    {
        return Err(usage(problem.to_owned()));
    }
    let reduced = config.train.precision == Precision::Tf32;
    candle_core::cuda::set_gemm_reduced_precision_f32(reduced);
    selfsame_models::keep_freed_memory(&device).context("setting up memory")?;
    Ok(device)
}

/// Opens a GPU, or says that there is none or what the driver has against it.
fn open_cuda(index: usize) -> anyhow::Result<Device> {
    let opened = Device::new_cuda(index).and_then(|device| {
        selfsame_models::check_device(&device)?;
        Ok(device)
    });
    opened.map_err(|error| {
        let cause = error.to_string();
        match cause.contains("CUDA_ERROR_NO_DEVICE") {
            true => anyhow::anyhow!("this machine has no NVIDIA GPU or no driver for it"),
            false => anyhow::anyhow!("GPU {index} cannot be used: {cause}"),
        }
    })
}

/// Threads for each core at most, and in all: with some hundred for each of two cores a step takes
/// minutes.
const THREADS_A_CORE: usize = 4;
const SOME_THREADS: usize = 32;

/// How many of the threads asked for are started on so many cores.
fn sensible(threads: usize, cores: usize) -> usize {
    threads.min(SOME_THREADS.max(cores.saturating_mul(THREADS_A_CORE)))
}

/// Starts the compute threads of this process; 0: as many as `RAYON_NUM_THREADS` says, else one per
/// core. Results do not depend on their number.
///
/// # Errors
/// If the system does not let them be started.
pub(crate) fn set_threads(threads: usize) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let of_environment = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let asked = match threads {
        0 => of_environment().filter(|n| *n > 0).unwrap_or(cores),
        threads => threads,
    };
    let taken = sensible(asked, cores);
    if taken < asked {
        tell!(
            "note: {asked} threads for {cores} cores would only wait for one another; {taken} are started"
        );
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(taken)
        .build_global()
        .context("starting the compute threads; fewer by --threads need less memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_are_started_than_can_be_of_use() {
        assert_eq!(sensible(1, 64), 1);
        assert_eq!(sensible(7, 2), 7);
        assert_eq!(sensible(1000, 2), 32);
        assert_eq!(sensible(1000, 96), 384);
        assert_eq!(sensible(96, 64), 96);
    }
}
