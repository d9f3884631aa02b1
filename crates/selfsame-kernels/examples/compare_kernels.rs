//! Times fused kernels against candle's operations, at the sizes of a ViT-S/16 on 16 images.
//! `cargo run --release -p selfsame-kernels --example compare_kernels`
#![expect(clippy::print_stdout, reason = "an example that prints a table")]

use candle_core::{Device, Result, Tensor, Var};
use selfsame_kernels::{self as kernels, composed};
use std::time::Instant;

/// Best milliseconds of forward and backward.
fn time(op: impl Fn() -> Result<Tensor>) -> Result<(f64, f64)> {
    let (mut forward, mut backward) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..7 {
        let start = Instant::now();
        let ys = op()?;
        forward = forward.min(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        ys.backward()?;
        backward = backward.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok((forward, backward))
}

fn compare(
    name: &str,
    fused: impl Fn() -> Result<Tensor>,
    composed: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let ((f, b), (cf, cb)) = (time(fused)?, time(composed)?);
    println!("{name:22} {f:8.2} + {b:8.2} ms   composed {cf:8.2} + {cb:8.2} ms");
    Ok(())
}

fn main() -> Result<()> {
    let var = |shape: &[usize]| Var::randn(0f32, 0.5, shape, &Device::Cpu);
    let (tokens, hidden) = (var(&[16, 65, 384])?, var(&[16, 65, 1536])?);
    let (w, b) = (var(&[384])?, var(&[384])?);
    compare(
        "layer_norm",
        || kernels::layer_norm(&tokens, &w, &b, 1e-6),
        || composed::layer_norm(&tokens, &w, &b, 1e-6),
    )?;
    compare(
        "gelu",
        || kernels::gelu(&hidden),
        || composed::gelu(&hidden),
    )?;
    let (fc1, b1) = (var(&[1536, 384])?, var(&[1536])?);
    compare(
        "linear_gelu",
        || kernels::linear_gelu(&tokens, &fc1, Some(&b1)),
        || composed::gelu(&composed::linear(&tokens, &fc1, Some(&b1))?),
    )?;
    let fc2 = var(&[384, 1536])?;
    compare(
        "linear",
        || kernels::linear(&hidden, &fc2, Some(&b)),
        || composed::linear(&hidden, &fc2, Some(&b)),
    )?;
    let qkv = var(&[16, 65, 1152])?;
    compare(
        "attention",
        || kernels::attention(&qkv, 6),
        || composed::attention(&qkv, 6),
    )?;
    let (student, teacher_logits) = (var(&[160, 2048])?, var(&[32, 2048])?);
    let teacher = kernels::softmax_last_dim(&teacher_logits.detach())?;
    compare(
        "soft_cross_entropy",
        || kernels::soft_cross_entropy(&student, &teacher, 10, 0.1),
        || composed::soft_cross_entropy(&student, &teacher, 10, 0.1),
    )?;
    let (images, conv) = (var(&[16, 64, 32, 32])?, var(&[64, 64, 3, 3])?);
    compare(
        "conv2d (candle's own)",
        || kernels::conv2d(&images, &conv, 1, 1, kernels::Precision::F32),
        || images.conv2d(&conv, 1, 1, 1, 1),
    )
}
