use std::fmt::Write;

/// The family of the font inside; browsers without it take the nearest they have.
pub(crate) const FONT: &str = "DejaVu Sans";

/// SVG text under construction.
#[derive(Default)]
pub(crate) struct Svg {
    text: String,
}

/// Where the given point of a text is: its left end, middle or right end.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Clone, Copy)]
pub(crate) struct TextStyle {
    pub(crate) size: f64,
    pub(crate) color: &'static str,
    pub(crate) bold: bool,
    pub(crate) anchor: Anchor,
}

/// Colour of axes and words.
pub(crate) const INK: &str = "#222222";
/// Names of axes.
pub(crate) const LABEL: TextStyle = TextStyle {
    size: 11.0,
    color: INK,
    bold: false,
    anchor: Anchor::Middle,
};
/// Numbers along axes.
pub(crate) const TICK: TextStyle = TextStyle {
    size: 10.0,
    ..LABEL
};
/// The words above a chart.
pub(crate) const TITLE: TextStyle = TextStyle {
    size: 12.5,
    bold: true,
    ..LABEL
};

impl Svg {
    /// Adds an element: its name, then attributes as written in SVG.
    pub(crate) fn element(&mut self, element: &str) {
        self.line(&format!("<{element}/>"));
    }

    pub(crate) fn open(&mut self, element: &str) {
        self.line(&format!("<{element}>"));
    }

    pub(crate) fn close(&mut self, name: &str) {
        self.line(&format!("</{name}>"));
    }

    /// Adds a line of text with its base line at `y`, turned by a quarter to the left if asked;
    /// nothing for an empty one.
    pub(crate) fn text(&mut self, x: f64, y: f64, style: TextStyle, turn: Turn, text: &str) {
        if text.is_empty() {
            return;
        }
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.bold {
            r#" font-weight="bold""#
        } else {
            ""
        };
        let (x, y) = (number(x), number(y));
        let turn = match turn {
            Turn::Level => String::new(),
            Turn::Up => format!(r#" transform="rotate(-90 {x} {y})""#),
        };
        self.line(&format!(
            r#"<text x="{x}" y="{y}" font-size="{}" fill="{}"{weight} text-anchor="{anchor}"{turn}>{}</text>"#,
            number(style.size),
            style.color,
            escape(text),
        ));
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// The whole picture.
    pub(crate) fn finish(self, width: f64, height: f64) -> String {
        let (w, h) = (number(width), number(height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" \
             viewBox=\"0 0 {w} {h}\" font-family=\"{FONT}, Verdana, sans-serif\">\n\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.text
        )
    }
}

/// Direction of a text.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    Level,
    Up,
}

/// A coordinate, to a hundredth, without needless zeros.
pub(crate) fn number(value: f64) -> String {
    let mut text = format!("{value:.2}");
    while text.ends_with('0') {
        text.pop();
    }
    if text.ends_with('.') {
        text.pop();
    }
    if text == "-0" { "0".to_string() } else { text }
}

/// Path data through the points.
pub(crate) fn path_data(points: &[(f64, f64)]) -> String {
    let mut data = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        // Writing into a String cannot fail.
        let _ = write!(data, "{command}{} {}", number(*x), number(*y));
    }
    data
}

/// Width of a text in the font inside, from the widths of its classes of characters; a little
/// generous, for it decides margins.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | '.' | ',' | ':' | ' ' | '\'' | 'I' | '(' | ')' => 0.36,
            'm' | 'w' | 'M' | 'W' | '−' | '×' | '=' | '—' => 0.9,
            '⁰'..='⁹' | '⁻' | '²' | '³' => 0.45,
            'A'..='Z' => 0.72,
            _ => 0.62,
        })
        .sum();
    em * size
}

/// A text that can stand in an element or in an attribute between double quotes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Not allowed in XML in any form.
            '\u{fffe}' | '\u{ffff}' => escaped.push(' '),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_minus_zero() {
        let texts = [3.0, 2.5, 2.346, -0.001, 100.0, -7.10].map(number);
        assert_eq!(texts, ["3", "2.5", "2.35", "0", "100", "-7.1"]);
    }

    #[test]
    fn a_text_cannot_break_out_of_its_element() {
        assert_eq!(escape("a<b> & \u{7}c"), "a&lt;b&gt; &amp;  c");
    }

    #[test]
    fn what_is_no_character_of_xml_becomes_a_space() {
        assert_eq!(escape("a\u{0}b\u{fffe}c\u{ffff}\u{fffd}"), "a b c \u{fffd}");
    }
}
