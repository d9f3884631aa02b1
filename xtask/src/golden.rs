//! `cargo xtask golden`: makes the golden files again, or compares far more than they hold.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use image::RgbImage;
use selfsame_data::augment::{CropBox, DrawnOp, Interpolation, Level, Workspace, ops};

use crate::wrong_usage;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter with the versions of tests/golden/requirements.txt.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Only the golden files of these crates, e.g. selfsame-augment.
    #[arg(long, value_name = "CRATE")]
    only: Vec<String>,
    /// Write nothing: compare augmentation on every colour and on random images.
    #[arg(long)]
    exhaustive: bool,
    /// Number of random images of --exhaustive.
    #[arg(long, default_value_t = 1200)]
    cases: usize,
    /// Seed of the random images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    if args.exhaustive {
        return exhaustive(
            args,
            &crates.join("selfsame-augment/tests/golden/exhaustive.py"),
        );
    }
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(&crates).context("reading crates")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !args.only.is_empty() && !args.only.contains(&name) {
            continue;
        }
        let folder = entry.path().join("tests/golden");
        let script = ["make_golden.py", "make.py"].map(|script| folder.join(script));
        scripts.extend(script.into_iter().find(|script| script.exists()));
    }
    scripts.sort();
    if scripts.is_empty() {
        let only = args.only.join(", ");
        return Err(wrong_usage(format!(
            "--only {only}: no crate with golden files"
        )));
    }
    let python = from_anywhere(&args.python)?;
    for script in &scripts {
        eprintln!("{}", script.display());
        let folder = script.parent().context("a script lies in a folder")?;
        let status = Command::new(&python)
            .arg(script)
            .current_dir(folder)
            .status()
            .with_context(|| format!("starting {}", args.python.display()))?;
        ensure!(status.success(), "{} failed: {status}", script.display());
    }
    eprintln!("{} scripts ran; git diff shows what changed", scripts.len());
    Ok(())
}

/// The program as it is called in another folder: a path from the current one as a whole path, a
/// mere name as it is.
fn from_anywhere(program: &Path) -> anyhow::Result<PathBuf> {
    match program.components().count() {
        // Not canonical: behind the link of a virtual environment lies the interpreter without it.
        2.. => std::path::absolute(program)
            .with_context(|| format!("completing {}", program.display())),
        _ => Ok(program.to_owned()),
    }
}

fn exhaustive(args: &Args, script: &Path) -> anyhow::Result<()> {
    let mut python = Command::new(&args.python)
        .arg(script)
        .args([args.cases.to_string(), args.seed.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", args.python.display()))?;
    let mut records = BufReader::new(python.stdout.take().context("no standard output")?);
    let mut workspaces: Vec<_> = Level::available().map(Workspace::with_level).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(record) = Record::read(&mut records)? {
        for workspace in &mut workspaces {
            let got = record.render(workspace)?;
            if got != record.expected {
                let bytes = got.as_raw().iter().zip(record.expected.as_raw());
                let different = bytes.filter(|(a, b)| a != b).count();
                bail!(
                    "{} at {}: {different} bytes differ",
                    record.head,
                    workspace.level()
                );
            }
        }
        *counts.entry(record.op().to_owned()).or_default() += 1;
    }
    let status = python.wait()?;
    ensure!(status.success(), "{} failed: {status}", script.display());
    let levels: Vec<_> = Level::available().map(Level::name).collect();
    println!("every byte equal, at the levels {}:", levels.join(", "));
    for (op, count) in counts {
        println!("{count:6} × {op}");
    }
    Ok(())
}

/// An image, an operation and what Python made of it.
struct Record {
    head: String,
    image: RgbImage,
    expected: RgbImage,
}

impl Record {
    fn read(from: &mut impl BufRead) -> anyhow::Result<Option<Self>> {
        let mut head = String::new();
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        let head = head.trim_end().to_owned();
        let words: Vec<&str> = head.split(' ').collect();
        let [.., width, height, out_width, out_height] = words[..] else {
            bail!("{head:?} is not a record");
        };
        let image = read_image(from, width.parse()?, height.parse()?)?;
        let expected = read_image(from, out_width.parse()?, out_height.parse()?)?;
        Ok(Some(Self {
            head,
            image,
            expected,
        }))
    }

    fn op(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    fn word(&self, index: usize) -> anyhow::Result<&str> {
        let word = self.head.split(' ').nth(index);
        word.with_context(|| format!("{:?} has no word {index}", self.head))
    }

    fn filter(&self) -> anyhow::Result<Interpolation> {
        self.word(1)?.parse().map_err(anyhow::Error::msg)
    }

    fn render(&self, workspace: &mut Workspace) -> anyhow::Result<RgbImage> {
        let value = || -> anyhow::Result<f64> { Ok(self.word(1)?.parse()?) };
        let (width, height) = self.expected.dimensions();
        let (width, height) = (width as usize, height as usize);
        let image = &self.image;
        let op = match self.op() {
            "resize" => return Ok(ops::resize(image, width, height, self.filter()?, workspace)),
            "resized_crop" => {
                let crop = CropBox {
                    left: self.word(2)?.parse()?,
                    top: self.word(3)?.parse()?,
                    width: self.word(4)?.parse()?,
                    height: self.word(5)?.parse()?,
                };
                let filter = self.filter()?;
                return Ok(ops::resized_crop(
                    image, crop, width, height, filter, workspace,
                ));
            }
            "brightness" => DrawnOp::Brightness(value()?),
            "contrast" => DrawnOp::Contrast(value()?),
            "saturation" => DrawnOp::Saturation(value()?),
            "hue" => DrawnOp::Hue(value()?),
            "gaussian_blur" => DrawnOp::GaussianBlur(value()?),
            "solarize" => DrawnOp::Solarize(self.word(1)?.parse()?),
            "grayscale" => DrawnOp::Grayscale,
            "horizontal_flip" => DrawnOp::HorizontalFlip,
            other => bail!("{other} is not an operation"),
        };
        Ok(op.render(image, workspace))
    }
}

fn read_image(from: &mut impl Read, width: u32, height: u32) -> anyhow::Result<RgbImage> {
    let mut bytes = vec![0; 3 * width as usize * height as usize];
    from.read_exact(&mut bytes)
        .context("a record ends before its image does")?;
    RgbImage::from_raw(width, height, bytes).context("three bytes a pixel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_below_the_current_folder_is_found_from_another() {
        let python = |path: &str| from_anywhere(Path::new(path)).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(python("venv/bin/python"), here.join("venv/bin/python"));
        assert_eq!(python("./python"), here.join("python"));
        let absolute = here.join("python");
        assert_eq!(python(absolute.to_str().unwrap()), absolute);
        assert_eq!(python("python3"), Path::new("python3"));
    }

    #[test]
    fn records_are_read_and_done_again() {
        let image = [10u8, 20, 200, 90, 100, 110];
        let mut bytes = b"solarize 100 2 1 2 1\n".to_vec();
        bytes.extend(image);
        bytes.extend([10, 20, 55, 90, 155, 145]);
        let mut from = &bytes[..];
        let record = Record::read(&mut from).unwrap().unwrap();
        assert_eq!(
            record.render(&mut Workspace::new()).unwrap(),
            record.expected
        );
        assert!(Record::read(&mut from).unwrap().is_none());
        assert!(Record::read(&mut &bytes[..25]).is_err());
    }
}
