use crate::drawn::CropBox;
use crate::seed::Stream;

/// Draws the box of torchvision's `RandomResizedCrop` for an image of `width` × `height` pixels.
///
/// Up to ten tries of a share of the area, uniform in `scale`, and a ratio (width / height),
/// log-uniform in `ratio`; the first box that fits is placed uniformly, top first.
/// If none fits: the largest centred box whose ratio is within the limits.
///
/// # Panics
/// If a side is 0.
pub fn random_resized_crop(
    stream: &mut Stream,
    width: usize,
    height: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
) -> CropBox {
    assert!(width > 0 && height > 0, "an image has pixels");
    let area = width as f64 * height as f64;
    for _ in 0..10 {
        let target = area * stream.uniform(scale[0], scale[1]);
        let aspect = stream.uniform(ratio[0].ln(), ratio[1].ln()).exp();
        // Python's round: half to even.
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = stream.below(height - h + 1);
            let left = stream.below(width - w + 1);
            return CropBox {
                left,
                top,
                width: w,
                height: h,
            };
        }
    }
    centred_box(width, height, ratio)
}

fn centred_box(width: usize, height: usize, [low, high]: [f64; 2]) -> CropBox {
    let whole = width as f64 / height as f64;
    let (w, h) = if whole < low {
        (width, (width as f64 / low).round_ties_even() as usize)
    } else if whole > high {
        ((height as f64 * high).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    // Only limits below one half can round a side to nothing.
    let (w, h) = (w.clamp(1, width.max(1)), h.clamp(1, height.max(1)));
    CropBox {
        left: (width - w) / 2,
        top: (height - h) / 2,
        width: w,
        height: h,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SampleKey;

    #[test]
    fn strip_that_no_box_fits_gives_the_centred_box_at_the_ratio_limit() {
        let mut stream = SampleKey::default().view_stream(0);
        let wide = random_resized_crop(&mut stream, 100, 5, [1.0, 1.0], [0.75, 4.0 / 3.0]);
        assert_eq!(
            wide,
            CropBox {
                left: 46,
                top: 0,
                width: 7,
                height: 5
            }
        );
        let tall = random_resized_crop(&mut stream, 5, 100, [1.0, 1.0], [0.75, 4.0 / 3.0]);
        assert_eq!(
            tall,
            CropBox {
                left: 0,
                top: 46,
                width: 5,
                height: 7
            }
        );
    }

    #[test]
    fn fallback_keeps_a_whole_image_whose_ratio_is_allowed() {
        assert_eq!(centred_box(10, 9, [0.75, 4.0 / 3.0]), CropBox::whole(10, 9));
    }

    #[test]
    fn boxes_stay_inside_and_reach_every_border() {
        let mut touched = [false; 4];
        for sample in 0..2000 {
            let mut stream = SampleKey {
                sample,
                ..SampleKey::default()
            }
            .view_stream(0);
            let b = random_resized_crop(&mut stream, 23, 17, [0.05, 1.0], [0.75, 4.0 / 3.0]);
            assert!(b.width > 0 && b.left + b.width <= 23, "{b:?}");
            assert!(b.height > 0 && b.top + b.height <= 17, "{b:?}");
            touched[0] |= b.left == 0;
            touched[1] |= b.top == 0;
            touched[2] |= b.left + b.width == 23;
            touched[3] |= b.top + b.height == 17;
        }
        assert_eq!(touched, [true; 4]);
    }

    #[test]
    fn one_pixel_is_its_own_box() {
        let mut stream = SampleKey::default().view_stream(0);
        let b = random_resized_crop(&mut stream, 1, 1, [0.05, 0.4], [0.75, 4.0 / 3.0]);
        assert_eq!(b, CropBox::whole(1, 1));
    }

    #[test]
    #[should_panic(expected = "an image has pixels")]
    fn an_image_without_pixels_is_refused_in_words() {
        let mut stream = SampleKey::default().view_stream(0);
        random_resized_crop(&mut stream, 0, 5, [1.0, 1.0], [0.75, 4.0 / 3.0]);
    }
}
