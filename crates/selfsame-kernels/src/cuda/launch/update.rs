//! The optimizer's step, and crops that travelled as bytes.

use super::{Arg, Element, Launch, Source, WARP, size};
use crate::multi_tensor::Clip;
use candle_core::{Result, bail};

/// Elements that a block updates (`CHUNK` in update.cu).
const CHUNK: usize = 8192;
/// Threads of a block.
const THREADS: u32 = 256;
/// Threads of a block that sums for LARS: a warp for the parameter, one for its update.
const LARS_THREADS: u32 = 2 * WARP;
/// 8-byte words of a [`Weight`] on the device.
const WORDS: usize = 10;

/// One weight of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight<P> {
    pub(crate) param: P,
    pub(crate) grad: Option<P>,
    pub(crate) teacher: Option<P>,
    pub(crate) len: usize,
    /// Without it the gradient counts in the norm and is not applied.
    pub(crate) update: Option<Update<P>>,
}

/// How a weight moves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Update<P> {
    AdamW {
        /// First and second.
        moments: [P; 2],
        decay: f32,
        minus_step_size: f32,
        bias2_sqrt: f32,
    },
    Momentum {
        buffer: P,
        weight_decay: f32,
        lr: f32,
        /// LARS' trust coefficient, if the weight adapts.
        eta: Option<f64>,
    },
}

/// `IS_APPLIED` in update.cu.
const IS_APPLIED: u32 = 1;
/// `ADAPTS` in update.cu.
const ADAPTS: u32 = 2;

/// A word of the table of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word<P> {
    Place(P),
    Value(u64),
}

/// The table of all weights, as `struct Weight` of update.cu lays it out.
pub(crate) fn table<P: Copy>(weights: &[Weight<P>]) -> Vec<Word<P>> {
    let two = |low: u32, high: u32| Word::Value(u64::from(low) | u64::from(high) << 32);
    let place = |place: Option<P>| place.map_or(Word::Value(0), Word::Place);
    let mut words = Vec::with_capacity(weights.len() * WORDS);
    let mut first_chunk = 0;
    for weight in weights {
        let (moments, [decay, rate, bias2_sqrt], flags, eta) = match weight.update {
            None => ([None, None], [0.0; 3], 0, 0.0),
            Some(Update::AdamW {
                moments,
                decay,
                minus_step_size,
                bias2_sqrt,
            }) => {
                let scalars = [decay, minus_step_size, bias2_sqrt];
                (moments.map(Some), scalars, IS_APPLIED, 0.0)
            }
            Some(Update::Momentum {
                buffer,
                weight_decay,
                lr,
                eta,
            }) => {
                let adapts = if eta.is_some() { ADAPTS } else { 0 };
                let scalars = [weight_decay, lr, 0.0];
                let flags = IS_APPLIED | adapts;
                ([Some(buffer), None], scalars, flags, eta.unwrap_or(0.0))
            }
        };
        words.extend([
            Word::Place(weight.param),
            place(weight.grad),
            place(moments[0]),
            place(moments[1]),
            place(weight.teacher),
            Word::Value(weight.len as u64),
            Word::Value(first_chunk),
            two(decay.to_bits(), rate.to_bits()),
            two(bias2_sqrt.to_bits(), flags),
            Word::Value(eta.to_bits()),
        ]);
        first_chunk += weight.len.div_ceil(CHUNK) as u64;
    }
    words
}

/// One step over all weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    num_weights: u32,
    num_chunks: u32,
}

impl Step {
    /// `lens`: elements of each weight, none of them 0.
    pub(crate) fn new(lens: impl IntoIterator<Item = usize>) -> Result<Step> {
        let (mut num_weights, mut num_chunks) = (0, 0);
        for len in lens {
            if len == 0 {
                bail!("cuda: a weight without elements cannot be updated");
            }
            num_weights += 1;
            num_chunks += len.div_ceil(CHUNK);
        }
        Ok(Step {
            num_weights: size(num_weights)?,
            num_chunks: size(num_chunks)?,
        })
    }

    /// Sums of squares, one for each chunk.
    pub(crate) fn num_squares(&self) -> usize {
        self.num_chunks as usize
    }

