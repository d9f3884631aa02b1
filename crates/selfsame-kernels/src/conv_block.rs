//! Convolutions with batch norm and ReLU behind them, and what is added before the last ReLU: the
//! residual block of He et al. 2016 in training.

use candle_core::{Result, Tensor, bail};

use crate::batch_norm::{AfterNorm, batch_norm_eval_then, batch_norm_train_then};
use crate::conv2d::{conv2d, output_len};
use crate::gemm::Precision;

/// A convolution without bias, and the batch norm behind it.
#[derive(Debug, Clone, Copy)]
pub struct ConvNorm<'a> {
    /// `[O, C, kh, kw]`
    pub weight: &'a Tensor,
    /// Weight and bias of the batch norm, `[O]` each.
    pub norm: [&'a Tensor; 2],
    /// Of the convolution.
    pub stride: usize,
    /// Of the convolution.
    pub padding: usize,
}

/// What a block adds before its last ReLU; `L` is a convolution with its batch norm, such as
/// [`ConvNorm`].
#[derive(Debug, Clone, Copy)]
pub enum Shortcut<L> {
    /// Nothing: it is no residual block.
    Nothing,
    /// What goes into it.
    Input,
    /// What goes into it, after a convolution and batch norm.
    Projection(L),
}

impl<L> Shortcut<L> {
    /// The convolution, if there is one.
    pub fn projection(&self) -> Option<&L> {
        match self {
            Self::Projection(layer) => Some(layer),
            Self::Nothing | Self::Input => None,
        }
    }
}

/// `xs` through each convolution, batch norm with the batch's statistics and ReLU; the shortcut is
/// added before the last ReLU.
///
/// Returns the result and, for each batch norm in turn, the shortcut's last, what
/// [`crate::batch_norm_train`] returns for the running statistics: mean and unbiased variance, `[C]`.
/// Several blocks one after the other are faster as one operation: [`crate::conv_blocks_train`].
///
/// # Shape
/// `xs`: `[B, C, H, W]`; the result is that of the last convolution.
/// # Errors
/// If shapes do not fit, a channel has fewer than two values, or bf16 is asked for elsewhere than on
/// CUDA.
pub fn conv_block_train(
    xs: &Tensor,
    branch: &[ConvNorm<'_>],
    shortcut: Shortcut<ConvNorm<'_>>,
    eps: f64,
    precision: Precision,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    check(xs.dims4()?.into(), branch, shortcut, Statistics::Batch)?;
    let mut stats: Vec<Option<[Tensor; 2]>> = vec![None; layers(branch, &shortcut).count()];
    let ys = through(xs, branch, shortcut, |xs, index, of, after| {
        let maps = conv2d(xs, of.weight, of.stride, of.padding, precision)?;
        let [weight, bias] = of.norm;
        let (ys, mean, var) = batch_norm_train_then(&maps, weight, bias, eps, after)?;
        stats[index] = Some([mean, var]);
        Ok(ys)
    })?;
    Ok((ys, stats.into_iter().flatten().collect()))
}

/// The same with given statistics instead of the batch's: evaluation.
///
/// `running` holds means and variances, `[C]`, in the order in which [`conv_block_train`] returns
/// them; they get no gradient on CUDA devices.
///
/// # Shape
/// That of [`conv_block_train`].
/// # Errors
/// If shapes do not fit, or bf16 is asked for elsewhere than on CUDA.
pub fn conv_block_eval(
    xs: &Tensor,
    branch: &[ConvNorm<'_>],
    shortcut: Shortcut<ConvNorm<'_>>,
    running: &[[&Tensor; 2]],
    eps: f64,
    precision: Precision,
) -> Result<Tensor> {
    check(xs.dims4()?.into(), branch, shortcut, Statistics::Given)?;
    check_running(layers(branch, &shortcut), running)?;
    through(xs, branch, shortcut, |xs, index, of, after| {
        let maps = conv2d(xs, of.weight, of.stride, of.padding, precision)?;
        let [weight, bias] = of.norm;
        batch_norm_eval_then(&maps, running[index], weight, bias, eps, after)
    })
}

/// `xs` through a block; `layer` does a convolution and what follows it, and is told its place in
/// the order of [`layers`].
fn through<'a>(
    xs: &Tensor,
    branch: &[ConvNorm<'a>],
    shortcut: Shortcut<ConvNorm<'a>>,
    mut layer: impl FnMut(&Tensor, usize, &ConvNorm<'a>, AfterNorm<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let added = match &shortcut {
        Shortcut::Nothing => None,
        Shortcut::Input => Some(xs.clone()),
        Shortcut::Projection(of) => Some(layer(xs, branch.len(), of, AfterNorm::Nothing)?),
    };
    let mut ys = xs.clone();
    for (index, of) in branch.iter().enumerate() {
        let after = match &added {
            Some(added) if index + 1 == branch.len() => AfterNorm::AddRelu(added),
            _ => AfterNorm::Relu,
        };
        ys = layer(&ys, index, of, after)?;
    }
    Ok(ys)
}

/// The branch's layers, then the shortcut's.
pub(crate) fn layers<'a, 't>(
    branch: &'a [ConvNorm<'t>],
    shortcut: &'a Shortcut<ConvNorm<'t>>,
) -> impl Iterator<Item = &'a ConvNorm<'t>> {
    branch.iter().chain(shortcut.projection())
}

/// # Errors
/// If there are not means and variances of each layer's channels.
pub(crate) fn check_running<'a, 't: 'a>(
    layers: impl Iterator<Item = &'a ConvNorm<'t>>,
    running: &[[&Tensor; 2]],
) -> Result<()> {
    let layers: Vec<_> = layers.collect();
    if layers.len() != running.len() {
        let (layers, given) = (layers.len(), running.len());
        bail!("conv_block: statistics of {given} layers do not fit {layers}");
    }
    for (of, running) in layers.into_iter().zip(running) {
        let channels = of.norm[0].dims();
        if let Some(other) = running.iter().find(|other| other.dims() != channels) {
            let other = other.dims();
            bail!("conv_block: statistics {other:?} do not fit a batch norm of {channels:?}");
        }
    }
    Ok(())
}

