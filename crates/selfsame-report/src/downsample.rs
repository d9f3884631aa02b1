/// Series longer than this are thinned before they are drawn.
pub(crate) const MAX_POINTS: usize = 5_000;
/// Buckets a long series is cut into; each keeps up to four points.
const BUCKETS: usize = 1_000;

/// Thins a long series to the first, lowest, highest and last point of each of 1,000 stretches.
///
/// At the width of a figure the drawn line is the same: a stretch is narrower than a pixel, and
/// its single spikes are kept, which a mean would hide.
pub(crate) fn downsample(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(4 * BUCKETS);
    for bucket in 0..BUCKETS {
        let start = bucket * points.len() / BUCKETS;
        let end = (bucket + 1) * points.len() / BUCKETS;
        let (mut low, mut high) = (start, start);
        for i in start..end {
            if points[i].1 < points[low].1 {
                low = i;
            }
            if points[i].1 > points[high].1 {
                high = i;
            }
        }
        let mut of_bucket = [start, low, high, end - 1];
        of_bucket.sort_unstable();
        for (i, index) in of_bucket.iter().enumerate() {
            if i == 0 || of_bucket[i - 1] != *index {
                kept.push(points[*index]);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_series_is_drawn_as_it_is() {
        let points: Vec<(f64, f64)> = (0..MAX_POINTS).map(|i| (i as f64, 1.0)).collect();
        assert_eq!(downsample(&points), points);
    }

    #[test]
    fn a_long_series_keeps_order_ends_and_every_spike() {
        let value = |i: usize| match i {
            123_457 => 9.0,
            77_777 => -9.0,
            _ => (i as f64 * 0.37).sin(),
        };
        let points: Vec<(f64, f64)> = (0..200_000).map(|i| (i as f64, value(i))).collect();
        let kept = downsample(&points);
        assert!(kept.len() <= 4 * BUCKETS && kept.len() > BUCKETS);
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!((kept.first(), kept.last()), (points.first(), points.last()));
        for spike in [123_457, 77_777] {
            assert!(kept.contains(&points[spike]));
        }
    }
}
