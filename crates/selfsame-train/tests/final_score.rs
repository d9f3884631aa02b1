//! What comes at the end of a run: a score that is due is taken, now or when the run goes on; one that
//! cannot be taken ends nothing; a run that loses its pictures keeps its steps.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use selfsame_data::augment::image::RgbImage;
use selfsame_data::{Dataset, DecodeError, OpenOptions, open};
use selfsame_models::Arch;
use selfsame_train::{
    EvalLine, MetricsLine, Observer, Outcome, Progress, Run, RunConfig, RunFacts, StopFlag,
    ViewsLine, read_metrics, train,
};

/// Asks for a stop after a number of steps.
struct Stopper<'a> {
    stop: &'a StopFlag,
    after: u64,
    said: String,
}

impl Observer for Stopper<'_> {
    fn started(&mut self, _: &RunFacts) {}
    fn stepped(&mut self, progress: &Progress) {
        if progress.steps_done == self.after {
            self.stop.request(15);
        }
    }
    fn logged(&mut self, _: &MetricsLine) {}
    fn note(&mut self, text: &str) {
        self.said.push_str(text);
    }
}

/// Two epochs of four steps, scored after the second.
fn config() -> RunConfig {
    let mut config = RunConfig::default();
    let model = &mut config.model;
    (model.arch, model.patch_size, model.image_size) = (Arch::VitTiny, 8, 16);
    (model.embed_dim, model.depth, model.num_heads) = (32, 1, 1);
    config.head.out_dim = 16;
    (config.augment.global_size, config.augment.local_crops) = (16, 0);
    config.objective.warmup_teacher_temp_epochs = 0;
    config.optim.warmup_epochs = 0;
    let train = &mut config.train;
    (train.batch_size, train.epochs, train.knn_every_epochs) = (8, 2, 2);
    config
}

fn portraits(count: usize) -> Arc<dyn Dataset> {
    let spec = format!("synthetic:portraits?count={count}&seed=0");
    open(&spec, &OpenOptions::default()).unwrap()
}

fn run(dir: &Path, stop_after: u64, val: Option<Arc<dyn Dataset>>) -> (Outcome, String) {
    run_on(dir, stop_after, portraits(32), val)
}

fn run_on(
    dir: &Path,
    stop_after: u64,
    pictures: Arc<dyn Dataset>,
    val: Option<Arc<dyn Dataset>>,
) -> (Outcome, String) {
    let stop = StopFlag::default();
    let run = Run {
        config: &config(),
        config_text: "",
        run_dir: dir,
        device: &Device::Cpu,
        train: pictures,
        val,
        capture_step: None,
        accept_data_change: false,
        init: None,
        stop: &stop,
    };
    let mut stopper = Stopper {
        stop: &stop,
        after: stop_after,
        said: String::new(),
    };
    let outcome = train(&run, &mut stopper).unwrap();
    (outcome, stopper.said)
}

fn scores(dir: &Path) -> Vec<EvalLine> {
    let lines = read_metrics(dir).unwrap().into_iter();
    let scores = lines.filter_map(|line| match line {
        MetricsLine::Eval(line) => Some(line),
        MetricsLine::Views(_) => None,
        MetricsLine::Step(_) => None,
    });
    scores.collect()
}

fn scores_by_views(dir: &Path) -> Vec<ViewsLine> {
    let lines = read_metrics(dir).unwrap().into_iter();
    let scores = lines.filter_map(|line| match line {
        MetricsLine::Views(line) => Some(line),
        MetricsLine::Eval(_) | MetricsLine::Step(_) => None,
    });
    scores.collect()
}

/// Pictures whose labels nobody has written down.
#[derive(Debug)]
struct Unlabelled(Arc<dyn Dataset>);

impl Dataset for Unlabelled {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, index: usize) -> &str {
        self.0.name(index)
    }
    fn labels(&self, _: usize) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    fn label_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn decode(&self, index: usize) -> Result<RgbImage, DecodeError> {
        self.0.decode(index)
    }
    fn path(&self, index: usize) -> Option<PathBuf> {
        self.0.path(index)
    }
    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }
}

#[test]
fn pictures_without_labels_are_scored_by_their_views() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = Arc::new(Unlabelled(portraits(32)));
    let (outcome, said) = run_on(dir.path(), 0, pictures, None);
    assert_eq!(outcome, Outcome::Finished);
    assert!(
        said.contains("k-NN is off: the data has no labels"),
        "{said}"
    );
    assert!(scores(dir.path()).is_empty());
    let found = scores_by_views(dir.path());
    let steps: Vec<_> = found.iter().map(|line| line.step).collect();
    assert_eq!(steps, [None, Some(7)]);
    for line in &found {
        assert_eq!((line.pictures, line.held_out), (32, false));
        assert!((0.0..=100.0).contains(&line.view_auc), "{line:?}");
        assert!((1.0..=32.0).contains(&line.effective_rank), "{line:?}");
    }
    assert_ne!(found[0].effective_rank, found[1].effective_rank);
}

