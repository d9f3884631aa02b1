//! Values, gradients and how they are compared.

use candle_core::{DType, Device, Result, Tensor, Var};

/// Reproducible values between −`size` and `size`.
pub(crate) fn values(shape: &[usize], seed: u64, size: f32) -> Tensor {
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

/// All elements as f64.
pub(crate) fn flat(xs: &Tensor) -> Vec<f64> {
    xs.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// An operation on several inputs.
pub(crate) type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// The output and the gradient of every input, for a fixed random gradient of the output.
pub(crate) fn run(op: Op<'_>, inputs: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let ys = op(&tensors).unwrap();
    let grads = weighted_sum(&ys).backward().unwrap();
    let grads = vars
        .iter()
        .map(|v| {
            grads
                .get(v)
                .cloned()
                .unwrap_or_else(|| v.zeros_like().unwrap())
        })
        .collect();
    (ys.detach(), grads)
}

fn weighted_sum(ys: &Tensor) -> Tensor {
    let weights = values(ys.dims(), 99, 1.0).to_dtype(ys.dtype()).unwrap();
    (ys * weights).unwrap().sum_all().unwrap()
}

/// Largest difference, relative to the largest element of `b` (at least 1e-3).
pub(crate) fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (flat(a), flat(b));
    let size = b.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    // A NaN on one side only counts as infinitely far.
    a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| {
        let d = (a - b).abs() / size;
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

/// The fused operation in f32 agrees with the composed one in f64, values and all gradients, and the
/// composed gradients agree with central differences in f64 (of at most 40 elements per input).
pub(crate) fn check(
    name: &str,
    fused: Op<'_>,
    composed: Op<'_>,
    inputs: &[Tensor],
    tolerance: f64,
) {
    let exact: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.to_dtype(DType::F64).unwrap())
        .collect();
    let shapes: Vec<_> = inputs.iter().map(|x| x.dims().to_vec()).collect();
    let (expected, expected_grads) = run(composed, &exact);
    let (ys, grads) = run(fused, inputs);
    let d = apart(&ys, &expected);
    assert!(d < tolerance, "{name} {shapes:?}: values are {d:e} apart");
    for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        let d = apart(grad, expected);
        assert!(
            d < tolerance,
            "{name} {shapes:?}: gradients of input {i} are {d:e} apart"
        );
        let d = finite_difference_error(composed, &exact, i, expected);
        assert!(
            d < 1e-5,
            "{name} {shapes:?}: differences of input {i} are {d:e} off"
        );
    }
}

fn finite_difference_error(op: Op<'_>, inputs: &[Tensor], i: usize, grad: &Tensor) -> f64 {
    let (data, grad) = (flat(&inputs[i]), flat(grad));
    let size = grad.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    let step = 1e-5;
    let loss = |position: usize, moved: f64| {
        let mut data = data.clone();
        data[position] += moved;
        let mut inputs = inputs.to_vec();
        inputs[i] = Tensor::from_vec(data, inputs[i].dims(), &Device::Cpu).unwrap();
        weighted_sum(&op(&inputs).unwrap())
            .to_scalar::<f64>()
            .unwrap()
    };
    (0..data.len())
        .step_by(data.len().div_ceil(40))
        .map(|at| {
            let slope = (loss(at, step) - loss(at, -step)) / (2.0 * step);
            (slope - grad[at]).abs() / size
        })
        .fold(0.0, f64::max)
}
