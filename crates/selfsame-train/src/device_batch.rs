//! The one place where host pixels become tensors.

use candle_core::{DType, Device, Result, Tensor};
use selfsame_data::augment::AugmentConfig;
use selfsame_data::{EvalBatch, HostBatch, Pixels};
use selfsame_models::CropUploader;

/// The crops of one micro-batch on the device, view-major: all images of view 0, then of view 1.
#[derive(Clone, Debug)]
pub struct DeviceBatch {
    /// Global crops, `[2·B, 3, G, G]`.
    pub global: Tensor,
    /// Local crops, `[L·B, 3, S, S]`; none when the recipe has no local crops.
    pub local: Option<Tensor>,
}

/// Carries host batches to a device, beside what it computes where the device can do so.
#[derive(Debug)]
pub struct Uploader {
    device: Device,
    bytes: CropUploader,
}

impl Uploader {
    /// To this device; crops that come as bytes are normalised there as `augment` says.
    ///
    /// # Errors
    /// [`candle_core::Error`] of the driver.
    pub fn new(device: &Device, augment: &AugmentConfig) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            bytes: CropUploader::new(device, augment.mean, augment.std)?,
        })
    }

    /// Uploads a host batch.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device is out of memory.
    pub fn upload(&mut self, batch: &HostBatch) -> Result<DeviceBatch> {
        let b = batch.batch_size;
        let mut images = |pixels: &Pixels, views: usize, size: usize| {
            let shape = (views * b, 3, size, size);
            match pixels {
                Pixels::Normalized(values) => Tensor::from_slice(values, shape, &self.device),
                Pixels::Bytes(bytes) => self.bytes.upload(bytes, shape, DType::F32),
            }
        };
        let local = match batch.num_local {
            0 => None,
            views => Some(images(&batch.local, views, batch.local_size)?),
        };
        Ok(DeviceBatch {
            global: images(&batch.global, batch.num_global, batch.global_size)?,
            local,
        })
    }
}

impl DeviceBatch {
    /// Images in this micro-batch, `B`.
    pub fn batch_size(&self) -> usize {
        self.global.dims()[0] / 2
    }

    /// Views the student sees, `2 + L`.
    pub fn num_crops(&self) -> usize {
        2 + self
            .local
            .as_ref()
            .map_or(0, |local| local.dims()[0] / self.batch_size())
    }

    /// What the student's backbone is run on, in the order of the loss's rows.
    pub fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = vec![Part {
            crops: &self.global,
            group: 0,
            first_row: 0,
        }];
        if let Some(local) = &self.local {
            let alike = local.dims()[2..] == self.global.dims()[2..];
            parts.push(Part {
                crops: local,
                group: usize::from(!alike),
                first_row: if alike { self.global.dims()[0] } else { 0 },
            });
        }
        parts
    }

    /// The same as one tensor per resolution, for networks with batch norm.
    ///
    /// # Errors
    /// [`candle_core::Error`] from the concatenation of equally sized crops.
    pub fn by_resolution(&self) -> Result<Vec<Tensor>> {
        Ok(match &self.local {
            None => vec![self.global.clone()],
            Some(local) if local.dims()[2..] == self.global.dims()[2..] => {
                vec![Tensor::cat(&[&self.global, local], 0)?]
            }
            Some(local) => vec![self.global.clone(), local.clone()],
        })
    }
}

/// Crops of one size and where they belong.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// `[n, 3, S, S]`.
    pub crops: &'a Tensor,
    /// Position of their resolution among the batch's.
    pub group: usize,
    /// Their first row within the resolution.
    pub first_row: usize,
}

/// Uploads evaluation images, `[B, 3, S, S]`.
///
/// # Errors
/// [`candle_core::Error`] if the device is out of memory.
pub fn upload_eval(batch: &EvalBatch, device: &Device) -> Result<Tensor> {
    let size = batch.image_size;
    Tensor::from_slice(&batch.images, (batch.samples.len(), 3, size, size), device)
}

/// Uploads one picture of any shape, `[1, 3, height, width]`.
///
/// # Errors
/// [`candle_core::Error`] if `pixels` has another length or the device is out of memory.
pub(crate) fn upload_picture(
    pixels: &[f32],
    [height, width]: [usize; 2],
    device: &Device,
) -> Result<Tensor> {
    Tensor::from_slice(pixels, (1, 3, height, width), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn bytes_become_the_tensors_of_normalised_pixels() {
        let augment = AugmentConfig::default();
        let (mean, std) = (augment.mean, augment.std);
        let bytes: Vec<u8> = (0..2 * 3 * 3 * 16).map(|i| (i * 37 % 256) as u8).collect();
        let value = |(i, byte): (usize, &u8)| {
            let channel = i / 16 % 3;
            (f32::from(*byte) / 255.0 - mean[channel] as f32) / std[channel] as f32
        };
        let normalized: Vec<f32> = bytes.iter().enumerate().map(value).collect();
        let batch = |global| HostBatch {
            epoch: 0,
            index: 0,
            samples: vec![0, 1, 2],
            batch_size: 3,
            num_global: 2,
            global_size: 4,
            global,
            num_local: 0,
            local_size: 4,
            local: Pixels::Bytes(Vec::new()),
            wait: Duration::ZERO,
        };
        let mut uploader = Uploader::new(&Device::Cpu, &augment).unwrap();
        let upload = |pixels| uploader.upload(&batch(pixels)).unwrap();
        let [one, other] = [Pixels::Bytes(bytes), Pixels::Normalized(normalized)].map(upload);
        assert_eq!(one.global.dims(), [6, 3, 4, 4]);
        let values = |batch: &DeviceBatch| batch.global.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(&one).unwrap(), values(&other).unwrap());
    }

    fn zeros(n: usize, size: usize) -> Tensor {
        Tensor::zeros((n, 3, size, size), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn equal_sizes_make_one_backbone_pass_and_unequal_ones_two() {
        let equal = DeviceBatch {
            global: zeros(4, 8),
            local: Some(zeros(6, 8)),
        };
        assert_eq!(equal.num_crops(), 5);
        assert_eq!(equal.by_resolution().unwrap()[0].dims(), [10, 3, 8, 8]);
        let rows = |batch: &DeviceBatch| -> Vec<_> {
            let parts = batch.parts();
            parts
                .iter()
                .map(|part| (part.group, part.first_row))
                .collect()
        };
        assert_eq!(rows(&equal), [(0, 0), (0, 4)]);
        let unequal = DeviceBatch {
            global: zeros(4, 8),
            local: Some(zeros(6, 4)),
        };
        assert_eq!(unequal.by_resolution().unwrap().len(), 2);
        assert_eq!(rows(&unequal), [(0, 0), (1, 0)]);
        let none = DeviceBatch {
            global: zeros(4, 8),
            local: None,
        };
        assert_eq!(
            (none.num_crops(), none.by_resolution().unwrap().len()),
            (2, 1)
        );
    }
}
