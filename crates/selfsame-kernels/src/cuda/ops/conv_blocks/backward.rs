//! The backward pass of a stack of convolution blocks.

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::plan::{BlockPlan, LayerPlan};
use super::{ConvBlocks, Kept, Maps, Matrices, Saved};
use crate::conv_block::Shortcut;
use crate::cuda::device::{Address, Input, Output, address_of, run, words_on};
use crate::cuda::launch::{RowWeight, RowsAdded, Target, weight_table, weights_from_matrices};
use crate::cuda::ops::conv::run_steps;

/// The pass on its way through the stack.
struct Pass<'a> {
    op: &'a ConvBlocks,
    device: &'a CudaDevice,
    matrices: Matrices,
    /// Of all weights, as far as they are done.
    grads: Vec<Option<Tensor>>,
    /// Gradients of weights as matrices of another order, which all become plain in the end.
    reordered: Vec<(&'a LayerPlan, Output)>,
}

/// What comes out of the backward pass of a block's last ReLU and batch norms.
struct Joined {
    /// The gradient of what the last convolution gave.
    own: Output,
    /// That of what was added: of the input, or of what the shortcut's convolution gave.
    added: Option<Output>,
}

impl ConvBlocks {
    /// The gradients of all weights.
    pub(super) fn backward(&self, xs: Input<'_>, kept: Kept, grad: Address) -> Result<Vec<Tensor>> {
        let Kept {
            matrices,
            mut blocks,
        } = kept;
        let device = xs.device;
        let top = self.room(device, self.plan.output.iter().product())?;
        run(device, &self.plan.planes.rows_of_planes(grad, top.address))?;
        let mut pass = Pass {
            op: self,
            device,
            matrices,
            grads: vec![None; self.weights.len()],
            reordered: Vec::new(),
        };
        let mut top = Some(top);
        for plan in self.plan.blocks.iter().rev() {
            let (Some(saved), Some(grad)) = (blocks.pop(), top.take()) else {
                bail!("conv_blocks: a block was not kept")
            };
            top = match blocks.last() {
                Some(before) => pass.block(plan, saved, before.result(), grad, true)?,
                None => pass.block(plan, saved, xs.f32()?, grad, false)?,
            };
        }
        pass.finish()
    }
}

impl<'a> Pass<'a> {
    fn room(&self, len: usize) -> Result<Output> {
        self.op.room(self.device, len)
    }

    /// The gradient of a block's input, if it is asked for, from that of its result.
    fn block(
        &mut self,
        plan: &'a BlockPlan,
        saved: Saved,
        input: Address,
        top: Output,
        needs_dx: bool,
    ) -> Result<Option<Output>> {
        let top = match (&plan.pool, &saved.pooled) {
            (Some(pool), Some(pooled)) => {
                let dx = self.room(pool.input_len())?;
                let winners = pooled.winners.address;
                run(self.device, &pool.grad(winners, top.address, dx.address))?;
                dx
            }
            _ => top,
        };
        let Joined { mut own, added } = self.join(plan, &saved, input, top)?;
        for (layer, below) in plan.branch.iter().skip(1).zip(&plan.branch).rev() {
            let maps = &saved.branch[below.index - plan.branch[0].index];
            let xs = self
                .op
                .rectified(self.device, below, maps, RowsAdded::Nothing)?;
            let grad = self.room(layer.conv.input_len())?;
            let target = Some(Target::new(grad.address));
            self.conv(layer, [xs.address, own.address], target)?;
            own = self.norm(below, maps, grad)?;
        }
        let first = &plan.branch[0];
        let (d_projected, before) = match plan.shortcut {
            Shortcut::Input => (None, added),
            Shortcut::Nothing | Shortcut::Projection(_) => (added, None),
        };
        let add = before.is_some();
        let dx = match needs_dx {
            false => None,
            true if add => before,
            true => Some(self.room(first.conv.input_len())?),
        };
        let target = |add| {
            let place = dx.as_ref().map(|dx| dx.address);
            place.map(|place| Target { place, add })
        };
        self.conv(first, [input, own.address], target(add))?;
        if let (Some(layer), Some(grad)) = (plan.shortcut.projection(), d_projected) {
            self.conv(layer, [input, grad.address], target(true))?;
        }
        Ok(dx)
    }

