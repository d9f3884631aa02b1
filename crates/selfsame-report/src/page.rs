//! One self-contained HTML page: no network, no script, light and dark, wide and narrow.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::svg::escape;

/// The look. Charts are drawn in ink on white; the rules at the end turn them with the page.
const STYLE: &str = include_str!("page.css");

/// A page under construction: sections with words, tables and figures, in the order they are added.
#[derive(Clone, Debug, Default)]
pub struct Page {
    title: String,
    contents: String,
    body: String,
    sections: usize,
}

/// A cell of a [`Page::table`].
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A figure, set to the right.
    Figure(String),
    /// A figure on a ground as strong as this share of 1, as in a confusion matrix; without shade if
    /// the share is not a number.
    Shaded(String, f64),
}

/// What a [`Page::verdict`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// All is well.
    Good,
    /// Something is to be done.
    Bad,
}

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Self {
            title: escape(title),
            ..Self::default()
        }
    }

    /// Begins a section.
    pub fn section(&mut self, heading: &str) {
        if self.sections > 0 {
            self.body.push_str("</section>\n");
        }
        self.sections += 1;
        let (id, heading) = (self.sections, escape(heading));
        // Writing into a String cannot fail.
        let _ = writeln!(self.contents, "<a href=\"#s{id}\">{heading}</a>");
        let _ = writeln!(self.body, "<section id=\"s{id}\">\n<h2>{heading}</h2>");
    }

    /// Begins a part of a section.
    pub fn heading(&mut self, heading: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(heading));
    }

    /// Adds a paragraph.
    pub fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// Adds a list.
    pub fn list(&mut self, items: &[String]) {
        self.body.push_str("<ul>\n");
        for item in items {
            let _ = writeln!(self.body, "<li>{}</li>", escape(item));
        }
        self.body.push_str("</ul>\n");
    }

    /// Adds a verdict: a word and what it rests on.
    pub fn verdict(&mut self, word: &str, why: &str, news: News) {
        let class = match news {
            News::Good => "good",
            News::Bad => "bad",
        };
        let _ = writeln!(
            self.body,
            "<p class=\"verdict {class}\"><strong>{}</strong> {}</p>",
            escape(word),
            escape(why)
        );
    }

    /// Adds text as it is, such as a configuration; folded under a heading if there is one.
    pub fn code(&mut self, folded_under: Option<&str>, text: &str) {
        let text = escape_lines(text);
        let _ = match folded_under {
            None => writeln!(self.body, "<pre tabindex=\"0\">{text}</pre>"),
            Some(heading) => writeln!(
                self.body,
                "<details><summary>{}</summary><pre tabindex=\"0\">{text}</pre></details>",
                escape(heading)
            ),
        };
    }

    /// Adds a table; the first cell of each row names it.
    pub fn table(&mut self, caption: &str, head: &[&str], rows: &[Vec<Cell>]) {
        let _ = writeln!(
            self.body,
            "<div class=\"scroll\" tabindex=\"0\"><table>\n<caption>{}</caption>",
            escape(caption)
        );
        if !head.is_empty() {
            self.body.push_str("<thead><tr>");
            for name in head {
                let _ = write!(self.body, "<th scope=\"col\">{}</th>", escape(name));
            }
            self.body.push_str("</tr></thead>\n");
        }
        self.body.push_str("<tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let _ = match cell {
                    Cell::Text(text) if i == 0 => {
                        write!(self.body, "<th scope=\"row\">{}</th>", escape(text))
                    }
                    Cell::Text(text) => write!(self.body, "<td>{}</td>", escape(text)),
                    Cell::Shaded(text, share) if !share.is_nan() => write!(
                        self.body,
                        "<td class=\"figure\" style=\"background:rgb(0 114 178 / {:.0}%)\">{}</td>",
                        60.0 * share.clamp(0.0, 1.0),
                        escape(text)
                    ),
                    Cell::Figure(text) | Cell::Shaded(text, _) => {
                        write!(self.body, "<td class=\"figure\">{}</td>", escape(text))
                    }
                };
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Adds charts side by side where there is room: of each the SVG text of a chart of this crate,
    /// which is taken as it is, and a text for those who do not see it, which may hold anything.
    pub fn charts(&mut self, charts: &[(String, String)]) {
        self.body.push_str("<div class=\"charts\">\n");
        for (svg, alt) in charts {
            let opening = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(alt));
            let svg = svg.replacen("<svg ", &opening, 1);
            let _ = writeln!(self.body, "<figure>{svg}</figure>");
        }
        self.body.push_str("</div>\n");
    }

    /// Adds a picture from the bytes of a PNG file, with a text for those who do not see it.
    pub fn png(&mut self, png: &[u8], alt: &str, caption: &str) {
        let _ = writeln!(
            self.body,
            "<figure><img src=\"data:image/png;base64,{}\" alt=\"{}\"><figcaption>{}</figcaption></figure>",
            STANDARD.encode(png),
            escape(alt),
            escape(caption)
        );
    }

    /// The page's text.
    pub fn finish(self) -> String {
        let Self {
            title,
            contents,
            body,
            sections,
        } = self;
        let end = if sections > 0 { "</section>\n" } else { "" };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>{title}</h1>\n\
             <nav aria-label=\"Sections\">\n{contents}</nav></header>\n<main>\n{body}{end}</main>\n\
             </body>\n</html>\n"
        )
    }
}

/// Escapes, but keeps the ends of lines.
fn escape_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_not_a_number_is_no_shade() {
        let mut page = Page::new("Counts");
        let shaded = [f64::NAN, 7.0, -1.0].map(|share| Cell::Shaded("5".to_owned(), share));
        page.table("", &[], &[shaded.to_vec()]);
        let html = page.finish();
        assert!(html.contains("<tr><td class=\"figure\">5</td><td class=\"figure\" style"));
        assert!(html.contains("/ 60%)") && html.contains("/ 0%)") && !html.contains("NaN"));
    }

    #[test]
    fn everything_added_is_there_and_nothing_breaks_out() {
        let mut page = Page::new("Run <1>");
        page.section("Scores & more");
        page.verdict("healthy", "as it should be", News::Good);
        page.text("a < b");
        page.code(Some("Configuration"), "x = \"<1>\"\ny = 2");
        page.table(
            "Counts",
            &["", "f"],
            &[vec![
                Cell::Text("f".to_owned()),
                Cell::Shaded("7".to_owned(), 0.5),
            ]],
        );
        page.charts(&[(
            "<svg width=\"1\"></svg>".to_owned(),
            "a \"line\"".to_owned(),
        )]);
        page.png(b"abc", "letters", "three");
        page.section("Last");
        let html = page.finish();
        for part in [
            "<title>Run &lt;1&gt;</title>",
            "<a href=\"#s1\">Scores &amp; more</a>",
            "<p class=\"verdict good\"><strong>healthy</strong> as it should be</p>",
            "<p>a &lt; b</p>",
            "x = &quot;&lt;1&gt;&quot;\ny = 2",
            "rgb(0 114 178 / 30%)",
            "<svg role=\"img\" aria-label=\"a &quot;line&quot;\" width=\"1\">",
            "data:image/png;base64,YWJj\" alt=\"letters\"",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        for tag in ["section", "figure", "table", "div", "details"] {
            let count = |text: &str| html.matches(text).count();
            assert_eq!(
                count(&format!("<{tag}")) - usize::from(tag == "figure") * count("<figure\""),
                count(&format!("</{tag}>")),
                "{tag}"
            );
        }
        assert!(!html.contains("<script") && !html.contains("http://www.w3.org/1999"));
    }
}
