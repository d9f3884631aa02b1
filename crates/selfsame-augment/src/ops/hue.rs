//! Hue shift through Pillow's 8-bit HSV (Convert.c: `rgb2hsv_row`, `hsv2rgb`).
//!
//! Pillow mixes `float` variables with `double` arithmetic; the casts here follow it one by one,
//! because the cut-off to a byte makes every last bit count.

use super::kernels::Planes;
use crate::simd::{Level, color};

pub(crate) fn hue_planes(planes: &mut Planes, turns: f64, level: Level) {
    // numpy: np.int32(hue_factor * 255).astype(np.uint8), cut off towards zero, then wrapped.
    let shift = (turns * 255.0) as i32 as u8;
    color::shift_hue(level, planes.channels_mut(), shift);
}

/// Shifts the hue of each pixel by `shift`/255 of the circle.
pub(crate) fn shift_hue([red, green, blue]: [&mut [u8]; 3], shift: u8) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let (h, s, v) = rgb_to_hsv(*r, *g, *b);
        (*r, *g, *b) = hsv_to_rgb(h.wrapping_add(shift), s, v);
    }
}

fn rgb_to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let max = r.max(g).max(b);
    let range = max - r.min(g).min(b);
    if range == 0 {
        return (0, 0, max);
    }
    let width = f32::from(range);
    let below_max = |value: u8| f32::from(max - value) / width;
    let sextant: f32 = if r == max {
        below_max(b) - below_max(g)
    } else if g == max {
        (2.0 + f64::from(below_max(r)) - f64::from(below_max(b))) as f32
    } else {
        (4.0 + f64::from(below_max(g)) - f64::from(below_max(r))) as f32
    };
    // fmod(h / 6 + 1, 1): the sum lies in [5/6, 2), so one subtraction does it.
    let turn = f64::from(sextant) / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    let saturation = width / f32::from(max);
    (
        (f64::from(turn) * 255.0) as u8,
        (f64::from(saturation) * 255.0) as u8,
        max,
    )
}

pub(crate) fn hsv_to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    if s == 0 {
        return (v, v, v);
    }
    let sextants = f64::from(h) * 6.0 / 255.0;
    // ⌊6h / 255⌋, also the floor of the quotient rounded to f64: multiples of 255 divide exactly.
    let sector = u32::from(h) * 6 / 255;
    let fraction = (sextants - f64::from(sector)) as f32;
    let saturation = (f64::from(s) / 255.0) as f32;
    let value = f64::from(v);
    // C's round(): half away from zero; never negative here.
    let scaled = |share: f64| (value * (1.0 - share) + 0.5) as u8;
    let p = scaled(f64::from(saturation));
    let q = || scaled(f64::from(saturation * fraction));
    let t = || scaled(f64::from(saturation) * (1.0 - f64::from(fraction)));
    match sector % 6 {
        0 => (v, t(), p),
        1 => (q(), v, p),
        2 => (p, v, t()),
        3 => (p, q(), v),
        4 => (t(), p, v),
        _ => (v, p, q()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_colours_stand_at_sixths_of_the_circle() {
        assert_eq!(rgb_to_hsv(255, 0, 0), (0, 255, 255));
        assert_eq!(rgb_to_hsv(0, 255, 0), (85, 255, 255));
        assert_eq!(rgb_to_hsv(0, 0, 255), (170, 255, 255));
        assert_eq!(rgb_to_hsv(9, 9, 9), (0, 0, 9));
        assert_eq!(hsv_to_rgb(85, 255, 200), (0, 200, 0));
        assert_eq!(hsv_to_rgb(255, 255, 200), (200, 0, 0));
    }
}
