//! DINO out of the single crates, without the trainer: models, objectives and optim on drawn noise.
//!
//!     cargo run -p selfsame-train --example by_hand
//!
//! What the trainer adds: data, checkpoints, metrics, gradient accumulation, parts of a batch that
//! fit into memory, and refusing what is not finite before anything changes.

use std::io::Write;

use candle_core::{Device, Tensor};
use selfsame_models::{Arch, Draws, HeadConfig, Mode, ModelConfig, Network};
use selfsame_objectives::{Center, ScheduleConfig, Schedules, dino_loss, update_teacher};
use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind};

const BATCH: usize = 4;
const STEPS_PER_EPOCH: u64 = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let model = ModelConfig {
        arch: Arch::VitTiny,
        embed_dim: 64,
        depth: 2,
        num_heads: 1,
        patch_size: 8,
        image_size: 32,
        ..ModelConfig::default()
    };
    let head = HeadConfig {
        out_dim: 64,
        ..HeadConfig::default()
    };
    let (student, weights) = Network::new(&model, &head, 42, &device)?;
    let (teacher, teacher_weights) = Network::teacher_of(&model, &head, &weights)?;
    let schedule = ScheduleConfig {
        epochs: 2,
        warmup_epochs: 1,
        warmup_teacher_temp_epochs: 0,
        lr: 1e-3,
        ..ScheduleConfig::default()
    };
    let schedules = Schedules::new(&schedule, STEPS_PER_EPOCH)?;
    // Not `weights()`: frozen ones, such as lengths of prototypes, get no gradient.
    let trainable = weights.trainable();
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &trainable, Decayed::WeightsOnly)?;
    let mut center = Center::new(head.out_dim, 0.9, &device)?;

    // Views of one picture lie `BATCH` rows apart: two global ones, then two local ones.
    let global = Tensor::randn(0f32, 1.0, (2 * BATCH, 3, 32, 32), &device)?;
    let local = Tensor::randn(0f32, 1.0, (2 * BATCH, 3, 16, 16), &device)?;
    let mut out = std::io::stdout().lock();
    for step in 0..2 * STEPS_PER_EPOCH {
        let now = schedules.at(step);
        let mode = Mode::Train(Draws {
            seed: 42,
            step,
            ..Draws::default()
        });
        let teacher_logits = teacher.forward_all(std::slice::from_ref(&global), &mode)?; // [2B, K]
        let student_logits = student.forward_all(&[global.clone(), local.clone()], &mode)?; // [4B, K]
        let dino = dino_loss(
            &student_logits,
            &teacher_logits,
            center.tensor(),
            4,
            0.1,
            now.teacher_temp,
        )?;

        let mut grads = Grads::backward(&dino.loss, &trainable)?;
        let norm = grads.clip(3.0, ClipMode::Global)?;
        if !norm.is_finite() {
            return Err(format!("step {step}: the gradient's norm is {norm}").into());
        }
        if step < STEPS_PER_EPOCH {
            grads.drop_prefix("head.last_layer");
        }
        optimizer.step(&trainable, &grads, now.lr, now.weight_decay)?;
        update_teacher(teacher_weights.weights(), weights.weights(), now.momentum)?;
        center.update(&teacher_logits.mean_keepdim(0)?)?;
        let loss = dino.loss.to_scalar::<f32>()?;
        writeln!(out, "step {step:>2}: loss {loss:.4}, gradient {norm:.3}")?;
    }
    Ok(())
}
