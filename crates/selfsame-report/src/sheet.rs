use std::io::Cursor;

use ab_glyph::{FontRef, PxScale};
use image::{ImageFormat, Rgb, RgbImage, imageops};
use imageproc::drawing::{draw_filled_rect_mut, draw_hollow_rect_mut, draw_text_mut, text_size};
use imageproc::rect::Rect;

use crate::ReportError;
use crate::font;

/// Ten colours that are told apart on photographs and on white (after Tableau's palette).
pub const COLORS: [[u8; 3]; 10] = [
    [214, 39, 40],
    [31, 119, 180],
    [255, 127, 14],
    [44, 160, 44],
    [148, 103, 189],
    [23, 190, 207],
    [227, 119, 194],
    [188, 189, 34],
    [140, 86, 75],
    [90, 90, 90],
];

const MARGIN: u32 = 16;
const TITLE: PxScale = PxScale { x: 17.0, y: 17.0 };
const TEXT: PxScale = PxScale { x: 15.0, y: 15.0 };
const HEADING: PxScale = PxScale { x: 24.0, y: 24.0 };
const LINE: u32 = 19;
const BLACK: Rgb<u8> = Rgb([20, 20, 20]);
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// A picture with words above and below it.
#[derive(Debug, Clone)]
pub struct SheetCell {
    /// Above the picture, in bold.
    pub title: String,
    /// Below it: put one after the other as long as they fit the cell's width.
    pub notes: Vec<String>,
    /// The picture.
    pub image: RgbImage,
    /// Colour of a frame around it.
    pub frame: Option<[u8; 3]>,
}

/// Pictures with words in rows, under a heading.
#[derive(Debug, Clone)]
pub struct Sheet {
    /// Above everything.
    pub heading: String,
    /// Rows of cells, each as high as it needs.
    pub rows: Vec<Vec<SheetCell>>,
}

impl Sheet {
    /// Draws the sheet on white.
    pub fn draw(&self) -> RgbImage {
        let row_sizes: Vec<(u32, u32)> = self.rows.iter().map(|row| row_size(row)).collect();
        let heading = text_size(HEADING, &font::bold(), &self.heading).0;
        let widths = row_sizes.iter().map(|size| size.0).chain([heading]);
        let width = widths.max().unwrap_or(0) + 2 * MARGIN;
        let height = row_sizes.iter().map(|size| size.1 + MARGIN).sum::<u32>();
        let top = MARGIN + 24 + MARGIN;
        let mut sheet = RgbImage::from_pixel(width, top + height, WHITE);
        write(
            &mut sheet,
            (MARGIN, MARGIN),
            HEADING,
            &font::bold(),
            &self.heading,
        );
        let mut y = top;
        for (row, (_, height)) in self.rows.iter().zip(row_sizes) {
            let mut x = MARGIN;
            for cell in row {
                cell.draw(&mut sheet, x, y);
                x += cell.width() + MARGIN;
            }
            y += height + MARGIN;
        }
        sheet
    }
}

fn row_size(row: &[SheetCell]) -> (u32, u32) {
    let width = row.iter().map(|cell| cell.width() + MARGIN).sum::<u32>();
    let height = row.iter().map(SheetCell::height).max().unwrap_or(0);
    (width.saturating_sub(MARGIN), height)
}

impl SheetCell {
    /// As wide as the picture, and as wide as its title and its longest note at least.
    fn width(&self) -> u32 {
        let title = text_size(TITLE, &font::bold(), &self.title).0;
        let notes = self
            .notes
            .iter()
            .map(|note| text_size(TEXT, &font::book(), note).0);
        notes.chain([title, self.image.width()]).max().unwrap_or(0)
    }

    fn height(&self) -> u32 {
        LINE + 4 + self.image.height() + 6 + LINE * self.lines().len() as u32
    }

    /// The notes in lines that fit the cell.
    fn lines(&self) -> Vec<String> {
        let width = self.width();
        let mut lines: Vec<String> = Vec::new();
        for note in &self.notes {
            let joined = lines.last().map(|line| format!("{line}, {note}"));
            match joined {
                Some(joined) if text_size(TEXT, &font::book(), &joined).0 <= width => {
                    lines.pop();
                    lines.push(joined);
                }
                _ => lines.push(note.clone()),
            }
        }
        lines
    }

