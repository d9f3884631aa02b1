//! Sizes of memory and of pictures on the command line.

use std::num::NonZeroUsize;

use clap::builder::RangedU64ValueParser;

/// The largest side of a picture that is read.
const LARGEST: u64 = 16_384;

/// The side of a picture in pixels.
pub(super) fn pixels() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=LARGEST)
}

/// The shorter side of a resize over that of the crop: `1.143` or `256/224`.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let (above, below) = text.split_once('/').unwrap_or((text, "1"));
    let number = |part: &str| {
        let number = part.trim().parse::<f64>();
        number.map_err(|_| format!("{part:?} is not a number"))
    };
    let ratio = number(above)? / number(below)?;
    match (0.5..=4.0).contains(&ratio) {
        true => Ok(ratio),
        false => Err(format!(
            "{ratio} times the image size is not from 0.5 to 4; for 256 pixels before crops of 224 \
             write 256/224"
        )),
    }
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
    fn a_resize_is_a_ratio() {
        assert_eq!(ratio("256/224"), Ok(256.0 / 224.0));
        assert_eq!(ratio("1.5"), Ok(1.5));
        for wrong in ["256", "0", "1/0", "-1", "nan", "1e300", "a/b", "1/", ""] {
            assert!(ratio(wrong).is_err(), "{wrong:?}");
        }
    }

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
