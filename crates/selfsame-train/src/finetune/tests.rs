use std::path::PathBuf;

use selfsame_data::DecodeError;
use selfsame_data::augment::image::RgbImage;
use selfsame_models::{Arch, draw_backbone};

use super::*;

#[test]
fn cross_entropy_of_even_logits_is_ln_of_the_class_count() {
    let logits = Tensor::zeros((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &[0, 1, 3])
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!((loss - 4f32.ln()).abs() < 1e-6);
}

const CLASSES: usize = 2;

/// A network, eight pictures and the class of each.
struct Bench {
    model: ModelConfig,
    params: ParamStore,
    dataset: Arc<dyn Dataset>,
    classes: BTreeMap<usize, usize>,
}

impl Bench {
    fn new() -> Self {
        let model = ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 16,
            embed_dim: 32,
            depth: 1,
            num_heads: 1,
            drop_path_rate: 0.2,
            ..ModelConfig::default()
        };
        let spec = "synthetic:portraits?count=8&seed=0";
        Self {
            params: draw_backbone(&model, 0, &Device::Cpu).unwrap(),
            model,
            dataset: selfsame_data::open(spec, &Default::default()).unwrap(),
            classes: (0..8).map(|i| (i, i % CLASSES)).collect(),
        }
    }

    fn set(&self) -> LabelledSamples<'_> {
        LabelledSamples {
            dataset: &self.dataset,
            classes: &self.classes,
        }
    }

    fn begin(&self, num_classes: usize, config: &FinetuneConfig) -> Result<Finetuning, TrainError> {
        Finetuning::new(&self.model, &self.params, num_classes, config, &Device::Cpu)
    }

    /// Trains until so many events have been told.
    fn train(&self, tuning: &mut Finetuning, mut events: usize) -> Result<(), TrainError> {
        let crop = StandardCrop {
            image_size: self.model.image_size,
            ..StandardCrop::default()
        };
        tuning.train(&self.set(), &crop, &Arc::default(), |_| {
            events = events.saturating_sub(1);
            match events {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
    }
}

fn values(tensors: BTreeMap<String, Tensor>) -> Vec<(String, Vec<f32>)> {
    let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1().unwrap();
    tensors
        .into_iter()
        .map(|(name, x)| (name, flat(x)))
        .collect()
}

fn quick() -> FinetuneConfig {
    FinetuneConfig {
        epochs: 2,
        batch_size: 3,
        lr: 1e-2,
        ..FinetuneConfig::default()
    }
}

#[test]
fn the_weights_given_stay_as_they_are_and_bad_settings_are_told_together() {
    let bench = Bench::new();
    let before = values(bench.params.tensors());
    let mut tuning = bench.begin(CLASSES, &quick()).unwrap();
    bench.train(&mut tuning, usize::MAX).unwrap();
    assert!(tuning.is_done() && tuning.epochs().len() == 2);
    let crop = EvalCrop {
        image_size: 16,
        ..EvalCrop::default()
    };
    let go_on = |_| ControlFlow::Continue(());
    let found = tuning.predict(&bench.set(), &crop, &Arc::default(), go_on);
    assert_eq!(found.unwrap().unwrap().predicted.len(), 8);
    assert_eq!(values(bench.params.tensors()), before);
    let trained = tuning.tensors().into_iter();
    let trained = trained.filter(|(name, _)| is_of_backbone(name)).collect();
    assert_ne!(values(trained), before);

    let bad = FinetuneConfig {
        epochs: 0,
        lr: f64::NAN,
        ..quick()
    };
    let Err(TrainError::Config(problems)) = bench.begin(CLASSES, &bad) else {
        panic!("it began");
    };
    assert_eq!(problems.len(), 2, "{problems:?}");
    let mut few = bench.begin(1, &quick()).unwrap();
    let Err(TrainError::Config(problems)) = bench.train(&mut few, usize::MAX) else {
        panic!("it ran");
    };
    assert_eq!(problems.len(), 1, "{problems:?}");
}

/// Two epochs of three batches: eight events.
#[test]
fn put_aside_anywhere_it_goes_on_with_the_same_bits() {
    let bench = Bench::new();
    for freeze in [false, true] {
        let config = FinetuneConfig { freeze, ..quick() };
        let mut whole = bench.begin(CLASSES, &config).unwrap();
        let told_before = whole.checkpoint_bytes();
        bench.train(&mut whole, usize::MAX).unwrap();
        let at_the_end = whole.checkpoint(String::new()).unwrap();
        let tensors = at_the_end.files.values().flat_map(BTreeMap::values);
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let ratio = tensors.map(bytes).sum::<usize>() as f64 / told_before as f64;
        assert!((0.99..1.01).contains(&ratio), "{ratio}");
        for events in 1..8 {
            let mut first = bench.begin(CLASSES, &config).unwrap();
            bench.train(&mut first, events).unwrap();
            assert!(!first.is_done());
            let kept = first.checkpoint("settings".to_owned()).unwrap();
            let mut second = bench.begin(CLASSES, &config).unwrap();
            second.restore(&kept).unwrap();
            bench.train(&mut second, usize::MAX).unwrap();
            assert_eq!(second.progress, whole.progress, "after {events} events");
            assert!(values(second.tensors()) == values(whole.tensors()));
        }
    }
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let bench = Bench::new();
    let mut tuning = bench.begin(CLASSES, &quick()).unwrap();
    bench.train(&mut tuning, 2).unwrap();
    let kept = tuning.checkpoint(String::new()).unwrap();
    let mut more = bench.begin(3, &quick()).unwrap();
    let before = values(more.tensors());
    assert!(matches!(more.restore(&kept), Err(TrainError::Model(_))));
    let mut none = kept.clone();
    none.extra = serde_json::Value::Null;
    assert!(matches!(tuning.restore(&none), Err(TrainError::State(_))));
    none = kept;
    none.files.remove("optimizer");
    assert!(matches!(tuning.restore(&none), Err(TrainError::State(_))));
    let head = |tensors: Vec<(String, Vec<f32>)>| {
        let head = tensors
            .into_iter()
            .filter(|(name, _)| !is_of_backbone(name));
        head.collect::<Vec<_>>()
    };
    assert!(head(values(more.tensors())) == head(before));
}

#[test]
fn an_image_left_over_alone_is_not_learned_from_where_batch_norm_is() {
    let mut bench = Bench::new();
    bench.model = ModelConfig {
        arch: Arch::Resnet18,
        image_size: 32,
        ..ModelConfig::default()
    };
    bench.params = draw_backbone(&bench.model, 0, &Device::Cpu).unwrap();
    let config = FinetuneConfig {
        epochs: 1,
        batch_size: 7,
        ..quick()
    };
    // Of pictures of 32 pixels the last maps are single values.
    let mut tuning = bench.begin(CLASSES, &config).unwrap();
    bench.train(&mut tuning, usize::MAX).unwrap();
    assert!(tuning.is_done());
    assert_eq!(tuning.pictures(), 7);

    // Who asks for one at a time has none left over.
    bench.model.image_size = 64;
    let one_by_one = FinetuneConfig {
        batch_size: 1,
        ..config
    };
    let mut tuning = bench.begin(CLASSES, &one_by_one).unwrap();
    bench.train(&mut tuning, usize::MAX).unwrap();
    assert_eq!(tuning.pictures(), 8);
}

/// Of eight pictures the first so many cannot be decoded.
#[derive(Debug)]
struct Lost(Arc<dyn Dataset>, usize);

impl Dataset for Lost {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, index: usize) -> &str {
        self.0.name(index)
    }
    fn labels(&self, index: usize) -> BTreeMap<String, String> {
        self.0.labels(index)
    }
    fn label_names(&self) -> Vec<String> {
        self.0.label_names()
    }
    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        match index < self.1 {
            true => Err(DecodeError::Missing),
            false => self.0.decode(index),
        }
    }
    fn path(&self, index: usize) -> Option<PathBuf> {
        self.0.path(index)
    }
    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }
}

