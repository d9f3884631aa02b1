//! Colours for classes and for numbers.

/// Ten colours that are told apart on photographs and on white (after Tableau's palette).
pub const COLORS: [[u8; 3]; 10] = [
    [214, 39, 40],
    [31, 119, 180],
    [255, 127, 14],
    [44, 160, 44],
    [148, 103, 189],
    [23, 190, 207],
    [227, 119, 194],
    [188, 189, 34],
    [140, 86, 75],
    [90, 90, 90],
];

/// Lines of a chart, told apart by people who see few colours (Okabe and Ito, "Color Universal
/// Design", 2008).
pub(crate) const LINES: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// matplotlib's viridis (Smith and van der Walt 2015, CC0), nine equal steps.
const VIRIDIS: [[u8; 3]; 10] = [
    [68, 1, 84],
    [72, 40, 120],
    [62, 73, 137],
    [49, 104, 142],
    [38, 130, 142],
    [31, 158, 137],
    [53, 183, 121],
    [110, 206, 88],
    [181, 222, 43],
    [253, 231, 37],
];

/// matplotlib's inferno (same authors, CC0), nine equal steps.
const INFERNO: [[u8; 3]; 10] = [
    [0, 0, 4],
    [27, 12, 65],
    [74, 12, 107],
    [120, 28, 109],
    [165, 44, 96],
    [207, 68, 70],
    [237, 105, 37],
    [251, 155, 6],
    [247, 209, 61],
    [252, 255, 164],
];

/// The colour of a number from 0 to 1 in a chart: viridis.
pub(crate) fn of_number(value: f64) -> [u8; 3] {
    between(&VIRIDIS, value)
}

/// The colour of a number from 0 to 1 over a picture: inferno, which is dark where nothing is.
pub(crate) fn heat(value: f64) -> [u8; 3] {
    between(&INFERNO, value)
}

/// The colour of a class: ten that are told apart, then hues a golden angle from each other.
pub fn of_class(class: usize) -> [u8; 3] {
    if class < COLORS.len() {
        return COLORS[class];
    }
    let hue = class as f64 * 137.508 % 360.0 / 60.0;
    let part = |shift: f64| {
        let distance = ((hue + shift) % 6.0 - 3.0).abs() - 1.0;
        (60.0 + 150.0 * distance.clamp(0.0, 1.0)) as u8
    };
    [part(0.0), part(4.0), part(2.0)]
}

/// `#rrggbb`.
pub(crate) fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn between(stops: &[[u8; 3]; 10], value: f64) -> [u8; 3] {
    let at = value.clamp(0.0, 1.0) * 9.0; // NaN stays NaN, and becomes 0 below
    let (below, part) = (at.floor(), at.fract());
    let (low, high) = (stops[below as usize], stops[(below as usize + 1).min(9)]);
    [0, 1, 2].map(|c| {
        let (low, high) = (f64::from(low[c]), f64::from(high[c]));
        (low + part * (high - low)).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_middles_of_a_scale() {
        assert_eq!(of_number(0.0), VIRIDIS[0]);
        assert_eq!(of_number(1.0), VIRIDIS[9]);
        assert_eq!(of_number(7.0), VIRIDIS[9]);
        assert_eq!(heat(0.5), [186, 56, 83]);
        assert_eq!(heat(f64::NAN), [0, 0, 0]);
    }

    #[test]
    fn forty_classes_have_forty_colours() {
        let mut colors: Vec<_> = (0..40).map(of_class).collect();
        colors.sort_unstable();
        colors.dedup();
        assert_eq!(colors.len(), 40);
    }
}