    /// Norm, whether weights move, and a factor for each weight.
    pub(crate) fn num_controls(&self) -> usize {
        2 + self.num_weights as usize
    }

    /// Sums of squares for LARS, f64, two for each chunk.
    pub(crate) fn num_lars_squares(&self) -> usize {
        2 * self.num_chunks as usize
    }

    /// Trust ratios of LARS, one for each weight.
    pub(crate) fn num_trusts(&self) -> usize {
        self.num_weights as usize
    }

    fn launch<P>(&self, kernel: &'static str, blocks: u32, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::Update,
            kernel,
            grid: [blocks, 1],
            block: [THREADS, 1],
            shared_bytes: 0,
            args,
        }
    }

    pub(crate) fn squares<P>(&self, table: P, squares: P) -> Launch<P> {
        let mut args: Vec<_> = [table, squares].map(Arg::Pointer).into();
        args.push(Arg::U32(self.num_weights));
        self.launch("gradient_squares", self.num_chunks, args)
    }

    /// `allowed`: an f32, 0 where nothing may move.
    pub(crate) fn clip<P>(
        &self,
        table: P,
        squares: P,
        allowed: Option<P>,
        control: P,
        clip: Clip,
    ) -> Launch<P> {
        let (mode, limit) = match clip {
            Clip::Nothing => (0, 0.0),
            Clip::Global(limit) => (1, limit),
            Clip::Each(limit) => (2, limit),
        };
        let mut args: Vec<_> = [table, squares].map(Arg::Pointer).into();
        args.extend([Arg::optional(allowed), Arg::Pointer(control)]);
        args.extend([self.num_weights, self.num_chunks, mode].map(Arg::U32));
        args.push(Arg::F32(limit as f32));
        Launch {
            // An f64 for each thread.
            shared_bytes: 8 * THREADS,
            ..self.launch("clip_factors", 1, args)
        }
    }

    /// `[beta1, beta2, eps, momentum]` as the host knows them, the last that of the teacher.
    pub(crate) fn adamw<P>(
        &self,
        table: P,
        control: P,
        [beta1, beta2, eps, momentum]: [f64; 4],
    ) -> Launch<P> {
        let mut args: Vec<_> = [table, control].map(Arg::Pointer).into();
        args.push(Arg::U32(self.num_weights));
        let scalars = [
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            eps,
            momentum,
            1.0 - momentum,
        ];
        args.extend(scalars.map(|scalar| Arg::F32(scalar as f32)));
        self.launch("adamw_ema", self.num_chunks, args)
    }

    /// Writes [`Step::num_lars_squares`] sums, of which [`Step::lars_trust`] reads some.
    pub(crate) fn lars_squares<P>(&self, table: P, control: P, squares: P) -> Launch<P> {
        let mut args: Vec<_> = [table, control, squares].map(Arg::Pointer).into();
        args.push(Arg::U32(self.num_weights));
        Launch {
            block: [LARS_THREADS, 1],
            ..self.launch("lars_squares", self.num_chunks, args)
        }
    }

    pub(crate) fn lars_trust<P>(&self, table: P, control: P, squares: P, trust: P) -> Launch<P> {
        let places = [table, control, squares, trust];
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.push(Arg::U32(self.num_weights));
        self.launch("lars_trust", self.num_weights.div_ceil(THREADS), args)
    }

    /// SGD, or LARS with its trust ratios; the share of itself that the buffer keeps, and the
    /// teacher.
    pub(crate) fn momentum<P>(
        &self,
        table: P,
        control: P,
        trust: Option<P>,
        [of_buffer, of_teacher]: [f64; 2],
    ) -> Launch<P> {
        let mut args: Vec<_> = [table, control].map(Arg::Pointer).into();
        args.extend([Arg::optional(trust), Arg::U32(self.num_weights)]);
        let scalars = [of_buffer, of_teacher, 1.0 - of_teacher];
        args.extend(scalars.map(|scalar| Arg::F32(scalar as f32)));
        self.launch("momentum_ema", self.num_chunks, args)
    }
}

