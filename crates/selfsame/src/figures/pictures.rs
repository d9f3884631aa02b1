//! The pictures that flags name, and how large a picture of them may be.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use image::RgbImage;
use selfsame_data::decode::decode_file;
use selfsame_data::{Dataset, Limits};
use selfsame_eval::choose;
use selfsame_report::SheetCell;

use crate::cli::{Pictures, WeightsArgs};
use crate::data;
use crate::exit::usage;
use crate::overwriting::refuse_overwriting_pictures;
use crate::progress::CountProgress;
use crate::scores::printable;

/// Side and pixels of the largest sheet drawn: few programs show what is longer, and its bytes
/// are three times the pixels in memory.
const MAX_SIDE: usize = 32_767;
const MAX_PIXELS: usize = 64_000_000;
/// About what a cell takes beside its picture: a margin across; title, notes and margin down.
const BESIDE: [usize; 2] = [16, 64];

/// Refuses an `--image` that is no file.
///
/// # Errors
/// A usage error that names it.
pub(crate) fn check_image(path: &Path) -> anyhow::Result<()> {
    let problem = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => "that is a folder".to_owned(),
        Ok(_) => return Ok(()),
        Err(error) => error.to_string(),
    };
    Err(usage(format!("--image {}: {problem}", path.display())))
}

/// The picture of `--image`, and its name.
///
/// # Errors
/// As [`check_image`]; the decoder's.
pub(crate) fn of_image(path: &Path, limits: &Limits) -> anyhow::Result<(String, RgbImage)> {
    check_image(path)?;
    let picture =
        decode_file(path, limits).with_context(|| format!("--image {}", path.display()))?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok((name.to_string_lossy().into_owned(), picture))
}

/// The pictures that flags choose.
pub(crate) enum Chosen<'a> {
    /// That of `--image`, unless it is larger than this.
    File(&'a Path, Limits),
    /// Some of `--data`.
    Some {
        /// The data as it was named.
        spec: &'a str,
        /// All pictures.
        set: Arc<dyn Dataset>,
        /// How many are wanted, of those there are.
        count: usize,
        /// Decides which.
        seed: u64,
    },
}

impl<'a> Chosen<'a> {
    /// Opens what the flags name; `out` is the flag of a result that must be none of the pictures.
    ///
    /// # Errors
    /// A usage error if there is no such file, the number is 0, or `--out` is one of the pictures;
    /// the data crate's.
    pub(crate) fn open(
        args: &'a Pictures,
        flags: &WeightsArgs,
        out: (&str, &Path),
    ) -> anyhow::Result<Self> {
        if let Some(path) = &args.image {
            check_image(path)?;
            return Ok(Self::File(path, flags.reading.limits()));
        }
        if args.count == 0 {
            return Err(usage("--count 0: at least one picture is needed"));
        }
        let spec = args.data.as_deref().unwrap_or_default();
        let set = data::of_flags(spec, flags)?;
        refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
        Ok(Self::Some {
            spec,
            count: args.count.min(set.len()),
            set,
            seed: args.seed,
        })
    }

