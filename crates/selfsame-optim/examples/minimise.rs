//! Walks each optimizer down the Rosenbrock valley and prints where it is.
//!
//! ```text
//! cargo run -p selfsame-optim --example minimise
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use candle_core::{Device, Result, Tensor, Var};
use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind};

const STEPS: u32 = 1000;

/// (1 − x)² + 20·(y − x²)²: a bent valley with its lowest point at (1, 1).
fn rosenbrock(point: &Tensor) -> Result<Tensor> {
    let (x, y) = (point.get(0)?.get(0)?, point.get(0)?.get(1)?);
    let along = x.affine(-1.0, 1.0)?.sqr()?;
    let across = (y - x.sqr()?)?.sqr()?;
    along + (across * 20.0)?
}

fn main() -> Result<()> {
    let mut out = io::stdout().lock();
    for (kind, lr) in [
        (OptimizerKind::AdamW, 0.02),
        (OptimizerKind::Sgd, 0.001),
        (OptimizerKind::Lars, 2.0),
    ] {
        let point = Var::new(&[[-1.2f32, 1.0]], &Device::Cpu)?;
        let weights = BTreeMap::from([("point".to_owned(), point)]);
        let mut optimizer = Optimizer::new(kind, &weights, Decayed::WeightsOnly)?;
        writeln!(out, "{kind:?}, learning rate {lr}")?;
        for step in 0..=STEPS {
            let loss = rosenbrock(&weights["point"])?;
            let mut grads = Grads::backward(&loss, &weights)?;
            let norm = grads.clip(3.0, ClipMode::Global)?;
            if step % (STEPS / 5) == 0 {
                let at = weights["point"].get(0)?.to_vec1::<f32>()?;
                let loss = loss.to_scalar::<f32>()?;
                writeln!(
                    out,
                    "  step {step:4}: ({:7.4}, {:7.4})  loss {loss:9.6}  gradient {norm:9.5}",
                    at[0], at[1]
                )?;
            }
            // Weight decay would pull the point away from (1, 1).
            optimizer.step(&weights, &grads, lr, 0.0)?;
        }
    }
    Ok(())
}
