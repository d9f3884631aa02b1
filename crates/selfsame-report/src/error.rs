/// What can go wrong between numbers and a picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The text is not an SVG picture.
    #[error("this is not a valid SVG picture: {0}")]
    Svg(String),

    /// The picture would be empty or larger than is sensible.
    #[error("a picture of {width} x {height} pixels at scale {scale} cannot be drawn")]
    Size {
        /// Width of the SVG picture.
        width: f32,
        /// Height of the SVG picture.
        height: f32,
        /// Pixels per SVG unit.
        scale: f32,
    },

    /// Not a number for each cell of a grid.
    #[error("a map of {columns} x {rows} cells has {found} numbers")]
    Cells {
        /// Cells across.
        columns: usize,
        /// Cells down.
        rows: usize,
        /// Numbers given.
        found: usize,
    },

    /// A cell of a map has a number below 0.
    #[error("cell {cell} of a map is {value}; the numbers must not be negative")]
    NegativeCell {
        /// The cell, from 0, row by row.
        cell: usize,
        /// Its number.
        value: f32,
    },

    /// The pixels could not be packed as PNG.
    #[error("the picture could not be written as PNG: {0}")]
    Png(String),
}
