/// How values are spread along the upright axis.
///
/// A value beyond ±10³⁰⁰ counts as not finite and is left out: differences of such values are no numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal distances are equal differences.
    #[default]
    Linear,
    /// Equal distances are equal ratios; values below 10⁻³⁰⁰, hence those that are not positive, are left out.
    Log,
}

/// One axis: its range and its marks.
#[derive(Debug)]
pub(crate) struct Axis {
    scale: Scale,
    min: f64,
    max: f64,
    /// Value and label of each mark, in ascending order.
    pub(crate) ticks: Vec<(f64, String)>,
    /// Power of ten that the labels leave out, such as ×10⁻⁴; empty if none.
    pub(crate) factor: String,
}

/// Marks wanted along an axis.
const WANTED: f64 = 6.0;
/// Values that have a place, and with margins the ends of an axis, stay within these and [`ENDS`].
const SMALLEST: f64 = 1e-300;
const LARGEST: f64 = 1e300;
/// Ends of a logarithmic axis: their ratios to values that have a place are numbers.
const ENDS: (f64, f64) = (1e-306, 1e306);

impl Axis {
    /// An axis that just holds the values, with `margin` (a part of the range) on both sides.
    pub(crate) fn around(values: impl Iterator<Item = f64>, scale: Scale, margin: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| can_show(*value, scale)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = if scale == Scale::Log {
                (0.1, 1.0)
            } else {
                (0.0, 1.0)
            };
        }
        match scale {
            Scale::Linear => Self::linear(low, high, margin),
            Scale::Log => Self::log(low, high, margin),
        }
    }

    /// Position of a value: 0 at the lower end, 1 at the upper.
    pub(crate) fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value.ln() - self.min.ln()) / (self.max.ln() - self.min.ln()),
        }
    }

    /// Value and label of each mark.
    pub(crate) fn marks(&self) -> impl Iterator<Item = (&f64, &str)> {
        self.ticks
            .iter()
            .map(|(value, label)| (value, label.as_str()))
    }

    /// The lowest and the highest value.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.min, self.max)
    }

    /// Both axes over ranges of one length, so that a unit is as long along either.
    pub(crate) fn equal(x: Self, y: Self) -> (Self, Self) {
        let longest = (x.max - x.min).max(y.max - y.min);
        let stretched = |axis: &Self| {
            let middle = (axis.min + axis.max) / 2.0;
            let ends = [middle - longest / 2.0, middle + longest / 2.0];
            let mut wide = Self::linear(ends[0], ends[1], 0.0);
            (wide.min, wide.max) = (ends[0], ends[1]);
            wide
        };
        (stretched(&x), stretched(&y))
    }

    fn linear(low: f64, high: f64, margin: f64) -> Self {
        // A constant series still needs a range: 1 % of it, or 1 if it is 0.
        let largest = high.abs().max(low.abs());
        let flat = high - low <= (1e-9 * largest).max(SMALLEST);
        let spread = if !flat {
            high - low
        } else if largest <= SMALLEST {
            1.0
        } else {
            0.02 * largest
        };
        let margin = if flat { 0.5 } else { margin };
        let (mut min, max) = (low - margin * spread, high + margin * spread);
        // A quantity that is never negative gets no negative axis, and one that begins near zero
        // begins at zero.
        if low >= 0.0 && margin > 0.0 && low < 0.1 * (max - min) {
            min = 0.0;
        }
        let step = nice_step((max - min) / WANTED);
        let first = (min / step - 1e-9).ceil() as i64;
        let last = (max / step + 1e-9).floor() as i64;
        let largest = min.abs().max(max.abs());
        let exponent = largest.log10().floor() as i32;
        let shift = if (-3..5).contains(&exponent) {
            0
        } else {
            exponent
        };
        let unit = 10f64.powi(shift);
        // log10(step / unit) says how many decimals tell neighbours apart; 2.5 needs one more.
        let ratio = step / unit;
        let decimals = (0..8)
            .find(|d| is_whole(ratio * 10f64.powi(*d)))
            .unwrap_or(8) as usize;
        let ticks = (first..=last)
            .map(|i| {
                let value = i as f64 * step;
                (value, minus_sign(&format!("{:.decimals$}", value / unit)))
            })
            .collect();
        let factor = if shift == 0 {
            String::new()
        } else {
            format!("×10{}", superscript(shift))
        };
        Self {
            scale: Scale::Linear,
            min,
            max,
            ticks,
            factor,
        }
    }

    fn log(low: f64, high: f64, margin: f64) -> Self {
        let decades = (high.log10() - low.log10()).max(0.1);
        let pad = 10f64.powf(decades * margin.max(0.01));
        let (min, max) = ((low / pad).max(ENDS.0), (high * pad).min(ENDS.1));
        let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
        let decades = max.log10() - min.log10();
        let every = (decades / WANTED).ceil().max(1.0) as i32;
        let within: &[u32] = match decades {
            d if d < 0.7 => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            d if d < 2.5 => &[1, 2, 5],
            _ => &[1],
        };
        let mut ticks = Vec::new();
        for exponent in (first..=last).filter(|e| e.rem_euclid(every) == 0) {
            for digit in within {
                let value = f64::from(*digit) * 10f64.powi(exponent);
                if (min..=max).contains(&value) {
                    ticks.push((value, log_label(*digit, exponent)));
                }
            }
        }
        let mut factor = String::new();
        if ticks.len() < 2 {
            // Values so close to each other, as 10.5 and 10.6, lie between round ones.
            let mut between = Self::linear(min, max, 0.0);
            between
                .ticks
                .retain(|(value, _)| (min..=max).contains(value));
            if between.ticks.len() > ticks.len() {
                (ticks, factor) = (between.ticks, between.factor);
            }
        }
        Self {
            scale: Scale::Log,
            min,
            max,
            ticks,
            factor,
        }
    }
}

