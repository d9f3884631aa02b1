//! The optimizer's step and normalised crops: the same bits as on the CPU.

use candle_core::{Device, Tensor};

use super::Memory;
use crate::cuda::launch::{Element, Step, Update, Weight, normalize_crops, table};
use crate::multi_tensor::{self, AdamW, Clip, Lars, Sgd};
use crate::testing::values;

const MOMENTUM: f64 = 0.996;
const RULES: [Rule; 3] = [Rule::AdamW, Rule::Sgd, Rule::Lars];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    AdamW,
    Sgd,
    Lars,
}

/// A weight with its state; the second is frozen, the third has no gradient, the fourth is a bias.
struct Case {
    param: Vec<f32>,
    grad: Vec<f32>,
    /// First moment, or momentum buffer.
    moment: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    teacher: Vec<f32>,
    shape: Vec<usize>,
    /// Of AdamW.
    step: u64,
}

impl Case {
    fn new(seed: u64, shape: &[usize], step: u64) -> Case {
        let (square, len) = (|x: f32| x * x, shape.iter().product());
        Case {
            param: values(len, seed, 1.0),
            grad: values(len, seed + 1, 0.5),
            moment: values(len, seed + 2, 0.1),
            exp_avg_sq: values(len, seed + 3, 0.1).into_iter().map(square).collect(),
            teacher: values(len, seed + 4, 1.0),
            shape: shape.to_vec(),
            step,
        }
    }

    fn adamw(&self) -> AdamW {
        AdamW {
            step: self.step,
            lr: 5e-4,
            weight_decay: 0.04,
            ..AdamW::default()
        }
    }

    fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }
}

const SGD: Sgd = Sgd {
    lr: 0.03,
    momentum: 0.9,
    weight_decay: 1e-4,
    grad_scale: 1.0,
};
const LARS: Lars = Lars {
    lr: 0.3,
    momentum: 0.9,
    weight_decay: 1e-3,
    eta: 1e-3,
    grad_scale: 1.0,
};

/// Parameter, both moments and teacher of each weight, as bits.
type State = Vec<[Vec<u32>; 4]>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// How a weight is updated whose moments lie there.
fn update(rule: Rule, case: &Case, moments: [u32; 2]) -> Update<u32> {
    match rule {
        Rule::AdamW => {
            let options = case.adamw();
            let bias = |beta: f64| 1.0 - beta.powf(case.step as f64);
            Update::AdamW {
                moments,
                decay: (1.0 - options.lr * options.weight_decay) as f32,
                minus_step_size: -(options.lr / bias(options.beta1)) as f32,
                bias2_sqrt: bias(options.beta2).sqrt() as f32,
            }
        }
        Rule::Sgd => Update::Momentum {
            buffer: moments[0],
            weight_decay: SGD.weight_decay as f32,
            lr: SGD.lr as f32,
            eta: None,
        },
        Rule::Lars => Update::Momentum {
            buffer: moments[0],
            weight_decay: if case.is_matrix() {
                LARS.weight_decay as f32
            } else {
                0.0
            },
            lr: LARS.lr as f32,
            eta: case.is_matrix().then_some(LARS.eta),
        },
    }
}

/// Runs a step in the emulation: the state afterwards, the norm and whether weights moved.
fn emulated(rule: Rule, cases: &[Case], clip: Clip) -> (State, [f32; 2]) {
    emulated_if(None, rule, cases, clip)
}

/// The same under a flag of the device.
fn emulated_if(allowed: Option<f32>, rule: Rule, cases: &[Case], clip: Clip) -> (State, [f32; 2]) {
    let mut memory = Memory::default();
    let (mut weights, mut moments) = (Vec::new(), Vec::new());
    for (i, case) in cases.iter().enumerate() {
        let own = [&case.moment, &case.exp_avg_sq].map(|values| memory.f32(values));
        moments.push(own);
        weights.push(Weight {
            param: memory.f32(&case.param),
            grad: (i != 2).then(|| memory.f32(&case.grad)),
            teacher: Some(memory.f32(&case.teacher)),
            len: case.param.len(),
            update: (i != 1).then(|| update(rule, case, own)),
        });
    }
    let words = table(&weights);
    let m_table = memory.table(&words);
    let step = Step::new(weights.iter().map(|weight| weight.len)).unwrap();
    let squares = memory.unwritten(Element::F32, step.num_squares());
    let allowed = allowed.map(|allowed| memory.f32(&[allowed]));
    let control = memory.unwritten(Element::F32, step.num_controls());
    let mut launches = vec![
        step.squares(m_table, squares),
        step.clip(m_table, squares, allowed, control, clip),
    ];
    match rule {
        Rule::AdamW => {
            let AdamW {
                beta1, beta2, eps, ..
            } = AdamW::default();
            launches.push(step.adamw(m_table, control, [beta1, beta2, eps, MOMENTUM]));
        }
        Rule::Sgd => {
            launches.push(step.momentum(m_table, control, None, [SGD.momentum, MOMENTUM]));
        }
        Rule::Lars => {
            let nan = f64::NAN.to_le_bytes();
            let squares = memory.bytes(nan.repeat(step.num_lars_squares()));
            let trust = memory.unwritten(Element::F32, step.num_trusts());
            launches.extend([
                step.lars_squares(m_table, control, squares),
                step.lars_trust(m_table, control, squares, trust),
                step.momentum(m_table, control, Some(trust), [LARS.momentum, MOMENTUM]),
            ]);
        }
    }
    memory.run(&launches);
    let read = |place: u32| bits(&memory.read(Element::F32, place));
    let state = weights.iter().zip(&moments).map(|(weight, moments)| {
        let [m, v] = moments.map(read);
        [read(weight.param), m, v, read(weight.teacher.unwrap())]
    });
    let control = memory.read(Element::F32, control);
    (state.collect(), [control[0], control[1]])
}

