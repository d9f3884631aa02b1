use crate::axis::{Axis, Scale, can_show};
use crate::colormap::{hex, of_class, of_number};
use crate::font::shortened;
use crate::svg::{Anchor, LABEL, Svg, TICK, TITLE, TextStyle, Turn, number, text_width};

/// Points of a plane, such as a t-SNE map, coloured by a label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scatter {
    /// Above the chart, at most 160 characters of it; empty for none.
    pub title: String,
    /// In smaller letters below the title, as many; empty for none.
    pub subtitle: String,
    /// Below the chart; empty for none.
    pub x_label: String,
    /// Beside it; empty for none.
    pub y_label: String,
    /// Places; a unit is as long along both axes. One that is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// What the colours say.
    pub coloring: Coloring,
    /// Whether the axes have numbers; those of a t-SNE map mean nothing.
    pub ticks: bool,
}

/// What the colours of points say.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Coloring {
    /// Nothing.
    #[default]
    Plain,
    /// A class for each point, named in a legend.
    Classes {
        /// What is classified, above the legend.
        label: String,
        /// Names by class number.
        names: Vec<String>,
        /// Class number of each point; one without a name is none, and the point grey, as are points
        /// beyond the last number.
        of: Vec<usize>,
    },
    /// A number for each point, with a colour bar.
    Numbers {
        /// What is measured, above the bar.
        label: String,
        /// Number of each point; one that is not finite is none, and the point grey.
        of: Vec<f64>,
    },
}

/// Side of the field.
const FIELD: f64 = 380.0;
/// Room above it for the title, and more for a subtitle.
const TITLED: f64 = 34.0;
const SUBTITLED: f64 = 16.0;
const LEGEND_ROWS: usize = 20;
/// Characters at most above the chart, and of a name beside it: the picture is as wide as they are.
const LONGEST_TITLE: usize = 160;
const LONGEST_NAME: usize = 22;
/// Colour of a point that the label says nothing of.
const WITHOUT: [u8; 3] = [150; 3];
const TICK_BESIDE: TextStyle = TextStyle {
    anchor: Anchor::End,
    ..TICK
};
const ROW: TextStyle = TextStyle {
    size: 10.5,
    anchor: Anchor::Start,
    ..LABEL
};

impl Scatter {
    /// The chart as SVG text; the same chart gives the same text.
    pub fn svg(&self) -> String {
        let mut svg = Svg::default();
        let left = if self.ticks { 62.0 } else { 30.0 };
        let top = self.top();
        let (right, bottom) = (left + FIELD, top + FIELD);
        let along = |place: fn(&(f64, f64)) -> f64| {
            let values = self.drawn().map(|i| place(&self.points[i]));
            Axis::around(values, Scale::Linear, 0.04)
        };
        let (x, y) = (along(|point| point.0), along(|point| point.1));
        let (x, y) = Axis::equal(x, y);
        svg.element(&format!(
            r##"rect x="{}" y="{}" width="{FIELD}" height="{FIELD}" fill="none" stroke="#bbbbbb""##,
            number(left),
            number(top)
        ));
        if self.ticks {
            for (value, label) in x.marks() {
                let at = left + x.place(*value) * FIELD;
                svg.text(at, bottom + 15.0, TICK, Turn::Level, label);
            }
            for (value, label) in y.marks() {
                let at = bottom - y.place(*value) * FIELD;
                svg.text(left - 6.0, at + 3.6, TICK_BESIDE, Turn::Level, label);
            }
            svg.text(right, bottom + 28.0, TICK_BESIDE, Turn::Level, &x.factor);
            svg.text(left - 6.0, top - 6.0, TICK_BESIDE, Turn::Level, &y.factor);
        }
        svg.open(r#"g stroke="none" fill-opacity="0.75""#);
        let radius = match self.points.len() {
            0..400 => 3.4,
            400..1500 => 2.6,
            1500..6000 => 1.9,
            _ => 1.2,
        };
        let color = self.colors();
        for i in self.drawn() {
            let point = self.points[i];
            svg.element(&format!(
                r#"circle cx="{}" cy="{}" r="{radius}" fill="{}""#,
                number(left + x.place(point.0) * FIELD),
                number(bottom - y.place(point.1) * FIELD),
                color(i)
            ));
        }
        svg.close("g");
        let middle = left + FIELD / 2.0;
        let title = TextStyle {
            anchor: Anchor::Start,
            ..TITLE
        };
        let above = [&self.title, &self.subtitle].map(|text| shortened(text, LONGEST_TITLE));
        svg.text(left, 21.0, title, Turn::Level, &above[0]);
        svg.text(left, 38.0, ROW, Turn::Level, &above[1]);
        let below = bottom + if self.ticks { 32.0 } else { 18.0 };
        svg.text(middle, below, LABEL, Turn::Level, &self.x_label);
        let beside = if self.ticks { 16.0 } else { 20.0 };
        svg.text(beside, top + FIELD / 2.0, LABEL, Turn::Up, &self.y_label);
        let legend = right + 14.0 + self.legend(&mut svg, right + 14.0);
        let titled = left + 1.1 * text_width(&above[0], title.size) + 10.0; // bold is wider
        let subtitled = left + text_width(&above[1], ROW.size) + 10.0;
        svg.finish(
            legend.max(titled).max(subtitled),
            bottom + if self.ticks { 42.0 } else { 28.0 },
        )
    }

    /// The numbers of the points that can be shown.
    fn drawn(&self) -> impl Iterator<Item = usize> + '_ {
        let shown = |value| can_show(value, Scale::Linear);
        let points = self.points.iter().enumerate();
        points.filter_map(move |(i, (x, y))| (shown(*x) && shown(*y)).then_some(i))
    }

