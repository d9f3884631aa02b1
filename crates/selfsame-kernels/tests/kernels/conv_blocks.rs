//! A stack of convolution blocks as one operation, against its blocks one by one.

use crate::common::{apart, check, run, values};
use crate::threads::{bits, in_pool};
use candle_core::{Result, Tensor, Var};
use selfsame_kernels::{
    self as kernels, ConvBlock, ConvNorm, GradSink, MaxPool, Precision, Shortcut,
};

/// Output channels, kernel (height and width), stride and padding.
#[derive(Clone, Copy)]
struct Layer(usize, (usize, usize), usize, usize);

/// What a stack is made of.
#[derive(Clone)]
struct Block {
    branch: Vec<Layer>,
    shortcut: Shortcut<Layer>,
    pool: Option<MaxPool>,
}

fn square(out: usize, kernel: usize, stride: usize) -> Layer {
    Layer(out, (kernel, kernel), stride, kernel / 2)
}

fn block(branch: &[Layer], shortcut: Shortcut<Layer>) -> Block {
    Block {
        branch: branch.to_vec(),
        shortcut,
        pool: None,
    }
}

fn stem(out: usize) -> Block {
    Block {
        pool: Some(MaxPool {
            kernel: 3,
            stride: 2,
            padding: 1,
        }),
        ..block(&[square(out, 7, 2)], Shortcut::Nothing)
    }
}

/// 1×1, 3×3 and 1×1 to `out` channels.
fn bottleneck(width: usize, out: usize, stride: usize, shortcut: Shortcut<Layer>) -> Block {
    let branch = [
        square(width, 1, 1),
        square(width, 3, stride),
        square(out, 1, 1),
    ];
    block(&branch, shortcut)
}

/// Images and the weights of all layers in the order of the statistics.
fn inputs(shape: [usize; 4], blocks: &[Block]) -> Vec<Tensor> {
    let mut tensors = vec![values(&shape, 1, 1.0)];
    let mut channels = shape[1];
    for block in blocks {
        let input = channels;
        let mut add = |Layer(out, (kh, kw), _, _): Layer, channels: usize| {
            let seed = tensors.len() as u64 + 1;
            tensors.push(values(&[out, channels, kh, kw], seed, 1.0));
            tensors.push((values(&[out], seed + 1, 0.5).affine(1.0, 1.0)).unwrap());
            tensors.push(values(&[out], seed + 2, 0.5));
        };
        for layer in &block.branch {
            add(*layer, channels);
            channels = layer.0;
        }
        if let Some(layer) = block.shortcut.projection() {
            add(*layer, input);
        }
    }
    tensors
}

/// The stack with its weights.
fn with_weights<'a>(weights: &'a [Tensor], blocks: &[Block]) -> Vec<ConvBlock<'a>> {
    let mut weights = weights.chunks_exact(3);
    let mut layer = |Layer(_, _, stride, padding): Layer| {
        let [weight, scale, bias] = weights.next().unwrap() else {
            unreachable!()
        };
        ConvNorm {
            weight,
            norm: [scale, bias],
            stride,
            padding,
        }
    };
    let mut all = Vec::new();
    for block in blocks {
        all.push(ConvBlock {
            branch: block.branch.iter().map(|of| layer(*of)).collect(),
            shortcut: match block.shortcut {
                Shortcut::Nothing => Shortcut::Nothing,
                Shortcut::Input => Shortcut::Input,
                Shortcut::Projection(of) => Shortcut::Projection(layer(of)),
            },
            pool: block.pool,
        });
    }
    all
}

/// Result and statistics of the stack, as one operation or block by block.
fn stack(t: &[Tensor], blocks: &[Block], whole: bool) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    let all = with_weights(&t[1..], blocks);
    if whole {
        return kernels::conv_blocks_train(&t[0], &all, 1e-3, Precision::F32);
    }
    let (mut ys, mut stats) = (t[0].clone(), Vec::new());
    for block in &all {
        let (branch, shortcut) = (&block.branch, block.shortcut);
        let (next, own) = kernels::conv_block_train(&ys, branch, shortcut, 1e-3, Precision::F32)?;
        stats.extend(own);
        ys = match block.pool {
            None => next,
            Some(of) => kernels::max_pool2d(&next, of.kernel, of.stride, of.padding)?,
        };
    }
    Ok((ys, stats))
}

