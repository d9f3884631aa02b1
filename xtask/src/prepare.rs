//! What the two `prepare-*` commands share: list, parse, decode, split, write, print.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use selfsame_data::annotations::{write, write_root};
use selfsame_data::decode::decode_file;
use selfsame_data::split::{self, Side};
use selfsame_data::walk::{Found, candidates};
use selfsame_data::{DataError, Limits};

#[derive(Debug, clap::Args)]
pub(crate) struct CommonArgs {
    /// Folder of the images; sub-folders are looked through.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Folder for the annotation files [default: data/agedb or data/utkface].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Shares of train and test; they sum up to 1.
    #[arg(long, value_name = "TRAIN,TEST", default_value = "0.8,0.2", value_parser = parse_split)]
    split: f64,
    /// Another seed is another split.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Believe the file names, decode nothing.
    #[arg(long)]
    no_decode: bool,
}

/// Which images go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    Random,
    ByIdentity,
}

/// What a file name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labelled {
    pub(crate) age: u32,
    pub(crate) gender: char,
    /// Who it is; empty if the data set does not say.
    pub(crate) identity: String,
    /// The row after the image's path.
    pub(crate) cells: Vec<String>,
}

type Parse<'a> = &'a (dyn Fn(&str) -> Result<Labelled, String> + Sync);

pub(crate) fn run(
    args: &CommonArgs,
    default_out: &str,
    header: &[&str],
    strategy: Strategy,
    parse: Parse,
) -> Result<()> {
    if !args.images.is_dir() {
        return Err(DataError::NotFound {
            path: args.images.clone(),
        }
        .into());
    }
    let found = candidates(&args.images)?;
    if found.is_empty() {
        return Err(DataError::NoCandidates {
            spec: args.images.display().to_string(),
        }
        .into());
    }
    let (usable, left_out) = sort_out(&found, args.no_decode, parse);
    print_left_out(&left_out);
    if usable.is_empty() {
        bail!(
            "none of the {} files in {} is usable",
            found.len(),
            args.images.display()
        );
    }
    let sides = match strategy {
        Strategy::Random => split::random(usable.len(), args.split, args.seed)?,
        Strategy::ByIdentity => {
            let identities: Vec<&str> =
                usable.iter().map(|(_, labels)| &*labels.identity).collect();
            split::by_identity(&identities, args.split, args.seed)?
        }
    };

    let out = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(default_out));
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    for (side, file) in [
        (Side::Train, "annot_train.csv"),
        (Side::Test, "annot_test.csv"),
    ] {
        let rows: Vec<Vec<String>> = usable
            .iter()
            .zip(&sides)
            .filter(|(_, of)| **of == side)
            .map(|((name, labels), _)| {
                let image = std::iter::once((*name).to_owned());
                image.chain(labels.cells.iter().cloned()).collect()
            })
            .collect();
        write(&out.join(file), header, &rows)?;
    }
    let images = dunce::canonicalize(&args.images)
        .with_context(|| format!("resolving {}", args.images.display()))?;
    write_root(&out, &images)?;

    print_counts(&usable, &sides);
    let train = sides.iter().filter(|side| **side == Side::Train).count();
    if (train as f64 - args.split * usable.len() as f64).abs()
        > (0.01 * usable.len() as f64).max(1.0)
    {
        eprintln!("note: the people have so many images each that the split misses its share");
    }
    println!(
        "wrote annot_train.csv, annot_test.csv and root.txt to {}",
        out.display()
    );
    Ok(())
}

