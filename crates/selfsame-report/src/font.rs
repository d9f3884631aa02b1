//! The font inside this crate (`font/README.md`), and words drawn with it on pictures.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale};
use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_text_mut, text_size};

pub(crate) const BOOK: &[u8] = include_bytes!("../font/DejaVuSans-subset.ttf");
pub(crate) const BOLD: &[u8] = include_bytes!("../font/DejaVuSans-Bold-subset.ttf");

static FACES: LazyLock<[FontRef<'static>; 2]> = LazyLock::new(|| {
    [BOOK, BOLD].map(|bytes| FontRef::try_from_slice(bytes).expect("the font inside is valid"))
});

/// Drawn for a character that the font lacks: a box.
const LACKING: char = '\u{25a1}';
/// Where something was left out.
const LEFT_OUT: char = '…';

/// Size and weight of words on a picture.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// Height in pixels.
    pub(crate) size: f32,
    pub(crate) bold: bool,
}

impl Words {
    fn face(self) -> &'static FontRef<'static> {
        &FACES[usize::from(self.bold)]
    }

    /// How wide a text is in pixels.
    pub(crate) fn width(self, text: &str) -> u32 {
        text_size(PxScale::from(self.size), self.face(), &drawable(text)).0
    }

    /// Draws a text with its upper left corner at `x`, `y`.
    pub(crate) fn draw(self, image: &mut RgbImage, [x, y]: [i32; 2], color: [u8; 3], text: &str) {
        let scale = PxScale::from(self.size);
        draw_text_mut(image, Rgb(color), x, y, scale, self.face(), &drawable(text));
    }

    /// A text no wider than `width` pixels; of a longer one the middle is left out.
    pub(crate) fn fitted(self, text: &str, width: u32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let chars = text.chars().count();
        // How many characters are too many: each one that is kept makes it wider.
        let (mut fit, mut too_many) = (1, chars.max(2));
        while too_many - fit > 1 {
            let tried = fit.midpoint(too_many);
            match self.width(&shortened(text, tried)) <= width {
                true => fit = tried,
                false => too_many = tried,
            }
        }
        shortened(text, fit)
    }
}

/// A text of at most `max` characters; of a longer one the middle is left out, for the ends of a
/// name or a path tell more.
pub fn shortened(text: &str, max: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= max {
        return text.to_owned();
    }
    let kept = max.saturating_sub(1);
    let head = chars.iter().take(kept.div_ceil(2));
    let tail = chars.iter().skip(chars.len() - kept / 2);
    head.chain([&LEFT_OUT]).chain(tail).collect()
}

/// The text with something to see for each character that the font lacks, so that no name is
/// blank.
fn drawable(text: &str) -> String {
    text.chars().map(seen).collect()
}

/// What is drawn for a character: itself, a space for one of those, else a box.
pub(crate) fn seen(c: char) -> char {
    match c {
        c if FACES.iter().all(|face| face.glyph_id(c).0 != 0) => c,
        c if c.is_whitespace() && !c.is_control() => ' ',
        _ => LACKING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words = Words {
        size: 15.0,
        bold: false,
    };

    fn ink(text: &str) -> usize {
        let mut image = RgbImage::from_pixel(400, 24, Rgb([255; 3]));
        WORDS.draw(&mut image, [2, 2], [0; 3], text);
        image.pixels().filter(|pixel| pixel.0[0] < 128).count()
    }

    #[test]
    fn what_the_font_lacks_is_seen_as_a_box_each() {
        let one = ink("顔");
        assert!(one > 20, "{one}");
        assert!(ink("顔写真") > 2 * one, "one for each");
        assert_eq!(drawable("a\nb\u{202f}c"), "a\u{25a1}b c");
        let latin = "Ærø Łódź Çeşme façade Straße";
        assert_eq!(drawable(latin), latin);
    }

    #[test]
    fn a_long_name_keeps_its_ends_and_the_width() {
        let name = "10044_AVeryLongNameOfSomebodyThatGoesOnAndOn_55_f.jpg";
        for width in [30, 80, 160, 300] {
            let fitted = WORDS.fitted(name, width);
            assert!(WORDS.width(&fitted) <= width, "{width}: {fitted}");
            let longer = shortened(name, fitted.chars().count() + 1);
            assert!(WORDS.width(&longer) > width, "{width}: {longer} fits too");
            let (head, tail) = fitted.split_once('…').unwrap();
            assert!(name.starts_with(head) && name.ends_with(tail), "{fitted}");
            assert!(head.len() - tail.len() <= 1, "{fitted}");
        }
        assert_eq!(WORDS.fitted("a.jpg", 160), "a.jpg");
        assert_eq!(WORDS.fitted("a long name", 0), "…");
    }

    #[test]
    fn counted_in_characters_it_is_as_long_as_asked_for() {
        assert_eq!(shortened("runs/faces", 10), "runs/faces");
        assert_eq!(shortened("runs/many-faces", 10), "runs/…aces");
        assert_eq!(shortened("äöüß", 3), "ä…ß");
    }
}
