//! Batch normalisation of rows, with ReLU and what is added before it.

use super::row_conv::EIGHT;
use super::{Arg, Element, Launch, MAX_GRID_Y, Parts, Source, WARP, given_stats, size};
use candle_core::{Result, bail};

/// The most threads of a block (`ROW_THREADS` in row_norm.cu).
const THREADS: u32 = 256;
/// Threads that share the parts of a channel (`PART_LANES` in row_norm.cu).
const LANES: u32 = 32;
/// Parts whose sums are added up in the end.
const MAX_PARTS: u32 = 512;
/// Rows of a part for each row of its block's threads.
const ROWS_A_THREAD: u32 = 8;

/// Sizes of a batch norm over `[rows, channels]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    element: Element,
    rows: u32,
    channels: u32,
    block: [u32; 2],
    /// For sums.
    parts: Parts,
    /// For work row by row.
    spread: Parts,
}

/// Where a batch norm's statistics, `[3, channels]`, and its parameters lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormPlaces<P> {
    pub(crate) stats: P,
    pub(crate) weight: P,
    pub(crate) bias: P,
}

/// What is added before the ReLU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowsAdded<P> {
    Nothing,
    Rows(P),
    Normalised(P, NormPlaces<P>),
}

impl RowNorm {
    pub(crate) fn new(element: Element, rows: usize, channels: usize) -> Result<RowNorm> {
        if !channels.is_multiple_of(EIGHT) {
            bail!("cuda: no batch norm of rows of {channels} channels");
        }
        let vectors = size(channels / EIGHT)?;
        // Blocks are whole warps.
        let width = vectors.min(WARP).next_power_of_two();
        let block = [width, THREADS / width];
        let rows_a_part = ROWS_A_THREAD * block[1];
        Ok(RowNorm {
            element,
            rows: size(rows)?,
            channels: size(channels)?,
            block,
            parts: Parts::new(rows, MAX_PARTS, rows_a_part)?,
            spread: Parts::new(rows, MAX_GRID_Y, rows_a_part)?,
        })
    }

    /// Elements of a buffer for the parts of either pass.
    pub(crate) fn parts_len(&self) -> usize {
        3 * self.channels as usize * self.parts.num_parts as usize
    }

    /// A launch of blocks that each have a part of the rows.
    fn by_parts<P>(&self, kernel: &'static str, parts: Parts, mut args: Vec<Arg<P>>) -> Launch<P> {
        args.extend([self.rows, self.channels, parts.rows_per_part].map(Arg::U32));
        let vectors = self.channels / EIGHT as u32;
        Launch {
            source: Source::RowNorm,
            kernel,
            grid: [vectors.div_ceil(self.block[0]), parts.num_parts],
            block: self.block,
            shared_bytes: 0,
            args,
        }
    }

