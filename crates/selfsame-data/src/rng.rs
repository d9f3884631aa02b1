//! Random streams without state: every draw is a function of a purpose and three numbers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream is for: two purposes never share numbers, whatever the other key words are.
///
/// The value is the last word of the key, so a new purpose never changes an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// Order of an epoch: key (seed, epoch, 0).
    EpochOrder = 0x6461_7461_0000_0001,
    /// Stand-in for an undecodable sample: key (seed, epoch, position).
    Replacement = 0x6461_7461_0000_0002,
    /// Which file goes to which side of a split: key (seed, 0, 0).
    Split = 0x6461_7461_0000_0003,
    /// What a drawn person looks like: key (seed, identity, 0).
    Person = 0x6461_7461_0000_0004,
    /// What one drawn picture of a person looks like: key (seed, sample, 0).
    Picture = 0x6461_7461_0000_0005,
    /// Which of a pair of drawn people is a woman: key (seed, pair, 0).
    Pair = 0x6461_7461_0000_0006,
}

/// A stream of numbers: ChaCha8 keyed by four 64-bit words in little endian.
#[derive(Clone, Debug)]
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    pub(crate) fn new(purpose: Purpose, words: [u64; 3]) -> Self {
        let mut key = [0u8; 32];
        let all = [words[0], words[1], words[2], purpose as u64];
        for (bytes, word) in key.chunks_exact_mut(8).zip(all) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// An integer in `0..n`: the high word of the 128-bit product of a 64-bit draw and `n`.
    ///
    /// The bias is below `n / 2^64`. `n` must not be 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0);
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// A number in `[0, 1)`: the upper 53 bits of a 64-bit draw.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `[low, high)`.
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Fisher–Yates from the last element down.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_stream_never_change() {
        let mut stream = Stream::new(Purpose::EpochOrder, [42, 0, 0]);
        let drawn: Vec<usize> = (0..6).map(|_| stream.below(1000)).collect();
        assert_eq!(drawn, PINNED);
        let unit = stream.unit();
        assert!((0.0..1.0).contains(&unit));
    }

    const PINNED: [usize; 6] = [557, 298, 803, 511, 293, 575];

    #[test]
    fn purposes_and_words_give_different_streams() {
        let first = |purpose, words| Stream::new(purpose, words).below(usize::MAX);
        let base = first(Purpose::EpochOrder, [1, 2, 3]);
        assert_ne!(base, first(Purpose::Replacement, [1, 2, 3]));
        for words in [[2, 2, 3], [1, 3, 3], [1, 2, 4]] {
            assert_ne!(base, first(Purpose::EpochOrder, words));
        }
    }

    #[test]
    fn a_shuffle_reaches_every_order_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            let mut items = [0, 1, 2];
            Stream::new(Purpose::Split, [seed, 0, 0]).shuffle(&mut items);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|&n| (850..1150).contains(&n)),
            "{counts:?}"
        );
    }
}