/// True if the value has a place on an axis of this scale.
pub(crate) fn can_show(value: f64, scale: Scale) -> bool {
    value.abs() <= LARGEST && (scale == Scale::Linear || value >= SMALLEST)
}

/// The smallest of 1, 2, 2.5 or 5 times a power of ten that is not below `raw`.
fn nice_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0];
    power
        * nice
            .into_iter()
            .find(|n| n * power >= raw * (1.0 - 1e-9))
            .unwrap_or(10.0)
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6 * value.abs()
}

fn log_label(digit: u32, exponent: i32) -> String {
    match exponent {
        0..=3 => (u64::from(digit) * 10u64.pow(exponent.unsigned_abs())).to_string(),
        -2..=-1 => {
            let decimals = exponent.unsigned_abs() as usize;
            format!("{:.decimals$}", f64::from(digit) * 10f64.powi(exponent))
        }
        _ if digit == 1 => format!("10{}", superscript(exponent)),
        _ => format!("{digit}×10{}", superscript(exponent)),
    }
}

fn superscript(exponent: i32) -> String {
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => char::from_u32('⁰' as u32 + digit as u32 - '0' as u32).unwrap_or(digit),
    };
    exponent.to_string().chars().map(raised).collect()
}

fn minus_sign(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_string(),
        Some(rest) => format!("−{rest}"),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, scale: Scale) -> (Vec<String>, String) {
        let axis = Axis::around([low, high].into_iter(), scale, 0.05);
        (
            axis.ticks.into_iter().map(|(_, label)| label).collect(),
            axis.factor,
        )
    }

    #[test]
    fn marks_are_round_and_tell_neighbours_apart() {
        assert_eq!(
            labels(0.0, 100.0, Scale::Linear).0,
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(
            labels(7.1, 7.62, Scale::Linear).0,
            ["7.1", "7.2", "7.3", "7.4", "7.5", "7.6"]
        );
        assert_eq!(
            labels(-1.0, 1.0, Scale::Linear).0,
            ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
        );
    }

    #[test]
    fn small_and_large_values_share_a_power_of_ten() {
        let (marks, factor) = labels(0.0, 5e-4, Scale::Linear);
        assert_eq!(
            (marks, factor.as_str()),
            (
                ["0", "1", "2", "3", "4", "5"].map(String::from).to_vec(),
                "×10⁻⁴"
            )
        );
        assert_eq!(labels(0.0, 3e6, Scale::Linear).1, "×10⁶");
        assert_eq!(labels(0.0, 2048.0, Scale::Linear).1, "");
    }

    #[test]
    fn a_log_axis_marks_decades_and_fills_a_short_range() {
        let marks = labels(1e-6, 5e-4, Scale::Log).0;
        assert_eq!(marks, ["10⁻⁶", "10⁻⁵", "10⁻⁴"]);
        assert_eq!(
            labels(0.02, 1.0, Scale::Log).0,
            ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]
        );
        let axis = Axis::around([0.0, -3.0, 1.0, 100.0].into_iter(), Scale::Log, 0.0);
        assert!(axis.min > 0.9 && (axis.place(10.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_log_axis_between_two_round_values_has_marks_too() {
        let (marks, _) = labels(10.5, 10.6, Scale::Log);
        assert!(
            marks.len() > 2 && marks.contains(&"10.5".to_owned()),
            "{marks:?}"
        );
        assert!(labels(10.57, 10.57, Scale::Log).0.len() > 1);
        let (marks, factor) = labels(1.04e-7, 1.05e-7, Scale::Log);
        assert!(marks.len() > 1 && factor == "×10⁻⁷", "{marks:?} {factor}");
    }

    #[test]
    fn ranges_of_any_length_have_a_dozen_marks_at_most() {
        let ends = [
            (0.0, f64::from_bits(1)),
            (0.0, 1e-305),
            (-f64::from_bits(1), f64::from_bits(1)),
            (1e-300, 1e300),
            (1e-300, 1.0),
            (1.0, 1e300),
            (-1e300, 1e300),
            (1e300, 1e300),
            (f64::MIN, f64::MAX),
            (f64::MIN_POSITIVE, f64::MAX),
            (1e17, 1e17 + 16.0),
            (1.0, 1.0 + f64::EPSILON),
        ];
        for (low, high) in ends {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::around([low, high].into_iter(), scale, 0.05);
                let (min, max) = axis.range();
                assert!(
                    min < max && (max - min).is_finite(),
                    "{low} {high} {axis:?}"
                );
                assert!(
                    (1..=12).contains(&axis.ticks.len()),
                    "{low} {high} {axis:?}"
                );
                let values = axis.ticks.iter().map(|(value, _)| *value);
                for value in values.chain([low, high].into_iter().filter(|v| can_show(*v, scale))) {
                    let place = axis.place(value);
                    assert!((-0.01..=1.01).contains(&place), "{value}: {axis:?}");
                }
            }
        }
    }

    #[test]
    fn constant_missing_and_endless_values_still_give_an_axis() {
        for values in [
            vec![],
            vec![f64::NAN],
            vec![0.0],
            vec![7.0, 7.0],
            vec![-2.0],
            vec![1e-300],
        ] {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::around(values.iter().copied(), scale, 0.05);
                assert!(axis.min < axis.max, "{values:?}");
                assert!((1..=12).contains(&axis.ticks.len()), "{values:?} {axis:?}");
                assert!(
                    axis.ticks
                        .iter()
                        .all(|(v, _)| (-0.01..=1.01).contains(&axis.place(*v)))
                );
            }
        }
    }
}
