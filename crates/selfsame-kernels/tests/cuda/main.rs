//! The kernels on a GPU against the passes on the CPU: values and gradients of every operation.
//!
//! `cargo test --release -p selfsame-kernels --features cuda --test cuda -- --ignored`
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod blocks;
mod conv;
mod rows;
mod step;

use candle_core::{DType, Device, Result, Tensor, Var};

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
