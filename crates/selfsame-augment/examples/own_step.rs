//! A step of one's own within multi-crop: random erasing (Zhong et al. 2020) between the crop and the
//! configured operations, with random numbers that depend on seed, epoch, sample and view alone.
//!
//! `cargo run -p selfsame-augment --example own_step`

use std::error::Error;

use image::{Rgb, RgbImage};
use selfsame_augment::{
    AugmentConfig, DrawnView, MultiCrop, Normalize, SampleKey, Stream, Workspace, ops,
};

/// Covers a square of a fifth of the side, half of the time.
fn erase(image: &mut RgbImage, stream: &mut Stream) {
    if !stream.coin(0.5) {
        return;
    }
    let side = image.width() / 5;
    let free = (image.width() - side + 1) as usize;
    let (left, top) = (stream.below(free) as u32, stream.below(free) as u32);
    for y in top..top + side {
        for x in left..left + side {
            image.put_pixel(x, y, Rgb([124, 116, 104]));
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let multi_crop = MultiCrop::new(AugmentConfig::default())?;
    let config = multi_crop.config();
    let normalize = Normalize::new(config.mean, config.std);
    let picture = RgbImage::from_fn(200, 150, |x, y| Rgb([x as u8, y as u8, 128]));
    let mut workspace = Workspace::new();

    for sample in 0..3 {
        let key = SampleKey {
            run_seed: 42,
            epoch: 0,
            sample,
        };
        for (view, drawn) in multi_crop.draw(200, 150, key).into_iter().enumerate() {
            let crop = DrawnView {
                ops: Vec::new(),
                ..drawn.clone()
            };
            let mut image = crop.render(&picture, &mut workspace);
            erase(&mut image, &mut key.own_stream("erase", view));
            for op in drawn.ops {
                image = op.render(&image, &mut workspace);
            }
            let values: Vec<f32> = ops::normalize(&image, &normalize, &mut workspace); // [3, S, S]
            eprintln!("sample {sample}, view {view}: {} values", values.len());
        }
    }
    Ok(())
}
