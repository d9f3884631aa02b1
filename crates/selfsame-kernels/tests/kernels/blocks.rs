//! The stack of transformer blocks against the same out of other operations.

use candle_core::{DType, Result, Tensor, Var};
use selfsame_kernels::{self as kernels, BlockOptions, BlockWeights, BranchFactors, Precision};

use crate::common::{apart, flat, values};
use crate::threads::{bits, in_pool};

struct Case {
    images: usize,
    tokens: usize,
    width: usize,
    heads: usize,
    class_token_only: bool,
    drop: Drop,
}

/// Which images a branch drops.
#[derive(Clone, Copy, PartialEq)]
enum Drop {
    /// None, without factors.
    Nothing,
    /// One of three.
    Third,
    /// Six of seven: all of a chunk here and there.
    Most,
}

const DEPTH: usize = 3;

/// Weights of all blocks as variables, in a fixed order of twelve to a block.
fn variables(width: usize, dtype: DType) -> Vec<Var> {
    let (d, f) = (width, 4 * width);
    let size = 1.0 / (d as f32).sqrt();
    let kinds: [(&[usize], f32, f64); 12] = [
        (&[d], 0.3, 1.0),
        (&[d], 0.3, 0.0),
        (&[3 * d, d], 1.5 * size, 0.0),
        (&[3 * d], 0.3, 0.0),
        (&[d, d], size, 0.0),
        (&[d], 0.3, 0.0),
        (&[d], 0.3, 1.0),
        (&[d], 0.3, 0.0),
        (&[f, d], 1.5 * size, 0.0),
        (&[f], 0.3, 0.0),
        (&[d, f], size, 0.0),
        (&[d], 0.3, 0.0),
    ];
    (0..DEPTH * 12)
        .map(|i| {
            let (shape, size, offset) = kinds[i % 12];
            let xs = (values(shape, 7 + i as u64, size) + offset).unwrap();
            Var::from_tensor(&xs.to_dtype(dtype).unwrap()).unwrap()
        })
        .collect()
}

fn weights(vars: &[Var]) -> Vec<BlockWeights> {
    vars.chunks(12)
        .map(|v| {
            let pair = |i: usize| (v[i].as_tensor().clone(), v[i + 1].as_tensor().clone());
            BlockWeights {
                norm1: pair(0),
                qkv: pair(2),
                proj: pair(4),
                norm2: pair(6),
                fc1: pair(8),
                fc2: pair(10),
            }
        })
        .collect()
}

/// The same without gradients.
fn detached(vars: &[Var]) -> Vec<BlockWeights> {
    let pair = |(weight, bias): &(Tensor, Tensor)| (weight.detach(), bias.detach());
    let block = |of: &BlockWeights| BlockWeights {
        norm1: pair(&of.norm1),
        qkv: pair(&of.qkv),
        proj: pair(&of.proj),
        norm2: pair(&of.norm2),
        fc1: pair(&of.fc1),
        fc2: pair(&of.fc2),
    };
    weights(vars).iter().map(block).collect()
}

fn factors(case: &Case) -> Vec<BranchFactors> {
    let branch = |seed: usize| -> Vec<f32> {
        let dropped = |i: usize| match case.drop {
            Drop::Nothing => false,
            Drop::Third => (i + seed).is_multiple_of(3),
            Drop::Most => !(i + seed).is_multiple_of(7),
        };
        let factor = |i: usize| if dropped(i) { 0.0 } else { 1.25 };
        (0..case.images).map(factor).collect()
    };
    // The first block's attention has no factors.
    let block = |i: usize| BranchFactors {
        attention: (i > 0).then(|| branch(i)),
        mlp: Some(branch(i + 1)),
    };
    match case.drop {
        Drop::Nothing => Vec::new(),
        _ => (0..DEPTH).map(block).collect(),
    }
}

type Stack = fn(&Tensor, &[BlockWeights], &[BranchFactors], BlockOptions) -> Result<Tensor>;

/// The output and all gradients, the input's first.
fn run(stack: Stack, case: &Case, dtype: DType, precision: Precision) -> Vec<Tensor> {
    let xs = values(&[case.images, case.tokens, case.width], 1, 1.0);
    let xs = Var::from_tensor(&xs.to_dtype(dtype).unwrap()).unwrap();
    let vars = variables(case.width, dtype);
    let options = BlockOptions {
        num_heads: case.heads,
        eps: 1e-6,
        class_token_only: case.class_token_only,
        precision,
    };
    let ys = stack(&xs, &weights(&vars), &factors(case), options).unwrap();
    let direction = values(ys.dims(), 99, 1.0).to_dtype(dtype).unwrap();
    let loss = (&ys * direction).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let grad = |v: &Var| grads.get(v).expect("every variable has a gradient").clone();
    let mut all = vec![ys.detach(), grad(&xs)];
    all.extend(vars.iter().map(grad));
    all
}

