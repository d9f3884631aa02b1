//! Matrix products by cuBLAS, between places that kernels write and read.
#![expect(unsafe_code, reason = "cuBLAS takes addresses")]

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_strided_batched_ex, sys};
use candle_core::{CudaDevice, Result};

use super::device::Address;
use super::launch::{Element, Factor, Product};

/// Does a product and does not wait for it. f32 factors may be rounded to TF32 where the process
/// lets candle's products do that; sums are f32.
pub(super) fn multiply(device: &CudaDevice, product: &Product<Address>) -> Result<()> {
    let (left, right, result) = (&product.left, &product.right, &product.result);
    let compute =
        match left.element == Element::F32 && candle_core::cuda::gemm_reduced_precision_f32() {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
    let (one, keep) = (1f32, if product.add { 1f32 } else { 0.0 });
    let blas = device.cublas_handle();
    // cuBLAS counts rows along columns: it gets the transpose, right before left.
    //
    // SAFETY: the tests of `launch::Conv` check that the products stay within the buffers that the
    // ops allocate, which live until the work is queued; freed memory is handed out again only
    // behind it on the same stream. The scalars are read before the call returns.
    unsafe {
        gemm_strided_batched_ex(
            *blas.handle(),
            operation(right),
            operation(left),
            product.cols as i32,
            product.rows as i32,
            product.inner as i32,
            std::ptr::from_ref(&one).cast(),
            start(right) as *const _,
            data_type(right.element),
            right.ld as i32,
            right.step as i64,
            start(left) as *const _,
            data_type(left.element),
            left.ld as i32,
            left.step as i64,
            std::ptr::from_ref(&keep).cast(),
            start(result) as *mut _,
            data_type(result.element),
            result.ld as i32,
            result.step as i64,
            product.batch as i32,
            compute,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .w()
}

fn operation(factor: &Factor<Address>) -> sys::cublasOperation_t {
    match factor.transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    }
}

fn data_type(element: Element) -> sys::cudaDataType_t {
    match element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

fn start(factor: &Factor<Address>) -> Address {
    factor.place + factor.start as u64 * u64::from(factor.element.bytes())
}
