//! Annotation files: a CSV with a column of image paths, every other column a label.
//!
//! Blanks around a cell are no part of it, quoted or not. A quote that opens a cell closes it before
//! a comma or the end of a line; else it would take the rows below it for its own.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use csv::StringRecord;
use foldhash::fast::RandomState;

use crate::dataset::{Files, OpenOptions};
use crate::decode::Limits;
use crate::error::DataError;
use crate::file_list::FileList;
use crate::label_table::LabelTable;

/// Header of AgeDB annotations, as the notebook writes it.
pub const AGEDB_HEADER: [&str; 4] = ["Images", "Name", "Age", "Gender"];
/// Header of UTKFace annotations.
pub const UTKFACE_HEADER: [&str; 4] = ["Images", "Age", "Gender", "Race"];
/// The file beside an annotation file that names the folder its paths start from.
pub const ROOT_FILE: &str = "root.txt";

/// Names of the column of image paths; the first of these that the header has is taken, in this
/// spelling if possible, else in any case.
const IMAGE_COLUMNS: [&str; 4] = ["Images", "image", "file", "path"];

/// Reads an annotation file into samples in the byte order of their paths.
pub(crate) fn read(path: &Path, options: &OpenOptions) -> Result<Files, DataError> {
    let wrong = |line, problem: String| DataError::Annotation {
        path: path.to_path_buf(),
        line,
        problem,
    };
    let text = fs::read(path).map_err(|e| DataError::io("reading", path, e))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    if let Some(quote) = open_quote(text) {
        let rest = text[quote + 1..].split(|byte| is_break(*byte)).next();
        let rest = String::from_utf8_lossy(rest.unwrap_or_default());
        let rest: String = rest.chars().take(40).collect();
        return Err(wrong(
            line_at(text, quote),
            format!("a quote opens before {rest:?} and is not closed at the end of a cell"),
        ));
    }
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::Headers)
        .flexible(true)
        .from_reader(text);
    let header = reader
        .headers()
        .map_err(|e| wrong(line_of(text, e.position()), problem_of(&e)))?
        .clone();
    let columns = Columns::new(&header).map_err(|problem| wrong(1, problem))?;
    let root = Root::new(path, options)?;

    let mut files = FileList::default();
    let mut labels = LabelTable::new(columns.labels.iter().map(|(_, name)| name.clone()));
    let mut record = StringRecord::new();
    while reader
        .read_record(&mut record)
        .map_err(|e| wrong(line_of(text, e.position()), problem_of(&e)))?
    {
        let line = || line_of(text, record.position());
        if record.len() != header.len() {
            let (cells, expected) = (record.len(), header.len());
            let problem = format!("{cells} cells, but the header has {expected}");
            return Err(wrong(line(), problem));
        }
        let image = record.get(columns.image).unwrap_or_default().trim();
        if image.is_empty() {
            return Err(wrong(line(), "no image path".to_owned()));
        }
        if image.contains('\0') {
            return Err(wrong(
                line(),
                "the image path contains a zero byte".to_owned(),
            ));
        }
        labels
            .push_row(
                |position, _| columns.value(&record, position),
                |name, value| columns.check(name, value),
            )
            .map_err(|problem| wrong(line(), problem))?;
        let Some((folder, name)) = folder_and_name(image) else {
            let problem = format!("the image path {image:?} ends with no file name");
            return Err(wrong(line(), problem));
        };
        if !root.admits(image, folder, name) {
            return Err(DataError::Outside {
                path: path.to_path_buf(),
                line: line(),
                image: image.to_owned(),
                root: root.folder,
            });
        }
        files.push(image, None);
    }
    files.sort();
    Ok(Files {
        files,
        labels,
        folder: root.folder,
        limits: Limits::default(),
    })
}

/// Which column is what.
struct Columns {
    image: usize,
    /// Column and lower-cased name, in the header's order.
    labels: Vec<(usize, String)>,
    /// True for the headers that `cargo xtask prepare-*` and the notebook write, whose ages are
    /// numbers by definition.
    age_is_number: bool,
}

impl Columns {
    fn new(header: &StringRecord) -> Result<Self, String> {
        let image = IMAGE_COLUMNS
            .iter()
            .find_map(|&name| header.iter().position(|column| column == name))
            .or_else(|| {
                IMAGE_COLUMNS.iter().find_map(|&name| {
                    header
                        .iter()
                        .position(|column| column.eq_ignore_ascii_case(name))
                })
            })
            .ok_or_else(|| {
                let names = header.iter().collect::<Vec<_>>().join(", ");
                let other = [(';', "semicolons"), ('\t', "tabs")].into_iter();
                let mut other = other.filter(|(c, _)| header.len() == 1 && names.contains(*c));
                let hint = match other.next() {
                    Some((_, what)) => format!("; {what} separate its cells: write commas"),
                    None => String::new(),
                };
                format!(
                    "no column is named {} (the columns: {names}){hint}",
                    IMAGE_COLUMNS.join(", "),
                )
            })?;
        let mut labels: Vec<(usize, String)> = Vec::new();
        for (column, name) in header.iter().enumerate() {
            // A column without a name is the row index that data frame libraries write.
            if column == image || name.is_empty() {
                continue;
            }
            let name = name.to_lowercase();
            if labels.iter().any(|(_, other)| *other == name) {
                return Err(format!("two columns are named {name:?}"));
            }
            labels.push((column, name));
        }
        let age_is_number = header.iter().eq(AGEDB_HEADER) || header.iter().eq(UTKFACE_HEADER);
        Ok(Self {
            image,
            labels,
            age_is_number,
        })
    }

