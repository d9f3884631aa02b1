//! Where in the text of a CSV something is, and the tables that this crate writes itself.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use csv::StringRecord;
use selfsame_files::write_whole;

use crate::error::DataError;

/// Reads a table that this crate wrote, with this header, and hands each row to `row`; `what` it is
/// says who finds another one.
///
/// # Errors
/// [`DataError::Annotation`] with the line, also for what `row` says of a row.
pub(crate) fn read_own(
    path: &Path,
    text: &[u8],
    (what, header): (&str, &[&str]),
    mut row: impl FnMut(&StringRecord) -> Result<(), String>,
) -> Result<(), DataError> {
    let wrong = |line, problem| DataError::Annotation {
        path: path.to_path_buf(),
        line,
        problem,
    };
    let broken = |e: csv::Error| wrong(line_of(text, e.position()), problem_of(&e));
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text);
    if reader.headers().map_err(broken)? != header {
        let problem = format!("no list of {what}, which begins {}", header.join(","));
        return Err(wrong(1, problem));
    }
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(broken)? {
        let done = match record.len() == header.len() {
            true => row(&record),
            false => Err(other_width(&record, header.len())),
        };
        done.map_err(|problem| wrong(line_of(text, record.position()), problem))?;
    }
    Ok(())
}

/// Puts the rows of a writer into a file, which appears whole or not at all.
pub(crate) fn put_rows(path: &Path, writer: csv::Writer<Vec<u8>>) -> Result<(), DataError> {
    let bytes = writer.into_inner().map_err(|error| error.into_error());
    let put = bytes.and_then(|bytes| write_whole(path, &bytes));
    put.map_err(|error| DataError::io("writing", path, error))
}

/// What is wrong with a row of another number of cells than the header's.
pub(crate) fn other_width(record: &StringRecord, header: usize) -> String {
    format!("{} cells, but the header has {header}", record.len())
}

/// What the CSV crate says of a text that it cannot read.
pub(crate) fn problem_of(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

/// The line on which a row begins, from 1. The reader's own count stands before what ends the row
/// above, or before blank lines.
pub(crate) fn line_of(text: &[u8], position: Option<&csv::Position>) -> u64 {
    let start = position.map_or(0, |position| position.byte() as usize);
    let rest = text.get(start..).unwrap_or_default();
    line_at(
        text,
        start + rest.iter().take_while(|byte| is_break(**byte)).count(),
    )
}

/// The line, from 1, of the byte at `place`.
pub(crate) fn line_at(text: &[u8], place: usize) -> u64 {
    let above = text.get(..place).unwrap_or(text);
    let pairs = above.windows(2).filter(|pair| pair == b"\r\n").count();
    (1 + above.iter().filter(|byte| is_break(**byte)).count() - pairs) as u64
}

pub(crate) fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Blanks between the beginning of a cell and the quote that opens it, which the CSV crate would take
/// for a cell without quotes.
///
/// # Errors
/// The place of the first quote that opens a cell and does not close it before a comma, the end of a
/// line or that of the text.
pub(crate) fn blanks_before_quotes(text: &[u8]) -> Result<Vec<Range<usize>>, usize> {
    let quote_from = |at: usize| {
        let rest = text.get(at..)?;
        Some(at + rest.iter().position(|byte| *byte == b'"')?)
    };
    let is_blank = |byte: &&u8| matches!(byte, b' ' | b'\t');
    let ends_cell = |byte: u8| byte == b',' || is_break(byte);
    let mut all_blanks = Vec::new();
    if !text.contains(&b'"') {
        return Ok(all_blanks); // Which takes no time.
    }
    let mut at = 0;
    while let Some(open) = quote_from(at) {
        at = open + 1;
        let blanks = text[..open].iter().rev().take_while(is_blank).count();
        let blanks = open - blanks..open;
        if blanks.start > 0 && !ends_cell(text[blanks.start - 1]) {
            continue; // Within a cell that is not quoted.
        }
        loop {
            let Some(quote) = quote_from(at) else {
                return Err(open);
            };
            at = quote + 1;
            match text.get(at) {
                Some(b'"') => at += 1, // Two of them are one within the cell.
                _ => break,
            }
        }
        at += text[at..].iter().take_while(is_blank).count();
        if text.get(at).is_some_and(|byte| !ends_cell(*byte)) {
            return Err(open);
        }
        if !blanks.is_empty() {
            all_blanks.push(blanks);
        }
    }
    Ok(all_blanks)
}

/// The text without these places, which are in order.
pub(crate) fn without<'t>(text: &'t [u8], places: &[Range<usize>]) -> Cow<'t, [u8]> {
    if places.is_empty() {
        return text.into();
    }
    let mut kept = Vec::with_capacity(text.len());
    let mut from = 0;
    for place in places {
        kept.extend(&text[from..place.start]);
        from = place.end;
    }
    kept.extend(&text[from..]);
    kept.into()
}
