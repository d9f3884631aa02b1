//! Which pictures a run is trained on: it goes on with those it began with, or says what changed.

use std::path::Path;

use selfsame_data::{Dataset, PictureList};
use serde_json::{Value, json};

use crate::error::TrainError;
use crate::run_files::PICTURES_FILE;

/// What a checkpoint keeps of the training pictures.
pub(crate) struct DataRecord {
    images: usize,
    fingerprint: String,
    /// Changes that were accepted: step and the fingerprint before.
    changes: Vec<Value>,
    /// Whether the list in the run directory is that of other pictures.
    is_list_old: bool,
}

impl DataRecord {
    /// Of the pictures as they are now.
    pub(crate) fn of(dataset: &dyn Dataset) -> Self {
        Self {
            images: dataset.len(),
            fingerprint: dataset.fingerprint(),
            changes: Vec::new(),
            is_list_old: true,
        }
    }

    /// For the manifest of a checkpoint.
    pub(crate) fn to_json(&self) -> Value {
        let mut record = json!({
            "images": self.images,
            "data_fingerprint": self.fingerprint,
        });
        if !self.changes.is_empty() {
            record["data_changes"] = Value::Array(self.changes.clone());
        }
        record
    }

    /// Writes the list of a run that begins or goes on with other pictures, once. It belongs to the
    /// checkpoint that is saved next: until then the one before is of the pictures before.
    ///
    /// # Errors
    /// The data crate's, with the path.
    pub(crate) fn write_list(
        &mut self,
        dataset: &dyn Dataset,
        run_dir: &Path,
    ) -> Result<(), TrainError> {
        if self.is_list_old {
            let list = PictureList::of(dataset);
            if !list.is_empty() {
                list.write_csv(&run_dir.join(PICTURES_FILE))?;
            }
            self.is_list_old = false;
        }
        Ok(())
    }

    /// Compares with what a checkpoint of `step` kept; what an accepted change was, in words.
    ///
    /// # Errors
    /// [`TrainError::DataChanged`] with every difference, if it may not change.
    pub(crate) fn go_on(
        &mut self,
        before: &Value,
        step: u64,
        dataset: &dyn Dataset,
        run_dir: &Path,
        accept: bool,
    ) -> Result<Option<String>, TrainError> {
        if let Some(changes) = before["data_changes"].as_array() {
            self.changes.clone_from(changes);
        }
        let Some(then) = before["data_fingerprint"].as_str() else {
            return Ok(None);
        };
        if then == self.fingerprint {
            self.is_list_old = false;
            return Ok(None);
        }
        let path = run_dir.join(PICTURES_FILE);
        let mut differences = if path.exists() {
            match PictureList::read_csv(&path) {
                Ok(list) => list.differences(&PictureList::of(dataset)),
                Err(error) => vec![format!("which is not known: {error}")],
            }
        } else {
            vec!["the run kept no list of its pictures".to_owned()]
        };
        if differences.is_empty() {
            // As where a picture is listed twice.
            differences.push(
                "no picture has another name or size than in pictures.csv; their number, their \
                 order or their content has changed, or that list is of a later checkpoint, which \
                 was damaged"
                    .to_owned(),
            );
        }
        if !accept {
            return Err(TrainError::DataChanged(differences));
        }
        self.changes
            .push(json!({ "step": step, "data_fingerprint_before": then }));
        Ok(Some(format!(
            "going on with changed pictures from step {step}: {}",
            summary(&differences)
        )))
    }
}

/// The first differences and how many more there are.
pub(crate) fn summary(differences: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        text.push_str("\n  ");
        text.push_str(difference);
    }
    if differences.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", differences.len() - SHOWN));
    }
    text
}