const CASES: [Case; 7] = [
    Case {
        images: 3,
        tokens: 5,
        width: 32,
        heads: 2,
        class_token_only: false,
        drop: Drop::Nothing,
    },
    Case {
        images: 3,
        tokens: 5,
        width: 32,
        heads: 2,
        class_token_only: true,
        drop: Drop::Nothing,
    },
    Case {
        images: 5,
        tokens: 17,
        width: 48,
        heads: 3,
        class_token_only: true,
        drop: Drop::Third,
    },
    Case {
        images: 5,
        tokens: 10,
        width: 48,
        heads: 3,
        class_token_only: false,
        drop: Drop::Third,
    },
    // Several chunks, the last one smaller.
    Case {
        images: 23,
        tokens: 65,
        width: 64,
        heads: 1,
        class_token_only: true,
        drop: Drop::Nothing,
    },
    Case {
        images: 23,
        tokens: 65,
        width: 32,
        heads: 2,
        class_token_only: true,
        drop: Drop::Most,
    },
    Case {
        images: 6,
        tokens: 4,
        width: 32,
        heads: 2,
        class_token_only: false,
        drop: Drop::Most,
    },
];

#[test]
fn the_fused_stack_equals_the_composed_one_in_values_and_gradients() {
    for (number, case) in CASES.iter().enumerate() {
        let fused = run(
            kernels::transformer_blocks,
            case,
            DType::F32,
            Precision::F32,
        );
        let composed: Stack = kernels::composed::transformer_blocks;
        // f64 takes the composed way through every operation inside, too.
        let exact = run(composed, case, DType::F64, Precision::F32);
        for (i, (ours, exact)) in fused.iter().zip(&exact).enumerate() {
            let d = apart(ours, exact);
            assert!(d < 1e-5, "case {number}, result {i}: {d:e} apart");
        }
    }
}

#[test]
fn dropped_images_without_gradients_equal_the_composed_stack() {
    let check = |case: &Case, factors: &[BranchFactors]| {
        let xs = values(&[case.images, case.tokens, case.width], 1, 1.0);
        let weights = detached(&variables(case.width, DType::F32));
        let options = BlockOptions {
            num_heads: case.heads,
            eps: 1e-6,
            class_token_only: case.class_token_only,
            precision: Precision::F32,
        };
        let ys = kernels::transformer_blocks(&xs, &weights, factors, options).unwrap();
        assert!(!ys.track_op());
        let composed = kernels::composed::transformer_blocks;
        let d = apart(&ys, &composed(&xs, &weights, factors, options).unwrap());
        assert!(d < 1e-5, "{factors:?}: {d:e} apart");
    };
    for case in CASES.iter().filter(|case| case.drop != Drop::Nothing) {
        check(case, &factors(case));
    }
    // Blocks that keep more images than the one before, fewer, and all.
    let kept = |branch: [f32; 5]| Some(branch.to_vec());
    let (one, three) = ([0.0, 2.0, 0.0, 0.0, 0.0], [1.5, 0.0, 1.5, 0.0, 1.5]);
    let block = |attention, mlp| BranchFactors { attention, mlp };
    let orders = [
        [
            block(kept(one), kept(one)),
            block(kept(three), kept([1.25; 5])),
            block(None, kept(one)),
        ],
        [
            block(kept(one), None),
            block(None, kept(three)),
            block(kept([1.25; 5]), None),
        ],
    ];
    for factors in &orders {
        check(&CASES[2], factors);
        check(&CASES[3], factors);
    }
}

#[test]
fn a_sink_gathers_the_same_gradients_over_two_passes() {
    let case = &CASES[2];
    let plain = run(
        kernels::transformer_blocks,
        case,
        DType::F32,
        Precision::F32,
    );
    let xs = values(&[case.images, case.tokens, case.width], 1, 1.0);
    let vars = variables(case.width, DType::F32);
    let options = BlockOptions {
        num_heads: case.heads,
        eps: 1e-6,
        class_token_only: true,
        precision: Precision::F32,
    };
    let mut sink = kernels::GradSink::default();
    for _ in 0..2 {
        let ys =
            kernels::transformer_blocks(&xs, &weights(&vars), &factors(case), options).unwrap();
        let direction = values(ys.dims(), 99, 1.0);
        let loss = (&ys * direction).unwrap().sum_all().unwrap();
        let store = sink.backward(&loss).unwrap();
        assert!(vars.iter().all(|v| store.get(v).is_none()));
    }
    for (var, plain) in vars.iter().zip(&plain[2..]) {
        let sum = sink.take(var).unwrap().expect("a sum for every variable");
        assert!(apart(&sum, &(plain * 2.0).unwrap()) < 1e-6);
        assert!(sink.take(var).unwrap().is_none());
    }
}

