//! Numbers become figures: line charts as SVG text and as PNG, fit for a paper or a web page, and
//! pictures become sheets with words; maps of a network lie over their pictures; a page holds all.
//! The same numbers give the same bytes on every machine, because the font is inside.
//!
//! ```
//! use selfsame_report::{LineChart, Reference, Series, render_png};
//!
//! # fn main() -> Result<(), selfsame_report::ReportError> {
//! let chart = LineChart {
//!     title: "Training loss".to_string(),
//!     x_label: "epoch".to_string(),
//!     y_label: "loss".to_string(),
//!     series: vec![Series::line("loss", vec![(0.0, 7.6), (1.0, 6.1), (2.0, 5.4)])],
//!     references: vec![Reference { name: "ln K".to_string(), y: 2048f64.ln() }],
//!     ..LineChart::default()
//! };
//! let png = render_png(&chart.svg(), 2.0)?;
//! assert!(png.starts_with(b"\x89PNG"));
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not know
//! Tensors, models, training, and where the numbers come from or the files go.

mod axis;
mod colormap;
mod curves;
mod downsample;
mod error;
mod font;
mod legend;
mod level_name;
mod line_chart;
mod outline;
mod overlay;
mod page;
mod png;
mod scatter;
mod sheet;
mod smooth;
mod svg;

pub use axis::Scale;
pub use colormap::{COLORS, of_class as class_color};
pub use curves::{LossPoint, curves};
pub use error::ReportError;
pub use font::shortened;
/// What the pictures of sheets and maps are made of.
pub use image;
pub use line_chart::{LineChart, Reference, Series, Stroke, side_by_side};
pub use outline::{Outlined, outline};
pub use overlay::{CellMap, heat_bar, rgb_cells};
pub use page::{Cell, News, Page};
pub use png::render_png;
pub use scatter::{Coloring, Scatter};
pub use sheet::{Remark, Sheet, SheetCell, encode_png, stack};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
