//! Saves two checkpoints, damages one byte of the newer one and shows what loading says.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Write, stdout};

use candle_core::{Device, Tensor};
use selfsame_checkpoint::{Checkpoint, RunLock, checkpoint_dir, list, load_newest, save};

fn main() -> Result<(), Box<dyn Error>> {
    let run_dir = std::env::temp_dir().join(format!("selfsame-survive-{}", std::process::id()));
    let mut out = stdout().lock();

    let lock = RunLock::acquire(&run_dir)?;
    if let Err(refusal) = RunLock::acquire(&run_dir) {
        writeln!(out, "a second trainer: {refusal}")?;
    }

    for step in [100u32, 200] {
        let weight = Tensor::full(step as f32, (64, 64), &Device::Cpu)?;
        let student = BTreeMap::from([("backbone.cls_token".to_string(), weight)]);
        let checkpoint = Checkpoint {
            step: step.into(),
            epoch: u64::from(step / 100),
            config: "seed = 42\n".to_string(),
            extra: serde_json::Value::Null,
            files: BTreeMap::from([("student".to_string(), student)]),
        };
        save(&run_dir, &checkpoint, 3)?;
    }
    for (step, dir) in list(&run_dir)? {
        writeln!(out, "saved step {step}: {}", dir.display())?;
    }

    let victim = checkpoint_dir(&run_dir, 200).join("student.safetensors");
    let mut bytes = fs::read(&victim)?;
    bytes[5000] ^= 1;
    fs::write(&victim, bytes)?;

    if let Some((checkpoint, warnings)) = load_newest(&run_dir, &Device::Cpu)? {
        for warning in warnings {
            writeln!(out, "warning: {warning}")?;
        }
        writeln!(out, "loaded step {}", checkpoint.step)?;
    }

    drop(lock);
    fs::remove_dir_all(&run_dir)?;
    Ok(())
}
