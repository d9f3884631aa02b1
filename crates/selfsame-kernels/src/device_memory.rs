//! Memory of the device that tensors live on.

use candle_core::{Device, Result};

/// Bytes of memory that a CUDA device has in all; `None` for a CPU.
///
/// # Errors
/// [`candle_core::Error`] of the driver.
pub fn device_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::memory::total(device).map(Some),
        _ => Ok(None),
    }
}

/// Lets a CUDA device keep memory that was freed for the next who asks, instead of handing it back
/// to the driver whenever the host waits for the device. A CPU needs nothing.
///
/// # Errors
/// [`candle_core::Error`] of the driver.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::memory::keep_freed(device),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_device_memory() {
        assert_eq!(device_memory(&Device::Cpu).unwrap(), None);
        keep_freed_memory(&Device::Cpu).unwrap();
    }
}
