//! Lines for people, on the standard error.

use std::fmt::Arguments;
use std::io::Write;

use crate::scores::printable_lines;

/// Writes a line to the standard error; where nobody can read it any more, the work goes on.
///
/// `eprintln` would end the process then: a closed pipe, as of `2>&1 | head`, or a `tee` that died of
/// the same Ctrl-C. Control characters, which names and contents of files may have, are written out.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::stderr::line(format_args!($($text)*))
    };
}
pub(crate) use tell;

pub(crate) fn line(text: Arguments) {
    // One write, so that lines of several threads do not mix.
    let line = printable_lines(&text.to_string()) + "\n";
    let _ = std::io::stderr().write_all(line.as_bytes());
}
