//! Where the weights of a stack lie on the device.

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use super::{Sizes, Stack};
use crate::blocks::{BlockWeights, BranchFactors};
use crate::cuda::device::{Address, Output, address_of, run, words_on};
use crate::cuda::launch::{Element, Rounded};

/// Where the weights of a block lie; those of the linear layers in the type of the products.
pub(super) struct Places {
    pub(super) norm1: [Address; 2],
    pub(super) norm2: [Address; 2],
    pub(super) qkv: [Address; 2],
    pub(super) proj: [Address; 2],
    pub(super) fc1: [Address; 2],
    pub(super) fc2: [Address; 2],
    pub(super) attention_factors: Option<Address>,
    pub(super) mlp_factors: Option<Address>,
}

/// The places of all blocks and what lies there beside the weights themselves.
pub(super) struct Weights {
    pub(super) places: Vec<Places>,
    _rounded: Option<Output>,
    _factors: Option<Tensor>,
}

impl Weights {
    pub(super) fn new(stack: &Stack, device: &CudaDevice) -> Result<Weights> {
        let factors = factors_on(device, &stack.factors)?;
        let (rounded, dense_weights) = dense_weights(device, &stack.sizes, &stack.blocks)?;
        let mut dense_weights = dense_weights.into_iter();
        let mut places = Vec::with_capacity(stack.blocks.len());
        let mut next_factor = match &factors {
            Some(factors) => address_of(factors)?,
            None => 0,
        };
        let none = BranchFactors::default();
        for (index, block) in stack.blocks.iter().enumerate() {
            let mut dense = |(_, bias): &(Tensor, Tensor)| -> Result<[Address; 2]> {
                let Some(weight) = dense_weights.next() else {
                    bail!("transformer_blocks: a weight without a place")
                };
                Ok([weight, address_of(bias)?])
            };
            let norm = |(weight, bias): &(Tensor, Tensor)| -> Result<[Address; 2]> {
                Ok([address_of(weight)?, address_of(bias)?])
            };
            let mut factors_at = |factors: &Option<Vec<f32>>| {
                factors.as_ref().map(|factors| {
                    let at = next_factor;
                    next_factor += 4 * factors.len() as Address;
                    at
                })
            };
            let of_block = stack.factors.get(index).unwrap_or(&none);
            places.push(Places {
                norm1: norm(&block.norm1)?,
                norm2: norm(&block.norm2)?,
                qkv: dense(&block.qkv)?,
                proj: dense(&block.proj)?,
                fc1: dense(&block.fc1)?,
                fc2: dense(&block.fc2)?,
                attention_factors: factors_at(&of_block.attention),
                mlp_factors: factors_at(&of_block.mlp),
            });
        }
        Ok(Weights {
            places,
            _rounded: rounded,
            _factors: factors,
        })
    }
}

/// Where the weights of the linear layers lie in the type of the products, four for each block, and
/// who holds them if they had to be rounded.
fn dense_weights(
    device: &CudaDevice,
    sizes: &Sizes,
    blocks: &[BlockWeights],
) -> Result<(Option<Output>, Vec<Address>)> {
    let weights: Vec<(Address, usize)> = blocks
        .iter()
        .flat_map(|block| [&block.qkv.0, &block.proj.0, &block.fc1.0, &block.fc2.0])
        .map(|weight| Ok((address_of(weight)?, weight.elem_count())))
        .collect::<Result<_>>()?;
    if sizes.element() == Element::F32 {
        return Ok((None, weights.into_iter().map(|(place, _)| place).collect()));
    }
    let rounded = Rounded::new(&weights)?;
    let table = words_on(device, &rounded.table)?;
    let to = Output::new(device, DType::BF16, rounded.len)?;
    run(device, &rounded.launch(address_of(&table)?, to.address)?)?;
    let places = rounded
        .starts
        .iter()
        .map(|&start| to.address + 2 * start as Address);
    let places = places.collect();
    Ok((Some(to), places))
}

/// All factors one after the other, block by block, attention first; `None` if there are none.
fn factors_on(device: &CudaDevice, factors: &[BranchFactors]) -> Result<Option<Tensor>> {
    let all: Vec<f32> = factors
        .iter()
        .flat_map(|of_block| [&of_block.attention, &of_block.mlp])
        .flatten()
        .flatten()
        .copied()
        .collect();
    match all.len() {
        0 => Ok(None),
        len => Tensor::from_vec(all, len, &Device::Cuda(device.clone())).map(Some),
    }
}
