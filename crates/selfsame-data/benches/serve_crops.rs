//! One side of `cargo xtask bench-peer augment`: decodes and crops on request, on one thread.
//!
//! Reads a number of images per line, makes their crops and answers with the seconds it took.
//! Arguments: folder, side of the global crops, of the local crops, filter, level of instructions.
#![expect(clippy::print_stdout, reason = "the answers go to the standard output")]

use std::error::Error;
use std::hint::black_box;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::Instant;

use selfsame_data::Limits;
use selfsame_data::augment::{AugmentConfig, Level, MultiCrop, SampleKey, Workspace};
use selfsame_data::decode::decode_file;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, global, local, filter, level] = &arguments[..] else {
        // `cargo bench` starts every bench with an argument of its own.
        eprintln!("run by cargo xtask bench-peer augment");
        return Ok(());
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let multi_crop = MultiCrop::new(AugmentConfig {
        global_size: global.parse()?,
        local_size: local.parse()?,
        interpolation: filter.parse()?,
        ..AugmentConfig::default()
    })?;
    let mut workspace = Workspace::with_level(level.parse::<Level>()?);
    let mut views: Vec<Vec<f32>> = (0..multi_crop.num_views())
        .map(|view| vec![0.0; 3 * multi_crop.view_size(view).pow(2)])
        .collect();
    let mut out: Vec<&mut [f32]> = views.iter_mut().map(Vec::as_mut_slice).collect();
    let limits = Limits::default();

    println!("ready");
    let mut sample = 0;
    for line in io::stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let start = Instant::now();
        for _ in 0..count {
            let image = decode_file(&files[sample % files.len()], &limits)?;
            let key = SampleKey {
                sample: sample as u64,
                ..SampleKey::default()
            };
            multi_crop.write_crops(&image, key, &mut out, &mut workspace)?;
            black_box(&mut out);
            sample += 1;
        }
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
