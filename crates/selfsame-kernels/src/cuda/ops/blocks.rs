//! A stack of transformer blocks forward and backward, by hand: candle's graph would fill a tensor
//! with zeros for every gradient and add to it, three more passes over each.
//!
//! The residual stream is f32; what goes from one matrix product to the next is f32 or bf16.

mod backward;
mod places;

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape,
    Tensor, bail,
};

use places::{Places, Weights};

use super::only_on_cuda;
use crate::blocks::{BlockOptions, BlockWeights, BranchFactors};
use crate::bundle::{Mailbox, bundle};
use crate::cuda::device::{Address, Input, Output, dtype, run, takes_f32, with_inputs};
use crate::cuda::gemm::{self, Matrix, multiply};
use crate::cuda::launch::{
    Added, Attention, BiasGelu, Branch, Element, HEAD_DIMS, Normed, has_branch_kernels,
};
use crate::locked::locked;
use crate::sink;

/// Whether the stack runs on these: f32 on a device, of widths that there are kernels for.
pub(crate) fn has_stack(xs: &Tensor, blocks: &[BlockWeights], heads: usize) -> bool {
    let width = xs.dims().last().copied().unwrap_or(0);
    let fits = |t: &&Tensor| takes_f32(&[t]) && t.is_contiguous();
    takes_f32(&[xs])
        && !blocks.is_empty()
        && blocks
            .iter()
            .flat_map(BlockWeights::tensors)
            .all(|t| fits(&t))
        && has_branch_kernels(width)
        && width.is_multiple_of(heads.max(1))
        && HEAD_DIMS.contains(&(width / heads.max(1)))
}

/// See [`crate::transformer_blocks`], whose shapes were found to fit; `hidden` is the MLP's width.
pub(crate) fn transformer_blocks(
    xs: &Tensor,
    blocks: &[BlockWeights],
    factors: &[BranchFactors],
    options: BlockOptions,
    hidden: usize,
) -> Result<Tensor> {
    let (images, tokens, width) = xs.dims3()?;
    let mailbox = Mailbox::default();
    let all: Vec<&Tensor> = blocks.iter().flat_map(BlockWeights::tensors).collect();
    let is_trained = all.iter().any(|weight| weight.track_op());
    let is_sunk = is_trained
        && sink::is_recording()
        && xs.track_op()
        && all.iter().all(|weight| weight.is_variable());
    let op = Stack {
        sizes: Sizes {
            images,
            tokens,
            width,
            hidden,
            options,
        },
        keep: xs.track_op() || is_trained,
        blocks: blocks.to_vec(),
        factors: factors.to_vec(),
        kept: Mutex::new(None),
        mailbox,
    };
    let xs = xs.contiguous()?;
    if is_sunk || !is_trained {
        return xs.apply_op1(op);
    }
    let token = bundle(&all, &op.mailbox)?;
    xs.apply_op2(&token, op)
}

struct Stack {
    sizes: Sizes,
    keep: bool,
    blocks: Vec<BlockWeights>,
    factors: Vec<BranchFactors>,
    /// What the backward pass needs; taken by the first one.
    kept: Mutex<Option<Kept>>,
    mailbox: Mailbox,
}

impl CustomOp2 for Stack {
    fn name(&self) -> &'static str {
        "transformer-blocks"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda("transformer-blocks")
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        layout: &Layout,
        _token: &CudaStorage,
        _token_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run_forward(xs, layout)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        token: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, grads) = self.run_backward(xs, grad)?;
        let weights = self.blocks.iter().flat_map(BlockWeights::tensors);
        let grads = weights.zip(grads);
        let left = grads.map(|(weight, grad)| sink::add_tensor(weight, grad));
        self.mailbox.fill(left.collect::<Result<_>>()?);
        Ok((dx, Some(token.zeros_like()?)))
    }
}

/// Without ties to the weights: they have no gradients, or a sink gets them.
impl CustomOp1 for Stack {
    fn name(&self) -> &'static str {
        "transformer-blocks"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda("transformer-blocks")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run_forward(xs, layout)
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (dx, grads) = self.run_backward(xs, grad)?;
        let weights = self.blocks.iter().flat_map(BlockWeights::tensors);
        for (weight, grad) in weights.zip(grads) {
            if weight.track_op() && !sink::is_active() {
                bail!(
                    "transformer_blocks: recorded for a GradSink, which must run the backward pass"
                );
            }
            sink::add_tensor(weight, grad)?;
        }
        Ok(dx)
    }
}

/// What a stack is run on and how.
#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    tokens: usize,
    width: usize,
    hidden: usize,
    options: BlockOptions,
}

