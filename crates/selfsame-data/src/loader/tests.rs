use std::collections::BTreeMap;
use std::path::PathBuf;

use selfsame_augment::AugmentConfig;

use super::*;
use crate::{DecodeError, OpenOptions, open};

/// Small pictures of one colour each; some indices fail, one may have no pixels, one may panic.
#[derive(Debug)]
struct Fake {
    names: Vec<String>,
    bad: BTreeSet<usize>,
    bare: Option<usize>,
    panics_at: Option<usize>,
}

impl Fake {
    fn new(len: usize, bad: &[usize]) -> Self {
        let names = (0..len).map(|i| format!("{i:03}.jpg")).collect();
        Self {
            names,
            bad: bad.iter().copied().collect(),
            bare: None,
            panics_at: None,
        }
    }
}

impl Dataset for Fake {
    fn len(&self) -> usize {
        self.names.len()
    }
    fn name(&self, index: usize) -> &str {
        &self.names[index]
    }
    fn labels(&self, _: usize) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    fn label_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn path(&self, _: usize) -> Option<PathBuf> {
        None
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        assert_ne!(self.panics_at, Some(index), "broken at {index}");
        if self.bad.contains(&index) {
            return Err(DecodeError::Empty);
        }
        if self.bare == Some(index) {
            return Ok(RgbImage::from_raw(0, 5, vec![7; 6]).unwrap());
        }
        let shade = (index * 5 % 256) as u8;
        Ok(RgbImage::from_fn(20, 16, |x, y| {
            image::Rgb([shade, (x * 9) as u8, (y * 9) as u8])
        }))
    }
}

fn views() -> MultiCrop {
    let config = AugmentConfig {
        global_size: 12,
        local_size: 8,
        local_crops: 3,
        ..AugmentConfig::default()
    };
    MultiCrop::new(config).unwrap()
}

fn config(workers: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size: 4,
        workers,
        prefetch_batches: 2,
        ..LoaderConfig::default()
    }
}

fn loader(dataset: Fake, config: LoaderConfig) -> (Loader, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::new());
    (
        Loader::new(Arc::new(dataset), views(), config, ledger.clone()).unwrap(),
        ledger,
    )
}

fn floats(pixels: &Pixels) -> &[f32] {
    pixels.normalized().unwrap()
}

/// All of an epoch, the waiting time aside.
fn epoch_of(loader: &Loader, epoch: u64, first_batch: usize) -> Vec<HostBatch> {
    loader
        .epoch(epoch, first_batch)
        .map(|batch| HostBatch {
            wait: Duration::ZERO,
            ..batch.unwrap()
        })
        .collect()
}

#[test]
fn a_size_of_local_crops_that_are_none_is_not_looked_at() {
    let augment = AugmentConfig {
        global_size: 12,
        local_size: usize::MAX / 2,
        local_crops: 0,
        ..AugmentConfig::default()
    };
    let views = MultiCrop::new(augment).unwrap();
    let dataset = Arc::new(Fake::new(8, &[]));
    let loader = Loader::new(dataset, views, config(1), Arc::new(Ledger::new())).unwrap();
    assert_eq!(epoch_of(&loader, 0, 0).len(), 2);
}

#[test]
fn the_same_bytes_for_any_number_of_workers() {
    let bad = [3, 11];
    let tolerant = |workers| LoaderConfig {
        max_bad_fraction: 0.1,
        ..config(workers)
    };
    let (inline, inline_ledger) = loader(Fake::new(30, &bad), tolerant(0));
    let expected = epoch_of(&inline, 1, 0);
    assert_eq!(expected.len(), 7);
    for workers in [1, 2, 4] {
        let (threaded, ledger) = loader(Fake::new(30, &bad), tolerant(workers));
        assert_eq!(epoch_of(&threaded, 1, 0), expected, "{workers} workers");
        assert_eq!(ledger.entries(), inline_ledger.entries());
    }
}

