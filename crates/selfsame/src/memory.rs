//! What memory a run may take, and refusing one that would need more.

mod control_group;
mod evaluation;

use candle_core::Device;
use selfsame_models::device_memory;
use selfsame_train::{MemoryEstimate, RunConfig, TrainError, lacks_device_memory};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

pub(crate) use evaluation::{Evaluation, check_preview, check_whole};

use crate::exit::usage;

/// A limit in bytes and whose it is.
pub(crate) struct Budget {
    pub(crate) bytes: u64,
    pub(crate) whose: &'static str,
}

/// `train.max_memory_mib`, else what the machine or the process's control group has.
pub(crate) fn budget(config: &RunConfig) -> Budget {
    match config.train.max_memory_mib {
        0 => of_machine(),
        mib => Budget {
            bytes: mib.saturating_mul(1 << 20),
            whose: "--max-memory",
        },
    }
}

fn of_machine() -> Budget {
    let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kind);
    let machine = system.total_memory();
    match control_group::limit() {
        Some(limit) if limit < machine => Budget {
            bytes: limit,
            whose: "this process's control group",
        },
        _ => Budget {
            bytes: machine,
            whose: "this machine",
        },
    }
}

/// Whether a run has begun; from then on it keeps most of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Everything may still be set.
    New,
    /// Only what does not change its bits may be set.
    Begun,
}

/// Refuses a run on the CPU that will not fit, before anything of it exists.
///
/// # Errors
/// A usage error with the largest parts and the keys that make them smaller.
pub(crate) fn check(config: &RunConfig, device: &Device, stage: Stage) -> anyhow::Result<()> {
    if !device.is_cpu() {
        return Ok(());
    }
    let estimate = MemoryEstimate::of(config)?;
    let budget = budget(config);
    if budget.bytes == 0 || estimate.total() as u64 <= budget.bytes {
        return Ok(());
    }
    let mut parts = estimate.parts();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let largest = parts.map(|(what, bytes)| format!("{what} {}", in_words(bytes as u64)));
    Err(usage(format!(
        "this run needs about {} of memory, {} allows {}: {}. {}",
        in_words(estimate.total() as u64),
        budget.whose,
        in_words(budget.bytes),
        largest[..3].join(", "),
        remedy(config, device, stage, Some(budget.bytes))
    )))
}

/// What [`explain`] says of it.
const USED_UP: &str = "the device's memory is used up, by this run and what else runs there";

/// What to do where a device refused memory to a command that does not train; empty otherwise.
pub(crate) fn hint(error: &anyhow::Error) -> &'static str {
    let text = format!("{error:#}");
    match lacks_device_memory(&text) && !text.contains(USED_UP) {
        true => {
            ". The device's memory is used up; a smaller --batch-size, where there is one, needs less"
        }
        false => "",
    }
}

/// Where a device refused memory, the keys that make the run smaller; any other error as it is.
pub(crate) fn explain(
    error: TrainError,
    config: &RunConfig,
    device: &Device,
    stage: Stage,
) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    if !lacks_device_memory(&format!("{error:#}")) {
        return error;
    }
    let total = device_memory(device).ok().flatten();
    let total = total.map_or(String::new(), |bytes| format!(" ({})", in_words(bytes)));
    let remedy = remedy(config, device, stage, None);
    error.context(format!("{USED_UP}{total}. {remedy}"))
}

/// The keys that make a run smaller and may be set, or that none makes it fit into `limit` bytes.
pub(crate) fn remedy(
    config: &RunConfig,
    device: &Device,
    stage: Stage,
    limit: Option<u64>,
) -> String {
    let least = MemoryEstimate::of(&smallest(config, stage));
    let least = least.map_or(0, |estimate| estimate.total() as u64);
    let ways = ways(config, device, stage);
    if ways.is_empty() || limit.is_some_and(|limit| limit < least) {
        let whatever = match stage {
            Stage::New => "Whatever the size of a batch, it needs",
            Stage::Begun => "With all that may be set of a run that has begun, it needs",
        };
        let smaller = match stage {
            Stage::New => ", or take a smaller model.arch, model.patch_size or head.out_dim",
            Stage::Begun => "",
        };
        return format!(
            "{whatever} {}: go where there is more memory, or raise --max-memory if it is set{smaller}",
            in_words(least)
        );
    }
    format!("Set {}", ways.join(", or "))
}

