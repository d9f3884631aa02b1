//! ResNets (He et al. 2016) under torchvision's and timm's common parameter names.

use candle_core::{Result, Tensor, bail};
use selfsame_kernels as kernels;

use crate::backbone::Backbone;
use crate::config::{Arch, InitForm, ModelConfig};
use crate::init::Init;
use crate::layers::{BatchNorm, Conv2d};
use crate::mode::Mode;
use crate::params::ParamBuilder;

/// Stem, four stages of residual blocks, average over positions.
#[derive(Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    blocks: Vec<Block>,
    embed_dim: usize,
}

/// What tells one ResNet from another.
#[derive(Debug, Clone, Copy)]
struct Layout {
    block: BlockKind,
    depths: [usize; 4],
    /// Channels after the stem.
    width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlockKind {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3 (with the stride: v1.5), 1×1 to four times the width.
    Bottleneck,
}

impl BlockKind {
    fn expansion(self) -> usize {
        match self {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        }
    }
}

impl ResNet {
    pub(crate) fn new(config: &ModelConfig, params: &ParamBuilder<'_>) -> Result<Self> {
        let last_gamma = match config.init {
            InitForm::Official => Init::ONES,
            InitForm::Auto | InitForm::Timm => Init::ZEROS,
        };
        let layout = match config.arch {
            Arch::Resnet18 => Layout {
                block: BlockKind::Basic,
                depths: [2, 2, 2, 2],
                width: 64,
            },
            Arch::Resnet50 => Layout {
                block: BlockKind::Bottleneck,
                depths: [3, 4, 6, 3],
                width: 64,
            },
            other => bail!("{other} is not a ResNet"),
        };
        Self::with_layout(layout, last_gamma, params)
    }

    fn with_layout(layout: Layout, last_gamma: Init, params: &ParamBuilder<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut input = layout.width;
        for (stage, depth) in layout.depths.into_iter().enumerate() {
            let width = layout.width << stage;
            for index in 0..depth {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let params = params.pp(format!("layer{}", stage + 1)).pp(index);
                blocks.push(Block::new(
                    layout.block,
                    input,
                    width,
                    stride,
                    last_gamma,
                    &params,
                )?);
                input = width * layout.block.expansion();
            }
        }
        Ok(Self {
            conv1: Conv2d::new((3, layout.width), 7, 2, &params.pp("conv1"))?,
            bn1: BatchNorm::new(layout.width, Init::ONES, &params.pp("bn1"))?,
            blocks,
            embed_dim: input,
        })
    }

    /// The last feature map, `[B, D, H/32, W/32]`.
    fn feature_map(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        let xs = kernels::relu(&self.bn1.forward(&self.conv1.forward(xs)?, mode)?)?;
        let xs = kernels::max_pool2d(&xs, 3, 2, 1)?;
        self.blocks
            .iter()
            .try_fold(xs, |xs, block| block.forward(&xs, mode))
    }
}

impl Backbone for ResNet {
    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    fn forward_group(&self, xs: &Tensor, mode: &Mode, _group: usize) -> Result<Tensor> {
        self.feature_map(xs, mode)?.flatten_from(2)?.mean(2)
    }

    fn intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<(Tensor, Tensor)>> {
        if n != 1 {
            bail!("a ResNet gives its last layer only, not the last {n}")
        }
        let map = self.feature_map(xs, &Mode::Eval)?.flatten_from(2)?;
        Ok(vec![(map.mean(2)?, map.transpose(1, 2)?.contiguous()?)])
    }

    fn attention_maps(&self, _xs: &Tensor, _block: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        let mut size = self.conv1.output_size([height, width]);
        // Of each convolution three maps are kept: its own, the batch norm's and the ReLU's.
        let mut floats = 3 * self.conv1.num_outputs() * area(size);
        size = size.map(|side| side.div_ceil(2)); // max pool
        for block in &self.blocks {
            if let Some((conv, _)) = &block.downsample {
                floats += 2 * conv.num_outputs() * area(conv.output_size(size));
            }
            for (conv, _) in &block.branch {
                size = conv.output_size(size);
                floats += 3 * conv.num_outputs() * area(size);
            }
        }
        4 * floats
    }

    fn is_row_wise(&self) -> bool {
        false
    }

    fn num_blocks(&self) -> usize {
        0
    }

    fn patch_size(&self) -> usize {
        0
    }
}

fn area([height, width]: [usize; 2]) -> usize {
    height * width
}

/// A residual block: convolutions each followed by batch norm, ReLU between them and at the end.
#[derive(Debug)]
struct Block {
    branch: Vec<(Conv2d, BatchNorm)>,
    downsample: Option<(Conv2d, BatchNorm)>,
}

impl Block {
    fn new(
        kind: BlockKind,
        input: usize,
        width: usize,
        stride: usize,
        last_gamma: Init,
        params: &ParamBuilder<'_>,
    ) -> Result<Self> {
        let output = width * kind.expansion();
        // (channels in and out, kernel, stride) of each convolution
        let convolutions = match kind {
            BlockKind::Basic => vec![((input, width), 3, stride), ((width, width), 3, 1)],
            BlockKind::Bottleneck => {
                vec![
                    ((input, width), 1, 1),
                    ((width, width), 3, stride),
                    ((width, output), 1, 1),
                ]
            }
        };
        let last = convolutions.len();
        let branch = convolutions
            .into_iter()
            .zip(1..)
            .map(|((channels, kernel, stride), i)| {
                let gamma = if i == last { last_gamma } else { Init::ONES };
                let conv = Conv2d::new(channels, kernel, stride, &params.pp(format!("conv{i}")))?;
                Ok((
                    conv,
                    BatchNorm::new(channels.1, gamma, &params.pp(format!("bn{i}")))?,
                ))
            });
        let branch = branch.collect::<Result<Vec<_>>>()?;
        let downsample = if stride != 1 || input != output {
            let params = params.pp("downsample");
            let conv = Conv2d::new((input, output), 1, stride, &params.pp(0))?;
            Some((conv, BatchNorm::new(output, Init::ONES, &params.pp(1))?))
        } else {
            None
        };
        Ok(Self { branch, downsample })
    }

    fn forward(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        let shortcut = match &self.downsample {
            Some((conv, bn)) => bn.forward(&conv.forward(xs)?, mode)?,
            None => xs.clone(),
        };
        let mut ys = xs.clone();
        for (index, (conv, bn)) in self.branch.iter().enumerate() {
            ys = bn.forward(&conv.forward(&ys)?, mode)?;
            if index + 1 < self.branch.len() {
                ys = kernels::relu(&ys)?;
            }
        }
        kernels::relu(&(ys + shortcut)?)
    }
}
