//! What each block of a stack works on, and where it lies in one buffer.

use std::ops::Range;

use candle_core::Result;

use super::pool::Pool;
use super::{ConvBlock, weight_grads};
use crate::conv_block::{ConvNorm, Shortcut, Statistics, check};
use crate::conv2d::Sizes;
use crate::max_pool::Window;

/// A stack of blocks on images of one size.
#[derive(Debug)]
pub(super) struct Plan {
    /// The images, `[B, H, W, C]`.
    pub(super) input: Range<usize>,
    pub(super) blocks: Vec<BlockPlan>,
    /// Numbers in all.
    pub(super) len: usize,
    /// Convolutions in all.
    pub(super) layers: usize,
    /// Pooled values in all, whose winners are kept.
    pub(super) winners: usize,
    /// The largest map between two operations.
    pub(super) largest_map: usize,
    /// The most numbers that a weight in another order or the parts of its gradient take.
    pub(super) room: usize,
    /// `[B, C, H, W]` of the result.
    pub(super) output_shape: (usize, usize, usize, usize),
}

#[derive(Debug)]
pub(super) struct BlockPlan {
    pub(super) input: Range<usize>,
    pub(super) branch: Vec<LayerPlan>,
    pub(super) shortcut: Shortcut<LayerPlan>,
    pub(super) pool: Option<PoolPlan>,
}

/// A convolution and its batch norm.
#[derive(Debug)]
pub(super) struct LayerPlan {
    /// Among all of the stack: the branch's first, then the shortcut's.
    pub(super) index: usize,
    pub(super) sizes: Sizes,
    /// What the convolution gives.
    pub(super) convolved: Range<usize>,
    /// What the ReLU gives; empty for a shortcut, which has none.
    pub(super) rectified: Range<usize>,
}

#[derive(Debug)]
pub(super) struct PoolPlan {
    pub(super) pool: Pool,
    pub(super) pooled: Range<usize>,
    pub(super) winners: Range<usize>,
}

impl LayerPlan {
    /// Values per channel.
    pub(super) fn rows(&self) -> usize {
        self.sizes.batch * self.sizes.windows()
    }
}

impl BlockPlan {
    /// The last convolution of the branch, whose ReLU ends the block.
    pub(super) fn last(&self) -> &LayerPlan {
        self.branch.last().expect("a block has convolutions")
    }

    /// What comes out.
    pub(super) fn output(&self) -> Range<usize> {
        match &self.pool {
            Some(pool) => pool.pooled.clone(),
            None => self.last().rectified.clone(),
        }
    }
}

impl Plan {
    /// # Errors
    /// If sizes do not fit.
    pub(super) fn new(
        input: (usize, usize, usize, usize),
        blocks: &[ConvBlock<'_>],
        statistics: Statistics,
    ) -> Result<Self> {
        let (batch, channels, h, w) = input;
        let len = batch * channels * h * w;
        let mut shape = input;
        let mut plan = Self {
            input: 0..0,
            blocks: Vec::with_capacity(blocks.len()),
            len: 0,
            layers: 0,
            winners: 0,
            largest_map: 0,
            room: 0,
            output_shape: shape,
        };
        plan.input = plan.take(len);
        let mut input = plan.input.clone();
        for block in blocks {
            let (block, output) = plan.block(block, input, shape, statistics)?;
            input = block.output();
            shape = output;
            plan.blocks.push(block);
        }
        plan.output_shape = shape;
        Ok(plan)
    }

    /// The next `len` numbers of the buffer.
    fn take(&mut self, len: usize) -> Range<usize> {
        self.len += len;
        self.largest_map = self.largest_map.max(len);
        self.len - len..self.len
    }

    fn block(
        &mut self,
        block: &ConvBlock<'_>,
        input: Range<usize>,
        input_shape: (usize, usize, usize, usize),
        statistics: Statistics,
    ) -> Result<(BlockPlan, (usize, usize, usize, usize))> {
        check(
            input_shape.into(),
            &block.branch,
            block.shortcut,
            statistics,
        )?;
        let first_index = self.layers;
        self.layers += block.branch.len();
        // The shortcut's maps stand before those of the branch, whose last one it is added to.
        let shortcut = match &block.shortcut {
            Shortcut::Nothing => Shortcut::Nothing,
            Shortcut::Input => Shortcut::Input,
            Shortcut::Projection(of) => {
                self.layers += 1;
                let index = self.layers - 1;
                Shortcut::Projection(self.layer(of, index, input_shape, Rectified::Not)?)
            }
        };
        let (mut shape, mut branch) = (input_shape, Vec::new());
        for (index, of) in (first_index..).zip(&block.branch) {
            let layer = self.layer(of, index, shape, Rectified::Yes)?;
            let sizes = &layer.sizes;
            shape = (sizes.batch, sizes.out, sizes.h_out, sizes.w_out);
            branch.push(layer);
        }
        let pool = match block.pool {
            None => None,
            Some(of) => {
                let (batch, channels, h, w) = shape;
                let window = Window::new(of.kernel, of.stride, of.padding)?;
                let planes = window.planes_of(h, w)?;
                shape = (batch, channels, planes.h_out, planes.w_out);
                let len = batch * channels * planes.h_out * planes.w_out;
                self.winners += len;
                Some(PoolPlan {
                    pool: Pool {
                        window,
                        planes,
                        channels,
                    },
                    pooled: self.take(len),
                    winners: self.winners - len..self.winners,
                })
            }
        };
        let block = BlockPlan {
            input,
            branch,
            shortcut,
            pool,
        };
        Ok((block, shape))
    }

    fn layer(
        &mut self,
        of: &ConvNorm<'_>,
        index: usize,
        input: (usize, usize, usize, usize),
        rectified: Rectified,
    ) -> Result<LayerPlan> {
        let sizes = Sizes::of(input, of.weight.dims4()?, of.stride, of.padding)?;
        self.room = self
            .room
            .max(of.weight.elem_count())
            .max(weight_grads::room(&sizes));
        let len = sizes.batch * sizes.out * sizes.windows();
        Ok(LayerPlan {
            index,
            sizes,
            convolved: self.take(len),
            rectified: match rectified {
                Rectified::Yes => self.take(len),
                Rectified::Not => 0..0,
            },
        })
    }
}

/// Whether a ReLU follows, with or without something added before it.
enum Rectified {
    Yes,
    Not,
}
