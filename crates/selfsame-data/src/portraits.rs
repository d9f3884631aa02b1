//! Drawn portraits with labels: a data set that costs no bytes and no download.
//!
//! What a label changes is shape; pose, light and every colour are drawn without looking at the
//! labels. Hues differ wildly between pictures and lightness hardly: hair is dark, skin is light.
//! So nearest neighbours on pixels are led astray by colour, place and size, and a model that
//! learns to look through these finds the people.

mod canvas;
mod draw;
mod person;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use image::RgbImage;

use crate::dataset::Dataset;
use crate::decode::DecodeError;
use crate::error::DataError;
use crate::fingerprint::Fingerprint;
use person::{Gender, Person, Picture};

/// Width and height of a portrait in pixels.
pub const PORTRAIT_SIZE: u32 = 96;
/// Pictures of each person.
const PICTURES_PER_PERSON: usize = 4;
/// Goes into the fingerprint: raise it when the drawing changes.
const DRAWING_VERSION: u64 = 2;
/// Most portraits in a set; each costs its name in memory.
const MAX_COUNT: usize = 10_000_000;

/// `count` portraits, four of each person, half of the people women.
pub(crate) struct Portraits {
    seed: u64,
    names: Vec<String>,
}

impl fmt::Debug for Portraits {
    /// Without the names, of which there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portraits")
            .field("seed", &self.seed)
            .field("count", &self.names.len())
            .finish()
    }
}

impl Portraits {
    /// Parses what follows `synthetic:`; `spec` is the whole for messages.
    pub(crate) fn from_spec(spec: &str, what: &str) -> Result<Self, DataError> {
        let wrong = |problem: String| DataError::Spec {
            spec: spec.to_owned(),
            problem,
        };
        let (kind, query) = what.split_once('?').unwrap_or((what, ""));
        if kind != "portraits" {
            return Err(wrong(format!(
                "{kind:?} is no synthetic data set; there is portraits"
            )));
        }
        let (mut count, mut seed) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match key {
                "count" => &mut count,
                "seed" => &mut seed,
                _ => return Err(wrong(format!("{key:?} is neither count nor seed"))),
            };
            let number = value
                .parse::<u64>()
                .map_err(|_| wrong(format!("{key} {value:?} is not a whole number")))?;
            if slot.replace(number).is_some() {
                return Err(wrong(format!("{key} is given twice")));
            }
        }
        let count = count.unwrap_or(2000);
        match usize::try_from(count) {
            Ok(count @ 1..=MAX_COUNT) => Ok(Self::new(count, seed.unwrap_or(0))),
            _ => Err(wrong(format!(
                "count {count} is not within 1 and {MAX_COUNT}"
            ))),
        }
    }

    fn new(count: usize, seed: u64) -> Self {
        Self {
            seed,
            names: (0..count).map(|i| format!("portrait-{i:08}")).collect(),
        }
    }

    fn person(&self, index: usize) -> Person {
        Person::new(self.seed, (index / PICTURES_PER_PERSON) as u64)
    }

    fn picture(&self, index: usize, person: &Person) -> Picture {
        Picture::new(self.seed, index as u64, person)
    }
}

impl Dataset for Portraits {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    fn labels(&self, index: usize) -> BTreeMap<String, String> {
        let person = self.person(index);
        let picture = self.picture(index, &person);
        let gender = match person.gender {
            Gender::Female => "f",
            Gender::Male => "m",
        };
        BTreeMap::from([
            ("age".to_owned(), picture.age.to_string()),
            ("gender".to_owned(), gender.to_owned()),
            (
                "name".to_owned(),
                format!("P{}-{:06}", self.seed, index / PICTURES_PER_PERSON),
            ),
        ])
    }

    fn label_names(&self) -> Vec<String> {
        ["age", "gender", "name"].map(str::to_owned).to_vec()
    }

    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        let person = self.person(index);
        Ok(draw::draw(&person, &self.picture(index, &person)))
    }

    fn path(&self, _index: usize) -> Option<PathBuf> {
        None
    }

    fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new("portraits");
        for number in [DRAWING_VERSION, self.seed, self.names.len() as u64] {
            fingerprint.add_text(&number.to_string());
        }
        fingerprint.finish()
    }
}

#[cfg(test)]
mod tests;