fn small_stacks() -> Vec<([usize; 4], Vec<Block>)> {
    let input = Shortcut::Input;
    vec![
        ([3, 3, 17, 14], vec![stem(5)]),
        ([2, 5, 5, 6], vec![bottleneck(4, 5, 1, input)]),
        (
            [3, 4, 7, 6],
            vec![bottleneck(3, 18, 2, Shortcut::Projection(square(18, 1, 2)))],
        ),
        (
            [2, 3, 6, 5],
            vec![
                block(
                    &[square(4, 3, 2), square(4, 3, 1)],
                    Shortcut::Projection(square(4, 1, 2)),
                ),
                block(&[square(4, 3, 1), square(4, 3, 1)], input),
            ],
        ),
        // Padding as wide as the kernel, and kernels that are not square: no turned kernels.
        (
            [2, 3, 4, 5],
            vec![block(
                &[Layer(2, (1, 1), 1, 1), Layer(3, (3, 1), 1, 1)],
                Shortcut::Nothing,
            )],
        ),
        // More padding than positions, a turned kernel without padding.
        (
            [2, 2, 2, 2],
            vec![block(
                &[Layer(3, (5, 5), 1, 4), Layer(2, (3, 3), 1, 0)],
                Shortcut::Nothing,
            )],
        ),
        ([4, 3, 1, 1], vec![block(&[square(3, 3, 1)], input)]),
        (
            [2, 3, 20, 16],
            vec![
                stem(4),
                bottleneck(3, 6, 1, Shortcut::Projection(square(6, 1, 1))),
                bottleneck(3, 6, 1, input),
            ],
        ),
    ]
}

#[test]
fn stacks_have_the_right_gradient() {
    for (shape, blocks) in small_stacks() {
        check(
            "conv_blocks_train",
            &|t| Ok(stack(t, &blocks, true)?.0),
            &|t| Ok(stack(t, &blocks, false)?.0),
            &inputs(shape, &blocks),
            2e-5,
        );
    }
}

/// Channels and positions that several bands, parts and pieces of a weight are made of.
fn large_stacks() -> Vec<([usize; 4], Vec<Block>)> {
    vec![
        (
            [3, 3, 66, 62],
            vec![stem(32), bottleneck(16, 32, 1, Shortcut::Input)],
        ),
        (
            [9, 180, 6, 5],
            vec![
                bottleneck(180, 300, 2, Shortcut::Projection(square(300, 1, 2))),
                block(&[square(1024, 1, 1)], Shortcut::Nothing),
            ],
        ),
    ]
}

#[test]
fn large_stacks_equal_their_blocks_one_by_one() {
    for (shape, blocks) in large_stacks() {
        let t = inputs(shape, &blocks);
        let (ys, grads) = run(&|t| Ok(stack(t, &blocks, true)?.0), &t);
        let (expected, expected_grads) = run(&|t| Ok(stack(t, &blocks, false)?.0), &t);
        assert!(apart(&ys, &expected) < 1e-5);
        for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
            let d = apart(grad, expected);
            assert!(
                d < 1e-4,
                "{shape:?}: gradients of input {i} are {d:e} apart"
            );
        }
        let (_, stats) = stack(&t, &blocks, true).unwrap();
        let (_, expected) = stack(&t, &blocks, false).unwrap();
        assert_eq!(stats.len(), (t.len() - 1) / 3);
        for (stats, expected) in stats.iter().zip(&expected) {
            assert!(apart(&stats[0], &expected[0]) < 1e-5);
            assert!(apart(&stats[1], &expected[1]) < 1e-5);
        }
    }
}

/// Means and variances of all layers.
fn running(t: &[Tensor]) -> Vec<[Tensor; 2]> {
    let layers = t[1..].chunks_exact(3).zip(50..);
    let stats = layers.map(|(layer, seed)| {
        let shape = layer[1].dims();
        let variance = values(shape, seed + 100, 0.5).affine(1.0, 1.0).unwrap();
        [values(shape, seed, 0.5), variance]
    });
    stats.collect()
}

/// The result with given statistics, as one operation or block by block.
fn evaluated(
    t: &[Tensor],
    blocks: &[Block],
    running: &[[Tensor; 2]],
    whole: bool,
) -> Result<Tensor> {
    let all = with_weights(&t[1..], blocks);
    let converted = |of: &Tensor| of.to_dtype(t[0].dtype());
    let running = running.iter();
    let running = running.map(|[mean, var]| Ok([converted(mean)?, converted(var)?]));
    let running = running.collect::<Result<Vec<_>>>()?;
    let running: Vec<_> = running.iter().map(|[mean, var]| [mean, var]).collect();
    if whole {
        return kernels::conv_blocks_eval(&t[0], &all, &running, 1e-3, Precision::F32);
    }
    let (mut ys, mut rest) = (t[0].clone(), &running[..]);
    for block in &all {
        let layers = block.branch.len() + usize::from(block.shortcut.projection().is_some());
        let (own, after) = rest.split_at(layers.min(rest.len()));
        rest = after;
        let (branch, shortcut) = (&block.branch, block.shortcut);
        ys = kernels::conv_block_eval(&ys, branch, shortcut, own, 1e-3, Precision::F32)?;
        if let Some(of) = block.pool {
            ys = kernels::max_pool2d(&ys, of.kernel, of.stride, of.padding)?;
        }
    }
    Ok(ys)
}

