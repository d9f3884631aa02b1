//! A stack of convolution blocks, a whole ResNet: in training, forward and backward by hand, and in
//! evaluation.
//!
//! Channels lie side by side from the first convolution on, so that 1×1 convolutions are products of
//! the maps as they are, and what goes through memory is read and written in whole lines. Maps and
//! their gradients are of the type of the products' factors.

mod backward;
mod plan;

use std::sync::{Arc, Mutex};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, Var, bail,
};

use plan::{BlockPlan, LayerPlan, Plan};

use super::conv::run_steps;
use super::{only_on_cuda, pools};
use crate::bundle::{Mailbox, bundle};
use crate::conv_block::{ConvNorm, Shortcut, Statistics};
use crate::conv_blocks::{ConvBlock, weights_of};
use crate::cuda::device::{
    Address, Input, Output, address_of, dtype, run, takes_f32, with_inputs, words_on,
};
use crate::cuda::launch::{
    EIGHT, NormPlaces, RowWeight, RowsAdded, weight_table, weights_to_matrices,
};
use crate::gemm::Precision;
use crate::locked::locked;
use crate::sink;

/// Whether the stack runs on these: f32 on a device, images without a gradient, numbers of channels
/// that there are kernels for.
pub(crate) fn has_conv_blocks(xs: &Tensor, blocks: &[ConvBlock<'_>]) -> bool {
    let fits = |of: &ConvNorm<'_>| {
        let tensors = [of.weight, of.norm[0], of.norm[1]];
        let outputs = of.weight.dims().first().copied().unwrap_or(0);
        outputs > 0
            && outputs.is_multiple_of(EIGHT)
            && takes_f32(&tensors)
            && tensors.iter().all(|tensor| tensor.is_contiguous())
    };
    takes_f32(&[xs])
        && !xs.track_op()
        && !blocks.is_empty()
        && blocks.iter().flat_map(ConvBlock::layers).all(fits)
        && blocks
            .iter()
            .all(|block| block.pool.is_none_or(|pool| pools(pool.kernel)))
        // What a block without a convolution before it adds are planes.
        && !matches!(blocks[0].shortcut, Shortcut::Input)
}

/// See [`crate::conv_blocks_train`].
pub(crate) fn conv_blocks_train(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    eps: f64,
    precision: Precision,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    let weights = weights_of(blocks);
    let is_trained = weights.iter().any(|weight| weight.track_op());
    let is_sunk = sink::is_recording() && weights.iter().all(|weight| weight.is_variable());
    let mailbox = Mailbox::default();
    let token = match is_trained && !is_sunk {
        true => bundle(&weights, &mailbox)?,
        // Leads to nothing; the gradients go to a sink.
        false if is_trained => Var::zeros((), DType::F32, xs.device())?.into_inner(),
        false => Tensor::zeros((), DType::F32, xs.device())?,
    };
    let shape = xs.dims4()?.into();
    let op = ConvBlocks {
        plan: Plan::new(shape, blocks, Statistics::Batch, precision.into())?,
        eps: eps as f32,
        keep: is_trained,
        weights: weights.into_iter().cloned().collect(),
        running: Vec::new(),
        kept: Mutex::new(None),
        stats: Arc::default(),
        is_sunk,
        mailbox,
    };
    let stats = Arc::clone(&op.stats);
    let ys = xs.contiguous()?.apply_op2(&token, op)?;
    let stats = std::mem::take(&mut *locked(&stats));
    let stats = stats.iter().map(|of| Ok([of.get(0)?, of.get(2)?]));
    Ok((ys, stats.collect::<Result<_>>()?))
}

