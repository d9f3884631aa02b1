//! SGD with momentum and L2 decay in the gradient, as PyTorch computes it.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{self, sgd_step};

use crate::grads::Grad;
use crate::state::{SavedState, copy_into};

/// Share of the momentum buffer that survives a step (`main_dino.py`).
const MOMENTUM: f64 = 0.9;

/// Name under which a parameter's state is saved.
pub(crate) const SLOTS: &[&str] = &["momentum_buffer"];

/// The momentum buffer of every parameter that has had a gradient.
#[derive(Debug, Default)]
pub(crate) struct Sgd {
    buffers: BTreeMap<String, Tensor>,
}

impl Sgd {
    /// `buffer ← momentum·buffer + grad + wd·param`, `param ← param − lr·buffer`.
    ///
    /// A buffer of zeros gives PyTorch's first step, whose buffer is the gradient itself.
    pub(crate) fn update(
        &mut self,
        name: &str,
        param: &Var,
        grad: &Grad,
        lr: f64,
        weight_decay: f64,
    ) -> Result<()> {
        if !self.buffers.contains_key(name) {
            self.buffers.insert(name.to_owned(), param.zeros_like()?);
        }
        let options = multi_tensor::Sgd {
            lr,
            momentum: MOMENTUM,
            weight_decay,
            grad_scale: grad.factor,
        };
        sgd_step(param, &grad.tensor, &self.buffers[name], options)
    }

    pub(crate) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let entry = |(name, buffer): (&String, &Tensor)| {
            Ok((format!("momentum_buffer.{name}"), buffer.copy()?))
        };
        self.buffers.iter().map(entry).collect()
    }

    pub(crate) fn from_saved(saved: &SavedState<'_>) -> Result<Self> {
        let mut buffers = BTreeMap::new();
        for (name, spec, slots) in saved.parameters() {
            buffers.insert(name.to_owned(), copy_into(spec, slots["momentum_buffer"])?);
        }
        Ok(Self { buffers })
    }
}
