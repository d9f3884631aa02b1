//! Gradients by parameter name.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};
use selfsame_kernels::GradSink;
use selfsame_kernels::multi_tensor::{norm_of_squares, sum_of_squares};

/// The gradients of one step, by parameter name.
///
/// Every gradient carries a factor that scaling and clipping multiply. The optimizer folds it into
/// its update, so neither of them walks over the numbers.
#[derive(Debug, Clone, Default)]
pub struct Grads {
    entries: BTreeMap<String, Grad>,
}

/// Gradients that several losses are added up to, such as those of a batch's parts.
#[derive(Debug, Default)]
pub struct GradSum {
    /// What the kernels add up in place.
    sink: GradSink,
    /// What went through candle.
    others: BTreeMap<String, Tensor>,
}

impl GradSum {
    /// Runs a forward pass that only [`GradSum::backward`] will go back through: its operations may
    /// then keep their weights out of candle's graph.
    pub fn recording<R>(forward: impl FnOnce() -> R) -> R {
        GradSink::recording(forward)
    }

    /// Adds the gradients of a scalar loss.
    ///
    /// # Errors
    /// [`candle_core::Error`] of the backward pass.
    pub fn backward(&mut self, loss: &Tensor, weights: &BTreeMap<String, Var>) -> Result<()> {
        let mut store = self.sink.backward(loss)?;
        for (name, weight) in weights {
            let Some(grad) = store.remove(weight) else {
                continue;
            };
            let grad = grad.detach().contiguous()?;
            let grad = match self.others.remove(name) {
                None => grad,
                Some(sum) => (sum + grad)?,
            };
            self.others.insert(name.clone(), grad);
        }
        Ok(())
    }

    /// The sums of all weights.
    ///
    /// # Errors
    /// [`candle_core::Error`] that lists every weight without a gradient.
    pub fn finish(mut self, weights: &BTreeMap<String, Var>) -> Result<Grads> {
        let (mut tensors, mut missing) = (BTreeMap::new(), Vec::new());
        for (name, weight) in weights {
            let grad = match (self.sink.take(weight)?, self.others.remove(name)) {
                (Some(a), Some(b)) => (a + b)?,
                (Some(grad), None) | (None, Some(grad)) => grad,
                (None, None) => {
                    missing.push(name.as_str());
                    continue;
                }
            };
            tensors.insert(name.clone(), grad);
        }
        if !missing.is_empty() {
            bail!("no gradient reaches {}", missing.join(", "));
        }
        Ok(Grads::new(tensors))
    }
}

/// A gradient is `factor · tensor`.
#[derive(Debug, Clone)]
pub(crate) struct Grad {
    pub(crate) tensor: Tensor,
    pub(crate) factor: f64,
}

impl Grad {
    /// The gradient as one tensor.
    fn materialise(&self) -> Result<Tensor> {
        if self.factor == 1.0 {
            Ok(self.tensor.clone())
        } else {
            self.tensor.affine(self.factor, 0.0)
        }
    }

    /// Sum of the gradient's squares, the factor included.
    pub(crate) fn sum_of_squares(&self) -> Result<f64> {
        Ok(self.factor * self.factor * sum_of_squares(&self.tensor)?)
    }
}

