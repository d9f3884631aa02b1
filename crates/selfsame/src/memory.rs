//! What memory a run may take, and refusing one that would need more.

use candle_core::Device;
use selfsame_train::{MemoryEstimate, RunConfig};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

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
    match system.cgroup_limits() {
        Some(group) if group.total_memory < machine => Budget {
            bytes: group.total_memory,
            whose: "this process's control group",
        },
        _ => Budget {
            bytes: machine,
            whose: "this machine",
        },
    }
}

/// Refuses a run on the CPU that will not fit, before anything of it exists.
///
/// # Errors
/// A usage error with the largest parts and the keys that make them smaller.
pub(crate) fn check(config: &RunConfig, device: &Device) -> anyhow::Result<()> {
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
        remedy(config)
    )))
}

/// The keys that make a run smaller.
fn remedy(config: &RunConfig) -> String {
    let batch = config.train.batch_size;
    let mut ways = Vec::new();
    if config.model.arch.is_vit() && !config.head.use_bn {
        ways.push(format!(
            "train.part_mib below {} (slower)",
            config.part_bytes() >> 20
        ));
        if batch > 1 {
            ways.push(format!(
                "train.batch_size={} with train.accumulate={} (the same steps)",
                batch.div_ceil(2),
                2 * config.train.accumulate
            ));
        }
    } else {
        ways.push(format!("train.batch_size below {batch}"));
    }
    ways.push(format!(
        "data.prefetch_batches below {}",
        config.data.prefetch_batches
    ));
    if config.data.cache_mib > 0 {
        ways.push("data.cache_mib=0".to_owned());
    }
    format!("Set {}", ways.join(", or "))
}

/// "1.2 GiB", "340 MiB".
pub(crate) fn in_words(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}
