//! A residual block in training as one operation of its input and all its parameters.

use std::sync::{Arc, OnceLock};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, bail,
};

use super::{conv, only_on_cuda};
use crate::conv_block::{ConvNorm, Shortcut, Statistics};
use crate::cuda::device::{Address, Input, Output, dtype, run, with_inputs};
use crate::cuda::launch::{BatchNorm, Conv, Element, Extras, Target, Types};
use crate::gemm::Precision;

/// See [`crate::conv_block_train`], whose checks these shapes have passed.
pub(crate) fn conv_block_train(
    xs: &Tensor,
    branch: &[ConvNorm<'_>],
    shortcut: Shortcut<'_>,
    eps: f64,
    precision: Precision,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    let (b, c, h, w) = xs.dims4()?;
    let input = [b, c, h, w];
    let (mut params, mut layers, mut shape) = (Params::default(), Vec::new(), input);
    for of in branch {
        let layer = params.layer(of, shape, precision.into(), layers.is_empty())?;
        shape = layer.shape;
        layers.push(layer);
    }
    let shortcut = match shortcut {
        Shortcut::Nothing => Added::Nothing,
        Shortcut::Input => Added::Input,
        Shortcut::Projection(of) => {
            Added::Projection(params.layer(&of, input, precision.into(), true)?)
        }
    };
    let kept = Arc::new(OnceLock::new());
    let op = ConvBlock {
        branch: layers,
        shortcut,
        eps: eps as f32,
        kept: kept.clone(),
    };
    let all = Tensor::cat(&params.tensors, 0)?;
    let ys = xs.contiguous()?.apply_op2(&all, op)?;
    let Some(Kept {
        branch, projection, ..
    }) = kept.get()
    else {
        bail!("conv_block: nothing was kept")
    };
    let maps = branch.iter().chain(projection);
    let stats = maps.map(|maps| Ok([maps.stats.get(0)?, maps.stats.get(2)?]));
    Ok((ys, stats.collect::<Result<_>>()?))
}

/// All parameters as one flat tensor, one after the other.
#[derive(Default)]
struct Params {
    tensors: Vec<Tensor>,
    len: usize,
}

impl Params {
    fn layer(
        &mut self,
        of: &ConvNorm<'_>,
        xs: [usize; 4],
        factors: Element,
        is_first: bool,
    ) -> Result<Layer> {
        let (out, c, kh, kw) = of.weight.dims4()?;
        let shape = of.output(xs, Statistics::Batch)?;
        let [batch, _, h, w] = shape;
        // What goes into products is rounded where it is written.
        let types = Types {
            xs: if is_first { Element::F32 } else { factors },
            factors,
            ys: factors,
        };
        let layer = Layer {
            factors,
            conv: Conv::new(types, xs, [out, c, kh, kw], [h, w], [of.stride, of.padding])?,
            norm: BatchNorm::new(factors, batch, out, h * w)?,
            shape,
            weight: self.len,
            affine: self.len + of.weight.elem_count(),
        };
        for tensor in [of.weight, of.norm[0], of.norm[1]] {
            self.tensors.push(tensor.flatten_all()?);
            self.len += tensor.elem_count();
        }
        Ok(layer)
    }
}

/// A convolution and its batch norm.
struct Layer {
    /// Type of what the convolution gives, and of its gradient.
    factors: Element,
    conv: Conv,
    norm: BatchNorm,
    /// Of the result.
    shape: [usize; 4],
    /// Where its weight begins among the parameters, in elements.
    weight: usize,
    /// Where weight and bias of the batch norm begin.
    affine: usize,
}

enum Added {
    Nothing,
    Input,
    Projection(Layer),
}

/// What the backward pass needs of a layer.
struct Maps {
    /// What the convolution gave.
    convolved: Output,
    /// `[3, C]`: mean, 1/std, unbiased variance.
    stats: Tensor,
    stats_at: Address,
}

struct Kept {
    branch: Vec<Maps>,
    /// Results of all layers of the branch but the last.
    between: Vec<Output>,
    projection: Option<Maps>,
}

fn f32s(device: &CudaDevice, len: usize) -> Result<Output> {
    room(device, Element::F32, len)
}

fn room(device: &CudaDevice, element: Element, len: usize) -> Result<Output> {
    Output::new(device, dtype(element), len)
}

fn place(params: Address, element: usize) -> Address {
    params + 4 * element as Address
}

impl Layer {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn forward(
        &self,
        device: &CudaDevice,
        [xs, params]: [Address; 2],
        added: Option<Address>,
        to: Element,
        relu: bool,
        eps: f32,
    ) -> Result<(Maps, Output)> {
        let convolved = room(device, self.factors, self.len())?;
        let read = [xs, place(params, self.weight)];
        conv::forward(device, &self.conv, read, convolved.address)?;
        let channels = self.shape[1];
        let parts = f32s(device, self.norm.parts_len())?;
        let stats = f32s(device, 3 * channels)?;
        let stats_at = stats.address;
        let launches = self
            .norm
            .stats(convolved.address, parts.address, stats_at, eps);
        for launch in launches {
            run(device, &launch)?;
        }
        let ys = room(device, to, self.len())?;
        let of_channel = [stats_at, place(params, self.affine)];
        let extras = Extras {
            relu,
            of_batch: true,
        };
        let maps = convolved.address;
        let launch = self
            .norm
            .apply(maps, added, of_channel, (ys.address, to), extras);
        run(device, &launch)?;
        let maps = Maps {
            convolved,
            stats: stats.tensor((3, channels)),
            stats_at,
        };
        Ok((maps, ys))
    }

    /// Writes the gradients of its parameters and that of its input, if there is a place for it.
    /// With the results `ys` if something was added, whose gradient is written, too.
    fn backward(
        &self,
        device: &CudaDevice,
        maps: &Maps,
        [xs, params, grad]: [Address; 3],
        relu: bool,
        added: Option<(Address, Option<Address>)>,
        (d_params, dx): (Address, Option<Target<Address>>),
    ) -> Result<()> {
        let parts = f32s(device, self.norm.parts_len())?;
        let d_convolved = room(device, self.factors, self.len())?;
        let affine = place(params, self.affine);
        let extras = Extras {
            relu,
            of_batch: true,
        };
        let launches = self.norm.grads(
            [maps.convolved.address, grad, maps.stats_at, affine],
            added.map(|(ys, _)| ys),
            parts.address,
            [place(d_params, self.affine), d_convolved.address],
            added.and_then(|(_, d_added)| d_added),
            extras,
        );
        for launch in launches {
            run(device, &launch)?;
        }
        let read = [xs, place(params, self.weight), d_convolved.address];
        let dw = place(d_params, self.weight);
        conv::backward(device, &self.conv, read, dx, Some(dw))
    }
}

struct ConvBlock {
    branch: Vec<Layer>,
    shortcut: Added,
    eps: f32,
    /// From the forward pass.
    kept: Arc<OnceLock<Kept>>,
}

impl CustomOp2 for ConvBlock {
    fn name(&self) -> &'static str {
        "conv-block"
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
        xs_layout: &Layout,
        params: &CudaStorage,
        params_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (xs, params) = (
            Input::new(xs, xs_layout)?,
            Input::new(params, params_layout)?,
        );
        let (device, input, params) = (xs.device, xs.f32()?, params.f32()?);
        let projected = match &self.shortcut {
            Added::Projection(layer) => {
                Some(layer.forward(device, [input, params], None, Element::F32, false, self.eps)?)
            }
            Added::Nothing | Added::Input => None,
        };
        let added = match &self.shortcut {
            Added::Nothing => None,
            Added::Input => Some(input),
            Added::Projection(_) => projected.as_ref().map(|(_, ys)| ys.address),
        };
        let (mut branch, mut results) = (Vec::new(), Vec::<Output>::new());
        for (index, layer) in self.branch.iter().enumerate() {
            let read = [results.last().map_or(input, |ys| ys.address), params];
            let (added, to) = match index + 1 == self.branch.len() {
                true => (added, Element::F32),
                false => (None, layer.factors),
            };
            let (maps, ys) = layer.forward(device, read, added, to, true, self.eps)?;
            branch.push(maps);
            results.push(ys);
        }
        let (Some(ys), Some(last)) = (results.pop(), self.branch.last()) else {
            bail!("conv_block: no layers")
        };
        // A second forward pass of the same op would be a second op.
        let _ = self.kept.set(Kept {
            branch,
            between: results,
            projection: projected.map(|(maps, _)| maps),
        });
        Ok((ys.storage, Shape::from(last.shape.to_vec())))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        params: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            bail!("conv_block: backward before forward")
        };
        let (needs_dx, num_params) = (xs.track_op(), params.elem_count());
        let (shape, params_shape) = (xs.shape(), params.shape());
        with_inputs([xs, params, ys, grad], |[xs, params, ys, grad]| {
            let device = xs.device;
            let (input, weights, results) = (xs.f32()?, params.f32()?, ys.f32()?);
            let d_params = f32s(device, num_params)?;
            // The gradient of the input; at first, that of what was added.
            let mut dx = match self.shortcut {
                Added::Input if needs_dx => Some(f32s(device, shape.elem_count())?),
                _ => None,
            };
            let d_projected = match &self.shortcut {
                Added::Projection(layer) => Some(f32s(device, layer.len())?),
                Added::Nothing | Added::Input => None,
            };
            let mut upper: Option<Output> = None;
            for (index, layer) in self.branch.iter().enumerate().rev() {
                let own_grad = upper.as_ref().map_or(grad.f32()?, |grad| grad.address);
                let is_last = index + 1 == self.branch.len();
                let added = match self.shortcut {
                    _ if !is_last => None,
                    Added::Nothing => None,
                    Added::Input => Some((results, address(&dx))),
                    Added::Projection(_) => Some((results, address(&d_projected))),
                };
                let (own_input, target, lower) = match index {
                    0 => {
                        let add = dx.is_some();
                        if needs_dx && !add {
                            dx = Some(f32s(device, shape.elem_count())?);
                        }
                        let target = address(&dx).map(|place| Target { place, add });
                        (input, target, None)
                    }
                    _ => {
                        let lower = f32s(device, self.branch[index - 1].len())?;
                        let target = Some(Target::new(lower.address));
                        (kept.between[index - 1].address, target, Some(lower))
                    }
                };
                layer.backward(
                    device,
                    &kept.branch[index],
                    [own_input, weights, own_grad],
                    true,
                    added,
                    (d_params.address, target),
                )?;
                upper = lower;
            }
            if let (Added::Projection(layer), Some(maps), Some(d_projected)) =
                (&self.shortcut, &kept.projection, &d_projected)
            {
                let target = address(&dx).map(|place| Target { place, add: true });
                let read = [input, weights, d_projected.address];
                layer.backward(device, maps, read, false, None, (d_params.address, target))?;
            }
            let dx = dx.map(|dx| dx.tensor(shape));
            Ok((dx, Some(d_params.tensor(params_shape))))
        })
    }
}

fn address(output: &Option<Output>) -> Option<Address> {
    output.as_ref().map(|output| output.address)
}