impl Sizes {
    /// The type of what goes into matrix products.
    fn element(&self) -> Element {
        self.options.precision.into()
    }

    fn dtype(&self) -> DType {
        dtype(self.element())
    }

    fn output_shape(&self) -> Shape {
        match self.options.class_token_only {
            true => (self.images, self.width).into(),
            false => (self.images, self.tokens, self.width).into(),
        }
    }

    fn all_rows(&self) -> usize {
        self.images * self.tokens
    }

    fn attention(&self) -> Result<Attention> {
        let heads = self.options.num_heads;
        Attention::new(
            self.element(),
            [self.images, self.tokens, heads, self.width / heads],
        )
    }
}

/// The rows that leave the attention of a block: all tokens, or the first of each image.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    /// Of how many tokens one is among them.
    every: usize,
    /// How many belong to an image.
    of_image: usize,
}

impl Rows {
    fn new(sizes: &Sizes, class_only: bool) -> Rows {
        match class_only {
            true => Rows {
                count: sizes.images,
                every: sizes.tokens,
                of_image: 1,
            },
            false => Rows {
                count: sizes.all_rows(),
                every: 1,
                of_image: sizes.tokens,
            },
        }
    }
}

/// What the backward pass needs of the forward pass.
struct Kept {
    weights: Weights,
    blocks: Vec<Saved>,
}

/// Of one block; `rows` are those of [`Rows`].
struct Saved {
    /// The residual stream that came in; `None` for the first block, where it is the input.
    xs: Option<Output>,
    /// Of all rows.
    normed1: NormedRows,
    /// Without bias, `[B·N, 3·D]`.
    qkv: Output,
    /// `[B, H, N]`
    lse: Output,
    /// Attention's output, `[B·N, D]`.
    mixed: Output,
    /// The residual stream after attention, `[rows, D]`.
    between: Output,
    normed2: NormedRows,
    /// Before bias and GELU, and behind them, `[rows, F]`.
    hidden: Output,
    activated: Output,
}

/// A normalised residual stream, `[rows, D]`, and mean and 1/std of its rows.
struct NormedRows {
    normed: Output,
    stats: Output,
}

/// A residual stream on its way into a block.
struct Entering {
    address: Address,
    /// Who holds it; the input is held elsewhere.
    owner: Option<Output>,
    normed: NormedRows,
}

impl Stack {
    fn run_forward(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (ys, kept) = self.forward(Input::new(xs, layout)?, self.keep)?;
        *locked(&self.kept) = kept;
        Ok((ys.storage, self.sizes.output_shape()))
    }

    /// The gradients of the input, if it has one, and of all weights.
    fn run_backward(&self, xs: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let kept = locked(&self.kept).take();
        let (dx, grads) = with_inputs([xs, grad], |[xs, grad]| {
            let kept = match kept {
                Some(kept) => kept,
                // A second backward pass through the same graph.
                None => match self.forward(xs, true)?.1 {
                    Some(kept) => kept,
                    None => bail!("transformer_blocks: nothing was kept"),
                },
            };
            self.backward(xs, kept, grad.f32()?)
        })?;
        Ok((xs.track_op().then(|| dx.tensor(xs.shape())), grads))
    }

    fn is_class_only(&self, index: usize) -> bool {
        self.sizes.options.class_token_only && index + 1 == self.blocks.len()
    }

    fn branch(&self, rows: Rows) -> Result<Branch> {
        let sizes = &self.sizes;
        Branch::new(sizes.element(), rows.count, sizes.width, rows.of_image)
    }

    fn output(&self, device: &CudaDevice, rows: usize, width: usize) -> Result<Output> {
        Output::new(device, self.sizes.dtype(), rows * width)
    }

    /// The norm of rows of the residual stream, still to be written.
    fn normed_rows(&self, device: &CudaDevice, rows: usize) -> Result<NormedRows> {
        Ok(NormedRows {
            normed: self.output(device, rows, self.sizes.width)?,
            stats: Output::new(device, DType::F32, 2 * rows)?,
        })
    }

    fn norm_args(&self, [weight, bias]: [Address; 2], rows: &NormedRows) -> Normed<Address> {
        Normed {
            weight,
            bias,
            normed: rows.normed.address,
            stats: rows.stats.address,
            eps: self.sizes.options.eps as f32,
        }
    }

