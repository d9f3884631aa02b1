//! One benchmark per kernel, at the sizes of a ViT-S/16 on 16 images of 128×128 and of a ResNet.

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use selfsame_kernels::multi_tensor::{self, AdamW};
use selfsame_kernels::{self as kernels, BlockOptions, BlockWeights, Precision};
use std::hint::black_box;

fn var(shape: &[usize]) -> Var {
    Var::randn(0f32, 0.5, shape, &Device::Cpu).expect("a small tensor on the cpu")
}

/// Times `op` alone and `op` with its backward pass.
fn both(c: &mut Criterion, name: &str, op: impl Fn() -> candle_core::Result<Tensor>) {
    c.bench_function(&format!("{name}/forward"), |b| {
        b.iter(|| black_box(op().expect("shapes fit")));
    });
    c.bench_function(&format!("{name}/forward_backward"), |b| {
        b.iter(|| black_box(op().and_then(|ys| ys.backward()).expect("shapes fit")));
    });
}

fn transformer(c: &mut Criterion) {
    let (tokens, hidden) = (var(&[16, 65, 384]), var(&[16, 65, 1536]));
    let (weight, bias) = (var(&[384]), var(&[384]));
    let (fc1, bias1, fc2) = (var(&[1536, 384]), var(&[1536]), var(&[384, 1536]));
    let qkv = var(&[16, 65, 1152]);
    both(c, "layer_norm/1040x384", || {
        kernels::layer_norm(&tokens, &weight, &bias, 1e-6)
    });
    both(c, "gelu/1040x1536", || kernels::gelu(&hidden));
    both(c, "linear/1040x1536x384", || {
        kernels::linear(&hidden, &fc2, Some(&bias))
    });
    both(c, "linear_gelu/1040x384x1536", || {
        kernels::linear_gelu(&tokens, &fc1, Some(&bias1))
    });
    both(c, "attention/16x65x6", || kernels::attention(&qkv, 6));
    both(c, "softmax/1040x384", || kernels::softmax_last_dim(&tokens));
    both(c, "log_softmax/1040x384", || {
        kernels::log_softmax_last_dim(&tokens)
    });
    both(c, "l2_normalize/1040x384", || {
        kernels::l2_normalize_last_dim(&tokens, 1e-12)
    });
    let images = var(&[16, 3, 128, 128]);
    both(c, "patchify/16x128/16", || kernels::patchify(&images, 16));
}

/// Two blocks of a ViT-S and of a ViT-Ti, forward and backward, at each precision.
fn blocks(c: &mut Criterion) {
    for (images, tokens, width, heads) in [(32, 65, 384, 6), (96, 10, 384, 6), (64, 17, 192, 3)] {
        let xs = var(&[images, tokens, width]);
        let pair = |shape: &[usize]| {
            (
                var(shape).as_tensor().clone(),
                var(&shape[..1]).as_tensor().clone(),
            )
        };
        let block = || BlockWeights {
            norm1: pair(&[width]),
            qkv: pair(&[3 * width, width]),
            proj: pair(&[width, width]),
            norm2: pair(&[width]),
            fc1: pair(&[4 * width, width]),
            fc2: pair(&[width, 4 * width]),
        };
        let weights = [block(), block()];
        for precision in [Precision::F32, Precision::Bf16] {
            let options = BlockOptions {
                num_heads: heads,
                eps: 1e-6,
                class_token_only: false,
                precision,
            };
            let name = format!("transformer_blocks/{images}x{tokens}x{width}/{precision:?}");
            both(c, &name, || {
                kernels::transformer_blocks(&xs, &weights, &[], options)
            });
            if precision == Precision::F32 {
                both(c, &format!("composed_{name}"), || {
                    kernels::composed::transformer_blocks(&xs, &weights, &[], options)
                });
            }
        }
    }
}

fn loss(c: &mut Criterion) {
    for k in [2048, 65536] {
        let student = var(&[160, k]);
        let teacher = kernels::softmax_last_dim(&var(&[32, k]).detach()).expect("two dimensions");
        both(c, &format!("soft_cross_entropy/160x{k}"), || {
            kernels::soft_cross_entropy(&student, &teacher, 10, 0.1)
        });
    }
}

fn convolutional(c: &mut Criterion) {
    let images = var(&[16, 64, 32, 32]);
    let (gamma, beta) = (var(&[64]), var(&[64]));
    both(c, "batch_norm/16x64x32", || {
        Ok(kernels::batch_norm_train(&images, &gamma, &beta, 1e-5)?.0)
    });
    both(c, "relu/16x64x32", || kernels::relu(&images));
    both(c, "max_pool2d/16x64x32/3", || {
        kernels::max_pool2d(&images, 3, 2, 1)
    });
    for (name, shape, stride, padding) in [
        ("3x3", [64, 64, 3, 3], 1, 1),
        ("3x3s2", [128, 64, 3, 3], 2, 1),
        ("1x1", [256, 64, 1, 1], 1, 0),
    ] {
        let weight = var(&shape);
        both(c, &format!("conv2d/16x64x32/{name}"), || {
            kernels::conv2d(&images, &weight, stride, padding, Precision::F32)
        });
    }
}

fn updates(c: &mut Criterion) {
    let n = 1 << 20;
    let (param, grad, m) = (var(&[n]), var(&[n]), var(&[n]));
    let v = Var::zeros(n, DType::F32, &Device::Cpu).expect("a small tensor on the cpu");
    c.bench_function("adamw/1M", |b| {
        b.iter(|| multi_tensor::adamw_step(&param, &grad, &m, &v, AdamW::default()).is_ok());
    });
    c.bench_function("ema/1M", |b| {
        b.iter(|| multi_tensor::ema(&param, &grad, 0.996).is_ok())
    });
    c.bench_function("sum_of_squares/1M", |b| {
        b.iter(|| multi_tensor::sum_of_squares(black_box(&grad)).is_ok());
    });
}

criterion_group!(benches, transformer, blocks, loss, convolutional, updates);
criterion_main!(benches);
