//! The kernels on a GPU against the passes on the CPU: values and gradients of every operation.
//!
//! `cargo test --release -p selfsame-kernels --features cuda --test cuda -- --ignored`
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

use candle_core::{DType, Device, Result, Tensor, Var};
use selfsame_kernels::multi_tensor::{AdamW, Clip, StepWeight, adamw_ema_step};
use selfsame_kernels::{self as kernels, BlockOptions, BlockWeights, CropUploader, Precision};

fn gpu() -> Device {
    Device::new_cuda(0).unwrap()
}

/// Reproducible values between −`size` and `size`, on the CPU.
fn values(shape: &[usize], seed: u64, size: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_041);
            ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * size
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// All elements, on the host.
fn flat(xs: &Tensor) -> Vec<f32> {
    let xs = xs.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    xs.to_vec1().unwrap()
}

/// Largest difference, relative to the largest element of `b`; a NaN is infinitely far.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (flat(a), flat(b));
    let size = b.iter().fold(1e-6, |m: f32, x| m.max(x.abs()));
    a.iter().zip(&b).fold(0.0, |m: f32, (a, b)| {
        let d = (a - b).abs() / size;
        if d.is_nan() { f32::INFINITY } else { m.max(d) }
    })
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The output and the gradient of each input for a fixed gradient of the output.
fn run(op: Op<'_>, inputs: &[Tensor]) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = op(&tensors).unwrap();
    let weights = values(ys.dims(), 99, 1.0).to_dtype(DType::BF16).unwrap();
    let weights = weights.to_dtype(ys.dtype()).unwrap().to_device(ys.device());
    let loss = (&ys * weights.unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let mut results = vec![ys.detach()];
    results.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
    results
}

/// The same on both devices; on the GPU the first `activations` inputs are of type `dtype`.
fn compare(name: &str, op: Op<'_>, inputs: &[Tensor], activations: usize, dtype: DType) {
    let (mut on_cpu, mut on_gpu) = (Vec::new(), Vec::new());
    for (i, input) in inputs.iter().enumerate() {
        let own = if i < activations { dtype } else { DType::F32 };
        let input = input.to_dtype(own).unwrap();
        on_gpu.push(input.to_device(&gpu()).unwrap());
        on_cpu.push(input.to_dtype(DType::F32).unwrap());
    }
    let tolerance = if dtype == DType::F32 { 5e-5 } else { 2e-2 };
    let (want, got) = (run(op, &on_cpu), run(op, &on_gpu));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let d = apart(got, want);
        assert!(d < tolerance, "{name} {dtype:?}, result {i}: {d:e} apart");
    }
}

const TYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
#[ignore = "needs cuda"]
fn layer_norm_is_the_cpus() {
    for width in [37, 384] {
        let xs = values(&[3, 65, width], 1, 2.0);
        let inputs = [xs, values(&[width], 2, 1.0), values(&[width], 3, 1.0)];
        for dtype in TYPES {
            let op = |x: &[Tensor]| kernels::layer_norm(&x[0], &x[1], &x[2], 1e-6);
            compare("layer_norm", &op, &inputs, 1, dtype);
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn linear_layers_and_gelu_are_the_cpus() {
    let inputs = [
        values(&[2, 37, 64], 1, 1.0),
        values(&[96, 64], 2, 0.3),
        values(&[96], 3, 0.5),
    ];
    for dtype in TYPES {
        let linear = |x: &[Tensor]| kernels::linear(&x[0], &x[1], Some(&x[2]));
        compare("linear", &linear, &inputs, 1, dtype);
        let linear_gelu = |x: &[Tensor]| kernels::linear_gelu(&x[0], &x[1], Some(&x[2]));
        compare("linear_gelu", &linear_gelu, &inputs, 1, dtype);
        compare("gelu", &|x| kernels::gelu(&x[0]), &inputs[..1], 1, dtype);
    }
}

#[test]
#[ignore = "needs cuda"]
fn softmax_and_its_logarithm_are_the_cpus() {
    for width in [37, 65_536] {
        let inputs = [values(&[3, width], 1, 6.0)];
        for dtype in TYPES {
            let softmax = |x: &[Tensor]| kernels::softmax_last_dim(&x[0]);
            compare("softmax", &softmax, &inputs, 1, dtype);
        }
        let log = |x: &[Tensor]| kernels::log_softmax_last_dim(&x[0]);
        compare("log_softmax", &log, &inputs, 1, DType::F32);
        let center = values(&[1, width], 2, 1.0);
        let want = kernels::centered_softmax(&inputs[0], &center, 0.04).unwrap();
        let [xs, center] = [&inputs[0], &center].map(|x| x.to_device(&gpu()).unwrap());
        let got = kernels::centered_softmax(&xs, &center, 0.04).unwrap();
        assert!(apart(&got, &want) < 5e-5);
    }
}

#[test]
#[ignore = "needs cuda"]
fn attention_is_the_cpus() {
    // 48 has no kernel and is composed.
    for head_dim in [32, 48, 64] {
        for tokens in [10, 37, 65, 197, 257, 1025] {
            let inputs = [values(&[2, tokens, 3 * 2 * head_dim], 1, 2.0)];
            for dtype in TYPES {
                if head_dim == 48 && dtype == DType::BF16 {
                    // Composed in bf16 throughout, which is another thing.
                    continue;
                }
                let op = |x: &[Tensor]| kernels::attention(&x[0], 2);
                compare(&format!("attention of {tokens}"), &op, &inputs, 1, dtype);
            }
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn the_loss_is_the_cpus() {
    for width in [2048, 65_536] {
        let probs = kernels::softmax_last_dim(&values(&[4, width], 2, 9.0)).unwrap();
        let inputs = [values(&[8, width], 1, 3.0)];
        for dtype in TYPES {
            let op = |x: &[Tensor]| {
                let probs = probs.to_device(x[0].device())?;
                kernels::soft_cross_entropy(&x[0], &probs, 4, 0.1)
            };
            compare("soft_cross_entropy", &op, &inputs, 1, dtype);
        }
    }
}

/// One block, whose twelve weights follow the tokens.
fn block(x: &[Tensor], precision: Precision) -> Result<Tensor> {
    let pair = |i: usize| (x[i].clone(), x[i + 1].clone());
    let weights = BlockWeights {
        norm1: pair(1),
        qkv: pair(3),
        proj: pair(5),
        norm2: pair(7),
        fc1: pair(9),
        fc2: pair(11),
    };
    let options = BlockOptions {
        num_heads: 2,
        eps: 1e-6,
        class_token_only: false,
        precision,
    };
    kernels::transformer_blocks(&x[0], &[weights], &[], options)
}

#[test]
#[ignore = "needs cuda"]
fn a_transformer_block_is_the_cpus_in_both_precisions() {
    let (d, f) = (128, 512);
    let shapes: [&[usize]; 13] = [
        &[2, 37, d],
        &[d],
        &[d],
        &[3 * d, d],
        &[3 * d],
        &[d, d],
        &[d],
        &[d],
        &[d],
        &[f, d],
        &[f],
        &[d, f],
        &[d],
    ];
    let inputs: Vec<Tensor> = (1..)
        .zip(shapes)
        .map(|(seed, shape)| values(shape, seed, if seed == 1 { 1.0 } else { 0.15 }))
        .collect();
    let op = |x: &[Tensor]| block(x, Precision::F32);
    compare("block", &op, &inputs, 0, DType::F32);
    let want = run(&op, &inputs);
    let on_gpu: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.to_device(&gpu()).unwrap())
        .collect();
    let got = run(&|x| block(x, Precision::Bf16), &on_gpu);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(
            got.dtype(),
            DType::F32,
            "masters and their gradients are f32"
        );
        let d = apart(got, want);
        assert!(d < 4e-2, "block in bf16, result {i}: {d:e} apart");
    }
}

/// Parameter, gradient, moments and teacher of some weights.
fn states(device: &Device) -> Vec<[Tensor; 5]> {
    let state = |(seed, len): (u64, usize)| {
        [0, 1, 2, 3, 4].map(|i| {
            let xs = values(&[len], 10 * seed + i, 1.0);
            let xs = if i == 3 { xs.sqr().unwrap() } else { xs };
            xs.to_device(device).unwrap()
        })
    };
    [(1, 20_000), (2, 1), (3, 8193)].map(state).into()
}

fn step(states: &[[Tensor; 5]], clip: Clip) -> Vec<f32> {
    let mut weights = Vec::new();
    for [param, grad, m, v, teacher] in states {
        weights.push(StepWeight {
            param,
            grad: Some(grad),
            moments: Some((m, v)),
            teacher: Some(teacher),
            options: AdamW::default(),
        });
    }
    flat(&adamw_ema_step(&weights, clip, 0.99).unwrap())
}

#[test]
#[ignore = "needs cuda"]
fn a_whole_step_has_the_bits_of_the_cpu() {
    let (on_cpu, on_gpu) = (states(&Device::Cpu), states(&gpu()));
    let [want, got] = [&on_cpu, &on_gpu].map(|states| step(states, Clip::Nothing));
    assert!((got[0] / want[0] - 1.0).abs() < 1e-6 && got[1] == 1.0);
    for (got, want) in on_gpu.iter().flatten().zip(on_cpu.iter().flatten()) {
        assert_eq!(flat(got), flat(want));
    }
    let [want, got] = [&on_cpu, &on_gpu].map(|states| step(states, Clip::Global(1.0)));
    assert!((got[0] / want[0] - 1.0).abs() < 1e-6 && got[1] == 1.0);
    for (got, want) in on_gpu.iter().flatten().zip(on_cpu.iter().flatten()) {
        assert!(apart(got, want) < 1e-5);
    }
}

#[test]
#[ignore = "needs cuda"]
fn a_step_with_a_gradient_that_is_not_finite_moves_nothing() {
    let mut on_gpu = states(&gpu());
    on_gpu[1][1] = Tensor::new(&[f32::NAN], &gpu()).unwrap();
    assert_eq!(step(&on_gpu, Clip::Nothing)[1], 0.0);
    let before = states(&Device::Cpu);
    for (now, before) in [&on_gpu[0], &on_gpu[2]]
        .into_iter()
        .zip([&before[0], &before[2]])
    {
        for (now, before) in now.iter().zip(before) {
            assert_eq!(flat(now), flat(before));
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn crops_have_the_bits_of_the_cpu() {
    let bytes: Vec<u8> = (0..2 * 3 * 37 * 37).map(|i| (i * 7 % 256) as u8).collect();
    let bytes = Tensor::from_vec(bytes, (2, 3, 37, 37), &Device::Cpu).unwrap();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let on_gpu = bytes.to_device(&gpu()).unwrap();
    for dtype in TYPES {
        let want = kernels::normalize_crops(&bytes, mean, std, dtype).unwrap();
        let got = kernels::normalize_crops(&on_gpu, mean, std, dtype).unwrap();
        assert_eq!(flat(&got), flat(&want));
    }
}

#[test]
#[ignore = "needs cuda"]
fn uploads_that_overtake_one_another_keep_their_bytes() {
    let (mean, std) = ([0.5; 3], [0.25; 3]);
    let mut to_gpu = CropUploader::new(&gpu(), mean, std).unwrap();
    let mut to_cpu = CropUploader::new(&Device::Cpu, mean, std).unwrap();
    let shape = (8, 3, 96, 96);
    let batch = |i: usize| vec![(37 * i) as u8; 8 * 3 * 96 * 96];
    let mut ups = Vec::new();
    for i in 0..7 {
        ups.push(to_gpu.upload(&batch(i), shape, DType::F32).unwrap());
    }
    for (i, got) in ups.iter().enumerate() {
        let want = to_cpu.upload(&batch(i), shape, DType::F32).unwrap();
        assert_eq!(flat(got), flat(&want), "upload {i}");
    }
}
