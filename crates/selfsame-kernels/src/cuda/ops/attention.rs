//! Attention that never holds a row of weights.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::only_on_cuda;
use crate::cuda::device::{Input, Output, element, run, with_inputs};
use crate::cuda::launch::{self, HEAD_DIMS};

/// Whether there is a kernel for heads of this width.
pub(crate) fn has_kernel(head_dim: usize) -> bool {
    HEAD_DIMS.contains(&head_dim)
}

/// See [`crate::attention`].
pub(crate) fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    qkv.contiguous()?.apply_op1(Attention {
        heads,
        lse: OnceLock::new(),
    })
}

struct Attention {
    heads: usize,
    /// Logarithms of the sums of a query's exponentials, `[B, H, N]`.
    lse: OnceLock<Tensor>,
}

impl Attention {
    fn sizes(&self, qkv: &Shape, dtype: DType) -> Result<([usize; 4], launch::Attention)> {
        let (batch, tokens, packed) = qkv.dims3()?;
        let dims = [batch, tokens, self.heads, packed / (3 * self.heads)];
        Ok((dims, launch::Attention::new(element(dtype)?, dims)?))
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let qkv = Input::new(qkv, layout)?;
        let ([batch, tokens, heads, head_dim], sizes) = self.sizes(layout.shape(), qkv.dtype)?;
        let shape = Shape::from((batch, tokens, heads * head_dim));
        let ys = Output::new(qkv.device, qkv.dtype, shape.elem_count())?;
        let lse = Output::new(qkv.device, DType::F32, batch * heads * tokens)?;
        run(
            qkv.device,
            &sizes.forward(qkv.address, None, ys.address, lse.address),
        )?;
        // A second forward pass of the same op would be a second op.
        let _ = self.lse.set(lse.tensor((batch, heads, tokens)));
        Ok((ys.storage, shape))
    }

    fn bwd(&self, qkv: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(lse) = self.lse.get() else {
            bail!("attention: backward before forward")
        };
        let (_, sizes) = self.sizes(qkv.shape(), qkv.dtype())?;
        let (shape, num_rows) = (qkv.shape(), lse.elem_count());
        with_inputs([qkv, ys, lse, grad], |[qkv, ys, lse, grad]| {
            let element = qkv.element()?;
            let (ys, lse, grad) = (ys.of(element)?, lse.f32()?, grad.of(element)?);
            let delta = Output::new(qkv.device, DType::F32, num_rows)?;
            let d_qkv = Output::new(qkv.device, qkv.dtype, shape.elem_count())?;
            let read = [qkv.address, ys, lse, grad];
            for launch in sizes.backward(read, None, delta.address, d_qkv.address) {
                run(qkv.device, &launch)?;
            }
            Ok(Some(d_qkv.tensor(shape)))
        })
    }
}