/// Usable files by name, and the others with the reason, both in the order given.
#[expect(
    clippy::type_complexity,
    reason = "two lists of pairs, taken apart at once"
)]
fn sort_out<'a>(
    found: &'a [Found],
    no_decode: bool,
    parse: Parse,
) -> (Vec<(&'a str, Labelled)>, Vec<(&'a str, String)>) {
    let limits = Limits::default();
    let judged: Vec<Result<Labelled, String>> = found
        .par_iter()
        .map(|file| {
            if !file.is_utf8 {
                return Err("the name is not UTF-8".to_owned());
            }
            let file_name = file
                .name
                .rsplit_once('/')
                .map_or(&*file.name, |(_, name)| name);
            let labels = parse(file_name)?;
            if !no_decode {
                decode_file(&file.path, &limits).map_err(|error| error.to_string())?;
            }
            Ok(labels)
        })
        .collect();
    let (mut usable, mut left_out) = (Vec::new(), Vec::new());
    for (file, judged) in found.iter().zip(judged) {
        match judged {
            Ok(labels) => usable.push((&*file.name, labels)),
            Err(reason) => left_out.push((&*file.name, reason)),
        }
    }
    (usable, left_out)
}

fn print_left_out(left_out: &[(&str, String)]) {
    if !left_out.is_empty() {
        println!("left out: {}", left_out.len());
        for (name, reason) in left_out {
            println!("  {name}: {reason}");
        }
        println!();
    }
}

/// Images on each side by gender, then by decade of age, then in all.
fn print_counts(usable: &[(&str, Labelled)], sides: &[Side]) {
    let mut genders: BTreeMap<char, [usize; 2]> = BTreeMap::new();
    let mut decades: BTreeMap<u32, [usize; 2]> = BTreeMap::new();
    let mut total = [0; 2];
    for ((_, labels), &side) in usable.iter().zip(sides) {
        let side = side as usize;
        genders.entry(labels.gender).or_default()[side] += 1;
        decades.entry(labels.age / 10 * 10).or_default()[side] += 1;
        total[side] += 1;
    }
    println!("{:<10} {:>8} {:>8}", "", "train", "test");
    for (gender, [train, test]) in genders {
        println!("{:<10} {train:>8} {test:>8}", format!("gender {gender}"));
    }
    for (decade, [train, test]) in decades {
        println!(
            "{:<10} {train:>8} {test:>8}",
            format!("age {decade}-{}", decade + 9)
        );
    }
    let [train, test] = total;
    println!("{:<10} {train:>8} {test:>8}", "all");
}