    /// How many there are, unless some cannot be used.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::File(..) => 1,
            Self::Some { count, .. } => *count,
        }
    }

    /// Gives each to `use_it`, with its name; those that cannot be decoded, or that `misfit` says
    /// something about, are told, and others chosen for them.
    ///
    /// # Errors
    /// If not one can be used; what `use_it` gives.
    pub(crate) fn each(
        &self,
        misfit: impl Fn(&RgbImage) -> Option<String>,
        mut use_it: impl FnMut(String, RgbImage) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (spec, set, count, seed) = match self {
            Self::File(path, limits) => {
                let (name, picture) = of_image(path, limits)?;
                return match misfit(&picture) {
                    Some(problem) => Err(anyhow::anyhow!("--image {}: {problem}", path.display())),
                    None => use_it(name, picture),
                };
            }
            Self::Some {
                spec,
                set,
                count,
                seed,
            } => (spec, set, *count, *seed),
        };
        let mut used = 0;
        let mut progress = CountProgress::new("pictures", count);
        for sample in choose(set.len(), set.len(), seed) {
            if used == count {
                break;
            }
            let picture = set.decode(sample).map_err(|error| error.to_string());
            let fitting = picture.and_then(|picture| match misfit(&picture) {
                Some(problem) => Err(problem),
                None => Ok(picture),
            });
            match fitting {
                Ok(picture) => {
                    use_it(set.name(sample).to_owned(), picture)?;
                    used += 1;
                    progress.set(used);
                }
                Err(problem) => {
                    let name = printable(set.name(sample));
                    progress.say(&format!("left out: {name}: {problem}"));
                }
            }
        }
        anyhow::ensure!(used > 0, "{spec}: not one picture could be used");
        Ok(())
    }

    /// How many of them are shown, and whether more were asked for.
    pub(crate) fn told(&self, shown: usize, asked: usize) -> String {
        match self {
            Self::File(..) => "1 picture".to_owned(),
            Self::Some { set, .. } => told(shown, set.len(), asked),
        }
    }
}

/// "8 of 747 pictures", and that there are no more if more were asked for.
pub(crate) fn told(shown: usize, of: usize, asked: usize) -> String {
    let fewer = match asked > shown {
        true => format!(", fewer than --count {asked}"),
        false => String::new(),
    };
    format!("{shown} of {of} pictures{fewer}")
}

/// Refuses a sheet that few programs would show, before anything is read for it.
///
/// `count` of what `flag` counts take `rows` rows, each with `columns` pictures of `side` pixels.
///
/// # Errors
/// A usage error that names the flag, with a number that would do.
pub(crate) fn check_sheet(
    flag: &str,
    count: usize,
    rows: impl Fn(usize) -> usize,
    columns: usize,
    side: usize,
) -> anyhow::Result<()> {
    let width = columns * (side + BESIDE[0]);
    let height = |count: usize| rows(count).saturating_mul(side + BESIDE[1]);
    let fits = |count: usize| {
        height(count) <= MAX_SIDE && height(count).saturating_mul(width) <= MAX_PIXELS
    };
    if fits(count) {
        return Ok(());
    }
    let most = (1..count).take_while(|count| fits(*count)).last();
    Err(usage(format!(
        "{flag} {count}: that would be a picture of about {width} x {} pixels, which few programs \
         show; {flag} {} is the most that fits",
        height(count),
        most.unwrap_or(1)
    )))
}

/// Refuses rows of `count` pictures at their own sizes that few programs would show; a single
/// one is shown as large as it is.
///
/// # Errors
/// A usage error that names the flag.
pub(crate) fn check_rows(flag: &str, count: usize, rows: &[Vec<SheetCell>]) -> anyhow::Result<()> {
    let highest = |row: &Vec<SheetCell>| row.iter().map(|cell| cell.image.height()).max();
    let heights = rows.iter().filter_map(highest);
    let height: usize = heights.map(|height| height as usize + BESIDE[1]).sum();
    match count > 1 && height > MAX_SIDE {
        true => Err(usage(format!(
            "{flag}: {count} such pictures make one that is higher than {MAX_SIDE} pixels, which \
             few programs show"
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_too_large_is_refused_with_a_number_that_fits() {
        let check = |count| check_sheet("--count", count, |count| count.saturating_mul(2), 8, 224);
        assert!(check(8).is_ok());
        let text = check(300).unwrap_err().to_string();
        assert!(
            text.starts_with("--count 300: ") && text.contains("x 172800 pixels"),
            "{text}"
        );
        assert!(text.contains("--count 56 is the most"), "{text}");
        assert!(check(56).is_ok() && check(57).is_err());
        assert!(check(usize::MAX).is_err());
    }
}
