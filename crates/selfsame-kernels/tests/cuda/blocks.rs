//! Transformer blocks and what stands before and behind them.

use candle_core::{DType, Device, Result, Tensor, Var};
use selfsame_kernels::{
    self as kernels, BlockOptions, BlockWeights, BranchFactors, GradSink, Precision,
};

use super::{apart, compare, flat, gpu, run, values};

/// One block, whose twelve weights follow the tokens.
fn block(x: &[Tensor], precision: Precision) -> Result<Tensor> {
    let pair = |i: usize| (x[i].clone(), x[i + 1].clone());
    let weights = BlockWeights {
        norm1: pair(1),
        qkv: pair(3),
        proj: pair(5),
        norm2: pair(7),
        fc1: pair(9),
        fc2: pair(11),
    };
    let options = BlockOptions {
        num_heads: 2,
        eps: 1e-6,
        class_token_only: false,
        precision,
    };
    kernels::transformer_blocks(&x[0], &[weights], &[], options)
}

#[test]
#[ignore = "needs cuda"]
fn a_transformer_block_is_the_cpus_in_both_precisions() {
    let (d, f) = (128, 512);
    let shapes: [&[usize]; 13] = [
        &[2, 37, d],
        &[d],
        &[d],
        &[3 * d, d],
        &[3 * d],
        &[d, d],
        &[d],
        &[d],
        &[d],
        &[f, d],
        &[f],
        &[d, f],
        &[d],
    ];
    let inputs: Vec<Tensor> = (1..)
        .zip(shapes)
        .map(|(seed, shape)| values(shape, seed, if seed == 1 { 1.0 } else { 0.15 }))
        .collect();
    let op = |x: &[Tensor]| block(x, Precision::F32);
    compare("block", &op, &inputs, 0, DType::F32);
    let want = run(&op, &inputs);
    let on_gpu: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.to_device(&gpu()).unwrap())
        .collect();
    let got = run(&|x| block(x, Precision::Bf16), &on_gpu);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(
            got.dtype(),
            DType::F32,
            "masters and their gradients are f32"
        );
        let d = apart(got, want);
        assert!(d < 4e-2, "block in bf16, result {i}: {d:e} apart");
    }
}

/// Two blocks with drop path; inputs are the tokens and twelve weights for each.
fn stack_of(
    x: &[Tensor],
    num_heads: usize,
    precision: Precision,
    class_token_only: bool,
) -> Result<Tensor> {
    let pair = |i: usize| (x[i].clone(), x[i + 1].clone());
    let block = |first: usize| BlockWeights {
        norm1: pair(first),
        qkv: pair(first + 2),
        proj: pair(first + 4),
        norm2: pair(first + 6),
        fc1: pair(first + 8),
        fc2: pair(first + 10),
    };
    let factors = |attention: [f32; 3], mlp: [f32; 3]| BranchFactors {
        attention: Some(attention.into()),
        mlp: Some(mlp.into()),
    };
    let options = BlockOptions {
        num_heads,
        eps: 1e-6,
        class_token_only,
        precision,
    };
    let factors = [
        factors([1.0, 0.0, 1.25], [1.25, 1.0, 0.5]),
        factors([0.0, 1.5, 1.0], [1.0, 2.0, 0.0]),
    ];
    kernels::transformer_blocks(&x[0], &[block(1), block(13)], &factors, options)
}

/// Three images and the weights of two blocks.
fn stack_inputs(d: usize, f: usize, tokens: usize) -> Vec<Tensor> {
    let shapes: [&[usize]; 12] = [
        &[d],
        &[d],
        &[3 * d, d],
        &[3 * d],
        &[d, d],
        &[d],
        &[d],
        &[d],
        &[f, d],
        &[f],
        &[d, f],
        &[d],
    ];
    let mut inputs = vec![values(&[3, tokens, d], 1, 1.0)];
    for (seed, shape) in (2..).zip([shapes, shapes].concat()) {
        inputs.push(values(shape, seed, 0.12));
    }
    inputs
}

