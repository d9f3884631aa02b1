//! Each kind of collapse, provoked on purpose, is named within 200 steps; a run that learns is not.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use candle_core::Device;
use selfsame_data::{OpenOptions, open};
use selfsame_models::{Arch, HeadKind};
use selfsame_train::{
    Judgement, MetricsLine, Observer, Progress, Run, RunConfig, RunFacts, StopFlag, judge,
    read_metrics, train,
};

/// Keeps what a run says.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn started(&mut self, _: &RunFacts) {}
    fn stepped(&mut self, _: &Progress) {}
    fn logged(&mut self, _: &MetricsLine) {}
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

/// 200 steps of a transformer of two blocks on drawn portraits, in the manner of the demo.
fn tiny() -> RunConfig {
    let mut config = RunConfig::default();
    let model = &mut config.model;
    (model.arch, model.patch_size, model.image_size) = (Arch::VitTiny, 8, 32);
    (model.embed_dim, model.depth, model.num_heads) = (64, 2, 2);
    let head = &mut config.head;
    (head.kind, head.out_dim) = (HeadKind::Official, 64);
    (head.hidden_dim, head.bottleneck_dim) = (64, 32);
    let augment = &mut config.augment;
    (augment.global_size, augment.local_size, augment.local_crops) = (32, 16, 0);
    let objective = &mut config.objective;
    (objective.warmup_teacher_temp, objective.teacher_temp) = (0.02, 0.02);
    (
        objective.warmup_teacher_temp_epochs,
        objective.momentum_teacher,
    ) = (0, 0.99);
    let optim = &mut config.optim;
    (optim.lr, optim.warmup_epochs) = (1e-2, 1);
    let train = &mut config.train;
    (train.batch_size, train.epochs) = (16, 10);
    (train.log_every_steps, train.knn_every_epochs) = (5, 0);
    config
}

/// What is said at the end, and what was said on the way.
fn run(config: &RunConfig) -> (Judgement, String) {
    let dir = tempfile::tempdir().unwrap();
    let portraits = "synthetic:portraits?count=320&seed=0";
    let mut notes = Notes::default();
    let run = Run {
        config,
        config_text: "",
        run_dir: dir.path(),
        device: &Device::Cpu,
        train: open(portraits, &OpenOptions::default()).unwrap(),
        val: None,
        capture_step: None,
        accept_data_change: false,
        init: None,
        stop: &StopFlag::default(),
    };
    train(&run, &mut notes).unwrap();
    let lines = read_metrics(dir.path()).unwrap();
    let lines: Vec<_> = lines
        .into_iter()
        .filter_map(MetricsLine::into_step)
        .collect();
    assert!(lines.last().unwrap().step < 200);
    (judge(&lines, config), notes.0.join("\n"))
}

fn is_named(config: &RunConfig, name: &str, setting: &str) {
    let (judgement, said) = run(config);
    assert_eq!(judgement.verdict.to_string(), name, "{judgement}");
    assert!(judgement.to_string().contains(setting), "{judgement}");
    assert!(said.contains(name), "not said while it trained: {said}");
}

#[test]
fn without_centring_one_prototype_takes_all() {
    let mut config = tiny();
    config.objective.center_momentum = 1.0;
    is_named(
        &config,
        "one-prototype collapse",
        "objective.center_momentum = 1:",
    );
}

#[test]
fn without_sharpening_the_teacher_becomes_uniform() {
    let mut config = tiny();
    config.objective.warmup_teacher_temp = config.objective.student_temp;
    config.objective.teacher_temp = config.objective.student_temp;
    is_named(&config, "uniform collapse", "objective.teacher_temp = 0.1:");
}

#[test]
fn without_a_learning_rate_nothing_moves() {
    let mut config = tiny();
    config.optim.lr = 1e-9;
    let (judgement, said) = run(&config);
    assert_eq!(
        judgement.verdict.to_string(),
        "not yet moving",
        "{judgement}"
    );
    assert!(
        judgement.to_string().contains("optim.lr = 0.000000001:"),
        "{judgement}"
    );
    assert!(
        !said.contains("healthy") && !said.contains("collapse"),
        "{said}"
    );
}

#[test]
fn a_run_that_learns_is_healthy() {
    let (judgement, said) = run(&tiny());
    assert_eq!(judgement.verdict.to_string(), "healthy", "{judgement}");
    assert!(judgement.advice.is_empty());
    assert!(
        said.contains("healthy") && !said.contains("collapse"),
        "{said}"
    );
}
