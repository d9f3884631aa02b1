//! From the configured list of operations to the drawn ones.

use crate::config::ViewOp;
use crate::drawn::DrawnOp;
use crate::seed::Stream;

/// Draws a list of operations: for each a coin, then its values.
///
/// The values are drawn whether the coin falls or not, so changing one probability leaves the
/// values of all other operations as they were.
pub(crate) fn draw_ops(ops: &[ViewOp], stream: &mut Stream, drawn: &mut Vec<DrawnOp>) {
    // Room for all that can come, so that a list used again never grows.
    let jitters = ops
        .iter()
        .filter(|op| matches!(op, ViewOp::ColorJitter { .. }));
    drawn.reserve(ops.len() + 3 * jitters.count());
    for op in ops {
        match *op {
            ViewOp::HorizontalFlip { p } => {
                push_if(stream.coin(p), DrawnOp::HorizontalFlip, drawn);
            }
            ViewOp::ColorJitter {
                p,
                brightness,
                contrast,
                saturation,
                hue,
            } => {
                let apply = stream.coin(p);
                let steps = draw_jitter([brightness, contrast, saturation, hue], stream);
                if apply {
                    drawn.extend(steps.into_iter().flatten());
                }
            }
            ViewOp::Grayscale { p } => push_if(stream.coin(p), DrawnOp::Grayscale, drawn),
            ViewOp::GaussianBlur { p, radius } => {
                let apply = stream.coin(p);
                let radius = stream.uniform(radius[0], radius[1]);
                push_if(apply, DrawnOp::GaussianBlur(radius), drawn);
            }
            ViewOp::Solarize { p, threshold } => {
                push_if(stream.coin(p), DrawnOp::Solarize(threshold), drawn);
            }
        }
    }
}

fn push_if(apply: bool, op: DrawnOp, drawn: &mut Vec<DrawnOp>) {
    if apply {
        drawn.push(op);
    }
}

/// torchvision's `ColorJitter.get_params`: a random order of four, then the four values.
///
/// A step of strength 0 is `None`, which is not the same as a value that changes nothing: even a
/// hue shift of 0 goes through 8-bit HSV and back.
fn draw_jitter(strengths: [f64; 4], stream: &mut Stream) -> [Option<DrawnOp>; 4] {
    let order = stream.order_of_four();
    let [brightness, contrast, saturation, hue] = strengths;
    let mut factor = |strength: f64| stream.uniform((1.0 - strength).max(0.0), 1.0 + strength);
    let values = [
        DrawnOp::Brightness(factor(brightness)),
        DrawnOp::Contrast(factor(contrast)),
        DrawnOp::Saturation(factor(saturation)),
        DrawnOp::Hue(stream.uniform(-hue, hue)),
    ];
    order.map(|i| (strengths[i] != 0.0).then_some(values[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AugmentConfig, SampleKey};

    fn drawn(ops: &[ViewOp], sample: u64) -> Vec<DrawnOp> {
        let mut drawn = Vec::new();
        draw_ops(ops, &mut stream(sample), &mut drawn);
        drawn
    }

    fn stream(sample: u64) -> Stream {
        SampleKey {
            sample,
            ..SampleKey::default()
        }
        .view_stream(0)
    }

    #[test]
    fn changing_one_probability_leaves_the_other_values_alone() {
        let all = AugmentConfig::default().global1;
        let mut no_jitter = all.clone();
        let ViewOp::ColorJitter { p, .. } = &mut no_jitter[1] else {
            panic!("{no_jitter:?}");
        };
        *p = 0.0;
        let mut with_jitter = 0;
        for sample in 0..50 {
            let mut with = drawn(&all, sample);
            let without = drawn(&no_jitter, sample);
            assert!(matches!(with.last(), Some(DrawnOp::GaussianBlur(_))));
            let count = with.len();
            with.retain(|op| {
                use DrawnOp::{Brightness, Contrast, Hue, Saturation};
                !matches!(op, Brightness(_) | Contrast(_) | Saturation(_) | Hue(_))
            });
            with_jitter += usize::from(with.len() < count);
            assert_eq!(with, without);
        }
        assert!((20..50).contains(&with_jitter), "{with_jitter}");
    }

    #[test]
    fn jitter_of_strength_zero_leaves_the_step_out() {
        let only_hue = [ViewOp::ColorJitter {
            p: 1.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.1,
        }];
        let hue = drawn(&only_hue, 0);
        assert!(matches!(hue[..], [DrawnOp::Hue(_)]), "{hue:?}");
    }

    #[test]
    fn operations_are_drawn_in_the_order_and_number_of_the_list() {
        let list = [
            ViewOp::Solarize {
                p: 1.0,
                threshold: 7,
            },
            ViewOp::HorizontalFlip { p: 1.0 },
            ViewOp::Grayscale { p: 0.0 },
            ViewOp::HorizontalFlip { p: 1.0 },
        ];
        assert_eq!(
            drawn(&list, 0),
            [
                DrawnOp::Solarize(7),
                DrawnOp::HorizontalFlip,
                DrawnOp::HorizontalFlip
            ]
        );
    }
}
