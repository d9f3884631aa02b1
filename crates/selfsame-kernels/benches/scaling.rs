//! How much faster two threads are than one: blocks of a ViT-S/16 forward and backward, beside
//! products alone, which is what bounds them; not run in CI.
//!
//! All are done in turns, so that what else the machine does slows them alike.
#![expect(clippy::print_stdout, reason = "what was measured is its output")]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use selfsame_kernels::{BlockOptions, BlockWeights, Precision, linear, transformer_blocks};

/// Tokens, width and hidden width of a ViT-S/16 on 128 × 128 pixels.
const SIZES: [usize; 3] = [65, 384, 1536];
const IMAGES: usize = 32;
const BLOCKS: usize = 4;
const TURNS: usize = 15;

fn var(shape: &[usize]) -> Result<Var> {
    Var::randn(0f32, 0.05, shape, &Device::Cpu)
}

fn block() -> Result<BlockWeights> {
    let [_, d, f] = SIZES;
    let pair = |shape: &[usize]| -> Result<(Tensor, Tensor)> {
        let (weight, bias) = (var(shape)?, var(&shape[..1])?);
        Ok((weight.as_tensor().clone(), bias.as_tensor().clone()))
    };
    Ok(BlockWeights {
        norm1: pair(&[d])?,
        qkv: pair(&[3 * d, d])?,
        proj: pair(&[d, d])?,
        norm2: pair(&[d])?,
        fc1: pair(&[f, d])?,
        fc2: pair(&[d, f])?,
    })
}

fn main() -> Result<()> {
    let [tokens, d, f] = SIZES;
    let xs = var(&[IMAGES, tokens, d])?;
    let weights = (0..BLOCKS).map(|_| block()).collect::<Result<Vec<_>>>()?;
    let step = |precision| {
        let options = BlockOptions {
            num_heads: 6,
            eps: 1e-6,
            class_token_only: false,
            precision,
        };
        let ys = transformer_blocks(&xs, &weights, &[], options);
        black_box(ys.and_then(|ys| ys.backward()).expect("the shapes fit"));
    };
    // Rows enough for some hundred milliseconds of products and nothing else.
    let rows = Tensor::randn(0f32, 1.0, (BLOCKS * IMAGES * tokens, d), &Device::Cpu)?;
    let weight = Tensor::randn(0f32, 0.05, (f, d), &Device::Cpu)?;
    let products = || {
        for _ in 0..4 {
            black_box(linear(&rows, &weight, None).expect("the shapes fit"));
        }
    };
    let pools = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads start")
    });
    let ratio = |work: &(dyn Fn() + Sync)| {
        let [one, two] = [0, 1].map(|i: usize| {
            let start = Instant::now();
            pools[i].install(work);
            start.elapsed().as_secs_f64()
        });
        one / two
    };
    let mut ratios = [(); 3].map(|()| Vec::new());
    for _ in 0..TURNS {
        ratios[0].push(ratio(&products));
        ratios[1].push(ratio(&|| step(Precision::F32)));
        ratios[2].push(ratio(&|| step(Precision::Bf16)));
    }
    let [products, full, half] = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        ratios[TURNS / 2]
    });
    println!(
        "two threads are faster than one: products {products:.2} times, blocks {full:.2} ({:.2} of \
         it), blocks in bf16 {half:.2} ({:.2} of it)",
        full / products,
        half / products
    );
    Ok(())
}