/// Where the batch norms have their statistics from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statistics {
    /// The maps themselves, which need several values per channel.
    Batch,
    /// The caller.
    Given,
}

impl ConvNorm<'_> {
    /// The shape of what comes out, if what goes in fits.
    pub(crate) fn output(
        &self,
        [batch, channels, h, w]: [usize; 4],
        statistics: Statistics,
    ) -> Result<[usize; 4]> {
        let (out, inputs, kh, kw) = self.weight.dims4()?;
        if inputs != channels {
            bail!("conv_block: the input has {channels} channels, the weight {inputs}");
        }
        if self.norm.iter().any(|of| of.dims() != [out]) {
            bail!("conv_block: the batch norm does not fit {out} channels");
        }
        let len = |len, kernel| output_len("conv_block", len, kernel, self.stride, self.padding);
        let (h, w) = (len(h, kh)?, len(w, kw)?);
        if statistics == Statistics::Batch && batch * h * w < 2 {
            bail!("conv_block: one value per channel gives no variance");
        }
        Ok([batch, out, h, w])
    }
}

/// The shape of what comes out, if what goes in fits.
pub(crate) fn check(
    input: [usize; 4],
    branch: &[ConvNorm<'_>],
    shortcut: Shortcut<ConvNorm<'_>>,
    statistics: Statistics,
) -> Result<[usize; 4]> {
    let output = branch
        .iter()
        .try_fold(input, |shape, of| of.output(shape, statistics))?;
    let added = match shortcut {
        Shortcut::Nothing => output,
        Shortcut::Input => input,
        Shortcut::Projection(of) => of.output(input, statistics)?,
    };
    if branch.is_empty() || added != output {
        bail!("conv_block: {added:?} cannot be added to {output:?}");
    }
    Ok(output)
}
