//! Optimizer state between runs: read strictly, copied, never shared.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};

/// Why saved state cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Names, shapes or values do not fit the optimizer; every one is listed.
    #[error("optimizer state does not fit: {}", problems.join("; "))]
    Misfit {
        /// One text for each tensor that does not fit or is missing.
        problems: Vec<String>,
    },
    /// A tensor could not be read or copied.
    #[error("optimizer state could not be copied")]
    Tensor(#[from] candle_core::Error),
}

/// What the optimizer knows of a parameter.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) dims: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    pub(crate) decayed: bool,
}

impl Spec {
    pub(crate) fn of(weight: &Var, decayed: bool) -> Self {
        Self {
            dims: weight.dims().to_vec(),
            dtype: weight.dtype(),
            device: weight.device().clone(),
            decayed,
        }
    }
}

/// The tensors of one parameter, by slot.
type Slots<'a> = BTreeMap<&'static str, &'a Tensor>;

/// Saved state, sorted by parameter and found to be complete.
pub(crate) struct SavedState<'a> {
    specs: &'a BTreeMap<String, Spec>,
    slots: BTreeMap<&'a str, Slots<'a>>,
    steps: BTreeMap<&'a str, u64>,
}

impl<'a> SavedState<'a> {
    /// Sorts `saved`, whose names are `<slot>.<parameter>`.
    ///
    /// Parameters without any state are fine: they have had no gradient yet. A parameter with some
    /// of its slots is not.
    pub(crate) fn sort(
        saved: &'a BTreeMap<String, Tensor>,
        slot_names: &'static [&'static str],
        specs: &'a BTreeMap<String, Spec>,
    ) -> std::result::Result<Self, StateError> {
        let mut sorted = Self {
            specs,
            slots: BTreeMap::new(),
            steps: BTreeMap::new(),
        };
        let mut problems = Vec::new();
        for (key, tensor) in saved {
            let (slot, name) = key.split_once('.').unwrap_or((key, ""));
            let Some(&slot) = slot_names.iter().find(|known| **known == slot) else {
                problems.push(format!("{key}: not one of {}", slot_names.join(", ")));
                continue;
            };
            let Some(spec) = specs.get(name) else {
                problems.push(format!("{key}: no such parameter"));
                continue;
            };
            if slot == "step" {
                match whole_number(tensor) {
                    Ok(step) => _ = sorted.steps.insert(name, step),
                    Err(problem) => problems.push(format!("{key}: {problem}")),
                }
            } else if tensor.dims() != spec.dims {
                let dims = tensor.dims();
                problems.push(format!("{key}: shape {dims:?} instead of {:?}", spec.dims));
            }
            sorted.slots.entry(name).or_default().insert(slot, tensor);
        }
        for (name, slots) in &sorted.slots {
            let missing = slot_names.iter().filter(|slot| !slots.contains_key(*slot));
            problems.extend(missing.map(|slot| format!("{slot}.{name}: missing")));
        }
        if problems.is_empty() {
            Ok(sorted)
        } else {
            Err(StateError::Misfit { problems })
        }
    }

    /// Every parameter with state, in order.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a Spec, &Slots<'a>)> {
        self.slots
            .iter()
            .map(|(name, slots)| (*name, &self.specs[*name], slots))
    }

    /// The step count of a parameter from [`SavedState::parameters`].
    pub(crate) fn step(&self, name: &str) -> u64 {
        self.steps[name]
    }
}

/// A step count of at least 1 out of a tensor of one element.
fn whole_number(tensor: &Tensor) -> std::result::Result<u64, String> {
    let value = tensor
        .reshape(())
        .and_then(|scalar| scalar.to_dtype(DType::F64)?.to_scalar::<f64>())
        .map_err(|_| format!("shape {:?} instead of a scalar", tensor.dims()))?;
    // 2^53: beyond it f64 skips whole numbers.
    if value.fract() != 0.0 || !(1.0..9.0e15).contains(&value) {
        return Err(format!("{value} is not a number of steps"));
    }
    Ok(value as u64)
}

/// A step count as it is saved: an f32 scalar, as PyTorch does.
pub(crate) fn step_tensor(step: u64, device: &Device) -> Result<Tensor> {
    Tensor::new(step as f32, device)
}

/// A copy of `saved` that later updates may overwrite, of the parameter's type and device.
pub(crate) fn copy_into(spec: &Spec, saved: &Tensor) -> Result<Tensor> {
    saved
        .detach()
        .to_device(&spec.device)?
        .to_dtype(spec.dtype)?
        .contiguous()?
        .copy()
}
