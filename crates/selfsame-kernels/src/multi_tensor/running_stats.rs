//! Running statistics of batch norms, all at once.

use super::check;
use crate::composed;
use crate::host::{fused, with_slice, with_slice_mut};
use crate::simd::{Level, update};
use candle_core::{DType, Result, Tensor, bail};

/// What a batch norm keeps of the batches that it saw, and one that it has yet to take in.
#[derive(Clone, Copy, Debug)]
pub struct RunningStats<'a> {
    /// `[C]`.
    pub mean: &'a Tensor,
    /// `[C]`.
    pub variance: &'a Tensor,
    /// A scalar, i64.
    pub num_batches_tracked: &'a Tensor,
    /// `[C]`, mean and unbiased variance.
    pub batch: [&'a Tensor; 2],
}

/// Moves running statistics towards those of batches, `running ← (1 − momentum)·running +
/// momentum·batch`, and counts the batches; nothing if `done` is 0.
///
/// Several batches of one norm are taken in their order.
/// On a CUDA device this is one launch for any number of norms and batches, and the host does not
/// wait for `done`.
///
/// # Shape
/// `done`: one number, f32, on the device of the statistics.
/// # Errors
/// If shapes differ, running statistics share a storage with one another or with the batch's, or
/// one is not contiguous.
pub fn move_running_stats(
    stats: &[RunningStats<'_>],
    momentum: f64,
    done: Option<&Tensor>,
) -> Result<()> {
    for of in stats {
        for batch in of.batch {
            check("move_running_stats", &[of.mean, of.variance, batch])?;
        }
        let count = of.num_batches_tracked;
        if count.rank() != 0 || count.dtype() != DType::I64 {
            bail!("move_running_stats: a count of batches is an i64 scalar, got {count:?}");
        }
    }
    if let Some(done) = done
        && (done.elem_count() != 1 || done.dtype() != DType::F32)
    {
        bail!("move_running_stats: whether a step was done is one f32, got {done:?}");
    }
    // Networks without batch norm come here too, and a look at `done` would wait for the device.
    if stats.is_empty() {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if stats[0].mean.device().is_cuda() {
        return crate::cuda::ops::move_running_stats(stats, momentum, done);
    }
    if let Some(done) = done
        && done.reshape(())?.to_scalar::<f32>()? == 0.0
    {
        return Ok(());
    }
    for of in stats {
        for (running, batch) in [of.mean, of.variance].into_iter().zip(of.batch) {
            move_one(running, batch, momentum)?;
        }
        composed::update::count_up(of.num_batches_tracked)?;
    }
    Ok(())
}

fn move_one(running: &Tensor, batch: &Tensor, momentum: f64) -> Result<()> {
    if !fused(&[running, batch]) {
        return composed::update::ema(running, batch, 1.0 - momentum);
    }
    let (keep, take) = ((1.0 - momentum) as f32, momentum as f32);
    with_slice(&batch.contiguous()?, |batch| {
        with_slice_mut(running, |running| {
            update::moving_average(Level::best(), running, batch, keep, take);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;
    use candle_core::Device;

    /// Mean, variance and count.
    fn running() -> [Tensor; 3] {
        let tensor = |seed| Tensor::new(values(37, seed, 1.0), &Device::Cpu).unwrap();
        let count = Tensor::new(7i64, &Device::Cpu).unwrap();
        [tensor(1), tensor(2), count]
    }

    fn batches() -> [[Tensor; 2]; 2] {
        let tensor = |seed| Tensor::new(values(37, seed, 2.0), &Device::Cpu).unwrap();
        [[tensor(3), tensor(4)], [tensor(5), tensor(6)]]
    }

    fn move_both(running: &[Tensor; 3], done: Option<f32>) -> Result<()> {
        let [mean, variance, num_batches_tracked] = running;
        let batches = batches();
        let stats: Vec<_> = batches
            .iter()
            .map(|[batch_mean, batch_variance]| RunningStats {
                mean,
                variance,
                num_batches_tracked,
                batch: [batch_mean, batch_variance],
            })
            .collect();
        let done = done.map(|done| Tensor::new(&[done], &Device::Cpu).unwrap());
        move_running_stats(&stats, 0.1, done.as_ref())
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn batches_of_one_norm_are_taken_in_their_order() {
        for done in [None, Some(1.0)] {
            let moved = running();
            move_both(&moved, done).unwrap();
            let [mean, variance, _] = running();
            for (index, running) in [mean, variance].into_iter().enumerate() {
                let mut want = running;
                for batch in &batches() {
                    let kept = want.affine(0.9, 0.0).unwrap();
                    want = (kept + batch[index].affine(0.1, 0.0).unwrap()).unwrap();
                }
                assert_eq!(bits(&moved[index]), bits(&want));
            }
            assert_eq!(moved[2].to_scalar::<i64>().unwrap(), 9);
        }
    }

    #[test]
    fn nothing_moves_if_the_step_was_not_done() {
        let (kept, before) = (running(), running());
        move_both(&kept, Some(0.0)).unwrap();
        assert_eq!(bits(&kept[0]), bits(&before[0]));
        assert_eq!(bits(&kept[1]), bits(&before[1]));
        assert_eq!(kept[2].to_scalar::<i64>().unwrap(), 7);
        move_running_stats(&[], 0.1, None).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_nothing_moves() {
        let [mean, variance, count] = running();
        let [[batch_mean, batch_variance], _] = batches();
        let good = RunningStats {
            mean: &mean,
            variance: &variance,
            num_batches_tracked: &count,
            batch: [&batch_mean, &batch_variance],
        };
        let short = batch_mean.narrow(0, 0, 5).unwrap();
        for bad in [
            RunningStats {
                batch: [&batch_mean, &short],
                ..good
            },
            RunningStats {
                variance: &mean,
                ..good
            },
            RunningStats {
                batch: [&mean, &batch_variance],
                ..good
            },
            RunningStats {
                num_batches_tracked: &mean,
                ..good
            },
        ] {
            assert!(move_running_stats(&[good, bad], 0.1, None).is_err());
        }
        assert_eq!(bits(&mean), bits(&running()[0]));
        let two = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
        assert!(move_running_stats(&[good], 0.1, Some(&two)).is_err());
    }
}
