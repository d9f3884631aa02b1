//! Many weights rounded to bf16 by one launch.

use super::{Arg, Launch, MAX_GRID_Y, Source, Word, size};
use candle_core::{Result, bail};

const THREADS: u32 = 256;
/// Blocks of a weight.
const BLOCKS: u32 = 32;

/// Where each weight goes in the common output, and the table that the launch reads.
pub(crate) struct Rounded<P> {
    /// First element of each weight.
    pub(crate) starts: Vec<usize>,
    /// Elements of the output, some of which nobody writes.
    pub(crate) len: usize,
    /// As `struct Source` of rounded.cu lays it out.
    pub(crate) table: Vec<Word<P>>,
}

impl<P: Copy> Rounded<P> {
    /// Of f32 weights at these places, with so many elements each.
    pub(crate) fn new(weights: &[(P, usize)]) -> Result<Rounded<P>> {
        if weights.is_empty() || weights.len() > MAX_GRID_Y as usize {
            bail!("cuda: {} weights to round", weights.len());
        }
        let (mut starts, mut table, mut len) = (Vec::new(), Vec::new(), 0);
        for &(place, elements) in weights {
            starts.push(len);
            table.extend([
                Word::Place(place),
                Word::Value(elements as u64),
                Word::Value(len as u64),
            ]);
            // Aligned as tensor cores and vector loads like it.
            len += elements.next_multiple_of(128);
        }
        Ok(Rounded { starts, len, table })
    }

    /// `table`: the words; `to`: the common output.
    pub(crate) fn launch<Q>(&self, table: Q, to: Q) -> Result<Launch<Q>> {
        Ok(Launch {
            source: Source::Rounded,
            kernel: "rounded",
            grid: [BLOCKS, size(self.starts.len())?],
            block: [THREADS, 1],
            shared_bytes: 0,
            args: [table, to].map(Arg::Pointer).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_apart_at_round_numbers() {
        let rounded = Rounded::new(&[(0, 5), (1, 256), (2, 129)]).unwrap();
        assert_eq!(rounded.starts, [0, 128, 384]);
        assert_eq!(rounded.len, 640);
        assert_eq!(rounded.table[4], Word::Value(256));
        assert_eq!(rounded.launch(7, 8).unwrap().grid, [32, 3]);
        assert!(Rounded::<u32>::new(&[]).is_err());
    }
}