#[test]
fn a_picture_without_pixels_is_replaced_like_one_that_cannot_be_decoded() {
    let bare = Fake {
        bare: Some(3),
        ..Fake::new(30, &[])
    };
    let (loader, ledger) = loader(bare, config(1));
    let batches = epoch_of(&loader, 1, 0);
    assert!(batches.iter().all(|batch| !batch.samples.contains(&3)));
    let entries = ledger.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].file, "003.jpg");
    assert_eq!(entries[0].reason, "unsupported: an image without pixels");
    let report = crate::check(loader.0.dataset.as_ref(), 8, &Ledger::new(), &|_| ());
    assert_eq!((report.usable, report.unusable), (29, entries));
}

#[test]
fn an_epoch_may_begin_at_any_batch() {
    let (loader, _) = loader(Fake::new(30, &[]), config(2));
    let whole = epoch_of(&loader, 2, 0);
    for first in [1, 5, 7, 99] {
        assert_eq!(epoch_of(&loader, 2, first), whole[first.min(7)..]);
    }
    assert_eq!(whole[3].index, 3);
    assert_ne!(epoch_of(&loader, 3, 0)[0].samples, whole[0].samples);
}

#[test]
fn batches_are_view_major_and_equal_the_single_crops() {
    let (loader, _) = loader(Fake::new(9, &[]), config(1));
    let batch = epoch_of(&loader, 0, 1).remove(0);
    assert_eq!(batch.samples, loader.sampler().batch(0, 1));
    assert_eq!((batch.num_global, batch.num_local), (2, 3));
    assert_eq!(
        (batch.global.len(), batch.local.len()),
        (2 * 4 * 3 * 144, 3 * 4 * 3 * 64)
    );
    for (place, &sample) in batch.samples.iter().enumerate() {
        let image = Fake::new(9, &[]).decode(sample).unwrap();
        let crops = views().crops(
            &image,
            SampleKey {
                run_seed: 42,
                epoch: 0,
                sample: sample as u64,
            },
        );
        for (view, crop) in crops.iter().enumerate() {
            let got = match view {
                0 | 1 => &floats(&batch.global)[(view * 4 + place) * 3 * 144..][..3 * 144],
                _ => &floats(&batch.local)[((view - 2) * 4 + place) * 3 * 64..][..3 * 64],
            };
            assert_eq!(got, crop.data, "view {view}");
        }
    }
}

