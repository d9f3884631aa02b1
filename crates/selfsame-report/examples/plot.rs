//! Draws the curves of an imagined run: writes `curves.png` and `curves.svg`.
//!
//! `cargo run -p selfsame-report --example plot [FOLDER]`

use std::error::Error;
use std::path::PathBuf;

use selfsame_report::{LossPoint, curves, render_png};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_string()));
    let (epochs, steps_per_epoch, warmup) = (100.0, 160, 10.0);
    let points: Vec<LossPoint> = (0..16_000)
        .step_by(10)
        .map(|step| {
            let epoch = f64::from(step) / f64::from(steps_per_epoch);
            // Any quickly turning function does for noise.
            let noise = (f64::from(step) * 12.9898).sin() * (f64::from(step) * 0.7331).cos();
            let floor = 2.1 + 5.4 * (-epoch / 9.0).exp();
            let loss = floor + 0.6 + 1.5 * (1.0 - (-epoch / 3.0).exp()) * (-epoch / 60.0).exp();
            let cosine = (std::f64::consts::PI * (epoch - warmup) / (epochs - warmup)).cos();
            let lr = if epoch < warmup {
                epoch / warmup
            } else {
                0.5 * (1.0 + cosine)
            };
            LossPoint {
                epoch,
                loss: loss.min(7.62) + 0.12 * noise,
                loss_floor: floor.min(7.5) + 0.05 * noise,
                lr: 6.25e-5 * lr,
            }
        })
        .collect();
    let svg = curves(&points, 2048);
    std::fs::write(folder.join("curves.svg"), &svg)?;
    std::fs::write(folder.join("curves.png"), render_png(&svg, 2.0)?)?;
    Ok(())
}