impl Grads {
    /// Gradients that somebody else computed.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        let entry = |(name, tensor)| {
            (
                name,
                Grad {
                    tensor,
                    factor: 1.0,
                },
            )
        };
        Self {
            entries: tensors.into_iter().map(entry).collect(),
        }
    }

    /// Differentiates a scalar loss by every weight.
    ///
    /// # Errors
    /// [`candle_core::Error`] that lists every weight without a gradient: candle cuts gradients
    /// silently, and a weight that never moves is easily overlooked.
    pub fn backward(loss: &Tensor, weights: &BTreeMap<String, Var>) -> Result<Self> {
        let mut sum = GradSum::default();
        sum.backward(loss, weights)?;
        sum.finish(weights)
    }

    /// Number of gradients.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no gradient at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a parameter has a gradient.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The gradient of one parameter, scaled and clipped as it stands.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device is out of memory.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>> {
        self.entries.get(name).map(Grad::materialise).transpose()
    }

    /// All gradients as plain tensors, scaled and clipped as they stand.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device is out of memory.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let entry = |(name, grad): (&String, &Grad)| Ok((name.clone(), grad.materialise()?));
        self.entries.iter().map(entry).collect()
    }

    /// Euclidean norm over all gradients together, taken in f64; infinite if its square is more than
    /// an f32 holds, in which AdamW keeps squares.
    ///
    /// # Errors
    /// [`candle_core::Error`] if a gradient is not of a float type.
    pub fn global_norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for grad in self.entries.values() {
            sum += grad.sum_of_squares()?;
        }
        Ok(norm_of_squares(sum))
    }

    /// Multiplies every gradient by `factor`, such as 1 / number of micro-batches.
    pub fn scale(&mut self, factor: f64) {
        for grad in self.entries.values_mut() {
            grad.factor *= factor;
        }
    }

    /// Forgets the gradients of all parameters whose name starts with `prefix`; says how many.
    ///
    /// A parameter without a gradient is left alone by the optimizer: no decay, no state. That is
    /// how the last layer is frozen in the first epoch (`utils.py`, `cancel_gradients_last_layer`).
    pub fn drop_prefix(&mut self, prefix: &str) -> usize {
        let before = self.entries.len();
        self.entries.retain(|name, _| !name.starts_with(prefix));
        before - self.entries.len()
    }

    pub(crate) fn entries(&self) -> &BTreeMap<String, Grad> {
        &self.entries
    }

    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Grad> {
        self.entries.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn grads(entries: &[(&str, &[f32])]) -> Grads {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        Grads::new(
            entries
                .iter()
                .map(|(name, v)| (name.to_string(), tensor(v)))
                .collect(),
        )
    }

    fn values(grads: &Grads, name: &str) -> Vec<f32> {
        grads.get(name).unwrap().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn backward_lists_every_weight_that_the_loss_does_not_reach() {
        let var = || Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let names = ["cut.one", "cut.two", "used"];
        let weights: BTreeMap<_, _> = names.map(|name| (name.to_owned(), var())).into();
        let loss = weights["used"].sqr().unwrap().sum_all().unwrap();
        let text = Grads::backward(&loss, &weights).unwrap_err().to_string();
        assert!(
            text.contains("cut.one, cut.two") && !text.contains("used"),
            "{text}"
        );

        let used = BTreeMap::from([("used".to_owned(), weights["used"].clone())]);
        let grads = Grads::backward(&loss, &used).unwrap();
        assert_eq!(values(&grads, "used"), [2.0, 4.0]);
    }

    #[test]
    fn gradients_add_up_over_losses_and_over_ways_to_a_weight() {
        let weight = Var::new(&[[2f32, 3.0]], &Device::Cpu).unwrap();
        let weights = BTreeMap::from([("w".to_owned(), weight.clone())]);
        let xs = Tensor::new(&[[10f32, 20.0]], &Device::Cpu).unwrap();
        let mut sum = GradSum::default();
        for factor in [1.0, 100.0] {
            // Once through candle's graph, once through an operation that has sums of its own.
            let plain = (weight.as_tensor() * factor).unwrap().sum_all().unwrap();
            let fused = selfsame_kernels::linear(&xs, &weight, None).unwrap();
            let loss = (plain + fused.sum_all().unwrap()).unwrap();
            sum.backward(&loss, &weights).unwrap();
        }
        let grads = sum.finish(&weights).unwrap();
        assert_eq!((grads.len(), grads.is_empty()), (1, false));
        let grad: Vec<Vec<f32>> = grads.get("w").unwrap().unwrap().to_vec2().unwrap();
        assert_eq!(grad, [[121.0, 141.0]]);
        assert!(Grads::new(BTreeMap::new()).is_empty());
    }

    #[test]
    fn global_norm_runs_over_all_parameters_and_includes_scaling() {
        let mut grads = grads(&[("a", &[3.0]), ("b", &[0.0, 4.0])]);
        assert_eq!(grads.global_norm().unwrap(), 5.0);
        grads.scale(-0.5);
        assert_eq!(grads.global_norm().unwrap(), 2.5);
        assert_eq!(values(&grads, "b"), [0.0, -2.0]);
    }

    #[test]
    fn drop_prefix_forgets_these_and_no_others() {
        let mut grads = grads(&[
            ("head.last_layer.weight_v", &[1.0]),
            ("head.last_layer.weight_g", &[1.0]),
            ("head.mlp.0.weight", &[1.0]),
        ]);
        assert_eq!(grads.drop_prefix("head.last_layer"), 2);
        assert!(grads.len() == 1 && grads.contains("head.mlp.0.weight"));
    }
}
