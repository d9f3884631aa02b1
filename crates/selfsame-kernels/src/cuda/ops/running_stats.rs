//! Running statistics of batch norms in one launch.

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor, bail};

use super::update::{cuda_device, in_place};
use crate::cuda::device::{Address, run, with_inputs, words_on};
use crate::cuda::launch::{self, RunningNorm, running_table};
use crate::multi_tensor::RunningStats;

/// See [`crate::multi_tensor::move_running_stats`], whose arguments were found to fit.
pub(crate) fn move_running_stats(
    stats: &[RunningStats<'_>],
    momentum: f64,
    done: Option<&Tensor>,
) -> Result<()> {
    let Some(first) = stats.first() else {
        return Ok(());
    };
    let device = cuda_device(first.mean)?;
    // Batches that are not contiguous are copied; the copies live until all is launched.
    let mut batches = Vec::with_capacity(stats.len());
    for of in stats {
        let [mean, variance] = of.batch;
        batches.push([mean.contiguous()?, variance.contiguous()?]);
    }
    let mut norms: Vec<RunningNorm<Address>> = Vec::new();
    // A norm that saw several batches is moved by one block, one batch after the other.
    let mut index_of = HashMap::new();
    for (of, [batch_mean, batch_variance]) in stats.iter().zip(&batches) {
        let mean = in_place(of.mean)?;
        let index = match index_of.get(&mean) {
            Some(index) => *index,
            None => {
                norms.push(RunningNorm {
                    mean,
                    variance: in_place(of.variance)?,
                    num_batches_tracked: count_at(of.num_batches_tracked)?,
                    channels: of.mean.elem_count(),
                    batches: Vec::new(),
                });
                index_of.insert(mean, norms.len() - 1);
                norms.len() - 1
            }
        };
        norms[index]
            .batches
            .push([in_place(batch_mean)?, in_place(batch_variance)?]);
    }
    let done = done.map(in_place).transpose()?;
    let words = words_on(&device, &running_table(&norms))?;
    with_inputs([&words], |[words]| {
        let table = words.address;
        let launch = launch::move_running_stats(table, done, norms.len(), momentum)?;
        run(&device, &launch)
    })
}

/// Where a count lies.
fn count_at(count: &Tensor) -> Result<Address> {
    with_inputs([count], |[count]| match count.dtype {
        DType::I64 => Ok(count.address),
        other => bail!("cuda: expected i64, got {other:?}"),
    })
}
