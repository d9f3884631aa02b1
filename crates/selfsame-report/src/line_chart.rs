use crate::axis::{Axis, Scale, can_show};
use crate::colormap::LINES;
use crate::downsample::downsample;
use crate::legend::Legend;
use crate::level_name::beside_level;
use crate::smooth::{smoothing_window, trend};
use crate::svg::{
    Anchor, INK, LABEL, Svg, TICK, TITLE, TextStyle, Turn, escape, number, path_data, text_width,
};

/// A chart of one or more lines over a common horizontal axis.
///
/// A line that is noise as wide as the picture is drawn pale behind a moving mean of about a fiftieth
/// of its points, and the legend says so: a line of 400 points or more that goes up and down by more
/// than eight times its own range.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Above the chart; empty for none.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the upright axis.
    pub y_label: String,
    /// The lines, in the order of legend and colours; later ones are drawn on top.
    /// There are six colours: the seventh line has that of the first, and only its stroke can tell
    /// them apart.
    pub series: Vec<Series>,
    /// Level lines to compare with, labelled where they are.
    pub references: Vec<Reference>,
    /// How the upright axis is spread.
    pub y_scale: Scale,
    /// Width in SVG units (pixels at scale 1).
    pub width: f64,
    /// Height in SVG units.
    pub height: f64,
}

impl Default for LineChart {
    fn default() -> Self {
        Self {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            series: Vec::new(),
            references: Vec::new(),
            y_scale: Scale::Linear,
            width: 480.0,
            height: 340.0,
        }
    }
}

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) in ascending x. A value that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stroke {
    /// Unbroken, for what the chart is about.
    #[default]
    Solid,
    /// Broken, for what it is compared with.
    Dashed,
}

/// A level line, such as the loss of a network that knows nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Written on the line.
    pub name: String,
    /// Its height.
    pub y: f64,
}

impl Series {
    /// A solid line.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            stroke: Stroke::Solid,
        }
    }

    /// A dashed line.
    pub fn dashed(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            stroke: Stroke::Dashed,
        }
    }
}

const GRID: &str = "#e4e4e4";
const REFERENCE: &str = "#6b6b6b";

impl LineChart {
    /// The chart as SVG text; the same chart gives the same text.
    pub fn svg(&self) -> String {
        side_by_side(std::slice::from_ref(self))
    }

