//! Decoded pictures kept in memory, up to a budget.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use image::RgbImage;

use crate::dataset::Dataset;
use crate::decode::DecodeError;

/// A data set that remembers the pictures it decoded, until `max_bytes` of pixels are held.
///
/// Nothing is thrown out again: in an epoch every picture comes once, so that a cache which makes
/// room would hold each picture until just before it is needed. The pixels are those of the inner
/// set, whatever fits; a file that changes after its first use is not read again.
/// Failures are not remembered.
pub struct Cached {
    inner: Arc<dyn Dataset>,
    max_bytes: u64,
    held_bytes: AtomicU64,
    pictures: Vec<OnceLock<RgbImage>>,
}

impl fmt::Debug for Cached {
    /// Without the pictures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached")
            .field("inner", &self.inner)
            .field("max_bytes", &self.max_bytes)
            .field("held_bytes", &self.held_bytes())
            .finish_non_exhaustive()
    }
}

impl Cached {
    /// Keeps at most `max_bytes` of pixels (3 bytes each) of `inner`.
    pub fn new(inner: Arc<dyn Dataset>, max_bytes: u64) -> Self {
        let pictures = (0..inner.len()).map(|_| OnceLock::new()).collect();
        Self {
            inner,
            max_bytes,
            held_bytes: AtomicU64::new(0),
            pictures,
        }
    }

    /// Bytes of pixels held now; never above the budget.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn keep(&self, index: usize, picture: &RgbImage) {
        let bytes = picture.as_raw().len() as u64;
        let room = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        let reserved = self
            .held_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        if reserved.is_ok() && self.pictures[index].set(picture.clone()).is_err() {
            // Another thread decoded the same picture meanwhile.
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Dataset for Cached {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn name(&self, index: usize) -> &str {
        self.inner.name(index)
    }

    fn labels(&self, index: usize) -> BTreeMap<String, String> {
        self.inner.labels(index)
    }

    fn label(&self, index: usize, name: &str) -> Option<String> {
        self.inner.label(index, name)
    }

    fn label_names(&self) -> Vec<String> {
        self.inner.label_names()
    }

    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        if let Some(picture) = self.pictures[index].get() {
            return Ok(picture.clone());
        }
        let picture = self.inner.decode(index)?;
        self.keep(index, &picture);
        Ok(picture)
    }

    fn path(&self, index: usize) -> Option<PathBuf> {
        self.inner.path(index)
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;
    use crate::{OpenOptions, PORTRAIT_SIZE, open};

    const PICTURE: u64 = 3 * PORTRAIT_SIZE as u64 * PORTRAIT_SIZE as u64;

    fn portraits() -> Arc<dyn Dataset> {
        open("synthetic:portraits?count=12", &OpenOptions::default()).unwrap()
    }

    #[test]
    fn the_pixels_are_the_same_whatever_fits() {
        let plain = portraits();
        for max_bytes in [0, PICTURE - 1, 5 * PICTURE, u64::MAX] {
            let cached = Cached::new(plain.clone(), max_bytes);
            for _ in 0..2 {
                for i in 0..plain.len() {
                    assert_eq!(cached.decode(i).unwrap(), plain.decode(i).unwrap());
                }
            }
            let fit = (max_bytes / PICTURE).min(12);
            assert_eq!(cached.held_bytes(), fit * PICTURE);
        }
        assert_eq!(
            Cached::new(plain.clone(), 0).fingerprint(),
            plain.fingerprint()
        );
    }

    #[test]
    fn threads_at_the_same_picture_count_it_once() {
        let cached = Cached::new(portraits(), u64::MAX);
        (0..96).into_par_iter().for_each(|i| {
            cached.decode(i % 3).unwrap();
        });
        assert_eq!(cached.held_bytes(), 3 * PICTURE);
    }

    #[test]
    fn what_is_held_is_not_decoded_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.png");
        portraits().decode(0).unwrap().save(&file).unwrap();
        let set = open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let (cached, small) = (Cached::new(set.clone(), PICTURE), Cached::new(set, 1));
        assert!(cached.decode(0).is_ok() && small.decode(0).is_ok());
        std::fs::remove_file(&file).unwrap();
        assert!(cached.decode(0).is_ok());
        assert!(matches!(small.decode(0), Err(DecodeError::Missing)));
    }
}
