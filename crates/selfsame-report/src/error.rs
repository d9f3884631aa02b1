/// What can go wrong between numbers and a picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The text is not an SVG picture.
    #[error("this is not a valid SVG picture")]
    Svg(#[source] resvg::usvg::Error),

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

    /// The pixels could not be packed as PNG.
    #[error("the picture could not be written as PNG: {0}")]
    Png(String),
}
