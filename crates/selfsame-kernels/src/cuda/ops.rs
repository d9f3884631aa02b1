//! The crate's operations on a device: each launches its kernels forward and backward.

mod attention;
mod batch_norm;
mod blocks;
mod conv;
mod conv_blocks;
mod cross_entropy;
mod gelu;
mod layer_norm;
mod normalize;
mod patches;
mod pool;
mod relu;
mod running_stats;
mod softmax;
mod update;

pub(crate) use attention::{attention, has_kernel};
pub(crate) use batch_norm::{batch_norm_eval, batch_norm_train};
pub(crate) use blocks::{has_stack, transformer_blocks};
pub(crate) use conv::conv2d;
pub(crate) use conv_blocks::{conv_blocks_eval, conv_blocks_train, has_conv_blocks};
pub(crate) use cross_entropy::soft_cross_entropy_rows;
pub(crate) use gelu::{add_bias, bias_gelu};
pub(crate) use layer_norm::layer_norm;
pub(crate) use normalize::{l2_normalize_last_dim, normalized_linear};
pub(crate) use patches::patch_tokens;
pub(crate) use pool::{max_pool2d, pools};
pub(crate) use relu::relu;
pub(crate) use running_stats::move_running_stats;
pub(crate) use softmax::{centered_softmax, softmax};
pub(crate) use update::{normalize_crops, whole_step};

use candle_core::{DType, Result, Tensor};

use super::device::{Address, Input, Output, run};
use super::launch::{Parts, sum_parts};

/// The width of the last dimension and how often it comes.
fn rows_and_width(dims: &[usize]) -> (usize, usize) {
    let width = dims.last().copied().unwrap_or(1);
    (dims.iter().product::<usize>() / width.max(1), width)
}

/// Launches what writes `[num_parts, width]` and adds the parts up.
fn sum_of_parts(
    input: Input<'_>,
    parts: Parts,
    width: usize,
    write: impl FnOnce(Address) -> Result<()>,
) -> Result<Tensor> {
    let device = input.device;
    let all = Output::new(device, DType::F32, parts.num_parts as usize * width)?;
    write(all.address)?;
    let sums = Output::new(device, DType::F32, width)?;
    let launch = sum_parts(all.address, sums.address, parts.num_parts, width)?;
    run(device, &launch)?;
    Ok(sums.tensor(width))
}

/// What an operation says where it is run on another device.
fn only_on_cuda<T>(name: &str) -> Result<T> {
    candle_core::bail!("{name}: this operation is for cuda tensors")
}
