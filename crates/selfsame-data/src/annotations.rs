//! Annotation files: a CSV with a column of image paths, every other column a label.
//!
//! Blanks around a cell are no part of it, quoted or not. A quote that opens a cell closes it before
//! a comma or the end of a line; else it would take the rows below it for its own.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use csv::StringRecord;
use foldhash::fast::RandomState;
use selfsame_files::write_whole;

use crate::csv_text::{
    blanks_before_quotes, is_break, line_at, line_of, other_width, problem_of, put_rows, without,
};
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
    let text = match blanks_before_quotes(text) {
        Ok(blanks) => without(text, &blanks),
        Err(quote) => return Err(wrong(line_at(text, quote), open_quote(&text[quote..]))),
    };
    let broken = |e: csv::Error| wrong(line_of(&text, e.position()), problem_of(&e));
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::Headers)
        .flexible(true)
        .from_reader(&*text);
    let header = reader.headers().map_err(broken)?.clone();
    let columns = Columns::new(&header).map_err(|problem| wrong(1, problem))?;
    let root = Root::new(path, options)?;

    let mut files = FileList::default();
    let mut labels = LabelTable::new(columns.labels.iter().map(|(_, name)| name.clone()));
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(broken)? {
        let line = || line_of(&text, record.position());
        let Row { image, is_admitted } =
            row(&record, &columns, &root, &mut labels).map_err(|problem| wrong(line(), problem))?;
        if !is_admitted {
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

/// What is wrong with a text that begins with a quote which is not closed.
fn open_quote(text: &[u8]) -> String {
    let rest = text[1..].split(|byte| is_break(*byte)).next();
    let rest = String::from_utf8_lossy(rest.unwrap_or_default());
    let rest: String = rest.chars().take(40).collect();
    format!("a quote opens before {rest:?} and is not closed at the end of a cell")
}

/// What a row says of its image.
struct Row<'r> {
    image: &'r str,
    /// Whether it may be read.
    is_admitted: bool,
}

/// Looks at a row and adds its labels.
///
/// # Errors
/// What is wrong with it.
fn row<'r>(
    record: &'r StringRecord,
    columns: &Columns,
    root: &Root,
    labels: &mut LabelTable,
) -> Result<Row<'r>, String> {
    if record.len() != columns.count {
        return Err(other_width(record, columns.count));
    }
    let image = record.get(columns.image).unwrap_or_default().trim();
    if image.is_empty() {
        return Err("no image path".to_owned());
    }
    if image.contains('\0') {
        return Err("the image path contains a zero byte".to_owned());
    }
    labels.push_row(
        |position, _| columns.value(record, position),
        |name, value| columns.check(name, value),
    )?;
    let Some((folder, name)) = folder_and_name(image) else {
        return Err(format!("the image path {image:?} ends with no file name"));
    };
    Ok(Row {
        image,
        is_admitted: root.admits(image, folder, name),
    })
}

/// Which column is what.
struct Columns {
    /// How many there are.
    count: usize,
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
            count: header.len(),
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
                // As paths are written there: a whole one begins alike.
                let root = dunce::simplified(root);
                all_normal || without_dots(&root.join(text)).starts_with(root)
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
            DataError::Setting(format!("images_root: {problem}"))
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
        if is_elsewhere(image, &self.real) {
            return false;
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
        // The root of a disk keeps its separator: on Windows `C:` is the current folder there.
        Some(at) if at == 0 || image[..at].ends_with(':') => image.split_at(at + 1),
        Some(at) => (&image[..at], &image[at + 1..]),
        None => ("", image),
    };
    (!matches!(name, "" | "." | "..")).then_some((folder, name))
}

/// Whether a path names another machine's disk than the root's, which is not even looked for
/// (`\\host\share\x.jpg`), or depends on the current folder of a disk (`C:x.jpg`).
#[cfg(windows)]
fn is_elsewhere(image: &str, root: &Path) -> bool {
    use std::path::Prefix::{Disk, UNC, VerbatimDisk, VerbatimUNC};
    let mut parts = Path::new(image).components();
    let Some(Component::Prefix(of_image)) = parts.next() else {
        return false;
    };
    let of_root = root.components().next();
    match (of_image.kind(), of_root) {
        (Disk(_) | VerbatimDisk(_), _) => parts.next() != Some(Component::RootDir),
        (UNC(host, share) | VerbatimUNC(host, share), Some(Component::Prefix(of_root))) => {
            let (UNC(its_host, its_share) | VerbatimUNC(its_host, its_share)) = of_root.kind()
            else {
                return true;
            };
            !(host.eq_ignore_ascii_case(its_host) && share.eq_ignore_ascii_case(its_share))
        }
        _ => true,
    }
}

/// Only Windows has paths that begin so.
#[cfg(not(windows))]
fn is_elsewhere(_: &str, _: &Path) -> bool {
    false
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
    put_rows(path, writer)
}

/// Writes `root.txt` into `folder`: paths in the annotation files there start from `images`.
///
/// # Errors
/// [`DataError::Io`] if it cannot be written.
pub fn write_root(folder: &Path, images: &Path) -> Result<(), DataError> {
    let mut bytes = path_to_bytes(images);
    bytes.push(b'\n');
    let path = folder.join(ROOT_FILE);
    write_whole(&path, &bytes).map_err(|error| DataError::io("writing", &path, error))
}

#[cfg(test)]
mod tests;
