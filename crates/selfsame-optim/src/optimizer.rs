//! The optimizer that the training loop holds.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};
use selfsame_kernels::multi_tensor::Update;
use serde::{Deserialize, Serialize};

use crate::Grads;
use crate::adamw::{self, AdamW};
use crate::momentum::{Form, Momentum};
use crate::param_group::{Decayed, is_decayed};
use crate::state::{SavedState, Spec, StateError};

/// Which rule turns gradients into updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Betas 0.9 and 0.999, eps 1e-8, decoupled decay; for ViTs.
    #[default]
    AdamW,
    /// Momentum 0.9 without Nesterov, L2 decay in the gradient; for ResNets.
    Sgd,
    /// Momentum 0.9, trust coefficient 0.001; for very large batches of convolutional networks.
    Lars,
}

/// Moves weights along their gradients, and keeps what it has to remember by parameter name.
#[derive(Debug)]
pub struct Optimizer {
    pub(crate) rule: Rule,
    pub(crate) specs: BTreeMap<String, Spec>,
    /// Weights of the newest whole step, and whether their state was made for it.
    pub(crate) begun: Vec<(String, bool)>,
}

#[derive(Debug)]
pub(crate) enum Rule {
    AdamW(AdamW),
    Momentum(Momentum),
}

impl Rule {
    fn new(kind: OptimizerKind) -> Self {
        match kind {
            OptimizerKind::AdamW => Self::AdamW(AdamW::default()),
            OptimizerKind::Sgd => Self::Momentum(Momentum::new(Form::Sgd)),
            OptimizerKind::Lars => Self::Momentum(Momentum::new(Form::Lars)),
        }
    }

    /// Counts an update of a parameter, whose state is made if it has none yet: whether it was.
    pub(crate) fn begin_update(&mut self, name: &str, param: &Var) -> Result<bool> {
        match self {
            Self::AdamW(rule) => rule.begin_update(name, param),
            Self::Momentum(rule) => rule.begin_update(name, param),
        }
    }

    /// Takes back what [`Rule::begin_update`] did, whose answer was `made_state`.
    pub(crate) fn take_back_update(&mut self, name: &str, made_state: bool) {
        match self {
            Self::AdamW(rule) => rule.take_back_update(name, made_state),
            Self::Momentum(rule) => rule.take_back_update(name, made_state),
        }
    }

    /// The update that [`Rule::begin_update`] began, without clipping.
    pub(crate) fn begun(&self, name: &str, lr: f64, weight_decay: f64) -> Option<Update<'_>> {
        match self {
            Self::AdamW(rule) => rule.begun(name, lr, weight_decay),
            Self::Momentum(rule) => rule.begun(name, lr, weight_decay),
        }
    }

    fn slots(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW(_) => adamw::SLOTS,
            Self::Momentum(rule) => rule.form.slots(),
        }
    }
}

impl Optimizer {
    /// An optimizer without state for these weights; [`is_decayed`] says which of them decay.
    ///
    /// # Errors
    /// [`candle_core::Error`] that lists every weight that cannot be updated in place because it
    /// is not contiguous.
    pub fn new(
        kind: OptimizerKind,
        weights: &BTreeMap<String, Var>,
        decayed: Decayed,
    ) -> Result<Self> {
        let scattered = weights.iter().filter(|(_, weight)| !weight.is_contiguous());
        let scattered: Vec<&str> = scattered.map(|(name, _)| name.as_str()).collect();
        if !scattered.is_empty() {
            bail!("weights are not contiguous: {}", scattered.join(", "));
        }
        let spec = |(name, weight): (&String, &Var)| {
            let is_decayed = is_decayed(name, weight.dims(), decayed);
            (name.clone(), Spec::of(weight, is_decayed))
        };
        Ok(Self {
            rule: Rule::new(kind),
            specs: weights.iter().map(spec).collect(),
            begun: Vec::new(),
        })
    }

    /// Which rule this is.
    pub fn kind(&self) -> OptimizerKind {
        match &self.rule {
            Rule::AdamW(_) => OptimizerKind::AdamW,
            Rule::Momentum(rule) => match rule.form {
                Form::Sgd => OptimizerKind::Sgd,
                Form::Lars => OptimizerKind::Lars,
            },
        }
    }

    /// Updates, in place, every weight that has a gradient.
    ///
    /// A weight without one is not touched at all: no decay, no state, no step counted. Weights
    /// of the undecayed group take `weight_decay` as 0.
    ///
    /// # Errors
    /// [`candle_core::Error`] that lists every gradient whose weight is unknown or of another
    /// shape, or tells a learning rate or decay that is negative or not finite; in that case nothing
    /// was changed.
    pub fn step(
        &mut self,
        weights: &BTreeMap<String, Var>,
        grads: &Grads,
        lr: f64,
        weight_decay: f64,
    ) -> Result<()> {
        check_rates(lr, weight_decay)?;
        let problems = self.misfits(weights, grads);
        if !problems.is_empty() {
            bail!("gradients do not fit the weights: {}", problems.join("; "));
        }
        self.begun.clear();
        for (name, grad) in grads.entries() {
            let weight = &weights[name];
            let decay = if self.specs[name].decayed {
                weight_decay
            } else {
                0.0
            };
            self.rule.begin_update(name, weight)?;
            let update = self.rule.begun(name, lr, decay);
            let update = update.expect("the update was begun");
            update.apply(weight, &grad.tensor, grad.factor)?;
        }
        Ok(())
    }

    /// One sentence for every gradient that cannot be applied.
    pub(crate) fn misfits(&self, weights: &BTreeMap<String, Var>, grads: &Grads) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, grad) in grads.entries() {
            match (weights.get(name), self.specs.get(name)) {
                (Some(weight), Some(spec)) => {
                    let (given, wanted) = (grad.tensor.dims(), &spec.dims);
                    if given != wanted || weight.dims() != wanted {
                        problems.push(format!("{name} is {given:?} instead of {wanted:?}"));
                    }
                }
                _ => problems.push(format!("{name} is unknown")),
            }
        }
        problems
    }

    /// A copy of everything that must be saved to go on later.
    ///
    /// AdamW: `exp_avg.<name>`, `exp_avg_sq.<name>` and `step.<name>` (an f32 scalar); SGD:
    /// `momentum_buffer.<name>`; LARS: `mu.<name>`. A parameter that has never had a gradient has
    /// no entry.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device is out of memory.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match &self.rule {
            Rule::AdamW(rule) => rule.state(),
            Rule::Momentum(rule) => rule.state(),
        }
    }

    /// Replaces the state by a copy of what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// [`StateError`] with every entry that is unknown, misshapen or missing; in that case the
    /// state is as it was.
    pub fn load_state(
        &mut self,
        saved: &BTreeMap<String, Tensor>,
    ) -> std::result::Result<(), StateError> {
        let saved = SavedState::sort(saved, self.rule.slots(), &self.specs)?;
        self.rule = match &self.rule {
            Rule::AdamW(_) => Rule::AdamW(AdamW::from_saved(&saved)?),
            Rule::Momentum(rule) => Rule::Momentum(Momentum::from_saved(rule.form, &saved)?),
        };
        self.begun.clear();
        Ok(())
    }
}

/// # Errors
/// If one is negative or not finite.
pub(crate) fn check_rates(lr: f64, weight_decay: f64) -> Result<()> {
    for (what, value) in [("learning rate", lr), ("weight decay", weight_decay)] {
        if !(value.is_finite() && value >= 0.0) {
            bail!("a {what} of {value} cannot be applied");
        }
    }
    Ok(())
}
