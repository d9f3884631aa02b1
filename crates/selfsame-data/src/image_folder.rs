//! A folder of images: labels from file names, from class sub-folders, or none.

use std::collections::BTreeMap;
use std::path::Path;

use crate::dataset::{Files, Layout};
use crate::decode::Limits;
use crate::error::DataError;
use crate::file_list::FileList;
use crate::file_name::{AgeDbName, UtkFaceName};
use crate::label_table::LabelTable;
use crate::walk::{self, Found};

/// Lists the folder and reads the labels that its layout gives.
///
/// A file that does not fit the layout stays in the set without labels.
pub(crate) fn read(folder: &Path, layout: Layout) -> Result<Files, DataError> {
    let found = walk::candidates(folder)?;
    let layout = match layout {
        Layout::Auto => detect(&found),
        explicit => explicit,
    };
    let label_names: &[&str] = match layout {
        Layout::AgeDb => &["name", "age", "gender"],
        Layout::UtkFace => &["age", "gender", "race"],
        Layout::Classes => &["class"],
        Layout::Auto | Layout::Flat => &[],
    };
    let mut table = LabelTable::new(label_names.iter().map(|&name| name.to_owned()));
    let mut files = FileList::default();
    for found in found {
        let Found {
            path,
            name,
            is_utf8,
        } = found;
        let values = labels(&name, layout);
        table.push_row(
            |_, label| values.get(label).map(String::as_str),
            |_, _| Ok::<_, DataError>(()),
        )?;
        files.push(&name, (!is_utf8).then_some(path));
    }
    Ok(Files {
        files,
        labels: table,
        folder: folder.to_path_buf(),
        limits: Limits::default(),
    })
}

/// The grammar that more than half of the names follow, else classes if there is a sub-folder.
fn detect(found: &[Found]) -> Layout {
    let parsing = |parses: &dyn Fn(&str) -> bool| {
        found
            .iter()
            .filter(|found| parses(file_name(&found.name)))
            .count()
    };
    if parsing(&|name| AgeDbName::parse(name).is_ok()) * 2 > found.len() {
        Layout::AgeDb
    } else if parsing(&|name| UtkFaceName::parse(name).is_ok()) * 2 > found.len() {
        Layout::UtkFace
    } else if found.iter().any(|found| found.name.contains('/')) {
        Layout::Classes
    } else {
        Layout::Flat
    }
}

fn labels(name: &str, layout: Layout) -> BTreeMap<String, String> {
    match layout {
        Layout::AgeDb => AgeDbName::parse(file_name(name)).map(|name| name.labels()),
        Layout::UtkFace => UtkFaceName::parse(file_name(name)).map(|name| name.labels()),
        Layout::Classes => Ok(name
            .split_once('/')
            .map(|(class, _)| ("class".to_owned(), class.to_owned()))
            .into_iter()
            .collect()),
        Layout::Auto | Layout::Flat => Ok(BTreeMap::new()),
    }
    .unwrap_or_default()
}

fn file_name(relative: &str) -> &str {
    relative.rsplit_once('/').map_or(relative, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Dataset, OpenOptions, open};

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn text(labels: BTreeMap<String, String>) -> String {
        labels
            .iter()
            .map(|(name, value)| format!("{name}={value} "))
            .collect()
    }

    #[test]
    fn most_names_decide_and_the_others_stay_without_labels() {
        let folder = folder_with(&["0_Ann_30_f.jpg", "1_Bob_41_m.jpg", "holiday.jpg"]);
        let files = read(folder.path(), Layout::Auto).unwrap();
        assert_eq!(files.label_names(), ["name", "age", "gender"]);
        assert_eq!(text(files.labels(0)), "age=30 gender=f name=Ann ");
        assert_eq!(text(files.labels(2)), "");
        assert_eq!(files.len(), 3);
        let half = folder_with(&["0_Ann_30_f.jpg", "holiday.jpg"]);
        assert!(
            read(half.path(), Layout::Auto)
                .unwrap()
                .label_names()
                .is_empty()
        );
    }

    #[test]
    fn utkface_is_told_from_agedb() {
        let folder = folder_with(&["sub/25_0_2_20170116174525125.jpg", "26_1_2_2017.jpg"]);
        let files = read(folder.path(), Layout::Auto).unwrap();
        assert_eq!(text(files.labels(0)), "age=26 gender=f race=2 ");
        assert_eq!(text(files.labels(1)), "age=25 gender=m race=2 ");
    }

    #[test]
    fn the_first_folder_is_the_class_at_any_depth() {
        let folder = folder_with(&["cat/images/1.jpg", "dog/2.jpg", "stray.jpg"]);
        let files = read(folder.path(), Layout::Auto).unwrap();
        let classes: Vec<_> = (0..3).map(|i| files.label(i, "class")).collect();
        assert_eq!(
            classes,
            [Some("cat".to_owned()), Some("dog".to_owned()), None]
        );
        assert_eq!(files.name(0), "cat/images/1.jpg");
    }

    #[test]
    fn an_explicit_layout_wins_over_what_the_names_look_like() {
        let folder = folder_with(&["x/0_Ann_30_f.jpg", "x/1_Bob_41_m.jpg"]);
        let labels = |layout| text(read(folder.path(), layout).unwrap().labels(0));
        assert_eq!(labels(Layout::Classes), "class=x ");
        assert_eq!(labels(Layout::Flat), "");
        assert_eq!(labels(Layout::UtkFace), "");
        assert_eq!(
            labels("agedb".parse().unwrap()),
            "age=30 gender=f name=Ann "
        );
        assert!("imagenet".parse::<Layout>().unwrap_err().is_usage());
    }

    #[test]
    fn a_folder_without_candidates_is_wrong_usage() {
        let folder = folder_with(&["notes.txt", "labels.csv"]);
        let open = |spec: &str| open(spec, &OpenOptions::default()).unwrap_err();
        let problem = open(folder.path().to_str().unwrap());
        assert!(problem.is_usage() && problem.to_string().contains("no image files"));
        let problem = open("no/such/folder");
        let text = "no/such/folder: no such file or folder";
        assert!(problem.is_usage() && problem.to_string() == text);
        let notes = folder.path().join("notes.txt");
        let problem = open(notes.to_str().unwrap());
        assert!(problem.is_usage() && problem.to_string().contains("neither a folder"));
    }
}
