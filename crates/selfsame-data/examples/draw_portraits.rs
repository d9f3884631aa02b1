//! Draws a contact sheet of the synthetic portraits: women above, men below, young to old.
//!
//! `cargo run -p selfsame-data --example draw_portraits -- portraits.png`

use std::error::Error;

use image::{RgbImage, imageops};
use selfsame_data::{Dataset, OpenOptions, PORTRAIT_SIZE, open};

const COLUMNS: usize = 12;
const ROWS_EACH: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "portraits.png".to_owned());
    let portraits = open(
        "synthetic:portraits?count=600&seed=0",
        &OpenOptions::default(),
    )?;
    let mut sheet = RgbImage::new(
        COLUMNS as u32 * PORTRAIT_SIZE,
        2 * ROWS_EACH as u32 * PORTRAIT_SIZE,
    );
    for (half, gender) in ["f", "m"].into_iter().enumerate() {
        let mut chosen = by_age(&*portraits, gender);
        let step = chosen.len() / (COLUMNS * ROWS_EACH);
        chosen = chosen.into_iter().step_by(step).collect();
        for (place, index) in chosen.into_iter().take(COLUMNS * ROWS_EACH).enumerate() {
            let (row, column) = (half * ROWS_EACH + place / COLUMNS, place % COLUMNS);
            let side = i64::from(PORTRAIT_SIZE);
            let (x, y) = (column as i64 * side, row as i64 * side);
            imageops::replace(&mut sheet, &portraits.decode(index)?, x, y);
        }
    }
    sheet.save(&out)?;
    eprintln!("wrote {out}: {COLUMNS} columns, young to old; women above, men below");
    Ok(())
}

/// The indices of one gender from the youngest to the oldest.
fn by_age(portraits: &dyn Dataset, gender: &str) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..portraits.len())
        .filter(|&i| portraits.label(i, "gender").as_deref() == Some(gender))
        .collect();
    chosen.sort_by_key(|&i| {
        portraits
            .label(i, "age")
            .and_then(|age| age.parse::<u32>().ok())
    });
    chosen
}
