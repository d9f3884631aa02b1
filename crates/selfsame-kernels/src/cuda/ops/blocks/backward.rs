//! The way back through a stack of blocks.

use candle_core::{DType, Result, Tensor, bail};

use super::places::Places;
use super::{Kept, Rows, Saved, Stack};
use crate::cuda::device::{Address, Input, Output, run};
use crate::cuda::gemm::{self, Matrix, multiply};
use crate::cuda::launch::{BiasGelu, Element, NormGrad, ProductGrad};
use crate::cuda::ops::sum_of_parts;

impl Stack {
    /// The gradients of the input and of all weights, by the gradient of the output, f32.
    pub(super) fn backward(
        &self,
        xs: Input<'_>,
        kept: Kept,
        grad: Address,
    ) -> Result<(Output, Vec<Tensor>)> {
        let last = self.blocks.len() - 1;
        let rows = Rows::new(&self.sizes, self.is_class_only(last));
        let mut way = Backward {
            stack: self,
            xs,
            places: &kept.weights.places,
            grads: vec![Default::default(); last + 1],
        };
        let (_, mut product) = way.branch(rows, (grad, 1), None, Some((last, Slot::Fc2)))?;
        // The gradient of the residual stream, and who owns it.
        let (mut stream, mut owner) = (grad, None);
        let mut blocks = kept.blocks;
        for index in (0..=last).rev() {
            let (Some(saved), Some(d_product)) = (blocks.pop(), product) else {
                bail!("transformer_blocks: nothing reaches block {index}")
            };
            let (between, d_product) = way.mlp(index, &saved, stream, d_product)?;
            let (d_xs, before) = way.attention(index, &saved, between, d_product)?;
            product = before;
            stream = d_xs.address;
            owner = Some(d_xs);
        }
        let Some(d_xs) = owner else {
            bail!("transformer_blocks: no blocks")
        };
        Ok((d_xs, way.grads.into_iter().flatten().flatten().collect()))
    }
}

/// Where the gradients of a layer's weight and, behind it, of its bias stand, in the order of
/// [`BlockWeights::tensors`].
#[derive(Clone, Copy)]
enum Slot {
    Norm1 = 0,
    Qkv = 2,
    Proj = 4,
    Norm2 = 6,
    Fc1 = 8,
    Fc2 = 10,
}

/// A layer norm on the way back.
struct NormInput {
    block: usize,
    slot: Slot,
    xs: Address,
    stats: Address,
    weight: Address,
    d_normed: Output,
}

/// The way back through the blocks, and the gradients that it gathers.
struct Backward<'a> {
    stack: &'a Stack,
    xs: Input<'a>,
    places: &'a [Places],
    grads: Vec<[Option<Tensor>; 12]>,
}