#[test]
fn evaluated_stacks_equal_their_blocks_one_by_one() {
    let one_value = (
        [1, 4, 1, 1],
        vec![block(&[square(3, 3, 1)], Shortcut::Nothing)],
    );
    // Two images in a group, and one in the last.
    let groups = (
        [3, 2, 1001, 1000],
        vec![block(&[square(8, 1, 1)], Shortcut::Nothing)],
    );
    let stacks = small_stacks().into_iter().chain(large_stacks());
    for (shape, blocks) in stacks.chain([one_value, groups]) {
        let t = inputs(shape, &blocks);
        let running = running(&t);
        let expected = evaluated(&t, &blocks, &running, false).unwrap();
        let evaluate =
            |threads| in_pool(threads, || evaluated(&t, &blocks, &running, true).unwrap());
        let ys = evaluate(1);
        assert_eq!(ys.dims(), expected.dims());
        assert!(apart(&ys, &expected) < 1e-5, "{shape:?}");
        assert!(bits(&ys) == bits(&evaluate(3)), "{shape:?}");
    }
}

#[test]
fn evaluated_stacks_have_a_gradient() {
    let (shape, blocks) = small_stacks().pop().unwrap();
    let t = inputs(shape, &blocks);
    let running = running(&t);
    check(
        "conv_blocks_eval",
        &|t| evaluated(t, &blocks, &running, true),
        &|t| evaluated(t, &blocks, &running, false),
        &t,
        2e-5,
    );
}

#[test]
fn stacks_do_not_depend_on_threads() {
    for (shape, blocks) in small_stacks().into_iter().chain(large_stacks()) {
        let t = inputs(shape, &blocks);
        let run = |threads| {
            in_pool(threads, || {
                let (ys, grads) = run(&|t| Ok(stack(t, &blocks, true)?.0), &t);
                (bits(&ys), grads.iter().map(bits).collect::<Vec<_>>())
            })
        };
        let expected = run(1);
        assert!(run(2) == expected && run(3) == expected, "{shape:?}");
    }
}

#[test]
fn a_second_backward_pass_and_a_sink_give_the_same_gradients() {
    let (shape, blocks) = small_stacks().pop().unwrap();
    let t = inputs(shape, &blocks);
    let vars: Vec<Var> = t.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    // The images get no gradient here.
    let mut tensors = vec![t[0].clone()];
    tensors.extend(vars[1..].iter().map(|v| v.as_tensor().clone()));
    let (ys, _) = stack(&tensors, &blocks, true).unwrap();
    let loss = (&ys * values(ys.dims(), 99, 1.0))
        .unwrap()
        .sum_all()
        .unwrap();
    let expected = run(&|t| Ok(stack(t, &blocks, true)?.0), &t).1;
    let mut sink = GradSink::default();
    for pass in 1..=2 {
        let store = loss.backward().unwrap();
        sink.backward(&loss).unwrap();
        for (var, expected) in vars.iter().zip(&expected).skip(1) {
            let grad = store.get(var).unwrap();
            assert!(apart(grad, expected) < 1e-6, "pass {pass}");
        }
    }
    for (var, expected) in vars.iter().zip(&expected).skip(1) {
        let twice = sink.take(var).unwrap().unwrap();
        assert!(apart(&twice, &(expected * 2.0).unwrap()) < 1e-6);
    }
    assert!(sink.take(&vars[0]).unwrap().is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let blocks = [block(&[square(4, 3, 2)], Shortcut::Input)];
    let error = stack(&inputs([2, 4, 6, 6], &blocks), &blocks, true).unwrap_err();
    assert!(error.to_string().contains("cannot be added"), "{error}");
    let blocks = [block(&[square(4, 3, 1)], Shortcut::Nothing)];
    let error = stack(&inputs([1, 4, 1, 1], &blocks), &blocks, true).unwrap_err();
    assert!(error.to_string().contains("no variance"), "{error}");
    let t = inputs([2, 4, 6, 6], &blocks);
    for whole in [true, false] {
        let error = evaluated(&t, &blocks, &[], whole).unwrap_err();
        assert!(error.to_string().contains("0 layers"), "{error}");
        let wrong = [values(&[3], 1, 1.0), values(&[3], 2, 1.0)];
        let error = evaluated(&t, &blocks, &[wrong], whole).unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
    }
}