    /// Back through the last ReLU, what was added before it, and the batch norms of both.
    fn join(
        &mut self,
        plan: &'a BlockPlan,
        saved: &Saved,
        input: Address,
        top: Output,
    ) -> Result<Joined> {
        let (layer, Some(maps)) = (plan.last(), saved.branch.last()) else {
            bail!("conv_blocks: a block was not kept")
        };
        let (added, projection) = match (&plan.shortcut, &saved.projection) {
            (Shortcut::Nothing, _) => {
                let own = self.norm(layer, maps, top)?;
                return Ok(Joined { own, added: None });
            }
            (Shortcut::Projection(of), Some(maps)) => {
                let rows = maps.convolved.address;
                (RowsAdded::Normalised(rows, maps.norm), Some(of))
            }
            _ => (RowsAdded::Rows(input), None),
        };
        let results = Some(saved.output.address);
        let sums = self.sums(layer, maps, (results, top.address), added)?;
        if let Some(of) = projection {
            self.grads[3 * of.index + 1] = Some(sums.get(2)?);
            self.grads[3 * of.index + 2] = Some(sums.get(0)?);
        }
        let own = self.room(layer.conv.output_len())?;
        let launch = layer.norm.grad(
            maps.convolved.address,
            maps.norm,
            (top.address, true),
            address_of(&sums)?,
            added,
            [own.address, top.address],
        );
        run(self.device, &launch)?;
        Ok(Joined {
            own,
            added: Some(top),
        })
    }

    /// Back through a ReLU and the batch norm before it; the gradient of what the convolution gave
    /// takes the place of `grad`.
    fn norm(&mut self, layer: &LayerPlan, maps: &Maps, grad: Output) -> Result<Output> {
        let nothing = RowsAdded::Nothing;
        let sums = self.sums(layer, maps, (None, grad.address), nothing)?;
        let launch = layer.norm.grad(
            maps.convolved.address,
            maps.norm,
            (grad.address, false),
            address_of(&sums)?,
            nothing,
            [grad.address; 2],
        );
        run(self.device, &launch)?;
        Ok(grad)
    }

    /// The sums that make the gradients of batch norms, and of the first one's parameters.
    fn sums(
        &mut self,
        layer: &LayerPlan,
        maps: &Maps,
        grad: (Option<Address>, Address),
        added: RowsAdded<Address>,
    ) -> Result<Tensor> {
        let parts = Output::new(self.device, DType::F32, layer.norm.parts_len())?;
        let sums = Output::new(self.device, DType::F32, 3 * layer.channels)?;
        let to = [parts.address, sums.address];
        let xs = maps.convolved.address;
        for launch in layer.norm.grad_sums(xs, maps.norm, grad, added, to) {
            run(self.device, &launch)?;
        }
        let sums = sums.tensor((3, layer.channels));
        self.grads[3 * layer.index + 1] = Some(sums.get(1)?);
        self.grads[3 * layer.index + 2] = Some(sums.get(0)?);
        Ok(sums)
    }

    /// Back through a convolution of `[xs, grad]`.
    fn conv(
        &mut self,
        layer: &'a LayerPlan,
        [xs, grad]: [Address; 2],
        dx: Option<Target<Address>>,
    ) -> Result<()> {
        let conv = &layer.conv;
        let weight = self.op.weight(layer, 0);
        let dw = Output::new(self.device, DType::F32, conv.outputs as usize * conv.ld())?;
        let read = [xs, self.matrices.places[layer.index], grad];
        run_steps(self.device, |room| {
            conv.backward(read, dx, Some(dw.address), room)
        })?;
        match conv.has_plain_matrix() {
            true => self.grads[3 * layer.index] = Some(dw.tensor(weight.shape())),
            false => self.reordered.push((layer, dw)),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Tensor>> {
        let mut rows = Vec::new();
        for (layer, matrix) in &self.reordered {
            let weight = self.op.weight(layer, 0);
            let plain = Output::new(self.device, DType::F32, weight.elem_count())?;
            let of_weight = RowWeight {
                plain: plain.address,
                matrix: matrix.address,
            };
            rows.push((layer.conv, of_weight));
            self.grads[3 * layer.index] = Some(plain.tensor(weight.shape()));
        }
        if !rows.is_empty() {
            let table = words_on(self.device, &weight_table(&rows))?;
            run(
                self.device,
                &weights_from_matrices(address_of(&table)?, rows.len())?,
            )?;
        }
        let grads: Option<Vec<_>> = self.grads.into_iter().collect();
        match grads {
            Some(grads) => Ok(grads),
            None => bail!("conv_blocks: a weight has no gradient"),
        }
    }
}