impl Backward<'_> {
    fn put(&mut self, block: usize, at: usize, grad: Tensor) {
        self.grads[block][at] = Some(grad);
    }

    /// `d_ysᵀ · xs`, `[outputs, inputs]`, in f32.
    fn weight_grad(
        &mut self,
        (block, slot): (usize, Slot),
        rows: usize,
        [outputs, inputs]: [usize; 2],
        d_ys: Address,
        xs: Matrix,
    ) -> Result<()> {
        let grad = Output::new(self.xs.device, DType::F32, outputs * inputs)?;
        let sizes = gemm::Sizes {
            rows: outputs,
            columns: inputs,
            inner: rows,
        };
        let d_ys = Matrix::new(d_ys, outputs).t();
        let to = Matrix::new(grad.address, inputs);
        let element = self.stack.sizes.element();
        multiply(self.xs.device, sizes, element, [d_ys, xs], to, Element::F32)?;
        self.put(block, slot as usize, grad.tensor((outputs, inputs)));
        Ok(())
    }

    /// `to = d_ys · weight`, `[rows, inputs]`.
    fn input_grad(
        &self,
        rows: usize,
        [outputs, inputs]: [usize; 2],
        d_ys: Address,
        weight: Address,
        to: Matrix,
    ) -> Result<()> {
        let sizes = gemm::Sizes {
            rows,
            columns: inputs,
            inner: outputs,
        };
        let (d_ys, weight) = (Matrix::new(d_ys, outputs), Matrix::new(weight, inputs));
        let element = self.stack.sizes.element();
        multiply(self.xs.device, sizes, element, [d_ys, weight], to, element)
    }

    /// Past a layer norm on to the residual stream, whose gradient comes first, and from there to
    /// the product of a branch, the linear layer at this slot, whose gradient comes second.
    fn branch(
        &mut self,
        rows: Rows,
        (residual, every): (Address, usize),
        norm: Option<NormInput>,
        to: Option<(usize, Slot)>,
    ) -> Result<(Option<Output>, Option<Output>)> {
        let (device, width) = (self.xs.device, self.stack.sizes.width);
        let d_sums = match norm {
            None => None,
            Some(_) => Some(Output::new(device, DType::F32, rows.count * width)?),
        };
        let d_product = match to {
            None => None,
            Some(_) => Some(self.stack.output(device, rows.count, width)?),
        };
        let norm_args = norm.as_ref().zip(d_sums.as_ref());
        let norm_args = norm_args.map(|(norm, d_sums)| NormGrad {
            xs: norm.xs,
            stats: norm.stats,
            weight: norm.weight,
            d_normed: norm.d_normed.address,
            d_sums: d_sums.address,
        });
        let product_args = to
            .zip(d_product.as_ref())
            .map(|((block, slot), d_product)| {
                let place = &self.places[block];
                ProductGrad {
                    factors: match slot {
                        Slot::Proj => place.attention_factors,
                        _ => place.mlp_factors,
                    },
                    d_product: d_product.address,
                }
            });
        let branch = self.stack.branch(rows)?;
        let sums = sum_of_parts(self.xs, branch.parts(), 3 * width, |parts| {
            let launch = branch.grad(Some(residual), every, norm_args, product_args, parts)?;
            run(device, &launch)
        })?;
        if let Some(norm) = norm {
            let at = norm.slot as usize;
            self.put(norm.block, at, sums.narrow(0, 0, width)?);
            self.put(norm.block, at + 1, sums.narrow(0, width, width)?);
        }
        if let Some((block, slot)) = to {
            self.put(block, slot as usize + 1, sums.narrow(0, 2 * width, width)?);
        }
        Ok((d_sums, d_product))
    }

    /// From behind the MLP, whose product's gradient is `d_product`, to the residual stream before
    /// it and the product of the attention branch.
    fn mlp(
        &mut self,
        index: usize,
        saved: &Saved,
        stream: Address,
        d_product: Output,
    ) -> Result<(Output, Output)> {
        let (sizes, place) = (self.stack.sizes, &self.places[index]);
        let [d, f] = [sizes.width, sizes.hidden];
        let rows = Rows::new(&sizes, self.stack.is_class_only(index));
        let activated = Matrix::new(saved.activated.address, f);
        self.weight_grad(
            (index, Slot::Fc2),
            rows.count,
            [d, f],
            d_product.address,
            activated,
        )?;
        let d_hidden = self.stack.output(self.xs.device, rows.count, f)?;
        let to = Matrix::new(d_hidden.address, f);
        self.input_grad(rows.count, [d, f], d_product.address, place.fc2[0], to)?;
        drop(d_product);

        let gelu = BiasGelu::new(sizes.element(), rows.count, f)?;
        let sums = sum_of_parts(self.xs, gelu.parts(), f, |parts| {
            // In place: an element is read by the thread that writes it.
            let (bias, grad) = (Some(place.fc1[1]), d_hidden.address);
            let launch = gelu.grad(saved.hidden.address, bias, grad, grad, Some(parts));
            run(self.xs.device, &launch)
        })?;
        self.put(index, Slot::Fc1 as usize + 1, sums);

        let normed = Matrix::new(saved.normed2.normed.address, d);
        self.weight_grad(
            (index, Slot::Fc1),
            rows.count,
            [f, d],
            d_hidden.address,
            normed,
        )?;
        let d_normed = self.stack.output(self.xs.device, rows.count, d)?;
        let to = Matrix::new(d_normed.address, d);
        self.input_grad(rows.count, [f, d], d_hidden.address, place.fc1[0], to)?;
        drop(d_hidden);

        let norm = NormInput {
            block: index,
            slot: Slot::Norm2,
            xs: saved.between.address,
            stats: saved.normed2.stats.address,
            weight: place.norm2[0],
            d_normed,
        };
        match self.branch(rows, (stream, 1), Some(norm), Some((index, Slot::Proj)))? {
            (Some(d_between), Some(d_product)) => Ok((d_between, d_product)),
            _ => bail!("transformer_blocks: a branch without a gradient"),
        }
    }

    /// From behind attention, whose projection's gradient is `d_product`, to the residual stream
    /// before the block and the product of the MLP before it, if there is one.
    fn attention(
        &mut self,
        index: usize,
        saved: &Saved,
        d_between: Output,
        d_product: Output,
    ) -> Result<(Output, Option<Output>)> {
        let (device, sizes, place) = (self.xs.device, self.stack.sizes, &self.places[index]);
        let (d, all) = (sizes.width, sizes.all_rows());
        let rows = Rows::new(&sizes, self.stack.is_class_only(index));
        let mixed = Matrix::new(saved.mixed.address, rows.every * d);
        self.weight_grad(
            (index, Slot::Proj),
            rows.count,
            [d, d],
            d_product.address,
            mixed,
        )?;
        let d_mixed = match rows.every {
            1 => self.stack.output(device, all, d)?,
            // The other tokens' outputs are not looked at.
            _ => Output::zeros(device, sizes.dtype(), all * d)?,
        };
        let to = Matrix::new(d_mixed.address, rows.every * d);
        self.input_grad(rows.count, [d, d], d_product.address, place.proj[0], to)?;
        drop(d_product);

        let d_qkv = self.stack.output(device, all, 3 * d)?;
        let delta = Output::new(device, DType::F32, all * sizes.options.num_heads)?;
        let [qkv, mixed, lse] = [&saved.qkv, &saved.mixed, &saved.lse].map(|o| o.address);
        let read = [qkv, mixed, lse, d_mixed.address];
        let attention = sizes.attention()?;
        for launch in attention.backward(read, Some(place.qkv[1]), delta.address, d_qkv.address) {
            run(device, &launch)?;
        }
        drop(d_mixed);
        let columns = BiasGelu::new(sizes.element(), all, 3 * d)?;
        let sums = sum_of_parts(self.xs, columns.parts(), 3 * d, |parts| {
            run(device, &columns.column_sums(d_qkv.address, parts))
        })?;
        self.put(index, Slot::Qkv as usize + 1, sums);

        let normed = Matrix::new(saved.normed1.normed.address, d);
        self.weight_grad((index, Slot::Qkv), all, [3 * d, d], d_qkv.address, normed)?;
        let d_normed = self.stack.output(device, all, d)?;
        let to = Matrix::new(d_normed.address, d);
        self.input_grad(all, [3 * d, d], d_qkv.address, place.qkv[0], to)?;
        drop(d_qkv);

        let norm = NormInput {
            block: index,
            slot: Slot::Norm1,
            xs: match &saved.xs {
                Some(xs) => xs.address,
                None => self.xs.f32()?,
            },
            stats: saved.normed1.stats.address,
            weight: place.norm1[0],
            d_normed,
        };
        let before = index.checked_sub(1).map(|before| (before, Slot::Fc2));
        let all_rows = Rows::new(&sizes, false);
        let residual = (d_between.address, rows.every);
        match self.branch(all_rows, residual, Some(norm), before)? {
            (Some(d_xs), d_product) => Ok((d_xs, d_product)),
            (None, _) => bail!("transformer_blocks: a branch without a gradient"),
        }
    }
}
