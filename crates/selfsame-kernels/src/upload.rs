//! Crops on their way to a device while it computes.

use candle_core::{DType, Device, Result, Shape, Tensor};

use crate::normalize_crops;

/// Uploads crops as bytes and normalises them on the device.
///
/// On a CUDA device they go by way of page-locked memory and a stream of their own, so that a copy
/// runs beside what was launched before; elsewhere this is [`normalize_crops`].
/// One uploader for a device, used on the thread that computes.
#[derive(Debug)]
pub struct CropUploader {
    device: Device,
    mean: [f64; 3],
    std: [f64; 3],
    #[cfg(feature = "cuda")]
    lanes: Option<crate::cuda::Lanes>,
}

impl CropUploader {
    /// An uploader to this device, for a mean and a standard deviation per channel in units of full
    /// scale.
    ///
    /// # Errors
    /// The driver's, if it has no stream left.
    pub fn new(device: &Device, mean: [f64; 3], std: [f64; 3]) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            mean,
            std,
            #[cfg(feature = "cuda")]
            lanes: match device {
                Device::Cuda(device) => Some(crate::cuda::Lanes::new(device)?),
                _ => None,
            },
        })
    }

    /// Starts an upload. The tensor can be used at once, as what is launched on it waits for the
    /// copy, and `bytes` may be overwritten when this returns.
    ///
    /// # Shape
    /// `bytes`: the elements of `shape`, `[n, 3, height, width]`; the result is of type `dtype`, f32
    /// or bf16.
    /// # Errors
    /// As [`normalize_crops`], and if `bytes` are more or fewer.
    pub fn upload(
        &mut self,
        bytes: &[u8],
        shape: (usize, usize, usize, usize),
        dtype: DType,
    ) -> Result<Tensor> {
        let shape = Shape::from(shape);
        #[cfg(feature = "cuda")]
        if let Some(lanes) = &mut self.lanes
            && !bytes.is_empty()
        {
            return lanes.upload(bytes, &shape, self.mean, self.std, dtype);
        }
        let bytes = Tensor::from_slice(bytes, shape, &self.device)?;
        normalize_crops(&bytes, self.mean, self.std, dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_to_the_cpu_is_normalisation() {
        let mut uploader = CropUploader::new(&Device::Cpu, [0.5; 3], [0.25; 3]).unwrap();
        let bytes = [0u8, 255, 51];
        let ys = uploader.upload(&bytes, (1, 3, 1, 1), DType::F32).unwrap();
        let want = bytes.map(|byte| (f32::from(byte) / 255.0 - 0.5) / 0.25);
        assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want);
        assert!(uploader.upload(&bytes, (1, 3, 2, 1), DType::F32).is_err());
    }
}
