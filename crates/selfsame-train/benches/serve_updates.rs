//! One side of `cargo xtask bench-peer updates`: clipping, AdamW and the momentum teacher of a
//! ViT-S/16 with the notebook's head.
//!
//! Reads a number of steps per line, does them and answers with the seconds they took.
//! Argument: the number of threads.
#![expect(clippy::print_stdout, reason = "the answers go to the standard output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead};
use std::time::Instant;

use candle_core::{Device, Tensor};
use selfsame_models::{HeadConfig, ModelConfig, Network};
use selfsame_objectives::update_teacher;
use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads] = &arguments[..] else {
        // `cargo bench` starts every bench with an argument of its own, or with none.
        eprintln!("run by cargo xtask bench-peer updates");
        return Ok(());
    };
    let Ok(threads) = threads.parse() else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;

    let (model, head) = (ModelConfig::default(), HeadConfig::default());
    let (_student, student) = Network::new(&model, &head, 0, &Device::Cpu)?;
    let (_teacher, teacher) = Network::teacher_of(&model, &head, &student)?;
    let weights = student.trainable();
    let gradient =
        |weight: &candle_core::Var| Tensor::randn(0f32, 0.01, weight.shape(), &Device::Cpu);
    let gradients: BTreeMap<String, Tensor> = weights
        .iter()
        .map(|(name, weight)| Ok((name.clone(), gradient(weight)?)))
        .collect::<candle_core::Result<_>>()?;
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &weights, Decayed::All)?;

    println!("ready");
    for line in io::stdin().lock().lines() {
        let steps: usize = line?.trim().parse()?;
        let start = Instant::now();
        for _ in 0..steps {
            let mut grads = Grads::new(gradients.clone());
            grads.clip(3.0, ClipMode::Global)?;
            optimizer.step(&weights, &grads, 1e-4, 0.04)?;
            update_teacher(teacher.weights(), student.weights(), 0.996)?;
        }
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