    /// The row's value of a label, by its position among the labels; an empty cell is no label.
    fn value<'r>(&self, record: &'r StringRecord, position: usize) -> Option<&'r str> {
        let (column, _) = self.labels[position];
        let value = record.get(column).unwrap_or_default().trim();
        (!value.is_empty()).then_some(value)
    }

    /// Whether a label may have this value.
    fn check(&self, name: &str, value: &str) -> Result<(), String> {
        let is_number = || value.parse().is_ok_and(f64::is_finite);
        if self.age_is_number && name == "age" && !is_number() {
            return Err(format!("age {value:?} is not a number"));
        }
        Ok(())
    }
}

/// The folder that paths start from and are confined to.
struct Root {
    folder: PathBuf,
    /// Without links and `..`; what a path is compared with.
    real: PathBuf,
    allow_outside: bool,
    /// Parent folders already looked up: images share few of them.
    parents: RefCell<HashMap<String, Parent, RandomState>>,
}

/// What is known of a folder that images lie in.
struct Parent {
    /// Whether it lies within the root. Links are followed as far as folders exist; what does not
    /// exist is judged by its text.
    is_inside: bool,
    /// The entries that are symbolic links. One listing is cheaper than asking for every image.
    links: BTreeSet<OsString>,
}

impl Parent {
    /// Of a folder named in `text`, which lies at `path`, for a root of that real path.
    fn look_up(text: &str, path: &Path, root: &Path) -> Self {
        let links = fs::read_dir(path).into_iter().flatten().flatten();
        let links = links.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        let is_inside = match fs::canonicalize(path) {
            Ok(real) => real.starts_with(root),
            Err(_) => {
                let all_normal = Path::new(text)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                all_normal || without_dots(path).starts_with(root)
            }
        };
        Self {
            is_inside,
            links: links.map(|entry| entry.file_name()).collect(),
        }
    }
}

impl Root {
    fn new(csv: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        let beside = match csv.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let root_file = beside.join(ROOT_FILE);
        let folder = if let Some(folder) = &options.images_root {
            folder.clone()
        } else if root_file.exists() {
            let bytes =
                fs::read(&root_file).map_err(|e| DataError::io("reading", &root_file, e))?;
            // Some editors write a byte order mark first.
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
            let named = path_from_bytes(bytes.trim_ascii());
            if named.as_os_str().is_empty() {
                return Err(DataError::Annotation {
                    path: root_file,
                    line: 1,
                    problem: "names no folder".to_owned(),
                });
            }
            beside.join(named)
        } else {
            beside.to_path_buf()
        };
        let real = match fs::canonicalize(&folder) {
            Ok(real) if real.is_dir() => real,
            Ok(_) => {
                return Err(Self::unusable(
                    &folder,
                    &root_file,
                    options,
                    "is not a folder",
                ));
            }
            Err(_) => {
                return Err(Self::unusable(
                    &folder,
                    &root_file,
                    options,
                    "does not exist",
                ));
            }
        };
        let allow_outside = options.allow_outside;
        Ok(Self {
            folder,
            real,
            allow_outside,
            parents: RefCell::default(),
        })
    }

    fn unusable(folder: &Path, root_file: &Path, options: &OpenOptions, what: &str) -> DataError {
        let problem = format!("the images' folder {} {what}", folder.display());
        if options.images_root.is_some() {
            DataError::Setting(format!("--images-root: {problem}"))
        } else {
            DataError::Annotation {
                path: root_file.to_path_buf(),
                line: 1,
                problem,
            }
        }
    }

    /// Whether an image, of this folder and name, may be read: it lies inside, or anything may.
    ///
    /// Links are followed as far as files exist; what does not exist is judged by its text.
    fn admits(&self, image: &str, folder: &str, name: &str) -> bool {
        if self.allow_outside {
            return true;
        }
        if let Some(parent) = self.parents.borrow().get(folder) {
            return self.admits_in(parent, image, name);
        }
        let parent = Parent::look_up(folder, &self.folder.join(folder), &self.real);
        let admitted = self.admits_in(&parent, image, name);
        let mut parents = self.parents.borrow_mut();
        parents.insert(folder.to_owned(), parent);
        admitted
    }