/// `0.8,0.2` to 0.8.
fn parse_split(text: &str) -> Result<f64, String> {
    let shares: Vec<f64> = text
        .split(',')
        .map(|share| {
            share
                .trim()
                .parse()
                .map_err(|_| format!("{share:?} is not a number"))
        })
        .collect::<Result<_, _>>()?;
    match shares[..] {
        [train, test] if train >= 0.0 && test >= 0.0 && (train + test - 1.0).abs() < 1e-6 => {
            Ok(train.min(1.0))
        }
        [_, _] => Err("the two shares must be from 0 to 1 and sum up to 1".to_owned()),
        _ => Err("two shares are wanted, as in 0.8,0.2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The smallest picture there is: one white pixel.
    fn bmp() -> Vec<u8> {
        let mut bytes = b"BM".to_vec();
        for word in [58u32, 0, 54, 40, 1, 1] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([1, 0, 24, 0]);
        bytes.extend([0; 24]);
        bytes.extend([255, 255, 255, 0]);
        bytes
    }

    fn images(names: &[String]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), bmp()).unwrap();
        }
        folder
    }

    fn agedb_names() -> Vec<String> {
        (0..100)
            .map(|i| {
                format!(
                    "{i}_P{}_{}_{}.bmp",
                    i % 23,
                    20 + i % 50,
                    "mf".as_bytes()[i % 2] as char
                )
            })
            .collect()
    }

    fn args(images: &Path, out: &Path) -> CommonArgs {
        CommonArgs {
            images: images.to_owned(),
            out: Some(out.to_owned()),
            split: 0.8,
            seed: 1,
            no_decode: false,
        }
    }

    fn agedb(args: &CommonArgs, strategy: Strategy) -> Result<()> {
        let header = selfsame_data::annotations::AGEDB_HEADER;
        run(args, "unused", &header, strategy, &|file_name| {
            let parsed = selfsame_data::AgeDbName::parse(file_name)?;
            Ok(Labelled {
                age: parsed.age,
                gender: parsed.gender,
                identity: parsed.name.clone(),
                cells: vec![
                    parsed.name,
                    parsed.age.to_string(),
                    parsed.gender.to_string(),
                ],
            })
        })
    }

    fn rows(out: &Path, file: &str) -> Vec<String> {
        let text = fs::read_to_string(out.join(file)).unwrap();
        let mut lines = text.lines().map(str::to_owned);
        assert_eq!(lines.next().unwrap(), "Images,Name,Age,Gender");
        lines.collect()
    }

    #[test]
    fn every_usable_file_is_on_one_side_and_no_person_on_both() {
        let folder = images(&agedb_names());
        fs::write(folder.path().join("broken_name.bmp"), bmp()).unwrap();
        fs::write(folder.path().join("900_Broken_30_m.jpg"), b"text").unwrap();
        let out = tempfile::tempdir().unwrap();
        agedb(&args(folder.path(), out.path()), Strategy::ByIdentity).unwrap();
        let (train, test) = (
            rows(out.path(), "annot_train.csv"),
            rows(out.path(), "annot_test.csv"),
        );
        let files: BTreeSet<&str> = train
            .iter()
            .chain(&test)
            .map(|row| row.split(',').next().unwrap())
            .collect();
        assert_eq!((files.len(), train.len() + test.len()), (100, 100));
        assert!((79..=81).contains(&train.len()), "{}", train.len());
        let people = |rows: &[String]| -> BTreeSet<String> {
            rows.iter()
                .map(|row| row.split(',').nth(1).unwrap().to_owned())
                .collect()
        };
        assert!(people(&train).is_disjoint(&people(&test)));
        let opened = selfsame_data::open(
            out.path().join("annot_train.csv").to_str().unwrap(),
            &selfsame_data::OpenOptions::default(),
        )
        .unwrap();
        assert!((0..opened.len()).all(|i| opened.decode(i).is_ok()));
    }

    #[test]
    fn the_same_bytes_whatever_the_order_in_the_folder() {
        let names = agedb_names();
        let mut reversed = names.clone();
        reversed.reverse();
        let written = |names: &[String], seed, strategy| {
            let (folder, out) = (images(names), tempfile::tempdir().unwrap());
            let args = CommonArgs {
                seed,
                ..args(folder.path(), out.path())
            };
            agedb(&args, strategy).unwrap();
            rows(out.path(), "annot_train.csv")
        };
        for strategy in [Strategy::Random, Strategy::ByIdentity] {
            let first = written(&names, 1, strategy);
            assert_eq!(first, written(&reversed, 1, strategy));
            assert_ne!(first, written(&names, 2, strategy));
        }
        assert_eq!(written(&names[..33], 1, Strategy::Random).len(), 26);
    }

    #[test]
    fn names_are_believed_if_nothing_is_decoded() {
        let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(folder.path().join("1_A_30_m.jpg"), b"text").unwrap();
        let strict = args(folder.path(), out.path());
        let error = agedb(&strict, Strategy::Random).unwrap_err();
        assert!(error.to_string().contains("none of the 1 files"), "{error}");
        agedb(
            &CommonArgs {
                no_decode: true,
                ..strict
            },
            Strategy::Random,
        )
        .unwrap();
        assert_eq!(rows(out.path(), "annot_train.csv").len(), 1);
    }

    #[test]
    fn a_missing_or_empty_folder_is_wrong_usage() {
        let out = tempfile::tempdir().unwrap();
        for folder in [out.path().join("none"), out.path().to_owned()] {
            let error = agedb(&args(&folder, out.path()), Strategy::Random).unwrap_err();
            assert!(
                error.downcast_ref::<DataError>().unwrap().is_usage(),
                "{error}"
            );
        }
    }

    #[test]
    fn shares_are_two_and_sum_up_to_one() {
        assert_eq!(parse_split("0.8,0.2"), Ok(0.8));
        assert_eq!(parse_split("0.7, 0.3"), Ok(0.7));
        for wrong in [
            "0.8",
            "0.8,0.3",
            "1.2,-0.2",
            "a,b",
            "0.5,0.3,0.2",
            "nan,1",
            "",
        ] {
            assert!(parse_split(wrong).is_err(), "{wrong}");
        }
    }
}
