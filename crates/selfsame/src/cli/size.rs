//! Sizes of memory and of pictures on the command line.

use std::num::NonZeroUsize;

use clap::builder::RangedU64ValueParser;

/// The largest side of a picture that is read.
const LARGEST: u64 = 16_384;

/// The side of a picture in pixels.
pub(super) fn pixels() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=LARGEST)
}

/// How many there are to be of something, at least one.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse() {
        Ok(count) => NonZeroUsize::new(count).ok_or("at least 1 is needed".to_owned()),
        Err(error) => Err(format!("{error}; write a whole number from 1 on")),
    }
}

/// A size of memory in whole MiB: `8GiB`, `8GB`, `500MiB`; the unit is required.
pub(super) fn memory_size(text: &str) -> Result<u64, String> {
    let at = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "kib" => 1024.0,
        "mib" | "m" => 1_048_576.0,
        "gib" | "g" => 1_073_741_824.0,
        "tib" | "t" => 1_099_511_627_776.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err("write a number and a unit, such as 8GiB or 500MB".to_owned()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a number"))?;
    let mib = (number * unit / 1_048_576.0).floor();
    if mib < 1.0 {
        return Err("less than 1 MiB".to_owned());
    }
    Ok(mib as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory_need_a_unit() {
        assert_eq!(memory_size("8GiB"), Ok(8192));
        assert_eq!(memory_size("1.5g"), Ok(1536));
        assert_eq!(memory_size("500 MB"), Ok(476));
        for wrong in ["8", "GiB", "1..5GiB", "8 gigs", "0MiB", "-1GiB", ""] {
            assert!(memory_size(wrong).is_err(), "{wrong:?}");
        }
    }
}
