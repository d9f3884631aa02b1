//! Batch normalisation.

use super::{Arg, Launch, MAX_GRID_Y, Parts, Source, WARP, size};
use candle_core::Result;

const THREADS: u32 = 256;
/// Least values of a channel that a block takes: some for each thread.
const MIN_PER_PART: u32 = 2048;

/// What is computed behind the normalisation of each value, and over what its statistics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extras {
    /// Negative values become zero.
    pub(crate) relu: bool,
    /// Statistics are the batch's own and have a share in the gradient.
    pub(crate) of_batch: bool,
}

/// Sizes of a batch norm over `[batch, channels, plane]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchNorm {
    batch: u32,
    channels: u32,
    plane: u32,
    /// For sums.
    parts: Parts,
    /// For work value by value.
    spread: Parts,
}

impl BatchNorm {
    pub(crate) fn new(batch: usize, channels: usize, plane: usize) -> Result<BatchNorm> {
        let per_channel = batch * plane;
        Ok(BatchNorm {
            batch: size(batch)?,
            channels: size(channels)?,
            plane: size(plane)?,
            parts: Parts::new(per_channel, 128, MIN_PER_PART)?,
            spread: Parts::new(per_channel, MAX_GRID_Y, MIN_PER_PART)?,
        })
    }

    /// Elements of the buffer of parts.
    pub(crate) fn parts_len(&self) -> usize {
        2 * self.channels as usize * self.parts.num_parts as usize
    }

    fn launch<P>(&self, kernel: &'static str, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::BatchNorm,
            kernel,
            grid: [self.channels, 1],
            block: [WARP, 1],
            shared_bytes: 0,
            args,
        }
    }

    /// A launch of blocks that each have a part of a channel.
    fn by_parts<P>(
        &self,
        kernel: &'static str,
        parts: Parts,
        mut args: Vec<Arg<P>>,
        flags: &[bool],
    ) -> Launch<P> {
        let sizes = [self.batch, self.channels, self.plane, parts.rows_per_part];
        args.extend(sizes.map(Arg::U32));
        args.extend(flags.iter().map(|&flag| Arg::U32(flag.into())));
        Launch {
            grid: [self.channels, parts.num_parts],
            block: [THREADS, 1],
            ..self.launch(kernel, args)
        }
    }

    /// `stats` `[3, channels]` of the batch: mean, 1/std, unbiased variance.
    pub(crate) fn stats<P: Copy>(&self, xs: P, parts: P, stats: P, eps: f32) -> [Launch<P>; 2] {
        let moments = [xs, parts].map(Arg::Pointer).into();
        let mut args: Vec<_> = [parts, stats].map(Arg::Pointer).into();
        let len = self.batch * self.plane;
        let Parts {
            rows_per_part,
            num_parts,
        } = self.parts;
        args.extend([self.channels, len, rows_per_part, num_parts].map(Arg::U32));
        args.push(Arg::F32(eps));
        [
            self.by_parts("batch_norm_moments", self.parts, moments, &[]),
            self.launch("batch_norm_stats", args),
        ]
    }

    /// The same from a given mean and variance.
    pub(crate) fn given<P>(&self, mean: P, variance: P, stats: P, eps: f32) -> Launch<P> {
        given_stats(self.channels, [mean, variance], stats, eps)
    }

    /// `affine`: `[2, channels]`, weight and bias; `residual` is added before the ReLU.
    pub(crate) fn apply<P>(
        &self,
        xs: P,
        residual: Option<P>,
        [stats, affine]: [P; 2],
        ys: P,
        extras: Extras,
    ) -> Launch<P> {
        let mut args = vec![Arg::Pointer(xs), Arg::optional(residual)];
        args.extend([stats, affine, ys].map(Arg::Pointer));
        self.by_parts("batch_norm_apply", self.spread, args, &[extras.relu])
    }

    /// The gradients of affine, `xs` and what was added; with the latter, `ys` is needed.
    pub(crate) fn grads<P: Copy>(
        &self,
        [xs, grad, stats, affine]: [P; 4],
        ys: Option<P>,
        parts: P,
        [d_affine, dx]: [P; 2],
        d_residual: Option<P>,
        extras: Extras,
    ) -> [Launch<P>; 3] {
        let read = [
            Arg::Pointer(xs),
            Arg::optional(ys),
            Arg::Pointer(grad),
            Arg::Pointer(stats),
            Arg::Pointer(affine),
        ];
        let mut sums = read.to_vec();
        sums.push(Arg::Pointer(parts));
        let mut added: Vec<_> = [parts, d_affine].map(Arg::Pointer).into();
        added.extend([self.channels, self.parts.num_parts].map(Arg::U32));
        let mut each = read.to_vec();
        each.extend([d_affine, dx].map(Arg::Pointer));
        each.push(Arg::optional(d_residual));
        let flags = [extras.relu, extras.of_batch];
        [
            self.by_parts("batch_norm_grad_sums", self.parts, sums, &[extras.relu]),
            self.launch("batch_norm_affine_grad", added),
            self.by_parts("batch_norm_grad", self.spread, each, &flags),
        ]
    }
}

/// `stats` `[3, channels]`: mean, 1/std, variance, from a mean and a variance.
pub(crate) fn given_stats<P>(
    channels: u32,
    [mean, variance]: [P; 2],
    stats: P,
    eps: f32,
) -> Launch<P> {
    let mut args: Vec<_> = [mean, variance, stats].map(Arg::Pointer).into();
    args.extend([Arg::U32(channels), Arg::F32(eps)]);
    Launch {
        source: Source::BatchNorm,
        kernel: "batch_norm_given",
        grid: [channels.div_ceil(THREADS), 1],
        block: [THREADS, 1],
        shared_bytes: 0,
        args,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_a_channel_and_a_warp_adds_up() {
        let norm = BatchNorm::new(256, 64, 112 * 112).unwrap();
        let [moments, stats] = norm.stats(0, 1, 2, 1e-5);
        assert_eq!((moments.grid, moments.block), ([64, 128], [256, 1]));
        assert_eq!((stats.grid, stats.block), ([64, 1], [32, 1]));
        assert_eq!(norm.parts_len(), 2 * 64 * 128);
        let extras = Extras {
            relu: true,
            of_batch: true,
        };
        assert_eq!(norm.apply(0, None, [1, 2], 3, extras).grid, [64, 1568]);
        let small = BatchNorm::new(64, 2048, 1).unwrap();
        assert_eq!(small.stats(0, 1, 2, 1e-5)[0].grid, [2048, 1]);
    }
}
