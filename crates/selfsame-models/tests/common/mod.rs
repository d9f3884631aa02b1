//! The deterministic values of `golden/make_golden.py`, and what several tests measure.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use selfsame_models::ParamStore;

/// Uniform in [-1, 1): FNV-1a of the name, a Weyl sequence, the murmur3 finaliser.
pub(crate) fn noise(name: &str, count: usize) -> Vec<f64> {
    let key = name.bytes().fold(0x811c_9dc5_u32, |key, byte| {
        (key ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let mixed = (0..count as u32).map(|i| {
        let mut x = key.wrapping_add(i.wrapping_mul(2_654_435_761));
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        f64::from(x ^ (x >> 16)) / 2f64.powi(31) - 1.0
    });
    mixed.collect()
}

/// `scale * noise` as a tensor.
pub(crate) fn tensor(name: &str, shape: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> = noise(name, shape.iter().product())
        .into_iter()
        .map(|u| scale * u as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Gives every tensor of the store the value that the script gives it.
pub(crate) fn fill(store: &ParamStore) {
    for (name, var) in store.weights().iter().chain(store.buffers()) {
        if var.dtype() != DType::F32
            || name.ends_with("weight_g") && !store.trainable().contains_key(name)
        {
            continue;
        }
        let fan_in = var.elem_count() as f64 / var.dims().first().copied().unwrap_or(1) as f64;
        let value = |u: f64| -> f64 {
            if name.ends_with("running_var") {
                1.0 + 0.5 * u
            } else if name.ends_with("cls_token") || name.ends_with("pos_embed") {
                0.5 * u
            } else if name.ends_with("weight_g") {
                1.0 + 0.2 * u
            } else if var.rank() >= 2 {
                u * (3.0 / fan_in).sqrt()
            } else if name.ends_with("weight") {
                1.0 + 0.2 * u
            } else {
                0.1 * u
            }
        };
        let values: Vec<f32> = noise(name, var.elem_count())
            .into_iter()
            .map(|u| value(u) as f32)
            .collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap())
            .unwrap();
    }
}

/// Adds noise of the given size to every trainable parameter.
pub(crate) fn perturb(store: &ParamStore, size: f32) {
    for (name, var) in store.trainable() {
        let noise = tensor(&format!("perturb.{name}"), var.dims(), size * 3f32.sqrt());
        var.set(&(var.as_detached_tensor() + noise).unwrap())
            .unwrap();
    }
}

/// The gradient of <output, fixed direction> for each variable; a missing one is `None`.
pub(crate) fn gradients(
    output: &Tensor,
    vars: &BTreeMap<String, Var>,
) -> BTreeMap<String, Option<Tensor>> {
    let direction = tensor("direction", output.dims(), 1.0);
    let grads = (output * direction)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    vars.iter()
        .map(|(name, var)| (name.clone(), grads.get(var.as_tensor()).cloned()))
        .collect()
}

/// All values of a tensor, in f64.
pub(crate) fn values(xs: &Tensor) -> Vec<f64> {
    let flat = xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// The larger of two differences; what is no number is the largest.
pub(crate) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::INFINITY
    } else {
        a.max(b)
    }
}

/// Euclidean norm.
pub(crate) fn norm(xs: &[f64]) -> f64 {
    xs.iter().map(|x| x * x).sum::<f64>().sqrt()
}
