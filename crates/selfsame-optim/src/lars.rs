//! LARS: SGD with momentum whose step length follows the norm of each parameter (You et al. 2017).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{self, Update};

use crate::state::{SavedState, copy_into};

/// Share of the momentum buffer that survives a step (`utils.py`, class `LARS`).
const MOMENTUM: f64 = 0.9;
/// Trust coefficient (`utils.py`, class `LARS`).
const ETA: f64 = 0.001;

/// Name under which a parameter's state is saved.
pub(crate) const SLOTS: &[&str] = &["mu"];

/// The momentum buffer of every parameter that has had a gradient.
#[derive(Debug, Default)]
pub(crate) struct Lars {
    buffers: BTreeMap<String, Tensor>,
}

/// Those of a step without clipping.
fn options(lr: f64, weight_decay: f64) -> multi_tensor::Lars {
    multi_tensor::Lars {
        lr,
        momentum: MOMENTUM,
        weight_decay,
        eta: ETA,
        grad_scale: 1.0,
    }
}

impl Lars {
    /// Makes a buffer of zeros if there is none yet.
    pub(crate) fn begin_update(&mut self, name: &str, param: &Var) -> Result<()> {
        if !self.buffers.contains_key(name) {
            self.buffers.insert(name.to_owned(), param.zeros_like()?);
        }
        Ok(())
    }

    /// The update that [`Lars::begin_update`] began, without clipping:
    /// `mu ← momentum·mu + q·(grad + wd·param)`, `param ← param − lr·mu`.
    ///
    /// `q` is `eta·|param| / |grad + wd·param|`, or 1 if either norm is 0. One-dimensional
    /// parameters have neither decay nor `q`, whatever their group.
    pub(crate) fn begun(&self, name: &str, lr: f64, weight_decay: f64) -> Option<Update<'_>> {
        Some(Update::Lars {
            mu: self.buffers.get(name)?,
            options: options(lr, weight_decay),
        })
    }

    pub(crate) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let entry = |(name, mu): (&String, &Tensor)| Ok((format!("mu.{name}"), mu.copy()?));
        self.buffers.iter().map(entry).collect()
    }

    pub(crate) fn from_saved(saved: &SavedState<'_>) -> Result<Self> {
        let mut buffers = BTreeMap::new();
        for (name, spec, slots) in saved.parameters() {
            buffers.insert(name.to_owned(), copy_into(spec, slots["mu"])?);
        }
        Ok(Self { buffers })
    }
}
