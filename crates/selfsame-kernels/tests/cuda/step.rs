//! The optimizer's step, running statistics and uploads.

use candle_core::{DType, Device, Tensor};
use selfsame_kernels::multi_tensor::{
    AdamW, Clip, Lars, RunningStats, Sgd, StepWeight, Update, move_running_stats, whole_step,
};
use selfsame_kernels::{self as kernels, CropUploader};

use super::{TYPES, apart, flat, gpu, values};

const RULES: [Rule; 3] = [Rule::AdamW, Rule::Sgd, Rule::Lars];

#[derive(Clone, Copy, Debug)]
enum Rule {
    AdamW,
    Sgd,
    Lars,
}

/// Parameter, gradient, moments and teacher of some weights, one of them a bias.
fn states(device: &Device) -> Vec<[Tensor; 5]> {
    let shapes: [&[usize]; 4] = [&[2, 10_001], &[1, 1], &[8193, 1], &[300]];
    let state = |(seed, shape): (u64, &[usize])| {
        [0, 1, 2, 3, 4].map(|i| {
            let xs = values(shape, 10 * seed + i, 1.0);
            let xs = if i == 3 { xs.sqr().unwrap() } else { xs };
            xs.to_device(device).unwrap()
        })
    };
    (1..).zip(shapes).map(state).collect()
}

fn step(rule: Rule, states: &[[Tensor; 5]], clip: Clip) -> Vec<f32> {
    step_if(None, rule, states, clip)
}

fn step_if(allowed: Option<&Tensor>, rule: Rule, states: &[[Tensor; 5]], clip: Clip) -> Vec<f32> {
    let mut weights = Vec::new();
    for [param, grad, m, v, teacher] in states {
        let (momentum, weight_decay, grad_scale) = (0.9, 0.01, 1.0);
        weights.push(StepWeight {
            param,
            grad: Some(grad),
            update: Some(match rule {
                Rule::AdamW => Update::AdamW {
                    exp_avg: m,
                    exp_avg_sq: v,
                    options: AdamW::default(),
                },
                Rule::Sgd => Update::Sgd {
                    momentum_buffer: m,
                    options: Sgd {
                        lr: 0.1,
                        momentum,
                        weight_decay,
                        grad_scale,
                    },
                },
                Rule::Lars => Update::Lars {
                    mu: m,
                    options: Lars {
                        lr: 0.1,
                        momentum,
                        weight_decay,
                        eta: 0.001,
                        grad_scale,
                    },
                },
            }),
            teacher: Some(teacher),
        });
    }
    flat(&whole_step(&weights, clip, 0.99, allowed).unwrap())
}

