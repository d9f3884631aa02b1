//! Page-locked memory, a stream for copies, and the events that keep both in step with the compute
//! stream.
#![expect(unsafe_code, reason = "memory that is written before it is read")]

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice,
};
use candle_core::{CudaDevice, DType, Result, Shape, Tensor, bail};

use super::device::{Output, element, run};
use super::launch;

/// Copies of one size that may be under way at a time.
const SLOTS: usize = 2;
/// Sizes that buffers are kept for; training has two.
const SIZES: usize = 4;

/// Buffers by their length, used in turn; those of the latest sizes.
pub(crate) struct Lanes {
    device: CudaDevice,
    copies: Arc<CudaStream>,
    /// By the length of their buffers, the size used last at the end.
    slots: Vec<(usize, Vec<Slot>)>,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

struct Slot {
    host: PinnedHostSlice<u8>,
    bytes: CudaSlice<u8>,
    /// When the copy stream has read `host`.
    copied: Option<CudaEvent>,
    /// When the compute stream has read `bytes`.
    read: Option<CudaEvent>,
}

impl Lanes {
    pub(crate) fn new(device: &CudaDevice) -> Result<Self> {
        let compute = device.cuda_stream();
        // SAFETY: all tensors live on the compute stream. The only memory that two streams touch is
        // that of the slots, whose copies and launches wait for one another's events below.
        unsafe { device.disable_event_tracking() };
        let copies = compute.context().new_stream().w()?;
        Ok(Self {
            device: device.clone(),
            copies,
            slots: Vec::new(),
        })
    }

    pub(crate) fn upload(
        &mut self,
        bytes: &[u8],
        shape: &Shape,
        mean: [f64; 3],
        std: [f64; 3],
        dtype: DType,
    ) -> Result<Tensor> {
        let (images, channels, height, width) = shape.dims4()?;
        if channels != 3 || shape.elem_count() != bytes.len() {
            let len = bytes.len();
            bail!("upload: {len} bytes are not crops of three channels of shape {shape:?}");
        }
        let (mean, std) = (mean.map(|x| x as f32), std.map(|x| x as f32));
        let (compute, copies) = (self.device.cuda_stream(), &self.copies);
        let of_size = |(len, _): &(usize, Vec<Slot>)| *len == bytes.len();
        let of_this_size = match self.slots.iter().position(of_size) {
            Some(found) => self.slots.remove(found),
            None => {
                if self.slots.len() == SIZES {
                    compute.synchronize().w()?;
                    copies.synchronize().w()?;
                    self.slots.remove(0);
                }
                (bytes.len(), Vec::new())
            }
        };
        self.slots.push(of_this_size);
        let Some((_, slots)) = self.slots.last_mut() else {
            bail!("upload: no slots")
        };
        if slots.len() < SLOTS {
            slots.push(Slot::new(copies, bytes.len())?);
        } else {
            slots.rotate_left(1);
        }
        let Some(slot) = slots.last_mut() else {
            bail!("upload: no slot")
        };
        // This slot's last copy was two uploads ago. cudarc's own event for page-locked memory is
        // not recorded once events are not tracked, so that `as_mut_slice` waits for nothing.
        if let Some(copied) = &slot.copied {
            copied.synchronize().w()?;
        }
        slot.host.as_mut_slice().w()?.copy_from_slice(bytes);
        if let Some(read) = &slot.read {
            copies.wait(read).w()?;
        }
        copies.memcpy_htod(&slot.host, &mut slot.bytes).w()?;
        let copied = copies.record_event(None).w()?;
        compute.wait(&copied).w()?;
        slot.copied = Some(copied);
        let ys = Output::new(&self.device, dtype, bytes.len())?;
        let (from, plane) = (slot.bytes.device_ptr(&compute).0, height * width);
        let element = element(dtype)?;
        let launch = launch::normalize_crops(element, from, ys.address, images, plane, mean, std)?;
        run(&self.device, &launch)?;
        slot.read = Some(compute.record_event(None).w()?);
        Ok(ys.tensor(shape))
    }
}

impl Slot {
    fn new(copies: &Arc<CudaStream>, len: usize) -> Result<Slot> {
        // SAFETY: every upload writes both in full before anything reads them.
        let (host, bytes) = unsafe {
            (
                copies.context().alloc_pinned(len).w()?,
                copies.alloc(len).w()?,
            )
        };
        Ok(Slot {
            host,
            bytes,
            copied: None,
            read: None,
        })
    }
}

impl Drop for Lanes {
    /// The slots' memory is freed only when neither stream uses it.
    fn drop(&mut self) {
        // An error here would come back at the next call to the driver.
        let _ = self.device.cuda_stream().synchronize();
        let _ = self.copies.synchronize();
    }
}
