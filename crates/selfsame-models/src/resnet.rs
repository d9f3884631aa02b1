//! ResNets (He et al. 2016) under torchvision's and timm's common parameter names.

use candle_core::{Result, Tensor, bail};
use selfsame_kernels::{self as kernels, ConvBlock, MaxPool, Precision, Shortcut};

use crate::backbone::{Backbone, image_dims};
use crate::batch_stats;
use crate::config::{Arch, InitForm, ModelConfig};
use crate::init::Init;
use crate::layers::{BatchNorm, Conv2d};
use crate::mode::Mode;
use crate::params::ParamBuilder;

/// Stem, four stages of residual blocks, average over positions.
#[derive(Debug)]
pub(crate) struct ResNet {
    stem: Block,
    blocks: Vec<Block>,
    embed_dim: usize,
}

/// Behind the stem.
const STEM_POOL: MaxPool = MaxPool {
    kernel: 3,
    stride: 2,
    padding: 1,
};

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
        let conv1 = Conv2d::new((3, layout.width), 7, 2, &params.pp("conv1"))?;
        let bn1 = BatchNorm::new(layout.width, Init::ONES, &params.pp("bn1"))?;
        Ok(Self {
            stem: Block {
                branch: vec![(conv1, bn1)],
                shortcut: Shortcut::Nothing,
            },
            blocks,
            embed_dim: input,
        })
    }

    /// The last feature map, `[B, D, H/32, W/32]`.
    fn feature_map(&self, xs: &Tensor, mode: &Mode) -> Result<Tensor> {
        image_dims(xs)?;
        let precision = self.stem.branch[0].0.precision_on(xs.device());
        match mode {
            Mode::Eval => self.evaluate(xs, precision),
            Mode::Train(_) => self.train(xs, precision),
        }
    }

    /// Numbers that the backward pass needs of an image.
    fn numbers_kept(&self, image: [usize; 2], rectified: Rectified) -> usize {
        let (mut numbers, mut size) = self.stem.numbers_kept(image, rectified);
        size = size.map(|side| side.div_ceil(2)); // max pool
        numbers += self.stem.branch[0].0.num_outputs() * area(size);
        for block in &self.blocks {
            let (of_block, output) = block.numbers_kept(size, rectified);
            numbers += of_block;
            size = output;
        }
        numbers
    }

    /// All blocks for a kernel, and the batch norms in the order of its statistics.
    fn blocks(&self) -> (Vec<ConvBlock<'_>>, Vec<&BatchNorm>) {
        let (mut stem, mut norms) = self.stem.for_kernel();
        stem.pool = Some(STEM_POOL);
        let mut blocks = vec![stem];
        for block in &self.blocks {
            let (block, own) = block.for_kernel();
            blocks.push(block);
            norms.extend(own);
        }
        (blocks, norms)
    }

    /// With the running statistics.
    fn evaluate(&self, xs: &Tensor, precision: Precision) -> Result<Tensor> {
        let (blocks, norms) = self.blocks();
        let running: Vec<_> = norms.iter().map(|norm| norm.running()).collect();
        let running: Vec<_> = running.iter().map(|[mean, var]| [mean, var]).collect();
        kernels::conv_blocks_eval(xs, &blocks, &running, BatchNorm::EPS, precision)
    }

    /// With the batch's statistics, towards which the running ones move.
    fn train(&self, xs: &Tensor, precision: Precision) -> Result<Tensor> {
        let (blocks, norms) = self.blocks();
        let (ys, stats) = kernels::conv_blocks_train(xs, &blocks, BatchNorm::EPS, precision)?;
        let norms = norms.into_iter().zip(&stats);
        let seen = norms.map(|(norm, [mean, var])| norm.seen(mean, var));
        batch_stats::track(seen.collect())?;
        Ok(ys)
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

    fn use_precision(&mut self, precision: Precision) {
        for block in self.blocks.iter_mut().chain([&mut self.stem]) {
            for (conv, _) in &mut block.branch {
                conv.use_precision(precision);
            }
            if let Shortcut::Projection((conv, _)) = &mut block.shortcut {
                conv.use_precision(precision);
            }
        }
    }

    fn attention_maps(&self, _xs: &Tensor, _block: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn bytes_per_image(&self, height: usize, width: usize) -> usize {
        4 * self.numbers_kept([height, width], Rectified::All)
    }

    fn bytes_per_image_on_cuda(&self, height: usize, width: usize) -> usize {
        let bytes = match self.stem.branch[0].0.precision() {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        };
        bytes * self.numbers_kept([height, width], Rectified::Last)
    }

    fn bytes_to_evaluate(
        &self,
        images: usize,
        [height, width]: [usize; 2],
        _threads: usize,
    ) -> usize {
        // The stem's output is the largest map, as large as that of the first stage of bottlenecks.
        let stem = self.stem.branch[0].0.num_outputs();
        let map = stem.saturating_mul(height.div_ceil(2).saturating_mul(width.div_ceil(2)));
        // A group takes 64 MiB for such a map, or is a single image. Two are in use, four where
        // bottlenecks are wide, and a quarter for where the maximum of each window of the pool was.
        let group = map.saturating_mul(images).min(map.max(1 << 24));
        let quarters = if self.embed_dim > 512 { 17 } else { 10 };
        group.saturating_mul(quarters)
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

/// What is kept of that which the ReLUs of a block give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rectified {
    All,
    /// The block's result; the others are computed again.
    Last,
}

fn area([height, width]: [usize; 2]) -> usize {
    height * width
}

/// A residual block, or the stem: convolutions each followed by batch norm and ReLU, with the
/// shortcut added before the last ReLU.
#[derive(Debug)]
struct Block {
    branch: Vec<(Conv2d, BatchNorm)>,
    shortcut: Shortcut<(Conv2d, BatchNorm)>,
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
        let shortcut = if stride != 1 || input != output {
            let params = params.pp("downsample");
            let conv = Conv2d::new((input, output), 1, stride, &params.pp(0))?;
            let norm = BatchNorm::new(output, Init::ONES, &params.pp(1))?;
            Shortcut::Projection((conv, norm))
        } else {
            Shortcut::Input
        };
        Ok(Self { branch, shortcut })
    }

    /// Numbers that the backward pass needs of an image, and the size of the result.
    fn numbers_kept(&self, input: [usize; 2], rectified: Rectified) -> (usize, [usize; 2]) {
        let (mut numbers, mut size) = (0, input);
        if let Some((conv, _)) = self.shortcut.projection() {
            numbers += conv.num_outputs() * area(conv.output_size(size));
        }
        for (index, (conv, _)) in self.branch.iter().enumerate() {
            size = conv.output_size(size);
            let is_last = index + 1 == self.branch.len();
            // The convolution's map, and the ReLU's.
            let maps = match is_last || rectified == Rectified::All {
                true => 2,
                false => 1,
            };
            numbers += maps * conv.num_outputs() * area(size);
        }
        (numbers, size)
    }

    /// What a kernel takes, and the batch norms in the order of its statistics.
    fn for_kernel(&self) -> (ConvBlock<'_>, Vec<&BatchNorm>) {
        let branch = self.branch.iter().map(|(conv, bn)| conv.with_norm(bn));
        let mut norms: Vec<_> = self.branch.iter().map(|(_, bn)| bn).collect();
        let shortcut = match &self.shortcut {
            Shortcut::Nothing => Shortcut::Nothing,
            Shortcut::Input => Shortcut::Input,
            Shortcut::Projection((conv, bn)) => {
                norms.push(bn);
                Shortcut::Projection(conv.with_norm(bn))
            }
        };
        let block = ConvBlock {
            branch: branch.collect(),
            shortcut,
            pool: None,
        };
        (block, norms)
    }
}
