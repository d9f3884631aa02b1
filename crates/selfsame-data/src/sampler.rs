//! Which images are in which batch: a pure function of seed, epoch, rank and world size.

use crate::error::DataError;
use crate::rng::{Purpose, Stream};

/// All indices below `len` in the random order of one epoch.
pub fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    Stream::new(Purpose::EpochOrder, [seed, epoch, 0]).shuffle(&mut order);
    order
}

/// The image that stands in for one that failed to decode.
///
/// `position` is the place in the epoch's order, `attempt` counts from 0.
///
/// # Panics
/// If `len` is 0: nothing can stand in.
pub fn replacement(seed: u64, epoch: u64, position: u64, attempt: u64, len: usize) -> usize {
    assert!(len > 0, "a data set without images has no stand-in");
    let mut stream = Stream::new(Purpose::Replacement, [seed, epoch, position]);
    let mut drawn = stream.below(len);
    for _ in 0..attempt {
        drawn = stream.below(len);
    }
    drawn
}

/// Cuts the order of an epoch into batches.
///
/// A batch of all ranks is `world_size × batch_size` neighbours in the order, of which rank r
/// takes the r-th `batch_size`: so two ranks with half batches see what one rank sees. The last
/// incomplete batch is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// The run's seed.
    pub seed: u64,
    /// Images in the data set.
    pub len: usize,
    /// Images in a batch of one rank.
    pub batch_size: usize,
    /// This process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
}

impl Sampler {
    /// # Errors
    /// [`DataError::Setting`] for a batch of 0 or a rank that does not exist,
    /// [`DataError::TooFewImages`] if not one batch can be made.
    pub fn check(&self) -> Result<(), DataError> {
        if self.batch_size == 0 {
            return Err(DataError::Setting("batch_size: 0 is not a size".to_owned()));
        }
        if self.rank >= self.world_size {
            return Err(DataError::Setting(format!(
                "rank {} of {} does not exist",
                self.rank, self.world_size
            )));
        }
        if self.steps_per_epoch() == 0 {
            return Err(DataError::TooFewImages {
                len: self.len,
                batch: self.global_batch(),
            });
        }
        Ok(())
    }

    /// Batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.len / self.global_batch().max(1)
    }

    /// The images of one batch of this rank; works out the whole epoch's order.
    ///
    /// # Panics
    /// If `index` is not below [`steps_per_epoch`](Self::steps_per_epoch).
    pub fn batch(&self, epoch: u64, index: usize) -> Vec<usize> {
        epoch_order(self.seed, epoch, self.len)[self.positions(index)].to_vec()
    }

    /// Where in the epoch's order that batch lies.
    ///
    /// # Panics
    /// If `index` is not below [`steps_per_epoch`](Self::steps_per_epoch).
    pub fn positions(&self, index: usize) -> std::ops::Range<usize> {
        assert!(
            index < self.steps_per_epoch(),
            "batch {index} is not in the epoch"
        );
        let start = index * self.global_batch() + self.rank * self.batch_size;
        start..start + self.batch_size
    }

    fn global_batch(&self) -> usize {
        self.batch_size.saturating_mul(self.world_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLER: Sampler = Sampler {
        seed: 7,
        len: 23,
        batch_size: 6,
        rank: 0,
        world_size: 1,
    };

    #[test]
    fn a_batch_beyond_counting_is_larger_than_any_set() {
        let sampler = Sampler {
            batch_size: usize::MAX,
            world_size: 2,
            ..SAMPLER
        };
        assert_eq!(sampler.steps_per_epoch(), 0);
    }

    #[test]
    fn an_epoch_visits_each_image_at_most_once_and_drops_the_rest() {
        assert_eq!(SAMPLER.steps_per_epoch(), 3);
        let mut seen: Vec<usize> = (0..3).flat_map(|i| SAMPLER.batch(4, i)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 18);
        assert!(seen.iter().all(|&i| i < 23));
    }

    #[test]
    fn orders_and_replacements_are_those_of_earlier_versions() {
        // A run that is resumed by a newer version goes on in the order that it began.
        assert_eq!(epoch_order(7, 0, 8), [4, 3, 2, 0, 6, 5, 7, 1]);
        assert_eq!(epoch_order(7, 1, 8), [2, 1, 5, 6, 3, 0, 7, 4]);
        let drawn = [0, 1, 2].map(|attempt| replacement(42, 1, 5, attempt, 1000));
        assert_eq!(drawn, [835, 789, 584]);
    }

    #[test]
    fn epochs_and_seeds_have_different_orders() {
        assert_ne!(epoch_order(7, 0, 50), epoch_order(7, 1, 50));
        assert_ne!(epoch_order(7, 0, 50), epoch_order(8, 0, 50));
        assert_eq!(epoch_order(7, 1, 50), epoch_order(7, 1, 50));
    }

    #[test]
    fn two_ranks_with_half_batches_see_what_one_rank_sees() {
        for index in 0..3 {
            let mut joined = Vec::new();
            for rank in 0..2 {
                let half = Sampler {
                    batch_size: 3,
                    rank,
                    world_size: 2,
                    ..SAMPLER
                };
                joined.extend(half.batch(1, index));
            }
            assert_eq!(joined, SAMPLER.batch(1, index));
        }
    }

    #[test]
    fn fewer_images_than_a_batch_are_refused_with_both_numbers() {
        let error = Sampler {
            batch_size: 12,
            world_size: 2,
            ..SAMPLER
        }
        .check()
        .unwrap_err();
        assert_eq!(error.to_string(), "23 images are fewer than a batch of 24");
        let empty = Sampler {
            batch_size: 0,
            ..SAMPLER
        };
        let second = Sampler { rank: 1, ..SAMPLER };
        for (wrong, text) in [
            (empty, "batch_size: 0 is not a size"),
            (second, "rank 1 of 1 does not exist"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(matches!(error, DataError::Setting(_)), "{error}");
            assert_eq!(error.to_string(), text);
        }
        assert!(
            Sampler {
                batch_size: 23,
                ..SAMPLER
            }
            .check()
            .is_ok()
        );
    }

    #[test]
    #[should_panic(expected = "without images")]
    fn nothing_stands_in_for_an_image_of_an_empty_set() {
        replacement(1, 0, 0, 0, 0);
    }

    #[test]
    fn a_replacement_depends_on_position_and_attempt() {
        let draw = |position, attempt| replacement(1, 0, position, attempt, 1 << 40);
        let all = [draw(0, 0), draw(0, 1), draw(0, 2), draw(1, 0), draw(1, 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(draw(0, 2), draw(0, 2));
        assert!(replacement(1, 0, 5, 3, 1) == 0);
    }
}
