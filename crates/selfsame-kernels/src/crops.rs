//! Crops that come as bytes.

use candle_core::{DType, Result, Tensor, bail};

/// `(bytes / 255 − mean) / std`, channel by channel, in the order and precision of torchvision.
///
/// A quarter of the bytes to carry to a device; the f32 result has the same bits on every device.
///
/// # Shape
/// `bytes`: `[n, 3, height, width]`, u8; the result is shaped alike, of type `dtype`, f32 or bf16.
/// # Errors
/// If `bytes` are not bytes, have other than three channels, or `dtype` is another.
pub fn normalize_crops(
    bytes: &Tensor,
    mean: [f64; 3],
    std: [f64; 3],
    dtype: DType,
) -> Result<Tensor> {
    let (_, channels, height, width) = bytes.dims4()?;
    if bytes.dtype() != DType::U8 || channels != 3 {
        bail!("normalize_crops: expected [n, 3, height, width] bytes, got {bytes:?}");
    }
    if !matches!(dtype, DType::F32 | DType::BF16) {
        bail!("normalize_crops: {dtype:?} is neither f32 nor bf16");
    }
    let (mean, std) = (mean.map(|x| x as f32), std.map(|x| x as f32));
    #[cfg(feature = "cuda")]
    if bytes.device().is_cuda() && bytes.elem_count() > 0 {
        return crate::cuda::ops::normalize_crops(bytes, mean, std, dtype);
    }
    let plane = (height * width).max(1);
    let pixels = bytes.flatten_all()?.to_vec1::<u8>()?;
    let values: Vec<f32> = pixels
        .chunks_exact(plane)
        .enumerate()
        .flat_map(|(i, plane)| {
            let channel = i % 3;
            let normalized =
                move |byte: &u8| (f32::from(*byte) / 255.0 - mean[channel]) / std[channel];
            plane.iter().map(normalized)
        })
        .collect();
    Tensor::from_vec(values, bytes.shape(), bytes.device())?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_channel_has_its_own_mean_and_std() {
        let bytes = Tensor::from_vec(vec![0u8, 255, 51, 51, 102, 102], (1, 3, 1, 2), &Device::Cpu);
        let (mean, std) = ([0.5, 0.0, 0.25], [0.5, 1.0, 0.25]);
        let ys = normalize_crops(&bytes.unwrap(), mean, std, DType::F32).unwrap();
        let ys = ys.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let fifth = 51f32 / 255.0;
        let last = (102f32 / 255.0 - 0.25) / 0.25;
        assert_eq!(ys, [-1.0, 1.0, fifth, fifth, last, last]);
    }

    #[test]
    fn only_bytes_of_three_channels_become_floats() {
        let normalize = |shape: (usize, usize, usize, usize), from, to| {
            let bytes = Tensor::zeros(shape, from, &Device::Cpu).unwrap();
            normalize_crops(&bytes, [0.5; 3], [0.5; 3], to)
        };
        assert!(normalize((1, 3, 2, 2), DType::U8, DType::BF16).is_ok());
        assert!(normalize((1, 3, 2, 2), DType::F32, DType::F32).is_err());
        assert!(normalize((1, 4, 2, 2), DType::U8, DType::F32).is_err());
        assert!(normalize((1, 3, 2, 2), DType::U8, DType::F64).is_err());
    }
}
