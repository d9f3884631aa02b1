//! Features of a grey picture by a weights file of timm, torchvision, Hugging Face, DINO or Selfsame.
//!
//! What lies beside it, timm's or transformers' `config.json`, is followed.
//!
//!     cargo run -p selfsame-models --example features -- model.safetensors

use std::io::Write;
use std::path::PathBuf;

use selfsame_models::candle_core::{DType, Device, Tensor};
use selfsame_models::{
    Beside, InputConfig, Mode, Which, build_backbone, draw_backbone, interop, read_weights,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("a weights file is needed")?;
    let path = PathBuf::from(path);
    let device = Device::Cpu;

    let mut weights = read_weights(&path, Which::Teacher)?;
    let beside = Beside::read(&path)?;
    let model = weights.model(&beside)?;
    // Parameters of that architecture; the file's values take the place of the drawn ones.
    let params = draw_backbone(&model, 0, &device)?;
    interop::fit_positions(&mut weights.tensors, &model)?;
    params.load_part(&weights.tensors, "backbone.")?;
    let backbone = build_backbone(&model, &params)?;

    let input = weights.input(&beside, &model)?;
    let InputConfig {
        image_size,
        mean,
        std,
    } = input.unwrap_or_else(|| InputConfig::imagenet(&model));
    let grey = Tensor::full(0.5f32, (1, 3, image_size, image_size), &device)?;
    let row = |of: [f64; 3]| Tensor::new(&of.map(|x| x as f32), &device)?.reshape((1, 3, 1, 1));
    let images = grey.broadcast_sub(&row(mean)?)?.broadcast_div(&row(std)?)?;

    let features = backbone
        .forward(&images, &Mode::Eval)?
        .to_dtype(DType::F32)?; // [1, D]
    let features: Vec<f32> = features.squeeze(0)?.to_vec1()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{model:?}")?;
    writeln!(out, "{} features: {:?} ...", features.len(), &features[..4])?;
    Ok(())
}
