//! CUDA: kernels in `cuda/*.cu`, what is launched with which parameters, and the tests of both on
//! machines without a GPU.

#[cfg(feature = "cuda")]
mod device;
#[cfg(test)]
mod emulated;
#[cfg(feature = "cuda")]
mod gemm;
mod launch;
#[cfg(feature = "cuda")]
pub(crate) mod memory;
#[cfg(feature = "cuda")]
pub(crate) mod ops;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod upload;

#[cfg(feature = "cuda")]
pub(crate) use device::{takes, takes_f32};
#[cfg(feature = "cuda")]
pub(crate) use upload::Lanes;
