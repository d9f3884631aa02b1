//! AdamW (Loshchilov and Hutter 2019) with a step count per parameter.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{self, Update};

use crate::state::{SavedState, copy_into, step_tensor};

/// Decay of the first moment (PyTorch's default).
const BETA1: f64 = 0.9;
/// Decay of the second moment (PyTorch's default).
const BETA2: f64 = 0.999;
/// Added to the root of the second moment (PyTorch's default).
const EPS: f64 = 1e-8;

/// Names under which a parameter's state is saved.
pub(crate) const SLOTS: &[&str] = &["exp_avg", "exp_avg_sq", "step"];

/// The moments of every parameter that has had a gradient.
#[derive(Debug, Default)]
pub(crate) struct AdamW {
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug)]
struct Moments {
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Updates done.
    step: u64,
}

/// PyTorch's defaults but for these three.
fn options(lr: f64, weight_decay: f64, step: u64) -> multi_tensor::AdamW {
    multi_tensor::AdamW {
        lr,
        beta1: BETA1,
        beta2: BETA2,
        eps: EPS,
        weight_decay,
        step,
        grad_scale: 1.0,
    }
}

impl AdamW {
    /// Counts an update of a parameter; moments that are not there yet are made, of zeros: whether
    /// they were.
    pub(crate) fn begin_update(&mut self, name: &str, param: &Var) -> Result<bool> {
        if let Some(moments) = self.moments.get_mut(name) {
            moments.step += 1;
            return Ok(false);
        }
        let moments = Moments {
            exp_avg: param.zeros_like()?,
            exp_avg_sq: param.zeros_like()?,
            step: 1,
        };
        self.moments.insert(name.to_owned(), moments);
        Ok(true)
    }

    /// Takes back an update that moved nothing.
    pub(crate) fn take_back_update(&mut self, name: &str, made_state: bool) {
        if made_state {
            self.moments.remove(name);
        } else if let Some(moments) = self.moments.get_mut(name) {
            moments.step -= 1;
        }
    }

    /// The update that [`AdamW::begin_update`] began, without clipping:
    /// `param ← (1 − lr·wd)·param − lr·m̂ / (√v̂ + eps)`.
    pub(crate) fn begun(&self, name: &str, lr: f64, weight_decay: f64) -> Option<Update<'_>> {
        let moments = self.moments.get(name)?;
        Some(Update::AdamW {
            exp_avg: &moments.exp_avg,
            exp_avg_sq: &moments.exp_avg_sq,
            options: options(lr, weight_decay, moments.step),
        })
    }

    pub(crate) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            state.insert(format!("exp_avg.{name}"), moments.exp_avg.copy()?);
            state.insert(format!("exp_avg_sq.{name}"), moments.exp_avg_sq.copy()?);
            let step = step_tensor(moments.step, moments.exp_avg.device())?;
            state.insert(format!("step.{name}"), step);
        }
        Ok(state)
    }

    pub(crate) fn from_saved(saved: &SavedState<'_>) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, spec, slots) in saved.parameters() {
            let entry = Moments {
                exp_avg: copy_into(spec, slots["exp_avg"])?,
                exp_avg_sq: copy_into(spec, slots["exp_avg_sq"])?,
                step: saved.step(name),
            };
            moments.insert(name.to_owned(), entry);
        }
        Ok(Self { moments })
    }
}
