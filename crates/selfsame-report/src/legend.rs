use crate::colormap::LINES;
use crate::line_chart::{LineChart, Look, Stroke, draw_line};
use crate::svg::{Anchor, Svg, TICK, TextStyle, Turn, text_width};

/// Height of a row of names.
const ROW: f64 = 15.0;
/// Length of the sample line before a name.
const SAMPLE: f64 = 22.0;
/// Between a sample and its name, and between two names.
const GAPS: [f64; 2] = [6.0, 16.0];

/// Names of the lines above the plot, where they cover nothing; none for a single line.
pub(crate) struct Legend {
    rows: Vec<Vec<Entry>>,
    top: f64,
}

/// A name, and the line it belongs to unless it is a remark.
struct Entry {
    line: Option<(&'static str, Stroke)>,
    text: String,
}

impl Entry {
    fn width(&self) -> f64 {
        let sample = self.line.map_or(0.0, |_| SAMPLE + GAPS[0]);
        sample + text_width(&self.text, TICK.size)
    }
}

impl Legend {
    /// The names of a chart's lines in rows of at most `width`, from `top` on, and what the mean
    /// of a noisy line takes (`windows`, one per series).
    pub(crate) fn of(chart: &LineChart, windows: &[Option<usize>], width: f64, top: f64) -> Self {
        let mut entries = Vec::new();
        if chart.series.len() > 1 {
            let named = chart.series.iter().enumerate();
            for (i, series) in named.filter(|(_, series)| !series.name.is_empty()) {
                entries.push(Entry {
                    line: Some((LINES[i % LINES.len()], series.stroke)),
                    text: series.name.clone(),
                });
            }
        }
        if let Some(window) = windows.iter().flatten().max() {
            entries.push(Entry {
                line: None,
                text: format!("pale: single values; line: mean of {window}"),
            });
        }
        let mut rows: Vec<Vec<Entry>> = Vec::new();
        let mut left = 0.0;
        for entry in entries {
            let needed = entry.width() + GAPS[1];
            match rows.last_mut() {
                Some(row) if needed <= left => {
                    left -= needed;
                    row.push(entry);
                }
                _ => {
                    left = width - needed;
                    rows.push(vec![entry]);
                }
            }
        }
        Self { rows, top }
    }

    /// Height of all rows.
    pub(crate) fn height(&self) -> f64 {
        self.rows.len() as f64 * ROW
    }

    /// Draws the rows from `left` on.
    pub(crate) fn draw(&self, svg: &mut Svg, left: f64) {
        for (i, row) in self.rows.iter().enumerate() {
            let middle = self.top + (i as f64 + 0.5) * ROW - 3.0;
            let mut x = left;
            for entry in row {
                let mut at = x;
                if let Some((color, stroke)) = entry.line {
                    let sample = vec![vec![(x, middle), (x + SAMPLE, middle)]];
                    draw_line(svg, &sample, color, Look::Line(stroke), "");
                    at += SAMPLE + GAPS[0];
                }
                let style = TextStyle {
                    anchor: Anchor::Start,
                    ..TICK
                };
                let base = middle + 0.36 * TICK.size;
                svg.text(at, base, style, Turn::Level, &entry.text);
                x += entry.width() + GAPS[1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Series;

    fn chart(names: &[&str]) -> LineChart {
        let series = names
            .iter()
            .map(|name| Series::line(*name, vec![(0.0, 1.0)]));
        LineChart {
            series: series.collect(),
            ..LineChart::default()
        }
    }

    #[test]
    fn many_names_take_more_rows_and_none_leaves_the_width() {
        let names = [
            "k = 10",
            "k = 20",
            "a rather long name of a line",
            "k = 200",
        ];
        let chart = chart(&names);
        let wide = Legend::of(&chart, &[None; 4], 900.0, 0.0);
        assert_eq!(wide.rows.len(), 1);
        let narrow = Legend::of(&chart, &[None; 4], 260.0, 0.0);
        assert!(narrow.rows.len() > 1 && narrow.height() > wide.height());
        for row in &narrow.rows {
            let width: f64 = row.iter().map(|entry| entry.width() + GAPS[1]).sum();
            assert!(width <= 260.0 + GAPS[1] || row.len() == 1, "{width}");
        }
        assert_eq!(narrow.rows.iter().map(Vec::len).sum::<usize>(), 4);
    }

    #[test]
    fn a_single_calm_line_needs_no_legend() {
        assert_eq!(
            Legend::of(&chart(&["loss"]), &[None], 400.0, 0.0).height(),
            0.0
        );
        let noisy = Legend::of(&chart(&["loss"]), &[Some(41)], 400.0, 0.0);
        assert_eq!(noisy.rows.len(), 1);
        assert!(noisy.rows[0][0].text.ends_with("mean of 41"));
    }
}
