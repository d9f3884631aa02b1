use crate::svg::TICK;

/// Where the name of a level line at `level` begins, and its base line: at the right end above the
/// line, or else where the fewest parts of the chart's lines run through it. `None`: the field is
/// too low for it.
///
/// `field` is left, right, top and bottom.
pub(crate) fn beside_level(
    level: f64,
    width: f64,
    [left, right, top, bottom]: [f64; 4],
    lines: &[Vec<(f64, f64)>],
) -> Option<(f64, f64)> {
    let (first, last) = (left + 4.0, right - 2.0 - width);
    let across = [last, first, (first + last) / 2.0];
    let bases = [level - 4.0, level + 12.0].into_iter();
    let inside = bases.filter(|base| (top + TICK.size - 2.0..=bottom - 2.0).contains(base));
    let places = inside.flat_map(|base| across.map(|x| (x, base)));
    places.min_by_key(|(x, base)| {
        let block = [*x, x + width, base - TICK.size, base + 2.0];
        lines.iter().map(|run| crossings(run, block)).sum::<usize>()
    })
}

/// How many parts of a line run through a block: left, right, top and bottom.
fn crossings(run: &[(f64, f64)], [left, right, top, bottom]: [f64; 4]) -> usize {
    let inside = |x: f64, y: f64| (left..=right).contains(&x) && (top..=bottom).contains(&y);
    if let [(x, y)] = run {
        return usize::from(inside(*x, *y));
    }
    let crosses = |pair: &&[(f64, f64)]| {
        let ((x1, y1), (x2, y2)) = (pair[0], pair[1]);
        let (from, to) = (x1.max(left), x2.min(right));
        if from > to {
            return false;
        }
        let at = |x: f64| y1 + (x - x1) / (x2 - x1) * (y2 - y1);
        let ends = match x2 > x1 {
            true => [at(from), at(to)],
            false => [y1, y2], // straight up or down
        };
        ends[0].min(ends[1]) <= bottom && ends[0].max(ends[1]) >= top
    };
    run.windows(2).filter(crosses).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: [f64; 4] = [40.0, 460.0, 40.0, 240.0];

    /// Beside a level in the middle of the field, with a line through these heights.
    fn place(heights: &[f64]) -> (f64, f64) {
        let apart = 420.0 / (heights.len() - 1) as f64;
        let points = heights.iter().enumerate();
        let line: Vec<(f64, f64)> = points.map(|(i, y)| (40.0 + apart * i as f64, *y)).collect();
        beside_level(140.0, 60.0, FIELD, &[line]).unwrap()
    }

    #[test]
    fn a_name_stands_where_no_line_runs_through_it() {
        let (right, left, middle) = (398.0, 44.0, 221.0);
        let (above, below) = (136.0, 152.0);
        assert_eq!(place(&[200.0, 200.0]), (right, above));
        // Just above the level all along; near it at the end; at both ends; a step down at the end.
        assert_eq!(place(&[132.0, 131.0, 133.0]), (right, below));
        assert_eq!(place(&[60.0, 60.0, 128.0, 136.0]), (left, above));
        let ends = [136.0, 128.0, 60.0, 60.0, 60.0, 128.0, 136.0];
        assert_eq!(place(&ends), (middle, above));
        let step = vec![(40.0, 60.0), (420.0, 60.0), (420.0, 230.0)];
        assert_eq!(beside_level(140.0, 60.0, FIELD, &[step]).unwrap().0, left);
    }

    #[test]
    fn at_the_edges_it_stays_inside() {
        for level in [40.0, 45.0, 235.0, 240.0] {
            let (_, base) = beside_level(level, 60.0, FIELD, &[]).unwrap();
            assert!((48.0..=238.0).contains(&base), "{level} {base}");
        }
        assert_eq!(
            beside_level(41.0, 60.0, [40.0, 460.0, 40.0, 44.0], &[]),
            None
        );
    }
}
