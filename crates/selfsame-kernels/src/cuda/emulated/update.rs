//! The optimizer's step and normalised crops: the same bits as on the CPU.

use candle_core::{Device, Tensor};

use super::Memory;
use crate::cuda::launch::{Element, Step, Weight, normalize_crops, table};
use crate::multi_tensor::{self, AdamW, Clip};
use crate::testing::values;

const MOMENTUM: f64 = 0.996;

/// A weight with its state; the second is frozen, the third has no gradient.
struct Case {
    param: Vec<f32>,
    grad: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    teacher: Vec<f32>,
    options: AdamW,
}

impl Case {
    fn new(seed: u64, len: usize, step: u64) -> Case {
        let square = |x: f32| x * x;
        Case {
            param: values(len, seed, 1.0),
            grad: values(len, seed + 1, 0.5),
            exp_avg: values(len, seed + 2, 0.1),
            exp_avg_sq: values(len, seed + 3, 0.1).into_iter().map(square).collect(),
            teacher: values(len, seed + 4, 1.0),
            options: AdamW {
                step,
                lr: 5e-4,
                weight_decay: 0.04,
                ..AdamW::default()
            },
        }
    }
}

/// Parameter, both moments and teacher of each weight, as bits.
type State = Vec<[Vec<u32>; 4]>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Runs a step in the emulation: the state afterwards, the norm and whether it is finite.
fn emulated(cases: &[Case], clip: Clip) -> (State, [f32; 2]) {
    let mut memory = Memory::default();
    let mut weights = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let step_size = case.options.lr / (1.0 - case.options.beta1.powf(case.options.step as f64));
        let bias2 = 1.0 - case.options.beta2.powf(case.options.step as f64);
        weights.push(Weight {
            param: memory.f32(&case.param),
            grad: (i != 2).then(|| memory.f32(&case.grad)),
            exp_avg: Some(memory.f32(&case.exp_avg)),
            exp_avg_sq: Some(memory.f32(&case.exp_avg_sq)),
            teacher: Some(memory.f32(&case.teacher)),
            len: case.param.len(),
            decay: (1.0 - case.options.lr * case.options.weight_decay) as f32,
            minus_step_size: -step_size as f32,
            bias2_sqrt: bias2.sqrt() as f32,
            is_applied: i != 1,
        });
    }
    let words = table(&weights);
    let m_table = memory.table(&words);
    let step = Step::new(weights.iter().map(|weight| weight.len)).unwrap();
    let squares = memory.unwritten(Element::F32, step.num_squares());
    let control = memory.unwritten(Element::F32, step.num_controls());
    let options = AdamW::default();
    memory.run(&[
        step.squares(m_table, squares),
        step.clip(m_table, squares, control, clip),
        step.update(
            m_table,
            control,
            [options.beta1, options.beta2, options.eps, MOMENTUM],
        ),
    ]);
    let read = |place: u32| bits(&memory.read(Element::F32, place));
    let state = weights.iter().map(|weight| {
        let moments = [weight.exp_avg.unwrap(), weight.exp_avg_sq.unwrap()].map(read);
        let [m, v] = moments;
        [read(weight.param), m, v, read(weight.teacher.unwrap())]
    });
    let control = memory.read(Element::F32, control);
    (state.collect(), [control[0], control[1]])
}

/// The same by this crate's updates on the CPU, with gradients times `factors`.
fn on_cpu(cases: &[Case], factors: &[f64]) -> State {
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let mut state = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let [param, m, v, teacher] =
            [&case.param, &case.exp_avg, &case.exp_avg_sq, &case.teacher].map(|x| tensor(x));
        if i == 0 || i > 2 {
            let options = AdamW {
                grad_scale: factors[i],
                ..case.options
            };
            multi_tensor::adamw_step(&param, &tensor(&case.grad), &m, &v, options).unwrap();
        }
        multi_tensor::ema(&teacher, &param, MOMENTUM).unwrap();
        state.push([param, m, v, teacher].map(|x| bits(&x.to_vec1::<f32>().unwrap())));
    }
    state
}

