//! Draws as pure functions of (seed, purpose, counters); no generator outlives a call.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream of draws is for; it keeps two uses of one seed apart.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    ProbeInit = 1,
    ProbeOrder = 2,
    HeldOut = 3,
    Bootstrap = 4,
    TsneStart = 5,
    PcaStart = 6,
    Choice = 7,
}

/// A stream of draws.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of (`seed`, `purpose`, `counter`).
    pub(crate) fn new(seed: u64, purpose: Purpose, counter: u64) -> Stream {
        const CRATE: u64 = u64::from_le_bytes(*b"ss-eval\0");
        let mut key = [0; 32];
        for (bytes, word) in key
            .chunks_exact_mut(8)
            .zip([seed, CRATE, purpose as u64, counter])
        {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Stream(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`: the top 53 bits of a `u64`, times 2⁻⁵³.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Uniform in `0..bound`: the high half of the 128-bit product of a `u64` and `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller's cosine half; two uniforms a draw.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher and Yates' shuffle, from the last place down.
    pub(crate) fn shuffle(&mut self, items: &mut [usize]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// `count` different numbers below `n` (all, if there are fewer), in a random order.
pub fn choose(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    Stream::new(seed, Purpose::Choice, 0).shuffle(&mut all);
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffle_keeps_every_item_and_depends_on_the_counter() {
        let order = |counter| {
            let mut items: Vec<usize> = (0..50).collect();
            Stream::new(7, Purpose::ProbeOrder, counter).shuffle(&mut items);
            items
        };
        let mut sorted = order(0);
        assert_ne!(sorted, order(1));
        assert_eq!(sorted, order(0));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new(1, Purpose::ProbeInit, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.04, "{variance}");
    }
}
