use selfsame_models::Arch;

use super::*;

#[test]
fn the_notebook_values_are_a_valid_configuration() {
    assert_eq!(RunConfig::default().check(), Vec::<String>::new());
}

#[test]
fn all_problems_are_listed_at_once_with_their_keys() {
    let mut config = RunConfig::default();
    config.train.epochs = 5;
    config.train.batch_size = 0;
    config.augment.global_size = 100;
    config.objective.teacher_temp = 0.0;
    let problems = config.check().join("\n");
    for key in [
        "optim.warmup_epochs",
        "objective.warmup_teacher_temp_epochs",
        "train.batch_size",
        "augment.global_size",
        "objective.teacher_temp",
    ] {
        assert!(problems.contains(key), "{key} missing in:\n{problems}");
    }
}

#[test]
fn a_network_that_takes_no_notice_of_a_precision_is_told_of_on_every_device() {
    let mut config = RunConfig::default();
    config.model.num_registers = 4;
    for on_cpu in [true, false] {
        config.train.precision = Precision::Bf16;
        let told = config.vain_precision(on_cpu).unwrap();
        assert!(told.contains("computed in f32"), "{told}");
        config.train.precision = Precision::F32;
        assert_eq!(config.vain_precision(on_cpu), None);
    }
    config.model.num_registers = 0;
    config.train.precision = Precision::Bf16;
    assert_eq!(config.vain_precision(false), None);
}

#[test]
fn a_rate_that_f32_cannot_hold_is_refused() {
    let mut config = RunConfig::default();
    for lr in [1e300, f64::INFINITY, f64::NAN, -1.0] {
        config.optim.lr = lr;
        let problems = config.check();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("optim.lr"), "{problems:?}");
    }
}

#[test]
fn accumulation_with_batch_norm_is_refused() {
    let mut config = RunConfig::default();
    config.train.accumulate = 2;
    assert!(config.check().is_empty());
    config.head.use_bn = true;
    assert!(config.check()[0].starts_with("train.accumulate"));
}

#[test]
fn device_names_are_checked() {
    assert!(is_cuda("cuda:1") && is_cuda("cuda") && !is_cuda("cuda:x") && !is_cuda("gpu"));
}

#[test]
fn rates_that_f32_cannot_hold_are_refused_by_their_keys() {
    for key in ["min_lr", "weight_decay", "weight_decay_end"] {
        let mut config = RunConfig::default();
        let value = match key {
            "min_lr" => &mut config.optim.min_lr,
            "weight_decay" => &mut config.optim.weight_decay,
            _ => &mut config.optim.weight_decay_end,
        };
        *value = 1e39;
        let problems = config.check();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("optim.{key}: ")),
            "{problems:?}"
        );
    }
}

#[test]
fn epochs_beyond_counting_are_refused() {
    let mut config = RunConfig::default();
    config.train.epochs = MOST_EPOCHS;
    assert_eq!(config.check(), [""; 0]);
    config.train.epochs += 1;
    assert!(config.check()[0].starts_with("train.epochs"));
}

#[test]
fn a_last_map_of_one_value_is_refused() {
    let mut config = RunConfig::default();
    config.model.arch = Arch::Resnet18;
    (config.augment.local_crops, config.augment.local_size) = (1, 32);
    config.train.batch_size = 1;
    let problems = config.check();
    assert!(
        problems[0].starts_with("train.batch_size: one local crop"),
        "{problems:?}"
    );
    for change in [
        |c: &mut RunConfig| c.train.batch_size = 2,
        |c: &mut RunConfig| c.augment.local_crops = 2,
        |c: &mut RunConfig| c.augment.local_size = 33,
        |c: &mut RunConfig| c.augment.global_size = 32,
        |c: &mut RunConfig| c.model.arch = Arch::VitTiny,
    ] {
        let mut config = config.clone();
        change(&mut config);
        assert_eq!(config.check(), [""; 0]);
    }
}
