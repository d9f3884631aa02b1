use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage, imageops};
use imageproc::drawing::draw_hollow_rect_mut;
use imageproc::rect::Rect;

use crate::ReportError;
use crate::font::Words;

const MARGIN: u32 = 16;
/// Width of a cell with a narrower picture, so that there is room for its words.
const NARROWEST: u32 = 160;
/// Words above all rows are shortened beyond this, unless the rows are wider.
const WIDEST_WORDS: u32 = 1000;
const TITLE: Words = Words {
    size: 17.0,
    bold: true,
};
const TEXT: Words = Words {
    size: 15.0,
    bold: false,
};
const HEADING: Words = Words {
    size: 24.0,
    bold: true,
};
const LINE: u32 = 19;
const REMARK_LINE: u32 = 22;
const BLACK: [u8; 3] = [20, 20, 20];
const WHITE: [u8; 3] = [255, 255, 255];

/// A picture with words above and below it, none of which is wider than its cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SheetCell {
    /// Above the picture, in bold; the middle of a longer one is left out.
    pub title: String,
    /// Below it: put one after the other as long as they fit the cell's width.
    pub notes: Vec<String>,
    /// The picture.
    pub image: RgbImage,
    /// Colour of a frame around it.
    pub frame: Option<[u8; 3]>,
}

/// A line that explains a sheet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remark {
    /// What the line is about, such as a scale of colours, drawn before it.
    pub sample: Option<RgbImage>,
    /// The line.
    pub text: String,
}

impl Remark {
    fn width(&self) -> u32 {
        self.indent() + TEXT.width(&self.text)
    }

    fn indent(&self) -> u32 {
        self.sample.as_ref().map_or(0, |image| image.width() + 8)
    }
}

/// Pictures with words in rows, under a heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    /// Above everything.
    pub heading: String,
    /// Below the heading, a line each.
    pub remarks: Vec<Remark>,
    /// Rows of cells, each as high as it needs.
    pub rows: Vec<Vec<SheetCell>>,
}

impl Sheet {
    /// Draws the sheet on white.
    pub fn draw(&self) -> RgbImage {
        let row_sizes: Vec<(u32, u32)> = self.rows.iter().map(|row| row_size(row)).collect();
        let widest_row = row_sizes.iter().map(|size| size.0).max().unwrap_or(0);
        let room = widest_row.max(WIDEST_WORDS);
        let heading = HEADING.fitted(&self.heading, room);
        let words = self.remarks.iter().map(|remark| remark.width().min(room));
        let words = words.chain([HEADING.width(&heading)]).max().unwrap_or(0);
        let width = widest_row.max(words) + 2 * MARGIN;
        let height = row_sizes.iter().map(|size| size.1 + MARGIN).sum::<u32>();
        let mut top = MARGIN + 24 + MARGIN;
        if !self.remarks.is_empty() {
            top += REMARK_LINE * self.remarks.len() as u32 + 4;
        }
        let mut sheet = RgbImage::from_pixel(width, top + height, Rgb(WHITE));
        write(&mut sheet, [MARGIN, MARGIN], HEADING, &heading);
        for (remark, i) in self.remarks.iter().zip(0..) {
            let y = MARGIN + 24 + 12 + REMARK_LINE * i;
            if let Some(sample) = &remark.sample {
                let middle = i64::from(y) + 9 - i64::from(sample.height() / 2);
                imageops::replace(&mut sheet, sample, i64::from(MARGIN), middle);
            }
            let text = TEXT.fitted(&remark.text, room.saturating_sub(remark.indent()));
            write(&mut sheet, [MARGIN + remark.indent(), y], TEXT, &text);
        }
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
    /// That of the picture, whatever the words are, so that columns stay columns.
    fn width(&self) -> u32 {
        self.image.width().max(NARROWEST)
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
                Some(joined) if TEXT.width(&joined) <= width => {
                    lines.pop();
                    lines.push(joined);
                }
                _ => lines.push(TEXT.fitted(note, width)),
            }
        }
        lines
    }

    fn draw(&self, sheet: &mut RgbImage, x: u32, y: u32) {
        let title = TITLE.fitted(&self.title, self.width());
        write(sheet, [x, y], TITLE, &title);
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
            write(sheet, [x, y], TEXT, line);
        }
    }
}

/// Puts sheets one above the other.
pub fn stack(sheets: &[RgbImage]) -> RgbImage {
    let width = sheets.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = sheets.iter().map(RgbImage::height).sum::<u32>();
    let mut all = RgbImage::from_pixel(width, height.max(1), Rgb(WHITE));
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

fn write(image: &mut RgbImage, place: [u32; 2], words: Words, text: &str) {
    words.draw(image, place.map(|at| at as i32), BLACK, text);
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
    fn columns_stay_columns_whatever_the_names_are() {
        let named = |title: &str, note: &str| SheetCell {
            title: title.to_owned(),
            image: RgbImage::from_pixel(180, 60, Rgb([9, 200, 9])),
            frame: None,
            ..cell(&[note])
        };
        let long = "a name that goes on and on, as cameras and messengers like to give them.jpg";
        let row = |name: &str| vec![named(name, "age 3"), named("1", name)];
        let sheet = Sheet {
            heading: format!("Nearest: {}", long.repeat(4)),
            remarks: vec![Remark {
                sample: Some(RgbImage::new(100, 12)),
                text: long.repeat(3),
            }],
            rows: vec![row("a.jpg"), row(long), row("顔")],
        };
        let drawn = sheet.draw();
        let columns = |x: u32| {
            drawn
                .rows()
                .filter(|row| row.clone().nth(x as usize).unwrap().0 == [9, 200, 9])
                .count()
        };
        for x in [MARGIN, MARGIN + 179, 2 * MARGIN + 180, 2 * MARGIN + 359] {
            assert_eq!(columns(x), 3 * 60, "{x}");
        }
        assert_eq!(columns(MARGIN + 180), 0);
        assert!(
            drawn.width() <= WIDEST_WORDS + 2 * MARGIN,
            "{}",
            drawn.width()
        );
    }

    #[test]
    fn a_sheet_holds_its_pictures_their_words_and_frames() {
        let sheet = Sheet {
            heading: "Operations".to_owned(),
            remarks: Vec::new(),
            rows: vec![vec![cell(&[]), cell(&["radius 1.0"])], vec![cell(&[])]],
        };
        let drawn = sheet.draw();
        let count = |color: [u8; 3]| drawn.pixels().filter(|p| p.0 == color).count();
        assert_eq!(count([9, 200, 9]), 3 * 120 * 60);
        assert!(count([255, 0, 0]) > 3 * 3 * 2 * (120 + 60));
        assert!(count(BLACK) > 200, "there is text");
        assert!(encode_png(&drawn).unwrap().starts_with(b"\x89PNG"));
        assert_eq!(
            stack(&[drawn.clone(), drawn.clone()]).height(),
            2 * drawn.height()
        );
    }
}
