use super::*;

fn chart(series: Vec<Series>) -> LineChart {
    LineChart {
        title: "a < b & c".to_string(),
        x_label: "epoch".to_string(),
        y_label: "loss".to_string(),
        series,
        references: vec![Reference {
            name: "ln K".to_string(),
            y: 7.6,
        }],
        ..LineChart::default()
    }
}

fn falling() -> Vec<(f64, f64)> {
    (0..50)
        .map(|i| (f64::from(i), 7.0 - 0.1 * f64::from(i)))
        .collect()
}

#[test]
fn the_same_chart_gives_the_same_text() {
    let chart = chart(vec![Series::line("loss", falling())]);
    assert_eq!(chart.svg(), chart.clone().svg());
    assert!(chart.svg().contains("a &lt; b &amp; c"));
}

#[test]
fn every_chart_is_an_svg_that_can_be_drawn() {
    let odd = vec![
        (0.0, f64::NAN),
        (1.0, f64::INFINITY),
        (2.0, 1.0),
        (3.0, -1.0),
    ];
    let series = [
        vec![],
        vec![Series::line("", vec![])],
        vec![Series::dashed("odd", odd)],
    ];
    for series in series {
        for y_scale in [Scale::Linear, Scale::Log] {
            let svg = LineChart {
                y_scale,
                ..chart(series.clone())
            }
            .svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            crate::render_png(&svg, 1.0).unwrap();
        }
    }
    crate::render_png(&side_by_side(&[]), 1.0).unwrap();
}

#[test]
fn all_points_lie_inside_the_frame() {
    let chart = chart(vec![Series::line("loss", falling())]);
    let frame = Frame::new(&chart, 0.0);
    let points = frame.runs(&chart.series[0], Scale::Linear).concat();
    assert_eq!(points.len(), 50);
    for (x, y) in points {
        assert!((frame.left..=frame.right).contains(&x), "{x}");
        assert!((frame.top..=frame.bottom).contains(&y), "{y}");
    }
    let reference = frame.y_at(7.6);
    assert!((frame.top..=frame.bottom).contains(&reference));
}

#[test]
fn a_missing_value_leaves_a_gap_and_a_lone_point_is_a_dot() {
    let mut points = falling();
    points[20].1 = f64::NAN;
    let svg = chart(vec![Series::line("loss", points)]).svg();
    assert_eq!(svg.matches("<path").count(), 2);
    let svg = chart(vec![Series::line("loss", vec![(1.0, 2.0)])]).svg();
    assert_eq!(
        (svg.matches("<path").count(), svg.matches("<circle").count()),
        (0, 1)
    );
}

#[test]
fn a_legend_appears_with_the_second_line_above_the_plot() {
    let one = chart(vec![Series::line("student", falling())]).svg();
    assert!(!one.contains(">student<"));
    let two = vec![
        Series::line("student", falling()),
        Series::dashed("floor", falling()),
    ];
    let chart = chart(two);
    let svg = chart.svg();
    assert!(svg.contains(">student<") && svg.contains(">floor<"));
    let frame = Frame::new(&chart, 0.0);
    for name in [">student<", ">floor<"] {
        let text = &svg[..svg.find(name).unwrap()];
        let text = &text[text.rfind("<text").unwrap()..];
        let y = text
            .split("y=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let y: f64 = y.parse().unwrap();
        assert!(y > 22.0 && y < frame.top, "between title and plot: {text}");
    }
}

#[test]
fn a_long_noisy_line_is_drawn_pale_behind_its_mean() {
    let noisy = |n: i32| -> Vec<(f64, f64)> {
        let value = |i: i32| 7.0 - f64::from(i) / f64::from(n) + f64::from(i % 2);
        (0..n).map(|i| (f64::from(i), value(i))).collect()
    };
    let chart = chart(vec![Series::line("loss", noisy(2000))]);
    let svg = chart.svg();
    assert!(
        svg.contains("stroke-opacity=\"0.3\" data-series=\"loss\""),
        "{svg}"
    );
    assert!(svg.contains("data-mean-of=\"loss\""));
    assert!(
        svg.contains("pale: single values; line: mean of 41"),
        "{svg}"
    );
    // What is drawn bold runs through the middle of the noise.
    let path = svg.split("data-mean-of=\"loss\"").nth(1).unwrap();
    let path = path
        .split(" d=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let frame = Frame::new(&chart, 0.0);
    let middle = path.split(['M', 'L']).nth(201).unwrap();
    let y: f64 = middle.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((y - frame.y_at(7.0)).abs() < 2.0, "{y} {}", frame.y_at(7.0));

    let calm = LineChart {
        series: vec![Series::line("loss", noisy(100))],
        ..chart.clone()
    };
    assert!(!calm.svg().contains("data-mean-of"), "short");
    let smooth = (0..2000).map(|i| (f64::from(i), f64::from(i) / 2000.0));
    let calm = LineChart {
        series: vec![Series::line("lr", smooth.collect())],
        ..chart
    };
    assert!(!calm.svg().contains("data-mean-of"), "a schedule");
}

#[test]
fn the_seventh_line_has_the_colour_of_the_first() {
    let lines = (0..7).map(|i| Series::line(format!("s{i}"), falling()));
    let svg = chart(lines.collect()).svg();
    let color = |name: &str| {
        let group = svg.split("<g ").find(|group| group.contains(name));
        let color = group.unwrap().split("stroke=\"").nth(1).unwrap();
        color.split('"').next().unwrap().to_owned()
    };
    let colors: Vec<String> = (0..7)
        .map(|i| color(&format!("data-series=\"s{i}\"")))
        .collect();
    assert_eq!(colors[6], colors[0]);
    for i in 0..6 {
        assert!(!colors[..i].contains(&colors[i]), "{colors:?}");
    }
}

#[test]
fn charts_in_a_row_do_not_overlap() {
    let left = chart(vec![Series::line("loss", falling())]);
    let right = LineChart {
        width: 300.0,
        height: 500.0,
        ..left.clone()
    };
    let svg = side_by_side(&[left.clone(), right]);
    assert!(svg.contains(r#"width="780" height="500""#));
    let (first, second) = (Frame::new(&left, 0.0), Frame::new(&left, left.width));
    assert!(first.right < left.width && left.width < second.left);
    assert!((second.left - first.left - left.width).abs() < 1e-9);
}

#[test]
fn a_very_long_series_gives_a_small_picture() {
    let points = (0..300_000)
        .map(|i| (f64::from(i), f64::from(i % 97)))
        .collect();
    let svg = chart(vec![Series::line("loss", points)]).svg();
    assert!(svg.len() < 100_000, "{} bytes", svg.len());
}
