//! The optimizer's step and uploads.

use candle_core::{DType, Device, Tensor};
use selfsame_kernels::multi_tensor::{AdamW, Clip, StepWeight, adamw_ema_step};
use selfsame_kernels::{self as kernels, CropUploader};

use super::{TYPES, apart, flat, gpu, values};

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
    let device = gpu();
    let mut to_gpu = CropUploader::new(&device, mean, std).unwrap();
    // Work that lies before them: copies wait for it that were asked for long before.
    let mut work = Tensor::zeros(1 << 21, DType::F32, &device).unwrap();
    for _ in 0..300 {
        work = (work + 1.0).unwrap();
    }
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
