use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{ImageHrefResolver, Options, Tree, fontdb};

use crate::ReportError;

/// Side of the largest picture drawn, in pixels.
const MAX_SIDE: f32 = 16_384.0;

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(crate::font::BOOK.to_vec());
    fonts.load_font_data(crate::font::BOLD.to_vec());
    Arc::new(fonts)
});

/// Draws an SVG picture on white and gives the bytes of a PNG file.
///
/// `scale` is pixels per SVG unit; 2 is sharp on a screen, 4 in print. Text is drawn with the
/// font inside this crate whatever the picture asks for, a character that it lacks as a box, and no
/// file is ever read.
///
/// # Errors
/// [`ReportError::Svg`] for a text that is no SVG; [`ReportError::Size`] beyond 16,384 pixels.
pub fn render_png(svg: &str, scale: f32) -> Result<Vec<u8>, ReportError> {
    let options = Options {
        fontdb: FONTS.clone(),
        font_family: crate::svg::FONT.to_string(),
        image_href_resolver: ImageHrefResolver {
            resolve_string: Box::new(|_, _| None),
            ..ImageHrefResolver::default()
        },
        ..Options::default()
    };
    let seen = |c: char| {
        if c.is_ascii() {
            c
        } else {
            crate::font::seen(c)
        }
    };
    let svg: String = svg.chars().map(seen).collect();
    let tree =
        Tree::from_str(&svg, &options).map_err(|error| ReportError::Svg(error.to_string()))?;
    let (width, height) = (tree.size().width(), tree.size().height());
    let wrong_size = || ReportError::Size {
        width,
        height,
        scale,
    };
    let side = |length: f32| {
        let pixels = (length * scale).round();
        // Written so that NaN fails too.
        if (1.0..=MAX_SIDE).contains(&pixels) {
            Ok(pixels as u32)
        } else {
            Err(wrong_size())
        }
    };
    let mut pixmap = Pixmap::new(side(width)?, side(height)?).ok_or_else(wrong_size)?;
    pixmap.fill(Color::WHITE);
    resvg::render(
        &tree,
        Transform::from_scale(scale, scale),
        &mut pixmap.as_mut(),
    );
    pixmap
        .encode_png()
        .map_err(|error| ReportError::Png(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(content: &str) -> String {
        format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">{content}</svg>"#)
    }

    fn dark_pixels(png: &[u8]) -> usize {
        let pixmap = Pixmap::decode_png(png).unwrap();
        pixmap
            .pixels()
            .iter()
            .filter(|pixel| pixel.red() < 128)
            .count()
    }

    #[test]
    fn the_background_is_white_and_the_scale_is_pixels_per_unit() {
        let png = render_png(&picture(""), 2.5).unwrap();
        let pixmap = Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixmap.width(), pixmap.height()), (100, 50));
        assert!(pixmap.data().iter().all(|byte| *byte == 255));
    }

    #[test]
    fn text_is_drawn_with_the_font_inside() {
        for text in ["loss", "×10⁻⁴", "τ ≤ ∞ − … → α", "顔写"] {
            let text = format!(r#"<text x="2" y="15" font-size="9">{text}</text>"#);
            assert!(
                dark_pixels(&render_png(&picture(&text), 2.0).unwrap()) > 30,
                "{text}"
            );
        }
        let bold = r#"<text x="2" y="15" font-size="9" font-weight="bold">loss</text>"#;
        let (bold, book) = (bold.to_string(), bold.replace("bold", "normal"));
        let [bold, book] =
            [bold, book].map(|text| dark_pixels(&render_png(&picture(&text), 4.0).unwrap()));
        assert!(bold > book + book / 5, "{bold} against {book}");
    }

    #[test]
    fn impossible_sizes_and_texts_are_refused() {
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e4] {
            assert!(matches!(
                render_png(&picture(""), scale),
                Err(ReportError::Size { .. })
            ));
        }
        assert!(matches!(render_png("loss", 1.0), Err(ReportError::Svg(_))));
    }
}
