//! Streams of random numbers that are pure functions of their key.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream that depends on nothing but its four key words.
///
/// The key words are packed little-endian into the 32-byte ChaCha8 key.
/// The mapping to floating point is our own, so a release of another crate cannot change it.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `key`; one word of it should name the purpose.
    pub(crate) fn new(key: [u64; 4]) -> Self {
        let mut bytes = [0u8; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(key) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(bytes))
    }

    /// A multiple of 2^-53, uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Two independent standard normal numbers (Box and Muller).
    pub(crate) fn normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        (radius * cos, radius * sin)
    }
}

/// 64-bit FNV-1a of a name, the word that tells the streams of two parameters apart.
pub(crate) fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_word_changes_the_stream() {
        let base = Stream::new([1, 2, 3, 4]).uniform();
        assert_eq!(base, Stream::new([1, 2, 3, 4]).uniform());
        for word in 0..4 {
            let mut key = [1, 2, 3, 4];
            key[word] += 1;
            assert_ne!(
                base,
                Stream::new(key).uniform(),
                "word {word} has no effect"
            );
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new([7, 0, 0, 0]);
        let draws: Vec<f64> = (0..20_000)
            .flat_map(|_| <[f64; 2]>::from(stream.normal_pair()))
            .collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.03, "variance {variance}");
    }

    #[test]
    fn name_key_is_the_published_fnv1a() {
        assert_eq!(name_key("foobar"), 0x8594_4171_f739_67e8);
    }
}
