//! What is launched: kernels, grids, blocks and arguments, as plain values.
//!
//! `P` is a place in memory: an address on a device, or the number of a buffer in the emulation that
//! tests these very launches without a GPU.

mod attention;
mod batch_norm;
mod branch;
mod conv;
mod normalize;
mod patches;
mod pool;
mod relu;
mod rounded;
mod row_conv;
mod row_norm;
mod row_pool;
mod rows;
mod running_stats;
mod softmax;
mod update;

pub(crate) use attention::Attention;
#[cfg(feature = "cuda")]
pub(crate) use attention::HEAD_DIMS;
use batch_norm::given_stats;
pub(crate) use batch_norm::{BatchNorm, Extras};
#[cfg(feature = "cuda")]
pub(crate) use branch::has_branch_kernels;
pub(crate) use branch::{Added, Branch, NormGrad, Normed, ProductGrad};
pub(crate) use conv::{Conv, ConvStep, Factor, Product, Target};
pub(crate) use normalize::Normalize;
pub(crate) use patches::Patches;
#[cfg(feature = "cuda")]
pub(crate) use pool::MAX_POOL_KERNEL;
pub(crate) use pool::MaxPool;
pub(crate) use relu::{relu, relu_grad};
pub(crate) use rounded::Rounded;
#[cfg(feature = "cuda")]
pub(crate) use row_conv::EIGHT;
pub(crate) use row_conv::{
    Images, RowConv, RowWeight, weight_table, weights_from_matrices, weights_to_matrices,
};
pub(crate) use row_norm::{NormPlaces, RowNorm, RowsAdded};
pub(crate) use row_pool::{Planes, RowPool};
pub(crate) use rows::{BiasGelu, LayerNorm, Norm, sum_parts};
pub(crate) use running_stats::{RunningNorm, move_running_stats, running_table};
pub(crate) use softmax::{CrossEntropy, Softmax, scaled};
pub(crate) use update::{Step, Update, Weight, Word, normalize_crops, table};

use candle_core::{Result, bail};

/// Compute capability that the kernels are made for (build.rs); every later one takes them.
#[cfg(feature = "cuda")]
pub(crate) const OLDEST_CAPABILITY: (i32, i32) = (8, 0);
/// Threads of a warp.
const WARP: u32 = 32;
/// Rows of a block that adds up columns (`COLUMN_ROWS` in device.cuh).
const COLUMN_ROWS: u32 = 8;
/// Most blocks in a grid's second dimension.
const MAX_GRID_Y: u32 = 65_535;

/// Element type of activations and their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// One of two kernels.
    fn pick(self, f32: &'static str, bf16: &'static str) -> &'static str {
        match self {
            Element::F32 => f32,
            Element::Bf16 => bf16,
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arg<P> {
    Pointer(P),
    Null,
    U32(u32),
    F32(f32),
}

impl<P> Arg<P> {
    fn optional(place: Option<P>) -> Self {
        place.map_or(Arg::Null, Arg::Pointer)
    }
}

/// A file of kernels under `src/cuda`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Attention,
    AttentionBf16,
    BatchNorm,
    Branch,
    ChannelsLast,
    Conv,
    Crops,
    Gelu,
    LayerNorm,
    Normalize,
    Patches,
    Pool,
    Relu,
    Rounded,
    RowNorm,
    RunningStats,
    Softmax,
    Sums,
    Update,
}

/// One launch of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch<P> {
    pub(crate) source: Source,
    pub(crate) kernel: &'static str,
    pub(crate) grid: [u32; 2],
    pub(crate) block: [u32; 2],
    /// Bytes of memory that a block shares, beyond what the kernel declares.
    pub(crate) shared_bytes: u32,
    pub(crate) args: Vec<Arg<P>>,
}

/// Cuts a reduction over rows, so that enough blocks have work; depends on the rows alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) rows_per_part: u32,
    pub(crate) num_parts: u32,
}

impl Parts {
    /// For sums over the rows: at most 128 parts of at least 32 rows.
    pub(crate) fn for_sums(rows: usize) -> Result<Parts> {
        Parts::new(rows, 128, 32)
    }

    /// For work row by row: as many parts as a grid can have, of at least 32 rows.
    fn for_rows(rows: usize) -> Result<Parts> {
        Parts::new(rows, MAX_GRID_Y, 32)
    }

    fn new(rows: usize, max_parts: u32, min_rows: u32) -> Result<Parts> {
        let rows = size(rows)?;
        let rows_per_part = rows.div_ceil(max_parts).max(min_rows);
        Ok(Parts {
            rows_per_part,
            num_parts: rows.div_ceil(rows_per_part),
        })
    }
}

/// A count as kernels take it.
pub(crate) fn size(count: usize) -> Result<u32> {
    // A grid's first dimension ends there too.
    match u32::try_from(count) {
        Ok(count) if count > 0 && count <= i32::MAX as u32 => Ok(count),
        _ => bail!("cuda: {count} is not a count that a kernel can take"),
    }
}

/// Threads of a block that walks along one row: a quarter of the row, whole warps.
fn threads_along(width: u32) -> u32 {
    width.div_ceil(4).next_power_of_two().clamp(WARP, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_and_none_is_empty() {
        for rows in [1, 31, 32, 33, 394, 4096, 4097, 25_216, 3_000_000] {
            for parts in [
                Parts::for_sums(rows).unwrap(),
                Parts::for_rows(rows).unwrap(),
            ] {
                let (each, num) = (parts.rows_per_part as usize, parts.num_parts as usize);
                assert!(each * num >= rows && each * (num - 1) < rows, "{rows}");
                assert!(num <= MAX_GRID_Y as usize, "{rows}");
            }
            assert!(Parts::for_sums(rows).unwrap().num_parts <= 128);
        }
    }

    #[test]
    fn a_block_along_a_row_is_whole_warps_and_not_too_many() {
        for width in [1, 37, 128, 384, 2048, 65_536, 100_000] {
            let threads = threads_along(width);
            assert!(threads.is_multiple_of(WARP) && threads <= 1024, "{width}");
        }
        assert_eq!([384, 65_536].map(threads_along), [128, 1024]);
    }

    #[test]
    fn counts_that_a_kernel_cannot_take_are_errors() {
        assert!(size(0).is_err());
        assert!(size(1 << 31).is_err());
        assert_eq!(size(7).unwrap(), 7);
    }
}
