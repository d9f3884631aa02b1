//! SGD with momentum and L2 decay in the gradient, as PyTorch computes it.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{self, Update};

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

/// Those of a step without clipping.
fn options(lr: f64, weight_decay: f64) -> multi_tensor::Sgd {
    multi_tensor::Sgd {
        lr,
        momentum: MOMENTUM,
        weight_decay,
        grad_scale: 1.0,
    }
}

impl Sgd {
    /// Makes a buffer of zeros if there is none yet.
    pub(crate) fn begin_update(&mut self, name: &str, param: &Var) -> Result<()> {
        if !self.buffers.contains_key(name) {
            self.buffers.insert(name.to_owned(), param.zeros_like()?);
        }
        Ok(())
    }

    /// The update that [`Sgd::begin_update`] began, without clipping:
    /// `buffer ← momentum·buffer + grad + wd·param`, `param ← param − lr·buffer`.
    ///
    /// A buffer of zeros gives PyTorch's first step, whose buffer is the gradient itself.
    pub(crate) fn begun(&self, name: &str, lr: f64, weight_decay: f64) -> Option<Update<'_>> {
        Some(Update::Sgd {
            momentum_buffer: self.buffers.get(name)?,
            options: options(lr, weight_decay),
        })
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
