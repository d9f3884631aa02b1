//! Draws a t-SNE map of the rows of an `.npy` file (f32, C order), as CSV.
//!
//! `cargo run --release -p selfsame-eval --example draw_map ROWS.npy MAP.csv`

use std::error::Error;
use std::fmt::Write;
use std::time::Instant;

use selfsame_eval::{Features, TsneConfig, tsne};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(rows), Some(out)) = (args.next(), args.next()) else {
        return Err("say ROWS.npy and MAP.csv".into());
    };
    let features = read_npy(&std::fs::read(rows)?).ok_or("not an .npy file of f32 rows")?;
    let began = Instant::now();
    let map = tsne(&features, &TsneConfig::default(), &mut |_| ())?;
    eprintln!(
        "{} × {}: KL {:.4}, {} iterations, {:.2} s",
        features.n,
        features.d,
        map.kl,
        map.iterations,
        began.elapsed().as_secs_f64()
    );
    let mut text = String::from("x,y\n");
    for [x, y] in map.points {
        writeln!(text, "{x},{y}")?;
    }
    std::fs::write(out, text)?;
    Ok(())
}

fn read_npy(bytes: &[u8]) -> Option<Features> {
    let header = 10 + usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?));
    let text = std::str::from_utf8(bytes.get(10..header)?).ok()?;
    let shape = text.split_once("'shape': (")?.1.split_once(')')?.0;
    let mut sizes = shape.split(',').map(|size| size.trim().parse::<usize>());
    let (n, d) = (sizes.next()?.ok()?, sizes.next()?.ok()?);
    if !text.contains("'<f4'") || text.contains("'fortran_order': True") {
        return None;
    }
    let values = bytes[header..].as_chunks::<4>().0.iter();
    Features::new(n, d, values.map(|four| f32::from_le_bytes(*four)).collect()).ok()
}
