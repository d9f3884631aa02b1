//! From a device name and a thread count to candle's device and rayon's pool.

use anyhow::Context;
use candle_core::Device;
use selfsame_train::{Precision, RunConfig};

use crate::exit::usage;
use crate::stderr::tell;

/// Opens `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// A usage error for another name or if this build has no CUDA; one sentence if no GPU can be used.
pub(crate) fn open(name: &str) -> anyhow::Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if !cfg!(feature = "cuda") => Ok(Device::Cpu),
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
    Device::new_cuda(index).map_err(|error| {
        let cause = error.to_string();
        match cause.contains("CUDA_ERROR_NO_DEVICE") {
            true => anyhow::anyhow!("this machine has no NVIDIA GPU or no driver for it"),
            false => anyhow::anyhow!("GPU {index} cannot be used: {cause}"),
        }
    })
}

/// More compute threads than any machine has cores.
const MOST_THREADS: usize = 4_096;

/// Limits the compute threads of this process; 0 leaves one per core. Results do not depend on it.
///
/// # Errors
/// A usage error for more than [`MOST_THREADS`]; if the pool cannot be built.
pub(crate) fn set_threads(threads: usize) -> anyhow::Result<()> {
    if threads > MOST_THREADS {
        return Err(usage(format!(
            "threads: {threads} is more than {MOST_THREADS}; 0 takes one per core"
        )));
    }
    if threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("starting the compute threads")?;
    }
    Ok(())
}
