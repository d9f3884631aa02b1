//! Whether a device can run the kernels, how much memory it has, and what becomes of memory that was
//! freed.
#![expect(unsafe_code, reason = "the driver takes pointers")]

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Result, bail};

use super::device::load;
use super::launch::OLDEST_CAPABILITY;

pub(crate) fn total(device: &CudaDevice) -> Result<u64> {
    let handle = device.cuda_stream().context().cu_device();
    // SAFETY: the handle is that of an open device.
    let bytes = unsafe { result::device::total_mem(handle) }.w()?;
    Ok(bytes as u64)
}

pub(crate) fn check_device(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    let (major, minor) = context.compute_capability().w()?;
    if (major, minor) < OLDEST_CAPABILITY {
        let (least, of) = OLDEST_CAPABILITY;
        bail!("its compute capability is {major}.{minor}, and {least}.{of} is needed");
    }
    load(device)
}

pub(crate) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut all = u64::MAX;
    // SAFETY: the pool is the device's own, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()).w()
    }
}
