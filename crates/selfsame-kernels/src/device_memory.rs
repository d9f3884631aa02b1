//! Memory of the device that tensors live on, and what becomes of memory that was freed.

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

/// Refuses a device that the kernels cannot run on: a GPU of a compute capability below 8.0, or a
/// driver that does not take them.
///
/// # Errors
/// [`candle_core::Error`] with the reason, or what the driver said.
pub fn check_device(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::memory::check_device(device),
        _ => Ok(()),
    }
}

/// Keeps memory that was freed for the next who asks; for programs that train.
///
/// A step asks for the same large blocks as the one before. With glibc each is handed back to the
/// system when it is freed, which stops all threads for a moment, and comes back page by page: this
/// changes that for the whole process (`mallopt`), whose memory then stays at its peak. A CUDA
/// device keeps its memory too, instead of handing it back to the driver whenever the host waits.
///
/// Ask for it early, before other threads have much memory in hand: `mallopt` is made for programs
/// that have no other thread yet.
///
/// # Errors
/// [`candle_core::Error`] of the driver.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    keep_freed_on_host();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::memory::keep_freed(device),
        _ => Ok(()),
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc's allocator is set by a foreign function")]
fn keep_freed_on_host() {
    // SAFETY: no pointer is handed over. glibc's manual warns of other threads (MT-Unsafe init
    // const:mallopt), as those read without a lock the two numbers that are set; each is a word that
    // is written at once, so that an allocation meanwhile goes by what it was or by what it is.
    unsafe {
        // No block has a mapping of its own, and the heap is never cut at its end.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Other allocators have ways of their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_on_host() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_device_memory() {
        assert_eq!(device_memory(&Device::Cpu).unwrap(), None);
        check_device(&Device::Cpu).unwrap();
        keep_freed_memory(&Device::Cpu).unwrap();
    }
}