    /// Where the field begins.
    fn top(&self) -> f64 {
        let subtitled = !self.subtitle.is_empty();
        TITLED + if subtitled { SUBTITLED } else { 0.0 }
    }

    /// The colour of each point, by its number.
    fn colors(&self) -> impl Fn(usize) -> String {
        let (low, high) = match &self.coloring {
            Coloring::Numbers { of, .. } => range(of),
            _ => (0.0, 1.0),
        };
        move |i| {
            hex(match &self.coloring {
                Coloring::Plain => [0, 114, 178],
                Coloring::Classes { names, of, .. } => of
                    .get(i)
                    .filter(|class| **class < names.len())
                    .map_or(WITHOUT, |class| of_class(*class)),
                Coloring::Numbers { of, .. } => of
                    .get(i)
                    .filter(|value| can_show(**value, Scale::Linear))
                    .map_or(WITHOUT, |value| {
                        of_number((value - low) / (high - low).max(f64::MIN_POSITIVE))
                    }),
            })
        }
    }

    /// Draws what the colours mean; its width.
    fn legend(&self, svg: &mut Svg, left: f64) -> f64 {
        let (label, rows) = match &self.coloring {
            Coloring::Plain => return 0.0,
            Coloring::Classes { label, names, of } => {
                (label, self.class_rows(svg, left, names, of))
            }
            Coloring::Numbers { label, of } => (label, self.number_bar(svg, left, of)),
        };
        let heading = TextStyle { bold: true, ..ROW };
        let label = shortened(label, LONGEST_NAME);
        svg.text(left, self.top() + 10.0, heading, Turn::Level, &label);
        let mut widest = rows.widest.max(1.1 * text_width(&label, ROW.size)); // bold is wider
        if rows.without > 0 {
            let row = format!("without ({})", rows.without);
            widest = widest.max(legend_row(svg, left, rows.below, WITHOUT, &row));
        }
        widest.max(40.0) + 10.0
    }

    /// Draws the names of classes with how many points they have.
    fn class_rows(&self, svg: &mut Svg, left: f64, names: &[String], of: &[usize]) -> Rows {
        let mut counts = vec![0usize; names.len()];
        for i in self.drawn() {
            if let Some(count) = of.get(i).and_then(|class| counts.get_mut(*class)) {
                *count += 1;
            }
        }
        let mut widest = 0.0f64;
        let mut y = self.top() + 28.0;
        for (i, name) in names.iter().take(LEGEND_ROWS).enumerate() {
            let row = format!("{} ({})", shortened(name, LONGEST_NAME), counts[i]);
            widest = widest.max(legend_row(svg, left, y, of_class(i), &row));
            y += 17.0;
        }
        if names.len() > LEGEND_ROWS {
            let rest = format!("and {} more", names.len() - LEGEND_ROWS);
            svg.text(left, y, ROW, Turn::Level, &rest);
            y += 17.0;
        }
        Rows {
            widest,
            below: y,
            without: self.drawn().count() - counts.iter().sum::<usize>(),
        }
    }

