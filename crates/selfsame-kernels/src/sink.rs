//! Gradients of variables, gathered past candle's store while a backward pass runs.
//!
//! candle adds every gradient to a tensor of zeros, in passes of its own.
//! For weights, whose gradients come from several operations and several passes, that is most of
//! the traffic of a step; so while a [`GradSink`] is at work, the operations of this crate add the
//! gradients of their weights to its buffers in place.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};

use crate::host;

thread_local! {
    /// The sink of the backward pass that runs on this thread.
    static ACTIVE: RefCell<Option<Sums>> = const { RefCell::new(None) };
    /// Whether the forward pass that runs on this thread is for a sink.
    static IS_RECORDING: Cell<bool> = const { Cell::new(false) };
}

/// Sums of gradients by variable, over any number of backward passes.
#[derive(Debug, Default)]
pub struct GradSink {
    sums: Sums,
}

/// Of variables on the host, and of those on a device.
#[derive(Debug, Default)]
struct Sums {
    host: HashMap<TensorId, Vec<f32>>,
    device: HashMap<TensorId, Tensor>,
}

impl GradSink {
    /// Runs a forward pass whose backward pass will be [`GradSink::backward`], and nothing else:
    /// operations with many weights then need not tie them to candle's graph one by one, which on a
    /// device costs a launch for each.
    pub fn recording<R>(forward: impl FnOnce() -> R) -> R {
        let _recording = Recording {
            outer: IS_RECORDING.replace(true),
        };
        forward()
    }

    /// Runs the backward pass of a scalar; what the operations did not add to this sink is in the
    /// store that candle returns.
    ///
    /// # Errors
    /// [`candle_core::Error`] of the backward pass, part of which may be in the sums.
    pub fn backward(&mut self, loss: &Tensor) -> Result<GradStore> {
        let outer = ACTIVE.replace(Some(std::mem::take(&mut self.sums)));
        let sums = &mut self.sums;
        let _gathering = Gathering { sums, outer };
        loss.backward()
    }

    /// Takes the sum of a variable's gradients out, if any operation added one.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the sum does not fit the variable.
    pub fn take(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        if let Some(sum) = self.sums.device.remove(&variable.id()) {
            return Ok(Some(sum));
        }
        let sum = self.sums.host.remove(&variable.id());
        sum.map(|sum| host::tensor(sum, variable.shape()))
            .transpose()
    }
}

/// A forward pass for a sink; on drop, which a panic brings about too, the thread is as it was.
struct Recording {
    outer: bool,
}

impl Drop for Recording {
    fn drop(&mut self) {
        IS_RECORDING.set(self.outer);
    }
}

/// A backward pass into a sink, which has its sums again on drop.
struct Gathering<'a> {
    sums: &'a mut Sums,
    outer: Option<Sums>,
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        *self.sums = ACTIVE.replace(self.outer.take()).unwrap_or_default();
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
        let sum = sums.host.remove(&weight.id());
        Some(sum.unwrap_or_else(|| vec![0.0; weight.elem_count()]))
    })
}

/// Puts a buffer of [`take`] back. Of a weight that an operation has more than once, and took as
/// often, the buffers are added up.
pub(crate) fn give(weight: &Tensor, sum: Vec<f32>) {
    ACTIVE.with_borrow_mut(|active| {
        let Some(sums) = active else { return };
        match sums.host.entry(weight.id()) {
            Entry::Vacant(place) => _ = place.insert(sum),
            Entry::Occupied(mut place) => {
                for (total, x) in place.get_mut().iter_mut().zip(sum) {
                    *total += x;
                }
            }
        }
    });
}

/// Runs `f`, which adds gradients to a buffer for each weight: that of the sink, or zeros which come
/// back as a tensor for candle.
pub(crate) fn with_sums<R>(
    weights: &[&Tensor],
    f: impl FnOnce(&mut [Vec<f32>]) -> R,
) -> Result<(R, Vec<Option<Tensor>>)> {
    let sunk: Vec<Option<Vec<f32>>> = weights.iter().map(|weight| take(weight)).collect();
    let is_sunk: Vec<bool> = sunk.iter().map(Option::is_some).collect();
    let zeros = |weight: &Tensor| vec![0.0; weight.elem_count()];
    let sums = sunk.into_iter().zip(weights);
    let mut sums: Vec<_> = sums
        .map(|(sum, weight)| sum.unwrap_or_else(|| zeros(weight)))
        .collect();
    let result = f(&mut sums);
    let all = sums.into_iter().zip(weights).zip(is_sunk);
    let left = all.map(|((sum, weight), is_sunk)| match is_sunk {
        true => {
            give(weight, sum);
            Ok(None)
        }
        false => host::tensor(sum, weight.shape()).map(Some),
    });
    Ok((result, left.collect::<Result<_>>()?))
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

/// Whether the forward pass that runs is for a sink, see [`GradSink::recording`].
#[cfg(feature = "cuda")]
pub(crate) fn is_recording() -> bool {
    IS_RECORDING.get()
}

/// Whether a sink is at work.
#[cfg(feature = "cuda")]
pub(crate) fn is_active() -> bool {
    ACTIVE.with_borrow(Option::is_some)
}

/// Adds a gradient on a device to the sink, or returns it for candle.
#[cfg(feature = "cuda")]
pub(crate) fn add_tensor(weight: &Tensor, grad: Tensor) -> Result<Option<Tensor>> {
    if !weight.is_variable() {
        return Ok(Some(grad));
    }
    ACTIVE.with_borrow_mut(|active| {
        let Some(sums) = active.as_mut() else {
            return Ok(Some(grad));
        };
        let sum = match sums.device.remove(&weight.id()) {
            None => grad,
            Some(sum) => (sum + grad)?,
        };
        sums.device.insert(weight.id(), sum);
        Ok(None)
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Var};

    use super::*;

    /// Panics on the way back.
    struct Panics;

    impl CustomOp1 for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }

        fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            let ys = host::slice(xs, layout)?.to_vec();
            Ok((CpuStorage::F32(ys), layout.shape().clone()))
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
            panic!("on the way back")
        }
    }

    #[test]
    fn a_panic_ends_a_recording_and_a_backward_pass() {
        let forward = || GradSink::recording(|| panic!("on the way"));
        assert!(catch_unwind(forward).is_err());
        assert!(!IS_RECORDING.get());

        let weight = Var::new(&[[2f32, 3.0]], &Device::Cpu).unwrap();
        let xs = Tensor::new(&[[10f32, 20.0]], &Device::Cpu).unwrap();
        let ys = crate::linear(&xs, &weight, None).unwrap();
        let mut sink = GradSink::default();
        sink.backward(&ys.sum_all().unwrap()).unwrap();
        let bad = weight.apply_op1(Panics).unwrap().sum_all().unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| sink.backward(&bad))).is_err());
        assert!(ACTIVE.with_borrow(Option::is_none));
        let sum = sink.take(&weight).unwrap().expect("the sum of before");
        assert_eq!(sum.to_vec2::<f32>().unwrap(), [[10.0, 20.0]]);
    }
}
