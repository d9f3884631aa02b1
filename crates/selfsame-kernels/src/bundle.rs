//! Any number of weights as one argument of an operation: candle's custom ops take at most three.

use std::sync::{Arc, Mutex};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "cuda")]
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};

use crate::locked::locked;

/// Where the backward pass of the operation leaves the gradients of the weights, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mailbox(Arc<Mutex<Vec<Option<Tensor>>>>);

impl Mailbox {
    /// Leaves all gradients; `None` for those that went elsewhere.
    pub(crate) fn fill(&self, grads: Vec<Option<Tensor>>) {
        *locked(&self.0) = grads;
    }

    fn take(&self, index: usize) -> Option<Tensor> {
        locked(&self.0).get_mut(index).and_then(Option::take)
    }
}

/// A scalar whose graph leads to all of `weights`; an operation that takes it as an argument and
/// gives it any gradient decides by the mailbox what they get.
pub(crate) fn bundle(weights: &[&Tensor], mailbox: &Mailbox) -> Result<Tensor> {
    let device = weights
        .first()
        .map_or(&Device::Cpu, |weight| weight.device());
    let mut token = Tensor::zeros((), DType::F32, device)?;
    for (i, pair) in weights.chunks(2).enumerate() {
        let tie = Tie {
            first: 2 * i,
            mailbox: mailbox.clone(),
        };
        // A last one without another stands for both; the mailbox has nothing for the second.
        token = token.apply_op3(pair[0], pair[pair.len() - 1], tie)?;
    }
    Ok(token)
}

/// A knot of the chain: the token so far and two weights.
struct Tie {
    first: usize,
    mailbox: Mailbox,
}

impl CustomOp3 for Tie {
    fn name(&self) -> &'static str {
        "tie"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        token: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let zero = token.device().zeros_impl(&().into(), DType::F32)?;
        Ok((zero, ().into()))
    }

    fn bwd(
        &self,
        _token: &Tensor,
        _a: &Tensor,
        _b: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grads = [self.first, self.first + 1].map(|index| self.mailbox.take(index));
        let [a, b] = grads;
        Ok((Some(grad.clone()), a, b))
    }
}