#[test]
#[ignore = "needs cuda"]
fn a_stack_of_blocks_with_drop_path_is_the_cpus() {
    let inputs = stack_inputs(192, 384, 37);
    for class_only in [false, true] {
        let op = |x: &[Tensor]| stack_of(x, 3, Precision::F32, class_only);
        compare("stack", &op, &inputs, 0, DType::F32);
        let want = run(&op, &inputs);
        let on_gpu: Vec<Tensor> = inputs
            .iter()
            .map(|x| x.to_device(&gpu()).unwrap())
            .collect();
        let got = run(&|x| stack_of(x, 3, Precision::Bf16, class_only), &on_gpu);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let d = apart(got, want);
            assert!(d < 4e-2, "stack in bf16, result {i}: {d:e} apart");
        }
    }
}

/// A sink gets the very gradients that candle's graph would give, of one pass or two.
#[test]
#[ignore = "needs cuda"]
fn a_sink_gets_the_gradients_of_a_stack() {
    let inputs = stack_inputs(64, 96, 10);
    let vars: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(&x.to_device(&gpu()).unwrap()).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let loss = || {
        let ys = stack_of(&tensors, 2, Precision::F32, true)?;
        ys.sqr()?.sum_all()
    };
    let want = loss().unwrap().backward().unwrap();
    let mut sink = GradSink::default();
    for _ in 0..2 {
        let loss = GradSink::recording(loss).unwrap();
        sink.backward(&loss).unwrap();
    }
    for var in &vars[1..] {
        let twice = (want.get(var).unwrap() * 2.0).unwrap();
        let got = sink.take(var.as_tensor()).unwrap().unwrap();
        assert_eq!(flat(&got), flat(&twice));
    }
    assert!(GradSink::recording(loss).unwrap().backward().is_err());
}

#[test]
#[ignore = "needs cuda"]
fn patches_and_tokens_are_the_cpus() {
    let crops = values(&[3, 3, 12, 18], 1, 1.0);
    let inputs = [values(&[10, 108], 2, 0.3), values(&[7, 10], 3, 0.5)];
    for (precision, tolerance) in [(Precision::F32, 5e-6), (Precision::Bf16, 1e-2)] {
        let op = |x: &[Tensor]| match x[0].device() {
            Device::Cpu => {
                let patches = kernels::patchify(&crops, 6)?;
                let product = kernels::linear(&patches, &x[0], None)?;
                let first = Tensor::zeros((3, 1, 10), DType::F32, &Device::Cpu)?;
                Tensor::cat(&[&first, &product], 1)?.broadcast_add(&x[1])
            }
            device => {
                let crops = crops.to_device(device)?;
                kernels::patch_tokens(&crops, &x[0], &x[1], 6, precision)
            }
        };
        let on_gpu: Vec<Tensor> = inputs
            .iter()
            .map(|x| x.to_device(&gpu()).unwrap())
            .collect();
        for (i, (got, want)) in run(&op, &on_gpu).iter().zip(run(&op, &inputs)).enumerate() {
            let d = apart(got, &want);
            assert!(
                d < tolerance,
                "tokens {precision:?}, result {i}: {d:e} apart"
            );
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn rows_of_a_length_are_the_cpus() {
    let inputs = [values(&[37, 64], 1, 1.0), values(&[130, 64], 2, 0.5)];
    let length = values(&[130, 1], 3, 1.5);
    let op = |x: &[Tensor]| {
        let length = length.to_device(x[0].device())?;
        let ys = kernels::normalized_linear(&x[0], &x[1], Some(&length), 1e-12)?;
        ys.to_dtype(x[0].dtype())
    };
    compare("normalized_linear", &op, &inputs, 0, DType::F32);
    compare("normalized_linear", &op, &inputs, 1, DType::BF16);
    // Lengths of another type are taken as f32.
    let rounded = length.to_dtype(DType::BF16).unwrap();
    let op = |x: &[Tensor]| {
        let length = rounded.to_device(x[0].device())?;
        kernels::normalized_linear(&x[0], &x[1], Some(&length), 1e-12)
    };
    compare("normalized_linear", &op, &inputs, 0, DType::F32);
    let op = |x: &[Tensor]| kernels::l2_normalize_last_dim(&x[0], 1e-12);
    compare("l2_normalize", &op, &inputs[..1], 0, DType::F32);
}