    /// Draws a bar of the colours of numbers, with its marks.
    fn number_bar(&self, svg: &mut Svg, left: f64, of: &[f64]) -> Rows {
        let (low, high) = range(of);
        let (top, height, steps) = (self.top() + 22.0, 200.0, 50);
        for i in 0..steps {
            let color = hex(of_number(1.0 - (f64::from(i) + 0.5) / f64::from(steps)));
            let step = height / f64::from(steps);
            svg.element(&format!(
                r#"rect x="{}" y="{}" width="14" height="{}" fill="{color}""#,
                number(left),
                number(top + step * f64::from(i)),
                number(step + 0.3)
            ));
        }
        let axis = Axis::around([low, high].into_iter(), Scale::Linear, 0.0);
        let mut widest = text_width(&axis.factor, ROW.size);
        for (value, text) in axis.marks() {
            let part = (value - low) / (high - low).max(f64::MIN_POSITIVE);
            if (0.0..=1.0).contains(&part) {
                let y = top + height * (1.0 - part) + 3.6;
                svg.text(left + 19.0, y, ROW, Turn::Level, text);
                widest = widest.max(19.0 + text_width(text, ROW.size));
            }
        }
        let below = top + height + 17.0;
        svg.text(left, below, ROW, Turn::Level, &axis.factor);
        let is_number = |i: &usize| {
            of.get(*i)
                .is_some_and(|value| can_show(*value, Scale::Linear))
        };
        Rows {
            widest,
            below: below + 20.0,
            without: self.drawn().count() - self.drawn().filter(is_number).count(),
        }
    }
}

/// What stands below the heading of a legend.
struct Rows {
    widest: f64,
    /// Where the next row goes.
    below: f64,
    /// Points that the label says nothing of.
    without: usize,
}

/// A point of a colour and what it means; their width.
fn legend_row(svg: &mut Svg, left: f64, y: f64, color: [u8; 3], text: &str) -> f64 {
    let (cx, cy, color) = (number(left + 5.0), number(y - 4.0), hex(color));
    svg.element(&format!(
        r#"circle cx="{cx}" cy="{cy}" r="4.5" fill="{color}""#
    ));
    svg.text(left + 15.0, y, ROW, Turn::Level, text);
    15.0 + text_width(text, ROW.size)
}

