/// Lines of fewer points are drawn as they are.
const MIN_POINTS: usize = 400;
/// A line that goes up and down by more than so many times its own range is noise as wide as the
/// picture.
const MIN_ROUGHNESS: f64 = 8.0;
/// The mean takes this part of a line's points.
const PART: usize = 50;

/// How many points a moving mean should take, an odd number; `None` if the line is short or runs
/// smoothly, as schedules do.
pub(crate) fn smoothing_window(points: &[(f64, f64)]) -> Option<usize> {
    let values = || points.iter().map(|point| point.1).filter(|y| y.is_finite());
    let n = values().count();
    if n < MIN_POINTS {
        return None;
    }
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| {
        (low.min(y), high.max(y))
    });
    let way: f64 = values()
        .zip(values().skip(1))
        .map(|(a, b)| (b - a).abs())
        .sum();
    (way > MIN_ROUGHNESS * (high - low)).then_some((n / PART) | 1)
}

/// The mean of each value and as many on either side, `window` in all; fewer near an end, as many
/// on either side still, so that a slope is not bent there. A value that is not finite stays as
/// it is and is in no mean.
fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    // Running sums and counts of the finite values before each point.
    let mut sums = vec![(0.0, 0usize)];
    for (_, y) in points {
        let (sum, count) = sums[sums.len() - 1];
        sums.push(match y.is_finite() {
            true => (sum + y, count + 1),
            false => (sum, count),
        });
    }
    let mean = |(i, (x, y)): (usize, &(f64, f64))| {
        let half = (window / 2).min(i).min(points.len() - 1 - i);
        let (before, after) = (sums[i - half], sums[i + half + 1]);
        match y.is_finite() {
            true => (*x, (after.0 - before.0) / (after.1 - before.1) as f64),
            false => (*x, *y),
        }
    };
    points.iter().enumerate().map(mean).collect()
}

/// The moving mean as a line to draw: of each place that tells its course, and of every gap.
pub(crate) fn trend(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let step = (window / 8).max(1);
    let is_kept =
        |i: usize, y: f64| i.is_multiple_of(step) || i + 1 == points.len() || !y.is_finite();
    let mean = moving_mean(points, window).into_iter().enumerate();
    mean.filter(|(i, (_, y))| is_kept(*i, *y))
        .map(|(_, point)| point)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize, value: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
        (0..n).map(|i| (i as f64, value(i))).collect()
    }

    #[test]
    fn a_mean_is_that_of_the_values_around() {
        let mean = moving_mean(&line(7, |i| [1.0, 5.0, 3.0, 4.0, 9.0, 2.0, 8.0][i]), 5);
        let expected = [1.0, 3.0, 4.4, 4.6, 5.2, 19.0 / 3.0, 8.0];
        for ((x, y), (i, expected)) in mean.iter().zip(expected.iter().enumerate()) {
            assert_eq!(*x, i as f64);
            assert!((y - expected).abs() < 1e-12, "{mean:?}");
        }
    }

    #[test]
    fn a_slope_stays_a_slope_and_a_gap_a_gap() {
        let mut slope = line(500, |i| 3.0 - 0.01 * i as f64);
        for (a, b) in moving_mean(&slope, 11).iter().zip(&slope) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
        slope[101].1 = f64::NAN;
        let mean = moving_mean(&slope, 11);
        assert!(mean[101].1.is_nan());
        assert!(mean.iter().filter(|point| !point.1.is_finite()).count() == 1);
        let drawn = trend(&slope, 41);
        assert_eq!(
            drawn.len(),
            102,
            "each fifth, the gap among them, and the last"
        );
        assert_eq!(drawn.last().unwrap().0, 499.0);
    }

    #[test]
    fn only_what_is_long_and_noisy_is_smoothed() {
        let noise = |i: usize| (i as f64 * 1.7).sin();
        assert_eq!(smoothing_window(&line(2000, noise)), Some(41));
        assert_eq!(smoothing_window(&line(MIN_POINTS - 1, noise)), None);
        let cosine = |i: usize| (i as f64 / 2000.0 * std::f64::consts::PI).cos();
        assert_eq!(smoothing_window(&line(2000, cosine)), None);
        assert_eq!(smoothing_window(&line(2000, |_| 0.5)), None, "a level line");
        assert_eq!(smoothing_window(&line(2000, |_| f64::NAN)), None);
    }
}