    fn draw(&self, svg: &mut Svg, left: f64) {
        let frame = Frame::new(self, left);
        svg.open(&frame.group(self));
        frame.grid(svg, self);
        let lines: Vec<Vec<Vec<(f64, f64)>>> = self
            .series
            .iter()
            .map(|series| frame.runs(series, self.y_scale))
            .collect();
        for reference in self.shown_references() {
            frame.reference(svg, reference, &lines.concat());
        }
        // Single values below every trend, so that no line's noise hides another's trend.
        for (i, (series, runs)) in self.series.iter().zip(&lines).enumerate() {
            let name = format!(r#" data-series="{}""#, escape(&series.name));
            let look = match frame.windows[i] {
                None => Look::Line(series.stroke),
                Some(_) => Look::Pale,
            };
            draw_line(svg, runs, LINES[i % LINES.len()], look, &name);
        }
        for (i, series) in self.series.iter().enumerate() {
            if let Some(window) = frame.windows[i] {
                let name = format!(r#" data-mean-of="{}""#, escape(&series.name));
                let smooth = Series {
                    points: trend(&series.points, window),
                    ..series.clone()
                };
                let runs = frame.runs(&smooth, self.y_scale);
                let look = Look::Line(series.stroke);
                draw_line(svg, &runs, LINES[i % LINES.len()], look, &name);
            }
        }
        if lines.iter().all(Vec::is_empty) {
            let (x, y) = (
                (frame.left + frame.right) / 2.0,
                (frame.top + frame.bottom) / 2.0,
            );
            svg.text(
                x,
                y,
                TextStyle {
                    color: REFERENCE,
                    ..LABEL
                },
                Turn::Level,
                "no data",
            );
        }
        frame.legend.draw(svg, frame.left);
        svg.close("g");
    }

    fn shown_references(&self) -> impl Iterator<Item = &Reference> {
        self.references
            .iter()
            .filter(|reference| can_show(reference.y, self.y_scale))
    }
}

/// Several charts in one row, as SVG text; the row is as high as its highest chart.
pub fn side_by_side(charts: &[LineChart]) -> String {
    let mut svg = Svg::default();
    let mut left = 0.0;
    for chart in charts {
        chart.draw(&mut svg, left);
        left += chart.width;
    }
    let height = charts.iter().map(|chart| chart.height).fold(1.0, f64::max);
    svg.finish(left.max(1.0), height)
}

/// Where a chart's lines lie on the picture.
struct Frame {
    x: Axis,
    y: Axis,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    legend: Legend,
    /// For each series how many points its moving mean takes; `None`: it is drawn as it is.
    windows: Vec<Option<usize>>,
}

impl Frame {
    fn new(chart: &LineChart, left: f64) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let shown = points().filter(|(_, y)| can_show(*y, chart.y_scale));
        let x = Axis::around(shown.map(|(x, _)| *x), Scale::Linear, 0.0);
        let levels = chart.references.iter().map(|reference| reference.y);
        let y = Axis::around(points().map(|(_, y)| *y).chain(levels), chart.y_scale, 0.05);

        let widest = y
            .ticks
            .iter()
            .map(|(_, label)| text_width(label, TICK.size));
        let label_room = if chart.y_label.is_empty() { 6.0 } else { 24.0 };
        let (left, right) = (
            left + label_room + widest.fold(0.0, f64::max) + 10.0,
            left + chart.width - 16.0,
        );
        let windows: Vec<Option<usize>> = chart
            .series
            .iter()
            .map(|series| smoothing_window(&series.points))
            .collect();
        let below_title = 14.0 + if chart.title.is_empty() { 0.0 } else { 18.0 };
        let legend = Legend::of(chart, &windows, right - left, below_title);
        let top = below_title + legend.height() + if y.factor.is_empty() { 0.0 } else { 12.0 };
        Self {
            left,
            right,
            top,
            legend,
            windows,
            bottom: chart.height - if chart.x_label.is_empty() { 26.0 } else { 44.0 },
            x,
            y,
        }
    }

    /// A group that says where its axes lie, so that the values of its lines can be read back.
    fn group(&self, chart: &LineChart) -> String {
        let ((x_min, x_max), (y_min, y_max)) = (self.x.range(), self.y.range());
        let scale = match chart.y_scale {
            Scale::Linear => "linear",
            Scale::Log => "log",
        };
        format!(
            r#"g data-chart="{}" data-box="{} {} {} {}" data-x="{x_min} {x_max}" data-y="{y_min} {y_max}" data-scale="{scale}""#,
            escape(&chart.title),
            number(self.left),
            number(self.right),
            number(self.top),
            number(self.bottom),
        )
    }

    fn x_at(&self, value: f64) -> f64 {
        self.left + self.x.place(value) * (self.right - self.left)
    }

    fn y_at(&self, value: f64) -> f64 {
        self.bottom - self.y.place(value) * (self.bottom - self.top)
    }

    /// Grid, axes, marks, labels and title.
    fn grid(&self, svg: &mut Svg, chart: &LineChart) {
        let Self {
            left,
            right,
            top,
            bottom,
            ..
        } = *self;
        for (value, label) in &self.y.ticks {
            let y = self.y_at(*value);
            svg.element(&line(left, y, right, y, GRID, 1.0));
            let style = TextStyle {
                anchor: Anchor::End,
                ..TICK
            };
            svg.text(left - 6.0, y + 0.36 * TICK.size, style, Turn::Level, label);
        }
        for (value, label) in &self.x.ticks {
            let x = self.x_at(*value);
            svg.element(&line(x, top, x, bottom, GRID, 1.0));
            svg.text(x, bottom + 15.0, TICK, Turn::Level, label);
        }
        svg.element(&line(left, top, left, bottom, INK, 1.0));
        svg.element(&line(left, bottom, right, bottom, INK, 1.0));
        if !self.y.factor.is_empty() {
            let style = TextStyle {
                anchor: Anchor::Start,
                ..TICK
            };
            svg.text(left, top - 5.0, style, Turn::Level, &self.y.factor);
        }
        if !self.x.factor.is_empty() {
            let style = TextStyle {
                anchor: Anchor::End,
                ..TICK
            };
            svg.text(right, bottom + 28.0, style, Turn::Level, &self.x.factor);
        }
        let middle = (left + right) / 2.0;
        if !chart.title.is_empty() {
            svg.text(middle, 20.0, TITLE, Turn::Level, &chart.title);
        }
        if !chart.x_label.is_empty() {
            svg.text(middle, bottom + 33.0, LABEL, Turn::Level, &chart.x_label);
        }
        if !chart.y_label.is_empty() {
            let widest = self
                .y
                .ticks
                .iter()
                .map(|(_, label)| text_width(label, TICK.size));
            let x = left - widest.fold(0.0, f64::max) - 16.0;
            svg.text(x, (top + bottom) / 2.0, LABEL, Turn::Up, &chart.y_label);
        }
    }

    /// A level line, with its name where no line of the chart runs through it, if there is such a
    /// place.
    fn reference(&self, svg: &mut Svg, reference: &Reference, lines: &[Vec<(f64, f64)>]) {
        let y = self.y_at(reference.y);
        let stroke = line(self.left, y, self.right, y, REFERENCE, 1.1);
        svg.element(&format!("{stroke} stroke-dasharray=\"2 3\""));
        let width = text_width(&reference.name, TICK.size);
        let field = [self.left, self.right, self.top, self.bottom];
        let Some((x, base)) = beside_level(y, width, field, lines) else {
            return;
        };
        let style = TextStyle {
            anchor: Anchor::Start,
            color: REFERENCE,
            ..TICK
        };
        svg.text(x, base, style, Turn::Level, &reference.name);
    }

    /// The unbroken runs of a series, in picture coordinates, thinned if there are very many.
    fn runs(&self, series: &Series, scale: Scale) -> Vec<Vec<(f64, f64)>> {
        let shown = |(x, y): &(f64, f64)| can_show(*x, Scale::Linear) && can_show(*y, scale);
        let runs = series
            .points
            .split(|point| !shown(point))
            .filter(|run| !run.is_empty());
        let place = |(x, y): &(f64, f64)| (self.x_at(*x), self.y_at(*y));
        runs.map(|run| downsample(run).iter().map(place).collect())
            .collect()
    }
}

/// How a line of a chart looks.
#[derive(Clone, Copy)]
pub(crate) enum Look {
    /// Full colour.
    Line(Stroke),
    /// Single values behind their trend.
    Pale,
}

pub(crate) fn draw_line(
    svg: &mut Svg,
    runs: &[Vec<(f64, f64)>],
    color: &str,
    look: Look,
    name: &str,
) {
    if runs.is_empty() {
        return;
    }
    let (width, rest) = match look {
        Look::Line(Stroke::Solid) => ("1.6", ""),
        Look::Line(Stroke::Dashed) => ("1.6", " stroke-dasharray=\"6 3\""),
        Look::Pale => ("0.8", " stroke-opacity=\"0.3\""),
    };
    svg.open(&format!(
        r#"g fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round" stroke-linecap="butt"{rest}{name}"#
    ));
    for run in runs {
        match run.as_slice() {
            // A line through one point is invisible.
            [(x, y)] => svg.element(&format!(
                r#"circle cx="{}" cy="{}" r="2.5" fill="{color}" stroke="none""#,
                number(*x),
                number(*y)
            )),
            points => svg.element(&format!(r#"path d="{}""#, path_data(points))),
        }
    }
    svg.close("g");
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64, color: &str, width: f64) -> String {
    format!(
        r#"line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{color}" stroke-width="{}""#,
        number(x1),
        number(y1),
        number(x2),
        number(y2),
        number(width)
    )
}

#[cfg(test)]
mod tests;
