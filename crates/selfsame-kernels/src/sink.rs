//! Gradients of variables, gathered past candle's store while a backward pass runs.
//!
//! candle adds every gradient to a tensor of zeros, in passes of its own.
//! For weights, whose gradients come from several operations and several passes, that is most of
//! the traffic of a step; so while a [`GradSink`] is at work, the operations of this crate add the
//! gradients of their weights to its buffers in place.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};

use crate::host;

thread_local! {
    /// The sink of the backward pass that runs on this thread.
    static ACTIVE: RefCell<Option<HashMap<TensorId, Vec<f32>>>> = const { RefCell::new(None) };
}

/// Sums of gradients by variable, over any number of backward passes.
#[derive(Debug, Default)]
pub struct GradSink {
    sums: HashMap<TensorId, Vec<f32>>,
}

impl GradSink {
    /// Runs the backward pass of a scalar; what the operations did not add to this sink is in the
    /// store that candle returns.
    ///
    /// # Errors
    /// [`candle_core::Error`] of the backward pass.
    pub fn backward(&mut self, loss: &Tensor) -> Result<GradStore> {
        let outer = ACTIVE.replace(Some(std::mem::take(&mut self.sums)));
        let store = loss.backward();
        self.sums = ACTIVE.replace(outer).unwrap_or_default();
        store
    }

    /// Takes the sum of a variable's gradients out, if any operation added one.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the sum does not fit the variable.
    pub fn take(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        self.sums
            .remove(&variable.id())
            .map(|sum| host::tensor(sum, variable.shape()))
            .transpose()
    }
}

/// The buffer to which gradients of `weight` are added, zeros at first, or `None` if they go
/// through candle. [`give`] takes it back.
pub(crate) fn take(weight: &Tensor) -> Option<Vec<f32>> {
    if !weight.is_variable() {
        return None;
    }
    ACTIVE.with_borrow_mut(|active| {
        let sums = active.as_mut()?;
        let sum = sums.remove(&weight.id());
        Some(sum.unwrap_or_else(|| vec![0.0; weight.elem_count()]))
    })
}

/// Puts a buffer of [`take`] back.
pub(crate) fn give(weight: &Tensor, sum: Vec<f32>) {
    ACTIVE.with_borrow_mut(|active| {
        if let Some(sums) = active {
            sums.insert(weight.id(), sum);
        }
    });
}

/// Adds a small gradient to the sink, or returns it as a tensor for candle.
pub(crate) fn add(weight: &Tensor, grad: Vec<f32>) -> Result<Option<Tensor>> {
    match take(weight) {
        None => host::tensor(grad, weight.shape()).map(Some),
        Some(mut sum) => {
            for (sum, x) in sum.iter_mut().zip(grad) {
                *sum += x;
            }
            give(weight, sum);
            Ok(None)
        }
    }
}