    fn draw(&self, sheet: &mut RgbImage, x: u32, y: u32) {
        write(sheet, (x, y), TITLE, &font::bold(), &self.title);
        let top = y + LINE + 4;
        imageops::replace(sheet, &self.image, i64::from(x), i64::from(top));
        if let Some(color) = self.frame {
            let (width, height) = self.image.dimensions();
            for i in 1..=3 {
                let corner = Rect::at(x as i32 - i, top as i32 - i);
                let frame = corner.of_size(width + 2 * i as u32, height + 2 * i as u32);
                draw_hollow_rect_mut(sheet, frame, Rgb(color));
            }
        }
        for (line, i) in self.lines().iter().zip(0..) {
            let y = top + self.image.height() + 6 + LINE * i;
            write(sheet, (x, y), TEXT, &font::book(), line);
        }
    }
}

/// Draws a labelled outline onto a picture, thick enough to be seen on any.
///
/// `left`, `top`, `width` and `height` are in pixels of the picture.
pub fn outline(
    image: &mut RgbImage,
    [left, top, width, height]: [u32; 4],
    color: [u8; 3],
    label: &str,
) {
    for i in 0..2 {
        let size = |side: u32| side.saturating_sub(2 * i).max(1);
        let frame =
            Rect::at((left + i) as i32, (top + i) as i32).of_size(size(width), size(height));
        draw_hollow_rect_mut(image, frame, Rgb(color));
    }
    let (text_width, _) = text_size(TEXT, &font::bold(), label);
    let plate = Rect::at(left as i32, top as i32).of_size(text_width + 6, 17);
    draw_filled_rect_mut(image, plate, Rgb(color));
    let place = (left as i32 + 3, top as i32);
    draw_text_mut(image, WHITE, place.0, place.1, TEXT, &font::bold(), label);
}

/// Puts sheets one above the other.
pub fn stack(sheets: &[RgbImage]) -> RgbImage {
    let width = sheets.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = sheets.iter().map(RgbImage::height).sum::<u32>();
    let mut all = RgbImage::from_pixel(width, height.max(1), WHITE);
    let mut y = 0;
    for sheet in sheets {
        imageops::replace(&mut all, sheet, 0, y);
        y += i64::from(sheet.height());
    }
    all
}

/// The bytes of a PNG file.
///
/// # Errors
/// [`ReportError::Png`].
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>, ReportError> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| ReportError::Png(error.to_string()))?;
    Ok(bytes.into_inner())
}

fn write(image: &mut RgbImage, (x, y): (u32, u32), scale: PxScale, font: &FontRef, text: &str) {
    draw_text_mut(image, BLACK, x as i32, y as i32, scale, font, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(notes: &[&str]) -> SheetCell {
        SheetCell {
            title: "blur".to_owned(),
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
            image: RgbImage::from_pixel(120, 60, Rgb([9, 200, 9])),
            frame: Some([255, 0, 0]),
        }
    }

    #[test]
    fn notes_share_a_line_as_long_as_they_fit() {
        let cell = cell(&["flip", "hue 0.05", "brightness 1.25", "blur 1.0"]);
        let lines = cell.lines();
        assert!(
            lines.len() >= 2 && lines[0].starts_with("flip, hue"),
            "{lines:?}"
        );
        assert_eq!(lines.join(", "), cell.notes.join(", "));
    }

    #[test]
    fn a_sheet_holds_its_pictures_their_words_and_frames() {
        let sheet = Sheet {
            heading: "Operations".to_owned(),
            rows: vec![vec![cell(&[]), cell(&["radius 1.0"])], vec![cell(&[])]],
        };
        let drawn = sheet.draw();
        let count = |color: [u8; 3]| drawn.pixels().filter(|p| p.0 == color).count();
        assert_eq!(count([9, 200, 9]), 3 * 120 * 60);
        assert!(count([255, 0, 0]) > 3 * 3 * 2 * (120 + 60));
        assert!(count(BLACK.0) > 200, "there is text");
        assert!(encode_png(&drawn).unwrap().starts_with(b"\x89PNG"));
        assert_eq!(
            stack(&[drawn.clone(), drawn.clone()]).height(),
            2 * drawn.height()
        );
    }

    #[test]
    fn outlines_at_the_border_and_of_one_pixel_are_drawn() {
        let mut image = RgbImage::new(50, 40);
        outline(&mut image, [0, 0, 50, 40], [255, 0, 0], "1");
        outline(&mut image, [49, 39, 1, 1], [0, 0, 255], "10");
        assert_eq!(image.get_pixel(49, 20).0, [255, 0, 0]);
    }
}
