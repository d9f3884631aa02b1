//! What each block of a stack works on.

use candle_core::Result;

use crate::conv_block::{ConvNorm, Shortcut, Statistics, check};
use crate::conv_blocks::ConvBlock;
use crate::conv2d::output_len;
use crate::cuda::launch::{Element, Images, Planes, RowConv, RowNorm, RowPool};

/// A stack for images of one size.
pub(super) struct Plan {
    pub(super) element: Element,
    pub(super) blocks: Vec<BlockPlan>,
    /// Convolutions in all.
    pub(super) layers: usize,
    /// From the last block's rows to the result.
    pub(super) planes: Planes,
    pub(super) output: [usize; 4],
}

pub(super) struct BlockPlan {
    pub(super) branch: Vec<LayerPlan>,
    pub(super) shortcut: Shortcut<LayerPlan>,
    pub(super) pool: Option<RowPool>,
}

/// A convolution and its batch norm.
pub(super) struct LayerPlan {
    /// Among all of the stack: the branch's first, then the shortcut's.
    pub(super) index: usize,
    pub(super) conv: RowConv,
    pub(super) norm: RowNorm,
    pub(super) channels: usize,
}

impl Plan {
    /// For images `[B, C, H, W]`.
    pub(super) fn new(
        input: [usize; 4],
        blocks: &[ConvBlock<'_>],
        statistics: Statistics,
        element: Element,
    ) -> Result<Plan> {
        let (mut maps, mut plans, mut layers) = ((input, Images::Planes), Vec::new(), 0);
        for block in blocks {
            // This also asks for what the statistics need.
            check(maps.0, &block.branch, block.shortcut, statistics)?;
            let (plan, output) = BlockPlan::new(block, maps, layers, element)?;
            layers += block.layers().count();
            plans.push(plan);
            maps = (output, Images::Rows);
        }
        let output @ [batch, channels, h, w] = maps.0;
        Ok(Plan {
            element,
            blocks: plans,
            layers,
            planes: Planes::new(element, batch, channels, h * w)?,
            output,
        })
    }

    /// All convolutions in the order of their weights.
    pub(super) fn layers(&self) -> impl Iterator<Item = &LayerPlan> {
        self.blocks.iter().flat_map(|block| {
            let projection = block.shortcut.projection();
            block.branch.iter().chain(projection)
        })
    }
}

/// The shape of maps, `[B, C, H, W]`, and how they lie.
type Maps = ([usize; 4], Images);

impl BlockPlan {
    /// With what comes out; `first` is the number of convolutions before it.
    fn new(
        block: &ConvBlock<'_>,
        input: Maps,
        first: usize,
        element: Element,
    ) -> Result<(BlockPlan, [usize; 4])> {
        let (mut maps, mut branch) = (input, Vec::new());
        for (index, of) in (first..).zip(&block.branch) {
            let (layer, output) = LayerPlan::new(of, index, maps, element)?;
            branch.push(layer);
            maps = (output, Images::Rows);
        }
        let shortcut = match block.shortcut {
            Shortcut::Nothing => Shortcut::Nothing,
            Shortcut::Input => Shortcut::Input,
            Shortcut::Projection(of) => {
                let index = first + block.branch.len();
                Shortcut::Projection(LayerPlan::new(&of, index, input, element)?.0)
            }
        };
        let shape @ [batch, channels, h, w] = maps.0;
        let mut plan = BlockPlan {
            branch,
            shortcut,
            pool: None,
        };
        let Some(of) = block.pool else {
            return Ok((plan, shape));
        };
        let len = |len| output_len("max_pool2d", len, of.kernel, of.stride, of.padding);
        let side = [len(h)?, len(w)?];
        let window = [of.kernel, of.stride, of.padding];
        plan.pool = Some(RowPool::new(element, shape, side, window)?);
        Ok((plan, [batch, channels, side[0], side[1]]))
    }

    pub(super) fn last(&self) -> &LayerPlan {
        self.branch.last().expect("a block has convolutions")
    }
}

impl LayerPlan {
    /// With what comes out.
    fn new(
        of: &ConvNorm<'_>,
        index: usize,
        (input, images): Maps,
        element: Element,
    ) -> Result<(LayerPlan, [usize; 4])> {
        let output @ [batch, channels, h, w] = of.output(input, Statistics::Given)?;
        let weight = of.weight.dims4()?.into();
        let geometry = [of.stride, of.padding];
        let layer = LayerPlan {
            index,
            conv: RowConv::new(element, images, input, weight, [h, w], geometry)?,
            norm: RowNorm::new(element, batch * h * w, channels)?,
            channels,
        };
        Ok((layer, output))
    }
}
