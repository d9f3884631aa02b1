//! The font inside this crate (`font/README.md`).

use ab_glyph::FontRef;

pub(crate) const BOOK: &[u8] = include_bytes!("../font/DejaVuSans-subset.ttf");
pub(crate) const BOLD: &[u8] = include_bytes!("../font/DejaVuSans-Bold-subset.ttf");

pub(crate) fn book() -> FontRef<'static> {
    FontRef::try_from_slice(BOOK).expect("the font inside is valid")
}

pub(crate) fn bold() -> FontRef<'static> {
    FontRef::try_from_slice(BOLD).expect("the font inside is valid")
}
