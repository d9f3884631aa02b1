//! Damaging bytes at random, for tests that feed a reader what nobody wrote.

/// xorshift64*: the mutations need no better numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number from 0 to `n` − 1; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// What is changed, and where most of it.
pub(crate) struct Mutations<'a> {
    /// Bytes that mean something to the reader.
    pub(crate) telling: &'a [u8],
    /// Two changes of three hit this many bytes at the start, where headers and sizes stand.
    pub(crate) header: usize,
}

/// The bounds of a byte and of its sign.
pub(crate) const BOUNDS: &[u8] = &[0, 1, 0x7f, 0x80, 0xff];

impl Mutations<'_> {
    /// Makes one to six changes; some take a piece out of `other`.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
        for _ in 0..1 + dice.below(6) {
            let reach = match dice.below(3) {
                0 => bytes.len(),
                _ => self.header,
            };
            let at = dice.below(reach.min(bytes.len()));
            let end = (at + 1 + dice.below(24)).min(bytes.len());
            match dice.below(9) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
                1 if !bytes.is_empty() => bytes[at] = BOUNDS[dice.below(BOUNDS.len())],
                2 | 3 if !bytes.is_empty() => {
                    bytes[at] = self.telling[dice.below(self.telling.len())]
                }
                4 => bytes[at..end].fill([0, 0xff][dice.below(2)]),
                5 => drop(bytes.drain(at..end)),
                6 => {
                    let piece = bytes[at..end].to_vec();
                    let times = 1 + dice.below(50) * dice.below(2);
                    bytes.splice(at..at, piece.repeat(times));
                }
                7 if dice.below(4) == 0 => bytes.truncate(dice.below(bytes.len() + 1)),
                _ => {
                    let from = dice.below(other.len());
                    let to = (from + 1 + dice.below(200)).min(other.len());
                    bytes.splice(at..end, other[from..to].iter().copied());
                }
            }
        }
    }
}
