//! Running statistics of batch norms.

use super::{Arg, Launch, Source, Word, size};
use candle_core::Result;

/// Threads of a block, which moves the statistics of one norm.
const THREADS: u32 = 256;

/// A batch norm and the batches that it saw, the first first.
#[derive(Clone, Debug)]
pub(crate) struct RunningNorm<P> {
    pub(crate) mean: P,
    pub(crate) variance: P,
    pub(crate) num_batches_tracked: P,
    pub(crate) channels: usize,
    /// Mean and variance of each.
    pub(crate) batches: Vec<[P; 2]>,
}

/// All norms and then all batches, as `struct Norm` and `struct Batch` of running_stats.cu.
pub(crate) fn running_table<P: Copy>(norms: &[RunningNorm<P>]) -> Vec<Word<P>> {
    let mut words = Vec::new();
    let mut first_batch = 0;
    for norm in norms {
        words.extend([norm.mean, norm.variance, norm.num_batches_tracked].map(Word::Place));
        let counts = [norm.channels, first_batch, norm.batches.len()];
        words.extend(counts.map(|count| Word::Value(count as u64)));
        first_batch += norm.batches.len();
    }
    let batches = norms.iter().flat_map(|norm| &norm.batches);
    words.extend(batches.flatten().copied().map(Word::Place));
    words
}

/// One launch for all norms of the table, if `done` is not there or not 0.
pub(crate) fn move_running_stats<P>(
    table: P,
    done: Option<P>,
    num_norms: usize,
    momentum: f64,
) -> Result<Launch<P>> {
    let num_norms = size(num_norms)?;
    let mut args = vec![Arg::Pointer(table), Arg::optional(done)];
    args.push(Arg::U32(num_norms));
    args.extend([1.0 - momentum, momentum].map(|share| Arg::F32(share as f32)));
    Ok(Launch {
        source: Source::RunningStats,
        kernel: "move_running_stats",
        grid: [num_norms, 1],
        block: [THREADS, 1],
        shared_bytes: 0,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stand_behind_all_norms_in_their_order() {
        let norm = |first: u32, batches| RunningNorm {
            mean: first,
            variance: first + 1,
            num_batches_tracked: first + 2,
            channels: 64,
            batches,
        };
        let norms = [norm(0, vec![[10, 11], [12, 13]]), norm(3, vec![[14, 15]])];
        let words = running_table(&norms);
        let (place, value) = (Word::Place, Word::Value);
        let [first, second] = [
            [place(0), place(1), place(2), value(64), value(0), value(2)],
            [place(3), place(4), place(5), value(64), value(2), value(1)],
        ];
        let batches = [10, 11, 12, 13, 14, 15].map(Word::Place);
        assert_eq!(words, [first, second, batches].concat());
    }

    #[test]
    fn a_launch_has_a_block_for_each_norm() {
        let launch = move_running_stats(0, None, 53, 0.1).unwrap();
        assert_eq!((launch.grid, launch.args[1]), ([53, 1], Arg::Null));
        assert_eq!(launch.args[3..], [0.9f32, 0.1].map(Arg::F32));
        let launch = move_running_stats(0, Some(1), 53, 0.1).unwrap();
        assert_eq!(launch.args[1], Arg::Pointer(1));
        assert!(move_running_stats(0, None, 0, 0.1).is_err());
    }
}