#[test]
fn the_score_by_views_is_of_held_out_pictures_where_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(dir.path(), 0, Some(portraits(12)));
    assert_eq!(outcome, Outcome::Finished);
    let found = scores_by_views(dir.path());
    assert_eq!(found.len(), 2);
    for line in &found {
        assert_eq!((line.pictures, line.held_out), (12, true));
    }
    assert_eq!(found.len(), scores(dir.path()).len());
}

#[test]
fn a_stop_at_the_last_step_leaves_the_score_for_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(dir.path(), 8, None);
    assert_eq!(outcome, Outcome::Interrupted(15));
    let before = scores(dir.path());
    assert!(before.iter().all(|line| line.step.is_none()), "{before:?}");

    let (outcome, _) = run(dir.path(), 0, None);
    assert_eq!(outcome, Outcome::Finished);
    let after = scores(dir.path());
    assert_eq!(after.last().unwrap().step, Some(7));
    assert_eq!(after.last().unwrap().epoch, 2);
    let by_views = scores_by_views(dir.path());
    assert_eq!(by_views.last().unwrap().step, Some(7));

    // Once is enough.
    run(dir.path(), 0, None);
    assert_eq!(scores(dir.path()), after);
    assert_eq!(scores_by_views(dir.path()), by_views);
}

#[test]
fn a_stop_in_between_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), 3, None).0, Outcome::Interrupted(15));
    assert_eq!(run(dir.path(), 0, None).0, Outcome::Finished);
    assert_eq!(scores(dir.path()).last().unwrap().step, Some(7));
}

/// Pictures that were there when the run began, and are not where the flag is set.
#[derive(Debug)]
struct Gone(Arc<dyn Dataset>, Arc<AtomicBool>);

impl Gone {
    fn from_the_start(pictures: Arc<dyn Dataset>) -> Self {
        Self(pictures, Arc::new(AtomicBool::new(true)))
    }
}

impl Dataset for Gone {
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
        match self.1.load(Ordering::Relaxed) {
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
fn a_score_that_cannot_be_taken_does_not_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let val = Arc::new(Gone::from_the_start(portraits(8)));
    let (outcome, said) = run(dir.path(), 0, Some(val));
    assert_eq!(outcome, Outcome::Finished);
    assert!(
        said.contains("could not be taken: 0 of 8 pictures"),
        "{said}"
    );
    assert!(said.contains("no such file"), "{said}");
    assert!(scores(dir.path()).is_empty() && scores_by_views(dir.path()).is_empty());
}

#[test]
fn what_the_last_score_could_not_use_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let skipped = dir.path().join("skipped.csv");
    let (outcome, _) = run(dir.path(), 8, Some(portraits(8)));
    assert_eq!(outcome, Outcome::Interrupted(15));
    assert_eq!(
        std::fs::read_to_string(&skipped).unwrap().lines().count(),
        1
    );

    let (outcome, said) = run(
        dir.path(),
        0,
        Some(Arc::new(Gone::from_the_start(portraits(8)))),
    );
    assert_eq!(outcome, Outcome::Finished);
    assert!(said.contains("8 pictures could not be used"), "{said}");
    assert_eq!(
        std::fs::read_to_string(&skipped).unwrap().lines().count(),
        9
    );
}

/// Sets a flag after two steps.
struct Thief {
    flag: Arc<AtomicBool>,
    steps: u64,
    said: String,
}

impl Observer for Thief {
    fn started(&mut self, _: &RunFacts) {}
    fn stepped(&mut self, progress: &Progress) {
        self.steps = progress.steps_done;
        self.flag.store(self.steps >= 2, Ordering::Relaxed);
    }
    fn logged(&mut self, _: &MetricsLine) {}
    fn note(&mut self, text: &str) {
        self.said.push_str(text);
    }
}

#[test]
fn a_run_that_loses_its_pictures_keeps_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    (config.train.epochs, config.train.knn_every_epochs) = (50, 0);
    let flag = Arc::new(AtomicBool::new(false));
    let mut thief = Thief {
        flag: flag.clone(),
        steps: 0,
        said: String::new(),
    };
    let begin = |observer: &mut Thief| {
        let run = Run {
            config: &config,
            config_text: "",
            run_dir: dir.path(),
            device: &Device::Cpu,
            train: Arc::new(Gone(portraits(32), flag.clone())),
            val: None,
            capture_step: None,
            accept_data_change: false,
            init: None,
            stop: &StopFlag::default(),
        };
        train(&run, observer)
    };
    let error = begin(&mut thief).unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");
    let kept = format!("the {} steps done are kept in a checkpoint", thief.steps);
    assert!(
        thief.steps >= 2 && thief.said.contains(&kept),
        "{}",
        thief.said
    );

    // The flag is still set: what goes on from there ends at its first batch.
    let (steps, before) = (thief.steps, std::mem::take(&mut thief.said));
    assert!(begin(&mut thief).is_err());
    let goes_on = format!("continuing after {steps} steps");
    assert!(thief.said.contains(&goes_on), "{before} {}", thief.said);
    assert!(!thief.said.contains("are kept"), "{}", thief.said);
}
