//! Patch kernels of another size against timm's `resample_patch_embed`: golden/make_patch_kernel.py.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use selfsame_models::ModelConfig;
use selfsame_models::interop::fit_patches;
use serde_json::Value;

const KERNEL: &str = "backbone.patch_embed.proj.weight";

fn singles(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn a_patch_kernel_is_resampled_as_by_timm() {
    let cases: Value = serde_json::from_str(include_str!("golden/patch_kernel.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let [from, to] = ["from", "to"].map(|side| case[side].as_u64().unwrap() as usize);
        let kernel = Tensor::from_vec(singles(&case["kernel"]), (1, 2, from, from), &Device::Cpu);
        let mut tensors = BTreeMap::from([(KERNEL.to_owned(), kernel.unwrap())]);
        let model = ModelConfig {
            patch_size: to,
            ..ModelConfig::default()
        };
        assert_eq!(fit_patches(&mut tensors, &model).unwrap(), Some((from, to)));
        assert_eq!(tensors[KERNEL].dims(), [1, 2, to, to]);
        let ours: Vec<f32> = tensors[KERNEL].flatten_all().unwrap().to_vec1().unwrap();
        let theirs = singles(&case["resampled"]);
        let largest = theirs.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            // timm's pseudo-inverse is of a large matrix in f32, ours of two small ones in f64.
            assert!(
                (a - b).abs() < 1e-4 * largest,
                "{from} to {to}: {a} {b} of {largest}"
            );
        }
        assert_eq!(
            fit_patches(&mut tensors, &model).unwrap(),
            None,
            "it fits now"
        );
    }
}
