//! Features of a grey picture by a weights file of timm, torchvision, Hugging Face, DINO or Selfsame.
//!
//!     cargo run -p selfsame-models --example features -- model.safetensors

use std::io::Write;
use std::path::PathBuf;

use selfsame_models::candle_core::{DType, Device, Tensor};
use selfsame_models::{Mode, Which, build_backbone, draw_backbone, read_weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("a weights file is needed")?;
    let device = Device::Cpu;

    let weights = read_weights(&PathBuf::from(path), Which::Teacher)?;
    let model = weights.model()?;
    // Parameters of that architecture; the file's values take the place of the drawn ones.
    let params = draw_backbone(&model, 0, &device)?;
    params.load_part(&weights.tensors, "backbone.")?;
    let backbone = build_backbone(&model, &params)?;

    // Values from 0 to 1, less the mean, over the standard deviation: what the weights were trained
    // with, which is ImageNet's for most files. Ours say theirs under `INPUT_KEY` of the metadata.
    let side = if model.arch.is_vit() {
        model.image_size
    } else {
        224
    };
    let grey = Tensor::full(0.5f32, (1, 3, side, side), &device)?;
    let mean = Tensor::new(&[0.485f32, 0.456, 0.406], &device)?.reshape((1, 3, 1, 1))?;
    let std = Tensor::new(&[0.229f32, 0.224, 0.225], &device)?.reshape((1, 3, 1, 1))?;
    let images = grey.broadcast_sub(&mean)?.broadcast_div(&std)?;

    let features = backbone
        .forward(&images, &Mode::Eval)?
        .to_dtype(DType::F32)?; // [1, D]
    let features: Vec<f32> = features.squeeze(0)?.to_vec1()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{model:?}")?;
    writeln!(out, "{} features: {:?} ...", features.len(), &features[..4])?;
    Ok(())
}