#[test]
#[ignore = "needs cuda"]
fn a_whole_step_has_the_bits_of_the_cpu() {
    for rule in RULES {
        let (on_cpu, on_gpu) = (states(&Device::Cpu), states(&gpu()));
        let [want, got] = [&on_cpu, &on_gpu].map(|states| step(rule, states, Clip::Nothing));
        assert!((got[0] / want[0] - 1.0).abs() < 1e-6 && got[1] == 1.0);
        for (got, want) in on_gpu.iter().flatten().zip(on_cpu.iter().flatten()) {
            assert_eq!(flat(got), flat(want), "{rule:?}");
        }
        let [want, got] = [&on_cpu, &on_gpu].map(|states| step(rule, states, Clip::Global(1.0)));
        assert!((got[0] / want[0] - 1.0).abs() < 1e-6 && got[1] == 1.0);
        for (got, want) in on_gpu.iter().flatten().zip(on_cpu.iter().flatten()) {
            assert!(apart(got, want) < 1e-5, "{rule:?}");
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn a_step_with_a_gradient_that_is_not_finite_moves_nothing() {
    for rule in RULES {
        let mut on_gpu = states(&gpu());
        on_gpu[1][1] = Tensor::new(&[[f32::NAN]], &gpu()).unwrap();
        assert_eq!(step(rule, &on_gpu, Clip::Nothing)[1], 0.0);
        // That gradient is not compared: NaN is no equal of NaN.
        for index in [0, 2, 3] {
            assert_still(&on_gpu[index], index, rule);
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn a_step_that_is_not_allowed_moves_nothing() {
    let device = gpu();
    for rule in RULES {
        let flag = |value: f32| Tensor::new(&[value], &device).unwrap();
        let [still, moved, plain] = [0, 1, 2].map(|_| states(&device));
        let figures = step_if(Some(&flag(0.0)), rule, &still, Clip::Global(1.0));
        assert!(figures[0] > 1.0 && figures[1] == 0.0, "{figures:?}");
        for (index, state) in still.iter().enumerate() {
            assert_still(state, index, rule);
        }
        let figures = step_if(Some(&flag(1.0)), rule, &moved, Clip::Global(1.0));
        assert_eq!(figures, step(rule, &plain, Clip::Global(1.0)));
        for (moved, plain) in moved.iter().flatten().zip(plain.iter().flatten()) {
            assert_eq!(flat(moved), flat(plain), "{rule:?}");
        }
    }
}

/// That a weight and all that belongs to it are as [`states`] made them.
fn assert_still(state: &[Tensor; 5], index: usize, rule: Rule) {
    for (now, before) in state.iter().zip(&states(&Device::Cpu)[index]) {
        assert_eq!(flat(now), flat(before), "{rule:?}");
    }
}

/// Running mean and variance and the count of two norms, after batches of which the first norm saw
/// two, as views of one tensor.
fn moved(device: &Device, done: Option<f32>) -> Vec<Vec<f32>> {
    let on = |seed, shape: &[usize]| values(shape, seed, 1.0).to_device(device).unwrap();
    let norms = [(1, 64), (2, 300)].map(|(seed, channels)| {
        let count = Tensor::new(5i64, device).unwrap();
        (on(seed, &[channels]), on(seed + 10, &[channels]), count)
    });
    let batches = [(0, 20), (1, 21), (0, 22)].map(|(index, seed): (usize, u64)| {
        let all = on(seed, &[3, norms[index].0.elem_count()]);
        (index, [all.get(0).unwrap(), all.get(2).unwrap()])
    });
    let stats: Vec<_> = batches
        .iter()
        .map(|(index, [batch_mean, batch_variance])| {
            let (mean, variance, num_batches_tracked) = &norms[*index];
            RunningStats {
                mean,
                variance,
                num_batches_tracked,
                batch: [batch_mean, batch_variance],
            }
        })
        .collect();
    let done = done.map(|done| Tensor::new(&[done], device).unwrap());
    move_running_stats(&stats, 0.1, done.as_ref()).unwrap();
    let all = norms.iter().flat_map(|(mean, variance, count)| {
        let count = count.to_scalar::<i64>().unwrap() as f32;
        [flat(mean), flat(variance), vec![count]]
    });
    all.collect()
}

#[test]
#[ignore = "needs cuda"]
fn running_statistics_have_the_bits_of_the_cpu() {
    for done in [None, Some(1.0), Some(0.0)] {
        let got = moved(&gpu(), done);
        assert_eq!(got, moved(&Device::Cpu, done));
        let seen = if done == Some(0.0) {
            [5.0, 5.0]
        } else {
            [7.0, 6.0]
        };
        assert_eq!([got[2][0], got[5][0]], seen);
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

#[test]
#[ignore = "needs cuda"]
fn uploads_of_many_sizes_keep_their_bytes() {
    let (mean, std) = ([0.5; 3], [0.25; 3]);
    let mut to_gpu = CropUploader::new(&gpu(), mean, std).unwrap();
    let mut to_cpu = CropUploader::new(&Device::Cpu, mean, std).unwrap();
    // More sizes than buffers are kept for, each again when its buffers are gone.
    let sides = (0..14).map(|i| 16 + i % 7);
    let sides: Vec<usize> = sides.collect();
    let bytes = |side: usize| vec![(11 * side) as u8; 3 * side * side];
    let up = |to: &mut CropUploader| -> Vec<Tensor> {
        let mut up = |&side: &usize| {
            to.upload(&bytes(side), (1, 3, side, side), DType::F32)
                .unwrap()
        };
        sides.iter().map(&mut up).collect()
    };
    for (got, want) in up(&mut to_gpu).iter().zip(&up(&mut to_cpu)) {
        assert_eq!(flat(got), flat(want));
    }
}
