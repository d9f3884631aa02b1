//! Whether a network trains, and what its random decisions depend on.

use crate::random::Stream;

/// How a network is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics in batch norm, no drop path.
    Eval,
    /// Batch statistics in batch norm, drop path by these draws.
    ///
    /// Running statistics move with every pass, or later if it is recorded by [`crate::BatchStats`].
    ///
    /// The teacher runs in this mode too while training, as in both references, which never
    /// call `teacher.eval()`; its networks are built without drop path.
    Train(Draws),
}

/// The key of every random decision of one forward pass.
///
/// A pass with equal draws makes equal decisions, whatever ran before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draws {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step, from 0.
    pub step: u64,
    /// Position among the micro-batches of one step.
    pub micro_batch: u64,
    /// Where the rows of a pass over part of a resolution group start within it.
    pub first_row: usize,
}

/// Which of a block's two residual branches a drop-path mask belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branch {
    Attention,
    Mlp,
}

impl Draws {
    /// For each of `rows` samples: whether the branch is kept, with probability `keep`.
    ///
    /// `group` is the position of the resolution group in the pass, `block` counts from 0.
    /// Row `i` of the group takes the `i`-th number of the stream, so it does not depend on later
    /// rows, nor on the parts in which the group is run.
    pub(crate) fn kept_rows(
        &self,
        group: usize,
        block: usize,
        branch: Branch,
        rows: usize,
        keep: f64,
    ) -> Vec<bool> {
        const PURPOSE: u64 = 0x6470 << 48; // "dp": drop path
        let place = (group as u64) << 24 | (block as u64) << 1 | branch as u64;
        let mut stream = Stream::new([self.seed, self.step, self.micro_batch, PURPOSE | place]);
        let all = (0..self.first_row + rows).map(|_| stream.uniform() < keep);
        all.skip(self.first_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_depends_on_every_part_of_its_key_and_on_nothing_else() {
        let draws = Draws {
            seed: 1,
            step: 2,
            micro_batch: 3,
            first_row: 0,
        };
        let mask = |d: Draws, group, block, branch| d.kept_rows(group, block, branch, 256, 0.5);
        let base = mask(draws, 0, 1, Branch::Attention);
        assert_eq!(base, mask(draws, 0, 1, Branch::Attention));
        assert_eq!(
            base[..100],
            draws.kept_rows(0, 1, Branch::Attention, 100, 0.5)
        );
        let later = Draws {
            first_row: 100,
            ..draws
        };
        assert_eq!(
            base[100..],
            later.kept_rows(0, 1, Branch::Attention, 156, 0.5)
        );
        for other in [
            mask(Draws { seed: 2, ..draws }, 0, 1, Branch::Attention),
            mask(Draws { step: 3, ..draws }, 0, 1, Branch::Attention),
            mask(
                Draws {
                    micro_batch: 4,
                    ..draws
                },
                0,
                1,
                Branch::Attention,
            ),
            mask(draws, 1, 1, Branch::Attention),
            mask(draws, 0, 2, Branch::Attention),
            mask(draws, 0, 1, Branch::Mlp),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_share_of_kept_rows_is_the_keep_probability() {
        let kept = Draws::default().kept_rows(0, 0, Branch::Mlp, 40_000, 0.9);
        let share = kept.iter().filter(|kept| **kept).count() as f64 / 40_000.0;
        assert!((share - 0.9).abs() < 0.006, "{share}");
    }
}