/// `[n, 3, height, width]` bytes to `(bytes / 255 − mean) / std`.
pub(crate) fn normalize_crops<P>(
    element: Element,
    bytes: P,
    ys: P,
    images: usize,
    plane: usize,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<Launch<P>> {
    let plane = size(plane)?;
    let mut args: Vec<_> = [bytes, ys].map(Arg::Pointer).into();
    args.push(Arg::U32(plane));
    args.extend(mean.map(Arg::F32));
    args.extend(std.map(Arg::F32));
    Ok(Launch {
        source: Source::Crops,
        kernel: element.pick("normalize_crops_f32", "normalize_crops_bf16"),
        // Four pixels for each thread, or more in very large pictures.
        grid: [size(3 * images)?, plane.div_ceil(4 * THREADS).min(1024)],
        block: [THREADS, 1],
        shared_bytes: 0,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(len: usize) -> Weight<u32> {
        Weight {
            param: 1,
            grad: None,
            teacher: Some(4),
            len,
            update: Some(Update::AdamW {
                moments: [2, 3],
                decay: 1.0,
                minus_step_size: -0.5,
                bias2_sqrt: 2.0,
            }),
        }
    }

    fn floats(low: f32, high: u32) -> Word<u32> {
        Word::Value(u64::from(low.to_bits()) | u64::from(high) << 32)
    }

    #[test]
    fn the_table_counts_chunks_and_packs_floats_in_pairs() {
        let words = table(&[weight(8193), weight(5)]);
        assert_eq!(words.len(), 2 * WORDS);
        assert_eq!(words[1], Word::Value(0));
        assert_eq!(words[2..4], [2, 3].map(Word::Place));
        assert_eq!(words[WORDS + 4], Word::Place(4));
        // The first weight has two chunks.
        assert_eq!([words[6], words[WORDS + 6]], [0, 2].map(Word::Value));
        assert_eq!(words[7], floats(1.0, (-0.5f32).to_bits()));
        assert_eq!(words[8], floats(2.0, IS_APPLIED));
    }

    #[test]
    fn the_table_tells_what_adapts_and_what_stays() {
        let momentum = |eta| {
            Some(Update::Momentum {
                buffer: 2,
                weight_decay: 0.25,
                lr: 0.5,
                eta,
            })
        };
        let with = |update| Weight {
            update,
            ..weight(5)
        };
        let words = table(&[momentum(Some(1e-3)), momentum(None), None].map(with));
        for (row, moment, [decay, lr], flags, eta) in [
            (0, Word::Place(2), [0.25, 0.5], IS_APPLIED | ADAPTS, 1e-3f64),
            (1, Word::Place(2), [0.25, 0.5], IS_APPLIED, 0.0),
            (2, Word::Value(0), [0.0, 0.0], 0, 0.0),
        ] {
            let words = &words[row * WORDS..][..WORDS];
            assert_eq!(words[2..4], [moment, Word::Value(0)], "row {row}");
            assert_eq!(words[7], floats(decay, f32::to_bits(lr)), "row {row}");
            assert_eq!(words[8], floats(0.0, flags), "row {row}");
            assert_eq!(words[9], Word::Value(eta.to_bits()), "row {row}");
        }
    }

    #[test]
    fn a_step_is_one_launch_over_the_chunks_of_all_weights() {
        let step = Step::new([8193, 5]).unwrap();
        assert_eq!((step.num_squares(), step.num_controls()), (3, 4));
        assert_eq!((step.num_lars_squares(), step.num_trusts()), (6, 2));
        assert_eq!(step.squares(0, 1).grid, [3, 1]);
        let clip = step.clip(0, 1, None, 2, Clip::Nothing);
        assert_eq!((clip.grid, clip.args[2]), ([1, 1], Arg::Null));
        assert_eq!(step.adamw(0, 1, [0.9, 0.999, 1e-8, 0.996]).grid, [3, 1]);
        assert_eq!(step.momentum(0, 1, None, [0.9, 0.996]).grid, [3, 1]);
        assert_eq!(step.momentum(0, 1, None, [0.9, 0.996]).args[2], Arg::Null);
        let lars = step.lars_squares(0, 1, 2);
        assert_eq!((lars.grid, lars.block), ([3, 1], [64, 1]));
        assert_eq!(step.lars_trust(0, 1, 2, 3).grid, [1, 1]);
        assert!(Step::new([5, 0]).is_err());
    }
}
