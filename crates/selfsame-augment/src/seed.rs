//! The only randomness of this crate: a counter-based generator keyed by what is being drawn.
//!
//! The 32-byte key of ChaCha8 is four little-endian `u64`: run seed, purpose, epoch, sample.
//! The view is the ChaCha stream number, so views never share numbers and no state is ever stored.
//! All mappings from words to numbers are written out here, hence a new release of a random crate
//! cannot change what a seed means.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Which sample of which epoch of which run: together with the view, all that a draw depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SampleKey {
    /// The run's seed (`seed` in the configuration).
    pub run_seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Index of the sample in its data set.
    pub sample: u64,
}

/// What the numbers are for, so that two uses of one key never see the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Purpose {
    MultiCrop = u64::from_le_bytes(*b"multicrp"),
    StandardCrop = u64::from_le_bytes(*b"stdcrop\0"),
}

impl SampleKey {
    /// The stream of one view of [`crate::MultiCrop`]: the numbers that its crop and operations
    /// are drawn from. Steps of your own take [`SampleKey::own_stream`], whose numbers are others.
    pub fn view_stream(&self, view: usize) -> Stream {
        self.stream(Purpose::MultiCrop, view)
    }

    /// A stream for a step of your own, of which `name` is the purpose: for one view, independent of
    /// everything that this crate draws and of other names.
    pub fn own_stream(&self, name: &str, view: usize) -> Stream {
        // FNV-1a, and an upper half of stream numbers that no view reaches.
        let purpose = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.numbered(purpose, view as u64 | 1 << 63)
    }

    pub(crate) fn stream(&self, purpose: Purpose, view: usize) -> Stream {
        self.numbered(purpose as u64, view as u64)
    }

    fn numbered(&self, purpose: u64, number: u64) -> Stream {
        let mut key = [0u8; 32];
        let words = [self.run_seed, purpose, self.epoch, self.sample];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(number);
        Stream { rng }
    }
}

/// The random numbers of one view, in the order in which they are asked for.
#[derive(Debug, Clone)]
pub struct Stream {
    rng: ChaCha8Rng,
}

impl Stream {
    /// Uniform in [0, 1): the upper 53 bits of a word times 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform between `low` and `high`: `low + (high − low)·unit`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n` (0 if `n` is 0): the upper half of word × n.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.rng.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    ///
    /// The notebook writes `torch.rand(1) <= p`, torchvision's flip `<`; here `unit < p`, whose
    /// probability is exactly `p`, so that 0 means never and 1 means always.
    pub fn coin(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A uniformly random order of 0, 1, 2, 3 (Fisher–Yates from the end).
    pub fn order_of_four(&mut self) -> [usize; 4] {
        let mut order = [0, 1, 2, 3];
        for i in (1..4).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SampleKey = SampleKey {
        run_seed: 42,
        epoch: 3,
        sample: 1234,
    };

    #[test]
    fn first_numbers_of_a_key_never_change() {
        // Written down when the crate was made: a change here changes every training run.
        let mut stream = KEY.view_stream(1);
        let got = [stream.unit(), stream.unit(), stream.unit()];
        assert_eq!(got, FIRST_UNITS);
        assert_eq!(
            KEY.view_stream(1).below(1000),
            (FIRST_UNITS[0] * 1000.0) as usize
        );
    }
    #[test]
    fn own_streams_are_others_than_those_of_views_and_of_each_other() {
        let mut firsts = vec![KEY.view_stream(1).unit(), KEY.view_stream(2).unit()];
        for (name, view) in [("rotate", 1), ("rotate", 2), ("erase", 1), ("multicrp", 1)] {
            let first = KEY.own_stream(name, view).unit();
            assert_eq!(first, KEY.own_stream(name, view).unit());
            assert!(!firsts.contains(&first), "{name} {view}");
            firsts.push(first);
        }
        let other = SampleKey { epoch: 4, ..KEY };
        assert!(!firsts.contains(&other.own_stream("rotate", 1).unit()));
    }

    const FIRST_UNITS: [f64; 3] = [0.37366521399834307, 0.9021131870697626, 0.19632196755675135];

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let keys = [
            KEY,
            SampleKey {
                run_seed: 43,
                ..KEY
            },
            SampleKey { epoch: 4, ..KEY },
            SampleKey {
                sample: 1235,
                ..KEY
            },
        ];
        let mut first: Vec<u64> = Vec::new();
        for key in keys {
            for purpose in [Purpose::MultiCrop, Purpose::StandardCrop] {
                for view in 0..3 {
                    first.push(key.stream(purpose, view).unit().to_bits());
                }
            }
        }
        let count = first.len();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), count);
    }

    #[test]
    fn coin_never_falls_at_zero_and_always_at_one() {
        let mut stream = KEY.view_stream(0);
        for _ in 0..10_000 {
            assert!(!stream.coin(0.0));
            assert!(stream.coin(1.0));
        }
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let mut stream = KEY.view_stream(0);
        let drawn: Vec<usize> = (0..1000).map(|_| stream.below(7)).collect();
        assert_eq!(drawn.iter().min(), Some(&0));
        assert_eq!(drawn.iter().max(), Some(&6));
        assert_eq!(stream.below(0), 0);
    }
}