    fn admits_in(&self, parent: &Parent, image: &str, name: &str) -> bool {
        if !parent.links.is_empty()
            && parent.links.contains(OsStr::new(name))
            && let Ok(real) = fs::canonicalize(self.folder.join(image))
        {
            return real.starts_with(&self.real);
        }
        parent.is_inside
    }
}

/// A path cut before its last part; nothing if that is no name.
///
/// By its text: the standard library takes a path apart part by part, and would do so for every
/// one of a million rows.
fn folder_and_name(image: &str) -> Option<(&str, &str)> {
    let (folder, name) = match image.rfind(std::path::is_separator) {
        Some(at) => (&image[..at.max(1)], &image[at + 1..]),
        None => ("", image),
    };
    (!matches!(name, "" | "." | "..")).then_some((folder, name))
}

/// The path with `.` and `..` worked out on the text alone.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(unix)]
fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(not(unix))]
fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    OsString::from(String::from_utf8_lossy(bytes).into_owned()).into()
}

#[cfg(unix)]
fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

#[cfg(not(unix))]
fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.to_string_lossy().into_owned().into_bytes()
}

/// The line on which a row begins, from 1. The reader's own count stands before what ends the row
/// above, or before blank lines.
fn line_of(text: &[u8], position: Option<&csv::Position>) -> u64 {
    let start = position.map_or(0, |position| position.byte() as usize);
    let rest = text.get(start..).unwrap_or_default();
    line_at(
        text,
        start + rest.iter().take_while(|byte| is_break(**byte)).count(),
    )
}

/// The line, from 1, of the byte at `place`.
fn line_at(text: &[u8], place: usize) -> u64 {
    let above = text.get(..place).unwrap_or(text);
    let pairs = above.windows(2).filter(|pair| pair == b"\r\n").count();
    (1 + above.iter().filter(|byte| is_break(**byte)).count() - pairs) as u64
}

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// The first quote that opens a cell and does not close it before a comma, the end of a line or that
/// of the text.
fn open_quote(text: &[u8]) -> Option<usize> {
    let quote_from = |at: usize| {
        let rest = text.get(at..)?;
        Some(at + rest.iter().position(|byte| *byte == b'"')?)
    };
    let ends_cell = |byte: u8| byte == b',' || is_break(byte);
    if !text.contains(&b'"') {
        return None; // Which takes no time.
    }
    let mut at = 0;
    while let Some(open) = quote_from(at) {
        at = open + 1;
        if open > 0 && !ends_cell(text[open - 1]) {
            continue; // Within a cell that is not quoted.
        }
        loop {
            let Some(quote) = quote_from(at) else {
                return Some(open);
            };
            at = quote + 1;
            match text.get(at) {
                Some(b'"') => at += 1, // Two of them are one within the cell.
                _ => break,
            }
        }
        let is_blank = |byte: &&u8| matches!(byte, b' ' | b'\t');
        at += text[at..].iter().take_while(is_blank).count();
        if text.get(at).is_some_and(|byte| !ends_cell(*byte)) {
            return Some(open);
        }
    }
    None
}

fn problem_of(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

/// Writes an annotation file: the header, then the rows in the order given.
///
/// The file appears whole or not at all.
///
/// # Errors
/// [`DataError::Io`] if it cannot be written, also if a row has not as many cells as the header.
pub fn write(path: &Path, header: &[&str], rows: &[Vec<String>]) -> Result<(), DataError> {
    let failed = |error: csv::Error| DataError::io("writing", path, error.into());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        writer.write_record(row).map_err(failed)?;
    }
    let bytes = writer
        .into_inner()
        .map_err(|e| DataError::io("writing", path, e.into_error()))?;
    write_whole(path, &bytes)
}

/// Writes `root.txt` into `folder`: paths in the annotation files there start from `images`.
///
/// # Errors
/// [`DataError::Io`] if it cannot be written.
pub fn write_root(folder: &Path, images: &Path) -> Result<(), DataError> {
    let mut bytes = path_to_bytes(images);
    bytes.push(b'\n');
    write_whole(&folder.join(ROOT_FILE), &bytes)
}

/// Writes beside, then renames; both survive a loss of power. What a kill leaves begins with
/// `.tmp-`, which a run directory is cleaned of.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".tmp-{name}"));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&beside, path));
    if let Err(error) = done {
        // The failure itself is what the caller must hear of.
        let _ = fs::remove_file(&beside);
        return Err(DataError::io("writing", path, error));
    }
    // Windows opens no folder as a file, and its rename needs no such call.
    if cfg!(unix)
        && let Some(folder) = std::path::absolute(path)
            .ok()
            .as_deref()
            .and_then(Path::parent)
    {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| DataError::io("writing", path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
