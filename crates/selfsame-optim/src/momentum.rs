//! The rules that keep one momentum buffer for each parameter: SGD with L2 decay in the gradient, as
//! PyTorch computes it, and LARS, whose step length follows the norm of each parameter (You et al.
//! 2017).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{Lars, Sgd, Update};

use crate::state::{SavedState, copy_into};

/// Share of the momentum buffer that survives a step (`main_dino.py`; `utils.py`, class `LARS`).
const MOMENTUM: f64 = 0.9;
/// Trust coefficient (`utils.py`, class `LARS`).
const ETA: f64 = 0.001;

/// What is done with a gradient before it joins its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `buffer ← momentum·buffer + grad + wd·param`, `param ← param − lr·buffer`.
    ///
    /// A buffer of zeros gives PyTorch's first step, whose buffer is the gradient itself.
    Sgd,
    /// `mu ← momentum·mu + q·(grad + wd·param)`, `param ← param − lr·mu`.
    ///
    /// `q` is `eta·|param| / |grad + wd·param|`, or 1 if either norm is 0. One-dimensional
    /// parameters have neither decay nor `q`, whatever their group.
    Lars,
}

impl Form {
    /// Name under which a parameter's buffer is saved.
    pub(crate) fn slots(self) -> &'static [&'static str; 1] {
        match self {
            Self::Sgd => &["momentum_buffer"],
            Self::Lars => &["mu"],
        }
    }
}

/// The momentum buffer of every parameter that has had a gradient.
#[derive(Debug)]
pub(crate) struct Momentum {
    pub(crate) form: Form,
    buffers: BTreeMap<String, Tensor>,
}

impl Momentum {
    pub(crate) fn new(form: Form) -> Self {
        Self {
            form,
            buffers: BTreeMap::new(),
        }
    }

    /// Makes a buffer of zeros if there is none yet: whether it did.
    pub(crate) fn begin_update(&mut self, name: &str, param: &Var) -> Result<bool> {
        if self.buffers.contains_key(name) {
            return Ok(false);
        }
        self.buffers.insert(name.to_owned(), param.zeros_like()?);
        Ok(true)
    }

    /// Takes back an update that moved nothing.
    pub(crate) fn take_back_update(&mut self, name: &str, made_state: bool) {
        if made_state {
            self.buffers.remove(name);
        }
    }

    /// The update that [`Momentum::begin_update`] began, without clipping.
    pub(crate) fn begun(&self, name: &str, lr: f64, weight_decay: f64) -> Option<Update<'_>> {
        let buffer = self.buffers.get(name)?;
        Some(match self.form {
            Form::Sgd => Update::Sgd {
                momentum_buffer: buffer,
                options: Sgd {
                    lr,
                    momentum: MOMENTUM,
                    weight_decay,
                    grad_scale: 1.0,
                },
            },
            Form::Lars => Update::Lars {
                mu: buffer,
                options: Lars {
                    lr,
                    momentum: MOMENTUM,
                    weight_decay,
                    eta: ETA,
                    grad_scale: 1.0,
                },
            },
        })
    }

    pub(crate) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let [slot] = self.form.slots();
        let entry =
            |(name, buffer): (&String, &Tensor)| Ok((format!("{slot}.{name}"), buffer.copy()?));
        self.buffers.iter().map(entry).collect()
    }

    pub(crate) fn from_saved(form: Form, saved: &SavedState<'_>) -> Result<Self> {
        let [slot] = form.slots();
        let mut buffers = BTreeMap::new();
        for (name, spec, slots) in saved.parameters() {
            buffers.insert(name.to_owned(), copy_into(spec, slots[slot])?);
        }
        Ok(Self { form, buffers })
    }
}