/// The same by this crate's updates on the CPU, with gradients times `factors`.
fn on_cpu(rule: Rule, cases: &[Case], factors: &[f64]) -> State {
    let mut state = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let tensor = |values: &[f32]| {
            Tensor::from_slice(values, case.shape.as_slice(), &Device::Cpu).unwrap()
        };
        let [param, grad, m, v, teacher] = [
            &case.param,
            &case.grad,
            &case.moment,
            &case.exp_avg_sq,
            &case.teacher,
        ]
        .map(|values| tensor(values));
        if i == 0 || i > 2 {
            let update = match rule {
                Rule::AdamW => multi_tensor::Update::AdamW {
                    exp_avg: &m,
                    exp_avg_sq: &v,
                    options: case.adamw(),
                },
                Rule::Sgd => multi_tensor::Update::Sgd {
                    momentum_buffer: &m,
                    options: SGD,
                },
                Rule::Lars => multi_tensor::Update::Lars {
                    mu: &m,
                    options: LARS,
                },
            };
            update.apply(&param, &grad, factors[i]).unwrap();
        }
        multi_tensor::ema(&teacher, &param, MOMENTUM).unwrap();
        let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        state.push([param, m, v, teacher].map(|tensor| bits(&flat(tensor))));
    }
    state
}

fn cases() -> Vec<Case> {
    vec![
        Case::new(10, &[8, 5_003], 1),
        Case::new(20, &[64, 128], 7),
        Case::new(30, &[37, 1], 3),
        Case::new(40, &[40], 1000),
        Case::new(50, &[1, 8193], 2),
        Case::new(60, &[2, 3], 4),
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
    for rule in RULES {
        let cases = cases();
        let (state, [norm, is_finite]) = emulated(rule, &cases, Clip::Nothing);
        assert!(state == on_cpu(rule, &cases, &[1.0; 6]), "{rule:?}");
        assert!(state[0][0] != bits(&cases[0].param), "{rule:?}");
        let (_, total) = norms(&cases);
        assert!(
            (f64::from(norm) / total - 1.0).abs() < 1e-6,
            "{norm} {total}"
        );
        assert_eq!(is_finite, 1.0);
    }
}

#[test]
#[ignore = "needs g++"]
fn lars_takes_the_plain_step_of_a_parameter_of_zeros() {
    let mut cases = cases();
    cases[0].param.fill(0.0);
    cases[5].grad.fill(0.0);
    cases[5].param.fill(0.0);
    let (state, _) = emulated(Rule::Lars, &cases, Clip::Nothing);
    assert!(state == on_cpu(Rule::Lars, &cases, &[1.0; 6]));
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
    for rule in RULES {
        let cases = cases();
        let (each, total) = norms(&cases);
        let (state, _) = emulated(rule, &cases, Clip::Global(3.0));
        assert_near(&state, &on_cpu(rule, &cases, &[3.0 / (total + 1e-6); 6]));
        let (state, _) = emulated(rule, &cases, Clip::Each(3.0));
        let factors: Vec<f64> = each
            .iter()
            .map(|norm| (3.0 / (norm + 1e-6)).min(1.0))
            .collect();
        assert!(factors.contains(&1.0), "one gradient is short enough");
        assert_near(&state, &on_cpu(rule, &cases, &factors));
        // A limit that nothing reaches leaves every bit.
        let (state, _) = emulated(rule, &cases, Clip::Global(1e6));
        assert!(state == on_cpu(rule, &cases, &[1.0; 6]), "{rule:?}");
    }
}

#[test]
#[ignore = "needs g++"]
fn nothing_moves_if_a_gradient_is_not_finite() {
    // The last of them are squares that an f32 holds each by itself, in two chunks.
    let bad: [(&[usize], f32, f32); 3] = [
        (&[8192], f32::NAN, f32::NAN),
        (&[8192], f32::INFINITY, f32::INFINITY),
        (&[0, 8192], 1.5e19, f32::INFINITY),
    ];
    let all = RULES.iter().flat_map(|rule| bad.map(|bad| (*rule, bad)));
    for (rule, (places, value, norm)) in all {
        let mut cases = cases();
        for place in places {
            cases[4].grad[*place] = value;
        }
        let (state, [found, is_finite]) = emulated(rule, &cases, Clip::Global(3.0));
        assert_eq!((found.is_nan(), is_finite), (norm.is_nan(), 0.0));
        assert!(found.is_nan() || found == norm, "{found}");
        for (state, case) in state.iter().zip(&cases) {
            let before = [&case.param, &case.moment, &case.exp_avg_sq, &case.teacher];
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
fn nothing_moves_unless_it_is_allowed() {
    for rule in RULES {
        let cases = cases();
        let plain = emulated(rule, &cases, Clip::Global(3.0));
        let allowed = emulated_if(Some(1.0), rule, &cases, Clip::Global(3.0));
        assert!(allowed == plain, "{rule:?}");
        let (state, [norm, moved]) = emulated_if(Some(0.0), rule, &cases, Clip::Global(3.0));
        assert_eq!((norm, moved), (plain.1[0], 0.0));
        for (state, case) in state.iter().zip(&cases) {
            let before = [&case.param, &case.moment, &case.exp_avg_sq, &case.teacher];
            assert!(state == &before.map(|values| bits(values)), "{rule:?}");
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