#[test]
fn an_epoch_without_half_of_its_pictures_does_not_count() {
    for (lost, counts) in [(8, false), (6, false), (4, true)] {
        let mut bench = Bench::new();
        let mut tuning = bench.begin(CLASSES, &quick()).unwrap();
        bench.train(&mut tuning, 4).unwrap();
        assert_eq!(tuning.epochs().len(), 1, "three batches and the epoch");
        bench.dataset = Arc::new(Lost(bench.dataset, lost));
        let trained = bench.train(&mut tuning, usize::MAX);
        assert_eq!(tuning.epochs().len(), if counts { 2 } else { 1 });
        if counts {
            trained.unwrap();
            continue;
        }
        let error = trained.unwrap_err();
        let text = error.to_string();
        let expected = format!("{} of 8 pictures of epoch 2 could be used", 8 - lost);
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains("no such file"), "{text}");
        assert!(!error.is_usage());
    }
}

#[test]
fn without_a_picture_to_test_on_there_is_no_answer() {
    let mut bench = Bench::new();
    let tuning = bench.begin(CLASSES, &quick()).unwrap();
    bench.dataset = Arc::new(Lost(bench.dataset, 8));
    let crop = EvalCrop {
        image_size: 16,
        ..EvalCrop::default()
    };
    let go_on = |_| ControlFlow::Continue(());
    let found = tuning.predict(&bench.set(), &crop, &Arc::default(), go_on);
    let text = found.unwrap_err().to_string();
    assert!(text.contains("0 of 8 pictures to test on"), "{text}");
}

#[test]
fn an_epoch_that_was_left_with_few_pictures_begins_again() {
    let bench = Bench::new();
    let [mut whole, mut left] = [0, 1].map(|_| bench.begin(CLASSES, &quick()).unwrap());
    // Of the six pictures of two batches one could be used.
    left.progress.batches = 2;
    (left.progress.seen, left.progress.loss_sum) = (1, 9.0);
    let kept = left.checkpoint(String::new()).unwrap();
    left.restore(&kept).unwrap();
    for tuning in [&mut whole, &mut left] {
        bench.train(tuning, usize::MAX).unwrap();
    }
    assert_eq!(left.epochs(), whole.epochs());
    assert_eq!(left.pictures(), whole.pictures());

    // Of those of one batch two could: that goes on.
    let mut most = bench.begin(CLASSES, &quick()).unwrap();
    (most.progress.batches, most.progress.seen) = (1, 2);
    let kept = most.checkpoint(String::new()).unwrap();
    most.restore(&kept).unwrap();
    bench.train(&mut most, usize::MAX).unwrap();
    assert_eq!(most.pictures(), whole.pictures() - 3);

    // A pause within a process changes nothing: the epoch goes on, and ends with too few.
    let mut paused = bench.begin(CLASSES, &quick()).unwrap();
    paused.progress.batches = 2;
    let text = bench
        .train(&mut paused, usize::MAX)
        .unwrap_err()
        .to_string();
    assert!(text.contains("2 of 8 pictures of epoch 1"), "{text}");
}