fn ways(config: &RunConfig, device: &Device, stage: Stage) -> Vec<String> {
    let batch = config.train.batch_size;
    let mut ways = Vec::new();
    if stage == Stage::New {
        if config.model.arch.is_vit() && !config.head.use_bn {
            let part = config.part_bytes_on(device);
            let mib = part.unwrap_or_else(|_| config.part_bytes()) >> 20;
            // 0 leaves the choice to the program.
            if mib > 1 {
                ways.push(format!("train.part_mib below {mib} (slower)"));
            }
            if batch > 1 {
                ways.push(format!(
                    "train.batch_size={} with train.accumulate={} (the same steps)",
                    batch.div_ceil(2),
                    2 * config.train.accumulate
                ));
            }
        } else if batch > 1 {
            ways.push(format!("train.batch_size below {batch}"));
        }
    }
    if device.is_cpu() {
        // Batches are made ahead, as many as one of these says and at least the other.
        let (ahead, workers) = (config.data.prefetch_batches, config.data.workers);
        if workers > 0 && ahead > workers {
            ways.push(format!("data.prefetch_batches below {ahead}"));
        } else if workers > 1 {
            ways.push(format!("data.workers below {workers} (slower)"));
        }
        if config.data.cache_mib > 0 {
            // Costs the least, and is often the most.
            ways.insert(0, "data.cache_mib=0 (pictures are decoded anew)".to_owned());
        }
    }
    ways
}

/// The same run with all that [`remedy`] names as small as it can be.
fn smallest(config: &RunConfig, stage: Stage) -> RunConfig {
    let mut config = config.clone();
    config.data.prefetch_batches = 1;
    config.data.workers = 0;
    config.data.cache_mib = 0;
    if stage == Stage::New {
        config.train.batch_size = 1;
        config.train.part_mib = 1;
    }
    config
}

/// "1.2 GiB", "340 MiB", "12 KiB".
pub(crate) fn in_words(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib < 1.0 && bytes > 0 {
        format!("{:.0} KiB", (mib * 1024.0).ceil())
    } else if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_is_told_of_with_what_to_set() {
        let refusal = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let error = |text: &str| TrainError::from(candle_core::Error::Msg(text.to_owned()));
        let config = RunConfig::default();
        let told = format!(
            "{:#}",
            explain(error(refusal), &config, &Device::Cpu, Stage::New)
        );
        let halved = config.train.batch_size.div_ceil(2);
        for part in [
            "memory is used up",
            "train.part_mib below 960",
            &format!("train.batch_size={halved} with train.accumulate=2"),
            refusal,
        ] {
            assert!(told.contains(part), "{told}");
        }
        let mut small = config.clone();
        small.train.part_mib = 1;
        let told = format!(
            "{:#}",
            explain(error(refusal), &small, &Device::Cpu, Stage::New)
        );
        assert!(!told.contains("part_mib"), "{told}");
        let other = explain(error("no such shape"), &config, &Device::Cpu, Stage::New);
        assert_eq!(format!("{other:#}"), "no such shape");
        assert_eq!(hint(&other), "");

        assert_eq!(
            hint(&explain(error(refusal), &config, &Device::Cpu, Stage::New)),
            ""
        );
        assert!(hint(&error(refusal).into()).contains("--batch-size"));
    }

    #[test]
    fn only_what_may_be_set_and_helps_is_named() {
        let remedy = |config: &RunConfig, stage, limit| remedy(config, &Device::Cpu, stage, limit);
        let config = RunConfig::default();
        let told = remedy(&config, Stage::Begun, None);
        assert!(told.contains("data.prefetch_batches below 4"), "{told}");
        assert!(!told.contains("train."), "{told}");
        let total = MemoryEstimate::of(&config).unwrap().total() as u64;
        assert_eq!(remedy(&config, Stage::Begun, Some(total)), told);
        for (stage, limit) in [(Stage::Begun, total / 4), (Stage::New, 50 << 20)] {
            let told = remedy(&config, stage, Some(limit));
            assert!(told.contains("--max-memory"), "{told}");
            assert!(!told.contains("data."), "{told}");
        }
        let mut small = config.clone();
        (small.data.prefetch_batches, small.data.workers) = (1, 1);
        let told = remedy(&small, Stage::New, None);
        assert!(!told.contains("data."), "{told}");
        let told = remedy(&small, Stage::Begun, None);
        assert!(told.contains("more memory"), "{told}");
    }
}
