//! Steps and weights that are not finite, where something else goes wrong too.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

use std::path::Path;

use candle_core::Device;
use selfsame_data::{OpenOptions, open};
use selfsame_models::Arch;
use selfsame_train::{
    Capture, LrScaling, MetricsLine, NonFinite, Observer, Outcome, Progress, Run, RunConfig,
    RunFacts, StopFlag, TrainError, Verdict, judge_run, train,
};

/// A step of 8 pictures is an epoch.
fn config(lr: f64) -> RunConfig {
    let mut config = RunConfig::default();
    let model = &mut config.model;
    (model.arch, model.patch_size, model.image_size) = (Arch::VitTiny, 8, 16);
    (model.embed_dim, model.depth, model.num_heads) = (32, 1, 1);
    config.head.out_dim = 16;
    (config.augment.global_size, config.augment.local_crops) = (16, 0);
    config.objective.warmup_teacher_temp_epochs = 0;
    let optim = &mut config.optim;
    (optim.lr, optim.lr_scaling, optim.warmup_epochs) = (lr, LrScaling::None, 0);
    optim.freeze_last_layer_epochs = 0;
    let train = &mut config.train;
    (train.batch_size, train.epochs, train.knn_every_epochs) = (8, 6, 0);
    config
}

#[derive(Default)]
struct Notes(String);

impl Observer for Notes {
    fn started(&mut self, _: &RunFacts) {}
    fn stepped(&mut self, _: &Progress) {}
    fn logged(&mut self, _: &MetricsLine) {}
    fn note(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }
}

fn run(config: &RunConfig, dir: &Path) -> (Result<Outcome, TrainError>, String) {
    run_capturing(config, dir, None)
}

fn run_capturing(
    config: &RunConfig,
    dir: &Path,
    capture_step: Option<u64>,
) -> (Result<Outcome, TrainError>, String) {
    let run = Run {
        config,
        config_text: "",
        run_dir: dir,
        device: &Device::Cpu,
        train: open(
            "synthetic:portraits?count=8&seed=0",
            &OpenOptions::default(),
        )
        .unwrap(),
        val: None,
        capture_step,
        accept_data_change: false,
        init: None,
        stop: &StopFlag::default(),
    };
    let mut notes = Notes::default();
    (train(&run, &mut notes), notes.0)
}

#[test]
fn weights_that_are_not_finite_become_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    // Loss and gradient of the first step are finite; its update is not.
    let mut config = config(1e38);
    config.train.snapshot_every_epochs = 1;
    let (outcome, _) = run(&config, dir.path());
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    let snapshots = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
    assert_eq!(snapshots.count(), 0);
}

#[test]
fn a_step_that_cannot_be_captured_is_left_out_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("captures"), "in the way").unwrap();
    let mut config = config(1e30);
    config.train.non_finite = NonFinite::Skip;
    let (outcome, said) = run(&config, dir.path());
    assert!(said.contains("could not be captured"), "{said}");
    assert_eq!(said.matches("skipped: step").count(), 3, "{said}");
    let error = outcome.unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
}

#[test]
fn no_more_steps_are_captured_than_a_disk_can_be_asked_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    let others = [1000, 1001, 1002]
        .map(|step: u64| (step, dir.path().join(format!("captures/step-{step:08}"))));
    let put_others = || {
        for (step, folder) in &others {
            std::fs::create_dir_all(folder).unwrap();
            let text = format!(
                r#"{{"format":1,"step":{step},"steps_per_epoch":1,"epochs":6,"batches":1,"not_finite":"loss"}}"#
            );
            std::fs::write(folder.join("capture.json"), text).unwrap();
        }
    };
    put_others();
    let (outcome, said) = run(&config(1e30), dir.path());
    assert!(outcome.is_err());
    assert!(
        said.contains("only the number of the step is kept: 3 ")
            && said.contains("a lower optim.lr"),
        "{said}"
    );
    let captures = std::fs::read_dir(dir.path().join("captures")).unwrap();
    let files = captures.flat_map(|capture| std::fs::read_dir(capture.unwrap().path()).unwrap());
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["capture.json"; 4], "the fourth is this run's");
    let number = dir.path().join("captures/step-00000001");
    let error = Capture::open(&number).unwrap_err().to_string();
    assert!(error.contains("batches were not kept"), "{error}");
    for (_, folder) in &others {
        std::fs::remove_dir_all(folder).unwrap();
    }
    let judged = judge_run(dir.path(), &[], &config(1e30));
    assert_eq!(judged.verdict, Verdict::Diverged);
    assert!(judged.why.contains("its number alone"), "{}", judged.why);

    // A whole capture of the same step stays one, and tells what was wrong.
    put_others();
    let (outcome, said) = run_capturing(&config(1e30), dir.path(), Some(1));
    assert!(outcome.is_err());
    assert_eq!(said.matches("was captured in").count(), 1, "{said}");
    let info = Capture::open(&number).unwrap().info;
    assert_eq!(info.batches, 1);
    assert!(info.not_finite.is_some());
}

#[test]
fn a_capture_or_snapshot_that_cannot_be_written_costs_no_step() {
    for in_the_way in ["captures", "snapshots"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(in_the_way), "in the way").unwrap();
        let mut config = config(1e-3);
        config.train.snapshot_every_epochs = 3;
        config.train.checkpoint_every_epochs = 0;
        let capture_step = (in_the_way == "captures").then_some(3);
        let (outcome, said) = run_capturing(&config, dir.path(), capture_step);
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(in_the_way), "{error}");
        assert!(
            said.contains("the 3 steps done are kept in a checkpoint"),
            "{said}"
        );
        assert!(dir.path().join("checkpoints/step-00000003").is_dir());

        // With room it goes on as if nothing had been.
        std::fs::remove_file(dir.path().join(in_the_way)).unwrap();
        let (outcome, _) = run_capturing(&config, dir.path(), capture_step);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        for epoch in [3, 6] {
            let snapshot = format!("snapshots/epoch-{epoch:04}.safetensors");
            assert!(dir.path().join(&snapshot).is_file(), "{snapshot}");
        }
    }
}

#[test]
fn half_a_capture_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("captures/step-00000002");
    std::fs::create_dir_all(folder.join("batch-000000.safetensors/in the way")).unwrap();
    let (outcome, said) = run_capturing(&config(1e-3), dir.path(), Some(2));
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("batch-000000.safetensors"), "{error}");
    assert!(said.contains("the 2 steps done are kept"), "{said}");
    // The state was written before it.
    let left = std::fs::read_dir(&folder).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["batch-000000.safetensors"]);
}
