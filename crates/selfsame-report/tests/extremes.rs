//! Charts of the largest and the smallest numbers there are.

use selfsame_report::{Coloring, LineChart, Scale, Scatter, Series, render_png};

const EXTREMES: [f64; 9] = [
    0.0,
    5e-324,
    1e-300,
    1.0,
    1e300,
    f64::MAX,
    f64::MIN,
    f64::INFINITY,
    f64::NAN,
];

/// Every pair of extremes.
fn pairs() -> impl Iterator<Item = [f64; 2]> {
    EXTREMES.into_iter().flat_map(|a| EXTREMES.map(|b| [a, b]))
}

/// A chart short enough to be one, with numbers only where numbers are due.
fn assert_sound(svg: &str, what: &str) {
    assert!(svg.starts_with("<svg"), "{what}: {svg}");
    assert!(svg.len() < 20_000, "{what}: {} bytes", svg.len());
    assert!(
        !svg.contains("NaN") && !svg.contains("inf"),
        "{what}: {svg}"
    );
    let drawn = render_png(svg, 0.1);
    assert!(drawn.is_ok(), "{what}: {drawn:?}");
}

#[test]
fn a_line_between_any_two_numbers_is_a_chart() {
    for [a, b] in pairs() {
        for y_scale in [Scale::Linear, Scale::Log] {
            let chart = LineChart {
                series: vec![Series::line("loss", vec![(0.0, a), (1.0, b), (a, 1.0)])],
                y_scale,
                ..LineChart::default()
            };
            assert_sound(&chart.svg(), &format!("{a:e} {b:e} {y_scale:?}"));
        }
    }
}

#[test]
fn points_anywhere_are_a_map() {
    for [a, b] in pairs() {
        let map = Scatter {
            points: vec![(a, 0.0), (b, a), (1.0, b)],
            coloring: Coloring::Numbers {
                label: "age".to_owned(),
                of: vec![a, b, 1.0],
            },
            ticks: true,
            ..Scatter::default()
        };
        assert_sound(&map.svg(), &format!("{a:e} {b:e}"));
    }
}

#[test]
fn a_power_of_ten_left_out_of_labels_is_written_beside_them() {
    let values = [1e6, 2e6, 2.95e6];
    let map = |ticks, values: [f64; 3]| Scatter {
        points: values.map(|value| (value, value)).to_vec(),
        coloring: Coloring::Numbers {
            label: "price".to_owned(),
            of: values.to_vec(),
        },
        ticks,
        ..Scatter::default()
    };
    let told = |chart: Scatter| chart.svg().matches(">×10⁶<").count();
    assert_eq!(told(map(true, values)), 3, "both axes and the colour bar");
    assert_eq!(told(map(false, values)), 1, "the colour bar");
    let small = map(true, [1.0, 2.0, 3.0]).svg();
    assert!(
        !small.contains('×') && !small.contains("></text>"),
        "{small}"
    );
}