/// See [`crate::conv_blocks_eval`]; nothing has a gradient.
pub(crate) fn conv_blocks_eval(
    xs: &Tensor,
    blocks: &[ConvBlock<'_>],
    running: &[[&Tensor; 2]],
    eps: f64,
    precision: Precision,
) -> Result<Tensor> {
    let shape = xs.dims4()?.into();
    let op = ConvBlocks {
        plan: Plan::new(shape, blocks, Statistics::Given, precision.into())?,
        eps: eps as f32,
        keep: false,
        weights: weights_of(blocks).into_iter().cloned().collect(),
        running: running.iter().map(|of| of.map(Tensor::clone)).collect(),
        kept: Mutex::new(None),
        stats: Arc::default(),
        is_sunk: false,
        mailbox: Mailbox::default(),
    };
    let ys = with_inputs([xs], |[xs]| Ok(op.forward(xs, false)?.0))?;
    Ok(ys.tensor(op.plan.output.to_vec()))
}

struct ConvBlocks {
    plan: Plan,
    eps: f32,
    keep: bool,
    /// See [`weights_of`].
    weights: Vec<Tensor>,
    /// In evaluation, the mean and the variance by layer.
    running: Vec<[Tensor; 2]>,
    /// Taken by the first backward pass.
    kept: Mutex<Option<Kept>>,
    /// By layer, of the forward pass.
    stats: Arc<Mutex<Vec<Tensor>>>,
    is_sunk: bool,
    mailbox: Mailbox,
}

/// What the backward pass needs of the forward pass.
struct Kept {
    matrices: Matrices,
    blocks: Vec<Saved>,
}

/// All weights of convolutions as matrices of the products' type, in one piece.
struct Matrices {
    _owner: Output,
    /// By layer.
    places: Vec<Address>,
}

/// What a convolution gave, and its statistics, `[3, C]`: mean, 1/std, unbiased variance.
struct Maps {
    convolved: Output,
    stats: Tensor,
    norm: NormPlaces<Address>,
}

/// Of a block. What the ReLUs within it gave is computed again where it is needed.
struct Saved {
    branch: Vec<Maps>,
    projection: Option<Maps>,
    /// Behind the last ReLU.
    output: Output,
    pooled: Option<Pooled>,
}

struct Pooled {
    output: Output,
    winners: Output,
}

impl Saved {
    /// What the next block reads.
    fn result(&self) -> Address {
        match &self.pooled {
            Some(pooled) => pooled.output.address,
            None => self.output.address,
        }
    }
}

impl ConvBlocks {
    fn weight(&self, layer: &LayerPlan, which: usize) -> &Tensor {
        &self.weights[3 * layer.index + which]
    }

    fn room(&self, device: &CudaDevice, len: usize) -> Result<Output> {
        Output::new(device, dtype(self.plan.element), len)
    }

    fn matrices(&self, device: &CudaDevice) -> Result<Matrices> {
        let element = self.plan.element;
        let (mut starts, mut len) = (Vec::new(), 0);
        for layer in self.plan.layers() {
            starts.push((layer, len));
            let matrix = layer.conv.outputs as usize * layer.conv.ld();
            // Each begins as aligned as tensor cores like it.
            len += matrix.next_multiple_of(128);
        }
        let owner = self.room(device, len)?;
        let (mut rows, mut places) = (Vec::new(), vec![0; self.plan.layers]);
        for (layer, start) in starts {
            let plain = address_of(self.weight(layer, 0))?;
            let matrix = owner.address + start as u64 * u64::from(element.bytes());
            places[layer.index] = matrix;
            rows.push((layer.conv, RowWeight { plain, matrix }));
        }
        let table = words_on(device, &weight_table(&rows))?;
        let launch = weights_to_matrices(element, address_of(&table)?, rows.len())?;
        run(device, &launch)?;
        Ok(Matrices {
            _owner: owner,
            places,
        })
    }

    /// The result `[B, C, H, W]`, the statistics of all layers, and what the backward pass needs.
    fn forward(&self, xs: Input<'_>, keep: bool) -> Result<(Output, Vec<Tensor>, Option<Kept>)> {
        let (device, mut input) = (xs.device, xs.f32()?);
        let matrices = self.matrices(device)?;
        let (mut blocks, mut stats) = (Vec::<Saved>::new(), Vec::new());
        for block in &self.plan.blocks {
            let saved = self.block(device, block, &matrices, input)?;
            input = saved.result();
            let all = saved.branch.iter().chain(&saved.projection);
            stats.extend(all.map(|maps| maps.stats.clone()));
            if !keep {
                // Nobody reads what was before.
                blocks.clear();
            }
            blocks.push(saved);
        }
        let ys = Output::new(device, DType::F32, self.plan.output.iter().product())?;
        run(device, &self.plan.planes.planes_of_rows(input, ys.address))?;
        let kept = keep.then_some(Kept { matrices, blocks });
        Ok((ys, stats, kept))
    }

    fn block(
        &self,
        device: &CudaDevice,
        block: &BlockPlan,
        matrices: &Matrices,
        input: Address,
    ) -> Result<Saved> {
        let projection = match block.shortcut.projection() {
            Some(of) => Some(self.convolve(device, of, matrices, input)?),
            None => None,
        };
        let (mut branch, mut output) = (Vec::new(), None::<Output>);
        for (i, layer) in block.branch.iter().enumerate() {
            let read = output.as_ref().map_or(input, |ys| ys.address);
            let maps = self.convolve(device, layer, matrices, read)?;
            let added = match (&block.shortcut, &projection) {
                _ if i + 1 < block.branch.len() => RowsAdded::Nothing,
                (Shortcut::Input, _) => RowsAdded::Rows(input),
                (_, Some(of)) => RowsAdded::Normalised(of.convolved.address, of.norm),
                (_, None) => RowsAdded::Nothing,
            };
            output = Some(self.rectified(device, layer, &maps, added)?);
            branch.push(maps);
        }
        let Some(output) = output else {
            bail!("conv_blocks: a block without convolutions")
        };
        let pooled = match &block.pool {
            None => None,
            Some(pool) => {
                let ys = self.room(device, pool.output_len())?;
                let winners = Output::new(device, DType::U8, pool.output_len())?;
                let launch = pool.forward(output.address, ys.address, winners.address);
                run(device, &launch)?;
                let output = ys;
                Some(Pooled { output, winners })
            }
        };
        Ok(Saved {
            branch,
            projection,
            output,
            pooled,
        })
    }

    /// The convolution of what lies at `xs`, and its statistics or the given ones.
    fn convolve(
        &self,
        device: &CudaDevice,
        layer: &LayerPlan,
        matrices: &Matrices,
        xs: Address,
    ) -> Result<Maps> {
        let convolved = self.room(device, layer.conv.output_len())?;
        let read = [xs, matrices.places[layer.index]];
        run_steps(device, |room| {
            layer.conv.forward(read, convolved.address, room)
        })?;
        let stats = Output::new(device, DType::F32, 3 * layer.channels)?;
        match self.running.get(layer.index) {
            Some([mean, variance]) => {
                let running = [address_of(mean)?, address_of(variance)?];
                run(device, &layer.norm.given(running, stats.address, self.eps))?;
            }
            None => {
                let parts = Output::new(device, DType::F32, layer.norm.parts_len())?;
                let (xs, parts, to) = (convolved.address, parts.address, stats.address);
                for launch in layer.norm.stats(xs, parts, to, self.eps) {
                    run(device, &launch)?;
                }
            }
        }
        let norm = NormPlaces {
            stats: stats.address,
            weight: address_of(self.weight(layer, 1))?,
            bias: address_of(self.weight(layer, 2))?,
        };
        let stats = stats.tensor((3, layer.channels));
        Ok(Maps {
            convolved,
            stats,
            norm,
        })
    }

    /// What the ReLU behind a layer gives.
    fn rectified(
        &self,
        device: &CudaDevice,
        layer: &LayerPlan,
        maps: &Maps,
        added: RowsAdded<Address>,
    ) -> Result<Output> {
        let ys = self.room(device, layer.conv.output_len())?;
        let xs = maps.convolved.address;
        let launch = layer.norm.relu(xs, maps.norm, added, ys.address);
        run(device, &launch)?;
        Ok(ys)
    }
}

impl CustomOp2 for ConvBlocks {
    fn name(&self) -> &'static str {
        "conv-blocks"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        layout: &Layout,
        _token: &CudaStorage,
        _token_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (ys, stats, kept) = self.forward(Input::new(xs, layout)?, self.keep)?;
        *locked(&self.stats) = stats;
        *locked(&self.kept) = kept;
        Ok((ys.storage, Shape::from(self.plan.output.to_vec())))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        token: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if self.is_sunk && !sink::is_active() {
            bail!("conv_blocks: recorded for a GradSink, which must run the backward pass");
        }
        let kept = locked(&self.kept).take();
        let grads = with_inputs([xs, grad], |[xs, grad]| {
            let kept = match kept {
                Some(kept) => kept,
                // A second backward pass through the same graph.
                None => match self.forward(xs, true)?.2 {
                    Some(kept) => kept,
                    None => bail!("conv_blocks: nothing was kept"),
                },
            };
            self.backward(xs, kept, grad.f32()?)
        })?;
        let left = self.weights.iter().zip(grads);
        let left = left.map(|(weight, grad)| sink::add_tensor(weight, grad));
        self.mailbox.fill(left.collect::<Result<_>>()?);
        Ok((None, Some(token.zeros_like()?)))
    }
}