#[test]
fn a_sink_adds_up_the_gradients_of_a_block_that_is_used_twice() {
    let vars = variables(32, DType::F32);
    let [first, second, _] = &weights(&vars)[..] else {
        panic!("not {DEPTH} blocks")
    };
    let tied = [first, second, first].map(BlockWeights::clone);
    let options = BlockOptions {
        num_heads: 2,
        eps: 1e-6,
        class_token_only: false,
        precision: Precision::F32,
    };
    let xs = values(&[3, 5, 32], 1, 1.0);
    let loss = || {
        let ys = kernels::transformer_blocks(&xs, &tied, &[], options).unwrap();
        let direction = values(ys.dims(), 99, 1.0);
        (&ys * direction).unwrap().sum_all().unwrap()
    };
    let plain = loss().backward().unwrap();
    let mut sink = kernels::GradSink::default();
    for _ in 0..2 {
        sink.backward(&loss()).unwrap();
    }
    for var in &vars[..24] {
        let sum = sink.take(var).unwrap().expect("a sum for every variable");
        let twice = (plain.get(var).unwrap() * 2.0).unwrap();
        assert!(apart(&sum, &twice) < 1e-5, "{}", apart(&sum, &twice));
    }
}

#[test]
fn a_stack_in_bf16_stays_near_the_one_in_f32_and_rounds() {
    for case in [&CASES[0], &CASES[4], &CASES[5]] {
        let of = |precision| run(kernels::transformer_blocks, case, DType::F32, precision);
        let (exact, rounded) = (of(Precision::F32), of(Precision::Bf16));
        assert_eq!(exact.len(), rounded.len());
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let d = apart(rounded, exact);
            assert!(d < 4e-2, "{d:e} apart");
        }
        let d = apart(&rounded[0], &exact[0]);
        assert!(d > 1e-5, "{d:e}: nothing was rounded");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_of_a_stack() {
    for case in [&CASES[4], &CASES[5]] {
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |threads| {
                in_pool(threads, || {
                    let all = run(kernels::transformer_blocks, case, DType::F32, precision);
                    all.iter().map(bits).collect::<Vec<_>>()
                })
            };
            let expected = run(1);
            assert!(run(2) == expected && run(3) == expected, "{precision:?}");
        }
    }
}

#[test]
fn misfits_are_refused() {
    let vars = variables(32, DType::F32);
    let options = BlockOptions {
        num_heads: 2,
        eps: 1e-6,
        class_token_only: false,
        precision: Precision::F32,
    };
    let xs = values(&[2, 5, 32], 1, 1.0);
    let blocks = weights(&vars);
    let run = |xs: &Tensor, factors: &[BranchFactors], options| {
        kernels::transformer_blocks(xs, &blocks, factors, options)
    };
    assert!(run(&xs, &[], options).is_ok());
    assert!(run(&values(&[2, 5, 48], 1, 1.0), &[], options).is_err());
    let heads = BlockOptions {
        num_heads: 5,
        ..options
    };
    assert!(run(&xs, &[], heads).is_err());
    let too_many = BranchFactors {
        attention: Some(vec![1.0; 3]),
        mlp: None,
    };
    assert!(run(&xs, &vec![too_many; DEPTH], options).is_err());
    assert!(run(&xs, &[BranchFactors::default()], options).is_err());
    assert!(flat(&xs).iter().all(|x| x.is_finite()));
}

/// 3,000 tokens and two heads have more weights than are held at a time.
#[test]
fn many_tokens_are_evaluated_some_queries_at_a_time() {
    let case = Case {
        images: 1,
        tokens: 3000,
        width: 8,
        heads: 2,
        class_token_only: false,
        drop: Drop::Nothing,
    };
    let xs = values(&[case.images, case.tokens, case.width], 1, 1.0);
    let vars = variables(case.width, DType::F32);
    let weights = detached(&vars);
    let options = BlockOptions {
        num_heads: case.heads,
        eps: 1e-6,
        class_token_only: case.class_token_only,
        precision: Precision::F32,
    };
    let ys = kernels::transformer_blocks(&xs, &weights, &[], options).unwrap();
    let expected = kernels::composed::transformer_blocks(&xs, &weights, &[], options).unwrap();
    assert!(apart(&ys, &expected) < 1e-5, "{}", apart(&ys, &expected));
    let bytes = kernels::transformer_blocks_bytes([1, 3000, 8], 32, options, 2);
    assert!(
        bytes < 2 * 3000 * 3000 * 4,
        "{bytes}: less than all weights"
    );
}