    /// A launch of blocks that each have some channels of all parts.
    fn by_channels<P>(&self, kernel: &'static str, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::RowNorm,
            kernel,
            grid: [self.channels.div_ceil(WARP), 1],
            block: [WARP, LANES],
            shared_bytes: 0,
            args,
        }
    }

    /// One of four kernels: for a norm alone, and for two whose results are added.
    fn pick<P>(
        &self,
        one: [&'static str; 2],
        two: [&'static str; 2],
        added: RowsAdded<P>,
    ) -> &'static str {
        let [f32, bf16] = match added {
            RowsAdded::Nothing | RowsAdded::Rows(_) => one,
            RowsAdded::Normalised(..) => two,
        };
        self.element.pick(f32, bf16)
    }

    /// `stats` of the batch: mean, 1/std, unbiased variance.
    pub(crate) fn stats<P: Copy>(&self, xs: P, parts: P, stats: P, eps: f32) -> [Launch<P>; 2] {
        let kernel = self
            .element
            .pick("row_norm_moments_f32", "row_norm_moments_bf16");
        let moments = [xs, parts].map(Arg::Pointer).into();
        let mut args: Vec<_> = [parts, stats].map(Arg::Pointer).into();
        let Parts {
            rows_per_part,
            num_parts,
        } = self.parts;
        args.extend([self.rows, self.channels, rows_per_part, num_parts].map(Arg::U32));
        args.push(Arg::F32(eps));
        [
            self.by_parts(kernel, self.parts, moments),
            self.by_channels("row_norm_stats", args),
        ]
    }

    /// The same from a given mean and variance.
    pub(crate) fn given<P>(&self, running: [P; 2], stats: P, eps: f32) -> Launch<P> {
        given_stats(self.channels, running, stats, eps)
    }

    /// `ys = relu(norm(xs) + added)`
    pub(crate) fn relu<P: Copy>(
        &self,
        xs: P,
        norm: NormPlaces<P>,
        added: RowsAdded<P>,
        ys: P,
    ) -> Launch<P> {
        let kernel = self.pick(
            ["row_norm_relu_f32", "row_norm_relu_bf16"],
            ["row_norms_relu_f32", "row_norms_relu_bf16"],
            added,
        );
        let mut args: Vec<_> = [xs, norm.stats, norm.weight, norm.bias]
            .map(Arg::Pointer)
            .into();
        args.extend(match added {
            RowsAdded::Nothing => [Arg::Null; 4],
            RowsAdded::Rows(rows) => [Arg::Pointer(rows), Arg::Null, Arg::Null, Arg::Null],
            RowsAdded::Normalised(rows, norm) => {
                [rows, norm.stats, norm.weight, norm.bias].map(Arg::Pointer)
            }
        });
        args.push(Arg::Pointer(ys));
        self.by_parts(kernel, self.spread, args)
    }

    /// `sums` `[3, channels]` of the gradient `grad` of the results: the gradients of the bias and
    /// of the weight, and of the weight of what was added and normalised.
    ///
    /// With the results `ys`, which are needed where something was added, `grad` becomes the
    /// gradient in front of the ReLU.
    pub(crate) fn grad_sums<P: Copy>(
        &self,
        xs: P,
        norm: NormPlaces<P>,
        (ys, grad): (Option<P>, P),
        added: RowsAdded<P>,
        [parts, sums]: [P; 2],
    ) -> [Launch<P>; 2] {
        let kernel = self.pick(
            ["row_norm_grad_sums_f32", "row_norm_grad_sums_bf16"],
            ["row_norms_grad_sums_f32", "row_norms_grad_sums_bf16"],
            added,
        );
        let mut args: Vec<_> = [xs, norm.stats, norm.weight, norm.bias]
            .map(Arg::Pointer)
            .into();
        args.extend([Arg::optional(ys), Arg::Pointer(grad)]);
        let num_sums = match added {
            RowsAdded::Nothing | RowsAdded::Rows(_) => {
                args.extend([Arg::Null; 2]);
                2
            }
            RowsAdded::Normalised(rows, norm) => {
                args.extend([rows, norm.stats].map(Arg::Pointer));
                3
            }
        };
        args.push(Arg::Pointer(parts));
        let mut of_parts: Vec<_> = [parts, sums].map(Arg::Pointer).into();
        of_parts.extend([self.channels, self.parts.num_parts, num_sums].map(Arg::U32));
        [
            self.by_parts(kernel, self.parts, args),
            self.by_channels("row_norm_affine_grad", of_parts),
        ]
    }

    /// The gradients of `xs` and, if it was normalised, of what was added; each may take the place
    /// of `grad`, which is that in front of the ReLU if `is_masked`.
    pub(crate) fn grad<P: Copy>(
        &self,
        xs: P,
        norm: NormPlaces<P>,
        (grad, is_masked): (P, bool),
        sums: P,
        added: RowsAdded<P>,
        [dx, d_added]: [P; 2],
    ) -> Launch<P> {
        let kernel = self.pick(
            ["row_norm_grad_f32", "row_norm_grad_bf16"],
            ["row_norms_grad_f32", "row_norms_grad_bf16"],
            added,
        );
        let read = [xs, norm.stats, norm.weight, norm.bias, grad, sums, dx];
        let mut args: Vec<_> = read.map(Arg::Pointer).into();
        args.extend(match added {
            RowsAdded::Nothing | RowsAdded::Rows(_) => [Arg::Null; 4],
            RowsAdded::Normalised(rows, norm) => {
                [rows, norm.stats, norm.weight, d_added].map(Arg::Pointer)
            }
        });
        let mut launch = self.by_parts(kernel, self.spread, args);
        launch.args.push(Arg::U32(is_masked.into()));
        launch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warp_reads_whole_lines_whatever_the_number_of_channels() {
        let norm = |rows, channels| RowNorm::new(Element::Bf16, rows, channels).unwrap();
        let [moments, stats] = norm(128 * 56 * 56, 64).stats(0, 1, 2, 1e-5);
        assert_eq!((moments.block, moments.grid), ([8, 32], [1, 512]));
        assert_eq!((stats.block, stats.grid), ([32, 32], [2, 1]));
        let [moments, _] = norm(128 * 49, 2048).stats(0, 1, 2, 1e-5);
        assert_eq!((moments.block, moments.grid), ([32, 8], [8, 98]));
        let places = NormPlaces {
            stats: 1,
            weight: 2,
            bias: 3,
        };
        let launch = norm(512 * 24 * 24, 24).relu(0, places, RowsAdded::Nothing, 4);
        assert_eq!((launch.block, launch.grid), ([4, 64], [1, 576]));
        assert!(RowNorm::new(Element::F32, 5, 12).is_err());
    }
}