    /// `[rows, inputs] · weightᵀ`
    fn linear(
        &self,
        device: &CudaDevice,
        rows: usize,
        [outputs, inputs]: [usize; 2],
        xs: Matrix,
        weight: Address,
    ) -> Result<Output> {
        let (ys, element) = (self.output(device, rows, outputs)?, self.sizes.element());
        let sizes = gemm::Sizes {
            rows,
            columns: outputs,
            inner: inputs,
        };
        let weight = Matrix::new(weight, inputs).t();
        let to = Matrix::new(ys.address, outputs);
        multiply(device, sizes, element, [xs, weight], to, element)?;
        Ok(ys)
    }

    /// The output and, if they are to be kept, what the backward pass needs.
    fn forward(&self, xs: Input<'_>, keep: bool) -> Result<(Output, Option<Kept>)> {
        let (device, sizes) = (xs.device, &self.sizes);
        let weights = Weights::new(self, device)?;
        let normed = self.normed_rows(device, sizes.all_rows())?;
        let rows = Rows::new(sizes, false);
        let norm1 = self.norm_args(weights.places[0].norm1, &normed);
        let launch = self
            .branch(rows)?
            .forward(xs.f32()?, 1, None, Some(norm1))?;
        run(device, &launch)?;
        let mut blocks = Vec::new();
        let mut entering = Entering {
            address: xs.f32()?,
            owner: None,
            normed,
        };
        for index in 0..self.blocks.len() {
            let (sums, normed, saved) = self.block(device, &weights.places, index, entering)?;
            if keep {
                blocks.push(saved);
            }
            let Some(normed) = normed else {
                return Ok((sums, keep.then_some(Kept { weights, blocks })));
            };
            entering = Entering {
                address: sums.address,
                owner: Some(sums),
                normed,
            };
        }
        bail!("transformer_blocks: no blocks")
    }

    /// One block: the residual stream behind it, its norm if another block follows, and what the
    /// backward pass needs.
    fn block(
        &self,
        device: &CudaDevice,
        places: &[Places],
        index: usize,
        entering: Entering,
    ) -> Result<(Output, Option<NormedRows>, Saved)> {
        let (sizes, place) = (&self.sizes, &places[index]);
        let (d, f, all) = (sizes.width, sizes.hidden, sizes.all_rows());
        let rows = Rows::new(sizes, self.is_class_only(index));
        let branch = self.branch(rows)?;

        let from = Matrix::new(entering.normed.normed.address, d);
        let qkv = self.linear(device, all, [3 * d, d], from, place.qkv[0])?;
        let mixed = self.output(device, all, d)?;
        let lse = Output::new(device, DType::F32, all * sizes.options.num_heads)?;
        let bias = Some(place.qkv[1]);
        let attention = sizes.attention()?;
        let launch = attention.forward(qkv.address, bias, mixed.address, lse.address);
        run(device, &launch)?;
        let from = Matrix::new(mixed.address, rows.every * d);
        let product = self.linear(device, rows.count, [d, d], from, place.proj[0])?;

        let between = Output::new(device, DType::F32, rows.count * d)?;
        let normed2 = self.normed_rows(device, rows.count)?;
        let added = Added {
            product: product.address,
            bias: place.proj[1],
            factors: place.attention_factors,
            sums: between.address,
        };
        let norm2 = self.norm_args(place.norm2, &normed2);
        let launch = branch.forward(entering.address, rows.every, Some(added), Some(norm2))?;
        run(device, &launch)?;
        drop(product);

        let from = Matrix::new(normed2.normed.address, d);
        let hidden = self.linear(device, rows.count, [f, d], from, place.fc1[0])?;
        let activated = self.output(device, rows.count, f)?;
        let bias = Some(place.fc1[1]);
        let gelu = BiasGelu::new(sizes.element(), rows.count, f)?;
        run(
            device,
            &gelu.forward(hidden.address, bias, activated.address),
        )?;
        let from = Matrix::new(activated.address, f);
        let product = self.linear(device, rows.count, [d, f], from, place.fc2[0])?;

        let sums = Output::new(device, DType::F32, rows.count * d)?;
        let added = Added {
            product: product.address,
            bias: place.fc2[1],
            factors: place.mlp_factors,
            sums: sums.address,
        };
        let normed = match places.get(index + 1) {
            None => None,
            Some(_) => Some(self.normed_rows(device, rows.count)?),
        };
        let norm1 = places.get(index + 1).zip(normed.as_ref());
        let norm1 = norm1.map(|(next, normed)| self.norm_args(next.norm1, normed));
        run(
            device,
            &branch.forward(between.address, 1, Some(added), norm1)?,
        )?;
        let saved = Saved {
            xs: entering.owner,
            normed1: entering.normed,
            qkv,
            lse,
            mixed,
            between,
            normed2,
            hidden,
            activated,
        };
        Ok((sums, normed, saved))
    }
}