fn cases() -> Vec<Case> {
    vec![
        Case::new(10, 20_000, 1),
        Case::new(20, 8192, 7),
        Case::new(30, 37, 3),
        Case::new(40, 1, 1000),
        Case::new(50, 8193, 2),
    ]
}

/// Norms of the gradients, and of all that have one together.
fn norms(cases: &[Case]) -> (Vec<f64>, f64) {
    let square = |case: &Case| case.grad.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let squares: Vec<f64> = cases.iter().map(square).collect();
    let total = squares.iter().sum::<f64>() - squares[2];
    (squares.into_iter().map(f64::sqrt).collect(), total.sqrt())
}

#[test]
#[ignore = "needs g++"]
fn a_step_without_clipping_has_the_bits_of_the_cpu() {
    let cases = cases();
    let (state, [norm, is_finite]) = emulated(&cases, Clip::Nothing);
    assert!(state == on_cpu(&cases, &[1.0; 5]));
    let (_, total) = norms(&cases);
    assert!(
        (f64::from(norm) / total - 1.0).abs() < 1e-6,
        "{norm} {total}"
    );
    assert_eq!(is_finite, 1.0);
}

/// All values within a relative distance of one another.
fn assert_near(got: &State, want: &State) {
    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
        for (got, want) in got.iter().zip(want) {
            let (got, want) = (f32::from_bits(*got), f32::from_bits(*want));
            assert!(
                (got - want).abs() <= 2e-6 * want.abs().max(1e-3),
                "{got} {want}"
            );
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn clipping_scales_gradients_as_on_the_cpu() {
    let cases = cases();
    let (each, total) = norms(&cases);
    let (state, _) = emulated(&cases, Clip::Global(3.0));
    assert_near(&state, &on_cpu(&cases, &[3.0 / (total + 1e-6); 5]));
    let (state, _) = emulated(&cases, Clip::Each(3.0));
    let factors: Vec<f64> = each
        .iter()
        .map(|norm| (3.0 / (norm + 1e-6)).min(1.0))
        .collect();
    assert!(factors.contains(&1.0), "one gradient is short enough");
    assert_near(&state, &on_cpu(&cases, &factors));
    // A limit that nothing reaches leaves every bit.
    let (state, _) = emulated(&cases, Clip::Global(1e6));
    assert!(state == on_cpu(&cases, &[1.0; 5]));
}

#[test]
#[ignore = "needs g++"]
fn nothing_moves_if_a_gradient_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut cases = cases();
        cases[4].grad[8192] = bad;
        let (state, [_, is_finite]) = emulated(&cases, Clip::Global(3.0));
        assert_eq!(is_finite, 0.0);
        for (state, case) in state.iter().zip(&cases) {
            let before = [&case.param, &case.exp_avg, &case.exp_avg_sq, &case.teacher];
            assert!(
                state
                    .iter()
                    .zip(before)
                    .all(|(now, before)| *now == bits(before))
            );
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn crops_are_normalized_to_the_bits_of_the_cpu() {
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let (images, plane) = (2, 37 * 37);
    let bytes: Vec<u8> = (0..images * 3 * plane)
        .map(|i| (i * 7 % 256) as u8)
        .collect();
    let mut memory = Memory::default();
    let m_bytes = memory.bytes(bytes.clone());
    let ys = memory.unwritten(Element::F32, bytes.len());
    let launch = normalize_crops(Element::F32, m_bytes, ys, images, plane, mean, std).unwrap();
    memory.run(&[launch]);
    let want = bytes.iter().enumerate().map(|(i, byte)| {
        let channel = i / plane % 3;
        (f32::from(*byte) / 255.0 - mean[channel]) / std[channel]
    });
    assert_eq!(
        bits(&memory.read(Element::F32, ys)),
        bits(&want.collect::<Vec<f32>>())
    );
}