fn range(values: &[f64]) -> (f64, f64) {
    let shown = values.iter().copied();
    let shown = shown.filter(|value| can_show(*value, Scale::Linear));
    let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scatter(coloring: Coloring) -> Scatter {
        Scatter {
            title: "Map".to_owned(),
            points: vec![(0.0, 0.0), (10.0, 0.0), (0.0, 5.0), (f64::NAN, 1.0)],
            coloring,
            ..Scatter::default()
        }
    }

    fn centres(svg: &str) -> Vec<(f64, f64)> {
        let value = |line: &str, name: &str| -> f64 {
            let from = line.find(name).unwrap() + name.len() + 2;
            line[from..].split('"').next().unwrap().parse().unwrap()
        };
        let circles = svg.lines().filter(|line| line.contains("r=\"3.4\""));
        circles
            .map(|line| (value(line, "cx"), value(line, "cy")))
            .collect()
    }

    #[test]
    fn a_unit_is_as_long_along_both_axes_and_up_is_up() {
        let places = centres(&scatter(Coloring::Plain).svg());
        assert_eq!(places.len(), 3, "the point without a place is left out");
        let (right, up) = (places[1].0 - places[0].0, places[0].1 - places[2].1);
        assert!(
            up > 100.0 && (right / up - 2.0).abs() < 0.01,
            "{right} {up}"
        );
    }

    #[test]
    fn a_subtitle_has_room_above_the_field() {
        let plain = scatter(Coloring::Plain);
        let long = "vit_tiny/8 (width 192, depth 12, heads 3), weights runs/faces (teacher)";
        let told = Scatter {
            subtitle: long.repeat(2),
            ..plain.clone()
        };
        let (plain, told) = (plain.svg(), told.svg());
        assert!(told.contains(long) && !plain.contains(r#"y="38""#));
        for (before, after) in centres(&plain).iter().zip(centres(&told)) {
            assert_eq!((before.0, before.1 + SUBTITLED), after);
        }
        let width = |svg: &str| -> f64 {
            let rest = svg.split_once("width=\"").unwrap().1;
            rest.split('"').next().unwrap().parse().unwrap()
        };
        assert!(width(&told) > width(&plain), "it is not cut off");
    }

    #[test]
    fn many_points_with_numbers_are_drawn_soon() {
        let n = 200_000;
        let many = Scatter {
            points: (0..n).map(|i| (f64::from(i), 0.0)).collect(),
            ..scatter(Coloring::Numbers {
                label: "age".to_owned(),
                of: (0..n).map(f64::from).collect(),
            })
        };
        let began = std::time::Instant::now();
        let svg = many.svg();
        assert_eq!(svg.matches("<circle").count(), 200_000);
        // A fraction of a second; a range for each point would take minutes.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    #[test]
    fn classes_have_a_legend_with_counts_and_numbers_a_bar() {
        let svg = scatter(Coloring::Classes {
            label: "gender".to_owned(),
            names: vec!["f".to_owned(), "m".to_owned()],
            of: vec![0, 1, 1, 0],
        })
        .svg();
        // The fourth has no place.
        assert!(svg.contains("f (1)") && svg.contains("m (2)") && svg.contains("gender"));
        let svg = scatter(Coloring::Numbers {
            label: "age".to_owned(),
            of: vec![20.0, 40.0, 60.0, f64::NAN],
        })
        .svg();
        assert!(svg.contains("age") && svg.contains(">40<"), "{svg}");
        assert_eq!(svg.matches("width=\"14\"").count(), 50);
    }

    #[test]
    fn points_without_the_label_are_grey_and_named() {
        let grey = |svg: &str| svg.matches(r##"r="3.4" fill="#969696""##).count();
        let classes = |of: [usize; 3]| {
            let names = vec!["f".to_owned(), "m".to_owned()];
            let label = "gender".to_owned();
            let of = of.to_vec();
            scatter(Coloring::Classes { label, names, of }).svg()
        };
        let svg = classes([0, usize::MAX, 2]);
        assert_eq!(grey(&svg), 2, "{svg}");
        assert!(svg.contains("f (1)") && svg.contains("without (2)"));
        // One number for three points.
        let short = Coloring::Classes {
            label: "gender".to_owned(),
            names: vec!["f".to_owned()],
            of: vec![0],
        };
        let svg = scatter(short).svg();
        assert!(svg.contains("f (1)") && svg.contains("without (2)"));
        let svg = classes([0, 1, 1]);
        assert!(grey(&svg) == 0 && !svg.contains("without"));
        let label = "age".to_owned();
        let of = vec![20.0, f64::NAN, 60.0];
        let svg = scatter(Coloring::Numbers { label, of }).svg();
        assert!(grey(&svg) == 1 && svg.contains("without (1)"), "{svg}");
    }

    #[test]
    fn names_of_any_length_leave_a_picture_that_can_be_drawn() {
        let long = "W".repeat(20_000);
        let names = vec![long.clone(); 2];
        let of = vec![0, 1, 2, 0];
        let label = long.clone();
        let chart = Scatter {
            title: long.clone(),
            subtitle: long.clone(),
            x_label: long.clone(),
            y_label: long,
            ..scatter(Coloring::Classes { label, names, of })
        };
        crate::render_png(&chart.svg(), 2.0).unwrap();
        let (label, of) = ("W".repeat(20_000), vec![1.0; 4]);
        let chart = scatter(Coloring::Numbers { label, of });
        crate::render_png(&chart.svg(), 2.0).unwrap();
    }
}
