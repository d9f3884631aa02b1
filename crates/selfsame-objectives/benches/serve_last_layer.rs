//! One side of `cargo xtask bench-peer last-layer`: the official last layer with 65,536 prototypes
//! for student and teacher, the loss, its gradients and the centre; 16 images in 10 views.
//!
//! Reads a number of steps per line, does them and answers with the seconds they took.
//! Argument: the number of threads.
#![expect(clippy::print_stdout, reason = "the answers go to the standard output")]

use std::error::Error;
use std::io::{self, BufRead};
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use selfsame_kernels::{keep_freed_memory, normalized_linear};
use selfsame_objectives::{Center, dino_loss};

const IMAGES: usize = 16;
const VIEWS: usize = 10;
const BOTTLENECK: usize = 256;
const PROTOTYPES: usize = 65_536;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads] = &arguments[..] else {
        // `cargo bench` starts every bench with an argument of its own, or with none.
        eprintln!("run by cargo xtask bench-peer last-layer");
        return Ok(());
    };
    let Ok(threads) = threads.parse() else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;

    let cpu = Device::Cpu;
    // As training does.
    keep_freed_memory(&cpu)?;
    let features = |rows: usize| Tensor::randn(0f32, 1.0, (rows, BOTTLENECK), &cpu);
    let student_features = Var::from_tensor(&features(VIEWS * IMAGES)?)?;
    let teacher_features = features(2 * IMAGES)?;
    let student_weight = Var::from_tensor(&features(PROTOTYPES)?)?;
    let teacher_weight = features(PROTOTYPES)?;
    let mut center = Center::new(PROTOTYPES, 0.9, &cpu)?;

    println!("ready");
    for line in io::stdin().lock().lines() {
        let steps: usize = line?.trim().parse()?;
        let start = Instant::now();
        for _ in 0..steps {
            let teacher = normalized_linear(&teacher_features, &teacher_weight, None, 1e-12)?;
            let student = normalized_linear(&student_features, &student_weight, None, 1e-12)?;
            let found = dino_loss(&student, &teacher, center.tensor(), VIEWS, 0.1, 0.04)?;
            let gradients = found.loss.backward()?;
            for weight in [&student_weight, &student_features] {
                gradients.get(weight).ok_or("a weight without a gradient")?;
            }
            center.update(&teacher.mean_keepdim(0)?)?;
        }
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
