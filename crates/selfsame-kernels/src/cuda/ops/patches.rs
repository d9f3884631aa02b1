//! A patch embedding with all that is added to it: one product and two passes.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::{only_on_cuda, sum_of_parts};
use crate::cuda::device::{Input, Output, address_of, dtype, run, with_inputs};
use crate::cuda::gemm::{self, Matrix, multiply};
use crate::cuda::launch::{BiasGelu, Element, Patches};
use crate::gemm::Precision;
use crate::sink;

/// See [`crate::patch_tokens`]; crops, weight and offsets are f32.
pub(crate) fn patch_tokens(
    crops: &Tensor,
    weight: &Tensor,
    offsets: &Tensor,
    patch: usize,
    precision: Precision,
) -> Result<Tensor> {
    let (images, channels, height, width) = crops.dims4()?;
    let (dim, inputs) = weight.dims2()?;
    let element = Element::from(precision);
    let dtype = dtype(element);
    let sizes = Patches::new(element, [images, channels, height, width], patch, dim)?;
    let num_tokens = sizes.num_tokens() as usize;
    if inputs != channels * patch * patch || offsets.dims() != [num_tokens, dim] {
        let (weight, offsets) = (weight.dims(), offsets.dims());
        bail!("patch_tokens: weight {weight:?} and offsets {offsets:?} do not fit");
    }
    let op = PatchTokens {
        crops: crops.contiguous()?,
        rounded: weight.detach().contiguous()?.to_dtype(dtype)?,
        sizes,
        element,
        dtype,
        images,
        num_tokens,
        dim,
        inputs,
    };
    weight.contiguous()?.apply_op2(&offsets.contiguous()?, op)
}

struct PatchTokens {
    crops: Tensor,
    /// The weight in the type of the product's factors.
    rounded: Tensor,
    sizes: Patches,
    element: Element,
    dtype: DType,
    images: usize,
    num_tokens: usize,
    dim: usize,
    /// Of a patch.
    inputs: usize,
}

impl PatchTokens {
    fn num_patches(&self) -> usize {
        self.images * (self.num_tokens - 1)
    }

    /// All patches, row by row, in the type of the product's factors.
    fn patches(&self, like: Input<'_>) -> Result<Output> {
        let patches = Output::new(like.device, self.dtype, self.num_patches() * self.inputs)?;
        let launch = self.sizes.cut(address_of(&self.crops)?, patches.address);
        run(like.device, &launch)?;
        Ok(patches)
    }
}

impl CustomOp2 for PatchTokens {
    fn name(&self) -> &'static str {
        "patch-tokens"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        only_on_cuda(self.name())
    }

    fn cuda_fwd(
        &self,
        weight: &CudaStorage,
        weight_layout: &Layout,
        offsets: &CudaStorage,
        offsets_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let weight = Input::new(weight, weight_layout)?;
        let offsets = Input::new(offsets, offsets_layout)?.f32()?;
        let device = weight.device;
        let patches = self.patches(weight)?;
        let product = Output::new(device, self.dtype, self.num_patches() * self.dim)?;
        let sizes = gemm::Sizes {
            rows: self.num_patches(),
            columns: self.dim,
            inner: self.inputs,
        };
        let factors = [
            Matrix::new(patches.address, self.inputs),
            Matrix::new(address_of(&self.rounded)?, self.inputs).t(),
        ];
        let to = Matrix::new(product.address, self.dim);
        multiply(device, sizes, self.element, factors, to, self.element)?;
        let shape = Shape::from((self.images, self.num_tokens, self.dim));
        let tokens = Output::new(device, DType::F32, shape.elem_count())?;
        let launch = self
            .sizes
            .assemble(product.address, offsets, tokens.address);
        run(device, &launch)?;
        Ok((tokens.storage, shape))
    }

    fn bwd(
        &self,
        weight: &Tensor,
        _offsets: &Tensor,
        _tokens: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_weight, d_offsets) = with_inputs([grad], |[grad]| {
            let device = grad.device;
            let d_product = Output::new(device, self.dtype, self.num_patches() * self.dim)?;
            let launch = self.sizes.product_grad(grad.f32()?, d_product.address);
            run(device, &launch)?;
            let patches = self.patches(grad)?;
            let d_weight = Output::new(device, DType::F32, self.dim * self.inputs)?;
            let sizes = gemm::Sizes {
                rows: self.dim,
                columns: self.inputs,
                inner: self.num_patches(),
            };
            let factors = [
                Matrix::new(d_product.address, self.dim).t(),
                Matrix::new(patches.address, self.inputs),
            ];
            let to = Matrix::new(d_weight.address, self.inputs);
            multiply(device, sizes, self.element, factors, to, Element::F32)?;
            let width = self.num_tokens * self.dim;
            let columns = BiasGelu::new(Element::F32, self.images, width)?;
            let address = grad.f32()?;
            let d_offsets = sum_of_parts(grad, columns.parts(), width, |parts| {
                run(device, &columns.column_sums(address, parts))
            })?;
            Ok((
                d_weight.tensor((self.dim, self.inputs)),
                d_offsets.reshape((self.num_tokens, self.dim))?,
            ))
        })?;
        Ok((sink::add_tensor(weight, d_weight)?, Some(d_offsets)))
    }
}
