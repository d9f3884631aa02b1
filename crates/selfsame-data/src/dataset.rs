//! A data set: images with names and labels, decoded on demand.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use image::RgbImage;

use crate::decode::{self, DecodeError, Limits};
use crate::error::DataError;
use crate::file_list::FileList;
use crate::fingerprint::{Fingerprint, sampled};
use crate::label_table::LabelTable;
use crate::portraits::Portraits;
use crate::{annotations, image_folder};

/// Images in a fixed order, with labels.
///
/// Every method is a pure function of the index as long as the files do not change.
pub trait Dataset: fmt::Debug + Send + Sync {
    /// How many images there are.
    fn len(&self) -> usize;

    /// True if there are none; [`open`] never returns such a set.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image's relative path as text, or what stands in for it; unique except where an
    /// annotation file lists an image twice.
    fn name(&self, index: usize) -> &str;

    /// The labels this image has, by lower-case name.
    fn labels(&self, index: usize) -> BTreeMap<String, String>;

    /// One label of one image.
    fn label(&self, index: usize, name: &str) -> Option<String> {
        self.labels(index).remove(name)
    }

    /// The names of all labels that some image may have, in the order of the source.
    fn label_names(&self) -> Vec<String>;

    /// The upright picture.
    ///
    /// # Errors
    /// [`DecodeError`] if this image cannot be used.
    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError>;

    /// The file, if the image is one.
    fn path(&self, index: usize) -> Option<PathBuf>;

    /// A hash of names, sizes and samples of content: tells whether a run goes on with the data
    /// it began with. Asks the file system about every file.
    fn fingerprint(&self) -> String;
}

/// How labels are told from files in a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Layout {
    /// By what most file names look like, then by whether there are sub-folders.
    #[default]
    Auto,
    /// `id_name_age_gender.ext`.
    AgeDb,
    /// `age_gender_race_date.ext`.
    UtkFace,
    /// The first folder below the given one is the label `class`.
    Classes,
    /// No labels.
    Flat,
}

impl FromStr for Layout {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        Ok(match text {
            "auto" => Self::Auto,
            "agedb" => Self::AgeDb,
            "utkface" => Self::UtkFace,
            "classes" => Self::Classes,
            "flat" => Self::Flat,
            _ => {
                return Err(DataError::Setting(format!(
                    "layout {text:?} is none of auto, agedb, utkface, classes, flat"
                )));
            }
        })
    }
}

/// How [`open`] reads a specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Of a folder; an annotation file has its own labels.
    pub layout: Layout,
    /// Lets an annotation file point outside its folder.
    pub allow_outside: bool,
    /// The folder that an annotation file's paths start from, instead of `root.txt`'s.
    pub images_root: Option<PathBuf>,
    /// The largest image that is decoded.
    pub limits: Limits,
}

/// Opens what `spec` names: an annotation file (`*.csv`), a folder, or
/// `synthetic:portraits?count=2000&seed=0`.
///
/// No image is read. The order is the byte order of relative paths, whatever the order in the
/// file or the folder.
///
/// # Errors
/// [`DataError`]; [`DataError::is_usage`] tells a wrong specification from a failure.
pub fn open(spec: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    if let Some(what) = spec.strip_prefix("synthetic:") {
        return Ok(Arc::new(Portraits::from_spec(spec, what)?));
    }
    let path = Path::new(spec);
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::NotFound {
                path: path.to_path_buf(),
            });
        }
        Err(error) => return Err(DataError::io("opening", path, error)),
    };
    let is_csv = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let mut files = if metadata.is_dir() {
        image_folder::read(path, options.layout)?
    } else if is_csv {
        annotations::read(path, options)?
    } else {
        return Err(DataError::Spec {
            spec: spec.to_owned(),
            problem: "neither a folder, nor a .csv file, nor synthetic:portraits".to_owned(),
        });
    };
    if files.files.is_empty() {
        return Err(DataError::NoCandidates {
            spec: spec.to_owned(),
        });
    }
    files.limits = options.limits.clone();
    Ok(Arc::new(files))
}

/// An image of a data set, which may be somebody's own: one without pixels cannot be used, as one
/// that cannot be decoded.
pub(crate) fn picture_of(dataset: &dyn Dataset, index: usize) -> Result<RgbImage, DecodeError> {
    let image = dataset.decode(index)?;
    // Its memory may be longer than its pixels.
    if image.width() == 0 || image.height() == 0 {
        let what = "an image without pixels".to_owned();
        return Err(DecodeError::Unsupported { what });
    }
    Ok(image)
}

/// A data set of image files.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) files: FileList,
    /// By the rows of the files.
    pub(crate) labels: LabelTable,
    /// What names start from.
    pub(crate) folder: PathBuf,
    pub(crate) limits: Limits,
}

impl fmt::Debug for Files {
    /// Without the names, of which there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("folder", &self.folder)
            .field("images", &self.files.len())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Files {
    fn path_of(&self, index: usize) -> PathBuf {
        self.files.path(index, &self.folder)
    }
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> &str {
        self.files.name(index)
    }

    fn labels(&self, index: usize) -> BTreeMap<String, String> {
        let labels = self.labels.row(self.files.row(index));
        labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn label(&self, index: usize, name: &str) -> Option<String> {
        let value = self.labels.value(self.files.row(index), name);
        value.map(str::to_owned)
    }

    fn label_names(&self) -> Vec<String> {
        self.labels.names().map(str::to_owned).collect()
    }

    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        decode::decode_file(&self.path_of(index), &self.limits)
    }

    fn path(&self, index: usize) -> Option<PathBuf> {
        Some(self.path_of(index))
    }

    fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new("files");
        for index in 0..self.len() {
            fingerprint.add_file(self.name(index), &self.path_of(index));
        }
        let sampled = sampled(self.len()).map(|index| self.path_of(index));
        fingerprint.add_content(sampled);
        fingerprint.finish()
    }
}
