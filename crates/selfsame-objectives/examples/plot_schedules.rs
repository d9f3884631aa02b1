//! Draws the schedules of a run, or writes them as CSV.
//!
//! ```text
//! cargo run -p selfsame-objectives --example plot_schedules              # the notebook's, drawn
//! cargo run -p selfsame-objectives --example plot_schedules -- --csv     # step,lr,…
//! ```

use std::error::Error;
use std::io::{self, Write};

use selfsame_objectives::{Now, ScheduleConfig, Schedules};

const STEPS_PER_EPOCH: u64 = 100;
const WIDTH: u64 = 72;
const HEIGHT: usize = 8;

/// A name, and how to read that value.
type Curve = (&'static str, fn(&Now) -> f64);

const CURVES: [Curve; 4] = [
    ("lr", |now| now.lr),
    ("weight_decay", |now| now.weight_decay),
    ("momentum", |now| now.momentum),
    ("teacher_temp", |now| now.teacher_temp),
];

fn main() -> Result<(), Box<dyn Error>> {
    let schedules = Schedules::new(&ScheduleConfig::default(), STEPS_PER_EPOCH)?;
    let mut out = io::stdout().lock();
    if std::env::args().any(|arg| arg == "--csv") {
        write_csv(&mut out, &schedules)?;
    } else {
        for curve in CURVES {
            draw(&mut out, &schedules, curve)?;
        }
    }
    Ok(())
}

fn write_csv(out: &mut impl Write, schedules: &Schedules) -> io::Result<()> {
    writeln!(out, "step,{}", CURVES.map(|(name, _)| name).join(","))?;
    for step in 0..schedules.total_steps() {
        let now = schedules.at(step);
        writeln!(
            out,
            "{step},{}",
            CURVES.map(|(_, read)| read(&now).to_string()).join(",")
        )?;
    }
    Ok(())
}

fn draw(out: &mut impl Write, schedules: &Schedules, (name, read): Curve) -> io::Result<()> {
    let last = schedules.total_steps() - 1;
    let values: Vec<f64> = (0..WIDTH)
        .map(|x| read(&schedules.at(x * last / (WIDTH - 1))))
        .collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    writeln!(out, "{name}: {low:.6} to {high:.6} over {} steps", last + 1)?;
    let row_of =
        |value: f64| ((high - value) / (high - low) * (HEIGHT - 1) as f64).round() as usize;
    for row in 0..HEIGHT {
        let line: String = values
            .iter()
            .map(|&value| if row_of(value) == row { '•' } else { ' ' })
            .collect();
        writeln!(out, "  {}", line.trim_end())?;
    }
    writeln!(out)
}