#[test]
fn bytes_are_the_same_crops_before_normalisation() {
    let bytes = LoaderConfig {
        pixels: PixelType::Bytes,
        ..config(1)
    };
    let bytes = epoch_of(&loader(Fake::new(9, &[]), bytes).0, 0, 0);
    let floats_of = epoch_of(&loader(Fake::new(9, &[]), config(1)).0, 0, 0);
    assert_eq!((bytes.len(), floats_of.len()), (2, 2));
    for (bytes, normalized) in bytes.iter().zip(&floats_of) {
        assert_eq!(bytes.samples, normalized.samples);
        for (bytes, values, size) in [
            (&bytes.global, floats(&normalized.global), 144),
            (&bytes.local, floats(&normalized.local), 64),
        ] {
            let Pixels::Bytes(bytes) = bytes else {
                panic!("not bytes");
            };
            assert_eq!(bytes.len(), values.len());
            for (i, (byte, value)) in bytes.iter().zip(values).enumerate() {
                let channel = i / size % 3;
                let config = views().config().clone();
                let (mean, std) = (config.mean[channel], config.std[channel]);
                let expected = (f64::from(*byte) / 255.0 - mean) / std;
                assert!((expected - f64::from(*value)).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn two_ranks_make_the_halves_of_one_ranks_batches() {
    let (whole, _) = loader(Fake::new(20, &[]), config(0));
    let halves: Vec<Vec<HostBatch>> = (0..2)
        .map(|rank| {
            let half = LoaderConfig {
                batch_size: 2,
                rank,
                world_size: 2,
                ..config(1)
            };
            epoch_of(&loader(Fake::new(20, &[]), half).0, 0, 0)
        })
        .collect();
    let whole = epoch_of(&whole, 0, 0);
    assert_eq!([whole.len(), halves[0].len(), halves[1].len()], [5, 5, 5]);
    for (i, batch) in whole.iter().enumerate() {
        let [first, second] = [0, 1].map(|rank| &halves[rank][i]);
        assert_eq!(batch.samples, [&*first.samples, &*second.samples].concat());
        for (whole, first, second, num_views, size) in [
            (&batch.global, &first.global, &second.global, 2, 3 * 144),
            (&batch.local, &first.local, &second.local, 3, 3 * 64),
        ] {
            // View-major: of each view the first rank's two images, then the second's.
            let of_view = |pixels, view: usize| &floats(pixels)[view * 2 * size..][..2 * size];
            let joined: Vec<f32> = (0..num_views)
                .flat_map(|view| [of_view(first, view), of_view(second, view)].concat())
                .collect();
            assert!(floats(whole) == joined, "batch {i}");
        }
    }
}

#[test]
fn an_undecodable_image_is_replaced_and_entered_once() {
    let bad = [0, 1, 2];
    let config = LoaderConfig {
        max_bad_fraction: 0.2,
        ..config(2)
    };
    let (loader, ledger) = loader(Fake::new(16, &bad), config);
    for epoch in 0..3 {
        let mut replaced = 0;
        for (index, batch) in epoch_of(&loader, epoch, 0).iter().enumerate() {
            assert_eq!(batch.samples.len(), 4);
            assert!(batch.samples.iter().all(|sample| !bad.contains(sample)));
            let planned = loader.sampler().batch(epoch, index);
            for (place, (planned, got)) in planned.iter().zip(&batch.samples).enumerate() {
                if bad.contains(planned) {
                    replaced += 1;
                    let position = (index * 4 + place) as u64;
                    let drawn = (0..100)
                        .map(|attempt| sampler::replacement(42, epoch, position, attempt, 16))
                        .find(|drawn| !bad.contains(drawn));
                    assert_eq!(Some(*got), drawn);
                } else {
                    assert_eq!(planned, got);
                }
            }
        }
        assert_eq!(replaced, 3);
    }
    let files: Vec<String> = ledger
        .entries()
        .into_iter()
        .map(|entry| entry.file)
        .collect();
    assert_eq!(files, ["000.jpg", "001.jpg", "002.jpg"]);
}

#[test]
fn too_many_bad_images_end_the_epoch_with_a_typed_error_in_the_same_place() {
    let bad = [1, 5, 9, 13, 17];
    let at = |workers| {
        let config = LoaderConfig {
            max_bad_fraction: 0.1,
            ..config(workers)
        };
        let (loader, _) = loader(Fake::new(20, &bad), config);
        let results: Vec<_> = loader.epoch(0, 0).collect();
        let Some(Err(DataError::TooManyBad {
            bad: 3,
            len: 20,
            name,
            ..
        })) = results.last()
        else {
            panic!(
                "{:?}",
                results
                    .last()
                    .map(|last| last.as_ref().map(|batch| batch.index))
            );
        };
        assert!(results[..results.len() - 1].iter().all(Result::is_ok));
        (results.len(), name.clone())
    };
    assert_eq!(at(0), at(3));
    // Exactly the tolerated number is fine.
    let tolerant = LoaderConfig {
        max_bad_fraction: 0.25,
        ..config(2)
    };
    assert_eq!(
        epoch_of(&loader(Fake::new(20, &bad), tolerant).0, 0, 0).len(),
        5
    );
}

#[test]
fn if_nothing_decodes_the_search_for_a_stand_in_ends() {
    let all: Vec<usize> = (0..8).collect();
    let tolerant = LoaderConfig {
        max_bad_fraction: 1.0,
        ..config(1)
    };
    let (loader, _) = loader(Fake::new(8, &all), tolerant);
    let error = loader.epoch(0, 0).next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::NoReplacement { .. }), "{error}");
}

#[test]
fn a_panic_of_a_worker_is_an_error_and_ends_the_epoch() {
    for workers in [0, 2] {
        let mut dataset = Fake::new(12, &[]);
        dataset.panics_at = Some(
            loader(Fake::new(12, &[]), config(0))
                .0
                .sampler()
                .batch(0, 1)[2],
        );
        let (loader, _) = loader(dataset, config(workers));
        let results: Vec<_> = loader.epoch(0, 0).collect();
        assert_eq!(results.len(), 2);
        let error = results[1].as_ref().unwrap_err();
        assert!(matches!(error, DataError::Panicked { batch: 1, .. }));
        assert!(error.to_string().contains("broken at"), "{error}");
    }
}

#[test]
fn wrong_settings_are_refused() {
    let new = |config| {
        Loader::new(
            Arc::new(Fake::new(10, &[])),
            views(),
            config,
            Arc::new(Ledger::new()),
        )
        .unwrap_err()
        .to_string()
    };
    let too_few = new(LoaderConfig {
        batch_size: 11,
        ..config(0)
    });
    assert_eq!(too_few, "10 images are fewer than a batch of 11");
    assert!(
        new(LoaderConfig {
            max_bad_fraction: -0.1,
            ..config(0)
        })
        .contains("max_bad_fraction")
    );
}

#[test]
fn batches_of_many_epochs_are_those_of_each() {
    let (loader, _) = loader(Fake::new(30, &[]), config(3));
    let got: Vec<HostBatch> = loader
        .batches(6, 4..14)
        .map(|batch| HostBatch {
            wait: Duration::ZERO,
            ..batch.unwrap()
        })
        .collect();
    // Seven batches an epoch, of which six are handed out.
    let mut want = epoch_of(&loader, 0, 4);
    want.pop();
    want.extend(epoch_of(&loader, 1, 0).into_iter().take(6));
    want.extend(epoch_of(&loader, 2, 0).into_iter().take(2));
    assert_eq!(got, want);
}

#[test]
fn an_epoch_may_be_dropped_at_any_time() {
    let (loader, _) = loader(Fake::new(200, &[]), config(3));
    for taken in [0, 1, 2] {
        let mut epoch = loader.epoch(0, 0);
        for _ in 0..taken {
            epoch.next().unwrap().unwrap();
        }
        drop(epoch);
    }
    // Only the loader itself is left: no thread holds what it shares.
    assert_eq!(Arc::strong_count(&loader.0), 1);
}

#[test]
fn loaders_can_be_shown() {
    let (loader, _) = loader(Fake::new(8, &[]), config(1));
    let shown = format!("{loader:?} {:?}", loader.epoch(1, 0));
    for part in ["Loader {", "batch_size: ", "Batches {", "next: "] {
        assert!(shown.contains(part), "{shown}");
    }
    let set = open("synthetic:portraits?count=8", &OpenOptions::default()).unwrap();
    let shown = format!("{:?}", crate::Cached::new(set, 9));
    let expected =
        "Cached { inner: Portraits { seed: 0, count: 8 }, max_bytes: 9, held_bytes: 0, .. }";
    assert_eq!(shown, expected);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one-of-a-million.jpg"), "text").unwrap();
    let set = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    let shown = format!("{set:?}");
    assert!(
        shown.contains("images: 1") && !shown.contains("million"),
        "{shown}"
    );
}

#[test]
fn portraits_go_through_the_loader() {
    let dataset = open("synthetic:portraits?count=8", &OpenOptions::default()).unwrap();
    let loader = Loader::new(dataset, views(), config(2), Arc::new(Ledger::new())).unwrap();
    let batches = epoch_of(&loader, 0, 0);
    assert_eq!(batches.len(), 2);
    assert!(
        floats(&batches[0].global)
            .iter()
            .all(|value| value.is_finite() && value.abs() < 4.0)
    );
}
