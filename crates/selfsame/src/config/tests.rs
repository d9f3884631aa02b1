mod page;

use std::time::{Duration, Instant};

use super::mutate::{Dice, Mutations};
use super::*;

fn merged(sets: &[&str]) -> anyhow::Result<RunConfig> {
    let mut merged = Merged::defaults();
    merged.set_all(&sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
    merged.resolve()
}

#[test]
fn mistakes_of_type_are_told_without_types_of_rust() {
    for (set, words) in [
        (
            "model.depth=x",
            "a whole number, 0 or more in `model.depth`",
        ),
        ("optim.lr=abc", "expected a number in `optim.lr`"),
        ("model.arch=3", "expected a name in quotes in `model.arch`"),
    ] {
        let error = merged(&[set]).unwrap_err().to_string();
        assert!(error.contains(words), "{set}: {error}");
    }
}

#[test]
fn every_preset_is_a_valid_configuration() {
    for (name, text) in PRESETS {
        let merged = Merged::from_text(text, name).unwrap();
        merged
            .resolve()
            .unwrap_or_else(|error| panic!("preset {name}: {error:#}"));
        assert!(text.starts_with("# "), "preset {name} has no head comment");
    }
}

#[test]
fn a_written_configuration_reads_back_the_same() {
    for (name, text) in PRESETS {
        let config = Merged::from_text(text, name).unwrap().resolve().unwrap();
        let again = Merged::from_text(&to_toml(&config).unwrap(), "file").unwrap();
        assert_eq!(again.resolve().unwrap(), config);
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let error = merged(&["optim.learning_rate=1"]).unwrap_err().to_string();
    assert!(error.contains("unknown key optim.learning_rate"), "{error}");
    let error = merged(&["batch_size=8"]).unwrap_err().to_string();
    assert!(error.contains("did you mean train.batch_size?"), "{error}");
}

#[test]
fn a_wrong_type_names_its_source() {
    let error = format!("{:#}", merged(&["train.epochs=many"]).unwrap_err());
    assert!(
        error.contains("--set") && error.contains("epochs"),
        "{error}"
    );
}

#[test]
fn values_of_set_are_toml_and_bare_words_are_text() {
    let config = merged(&[
        "model.arch=vit_tiny",
        "augment.global_scale=[0.3, 1]",
        "optim.lr=1",
    ]);
    let config = config.unwrap();
    assert_eq!(config.augment.global_scale, [0.3, 1.0]);
    assert_eq!(config.optim.lr, 1.0);
}

#[test]
fn a_resumed_run_may_change_its_log_interval_but_not_its_learning_rate() {
    let before = RunConfig::default();
    let mut after = before.clone();
    after.train.log_every_steps = 1;
    assert!(refuse_changes(&before, &after).is_ok());
    (after.data.train, after.optim.lr) = ("somewhere".to_owned(), 1.0);
    let mut before = before;
    // As earlier versions kept it, and now.
    before.data.val = "pictures".to_owned();
    after.data.val = absolute("pictures").unwrap();
    let error = refuse_changes(&before, &after).unwrap_err().to_string();
    assert!(
        error.contains("optim.lr: 0.0005 in the run, 1.0 asked for"),
        "{error}"
    );
    assert!(
        error.contains("data.train: ") && !error.contains("data.val: "),
        "{error}"
    );
}

#[test]
fn a_table_without_keys_is_known_or_refused() {
    let overlaid = |text: &str| {
        let mut merged = Merged::defaults();
        merged
            .overlay(text, "file.toml")
            .and_then(|()| merged.typed())
    };
    assert_eq!(overlaid("[optim]\n").unwrap(), RunConfig::default());
    for text in ["[optimm]\n", "[optim.lrs]\n", "[optim]\nlr = {}\n"] {
        let error = overlaid(text).unwrap_err().to_string();
        assert!(error.contains("optim"), "{text}: {error}");
    }
}

/// The values of the notebook, as users have them in writing (cli.md, section 6).
const DOCUMENTED: &str = r#"
seed = 42
[data]
layout = "auto"
allow_outside = false
workers = 2
prefetch_batches = 4
max_bad_fraction = 0.05
[augment]
global_size = 128
local_size = 128
local_crops = 8
global_scale = [0.4, 1.0]
local_scale = [0.05, 0.4]
ratio = [0.75, 1.3333333333333333]
interpolation = "bilinear"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[model]
arch = "vit_small"
patch_size = 16
image_size = 128
drop_path_rate = 0.0
pos_embed_resample = "official"
[head]
kind = "notebook"
out_dim = 2048
hidden_dim = 2048
bottleneck_dim = 256
norm_last_layer = true
use_bn = false
[objective]
student_temp = 0.1
warmup_teacher_temp = 0.04
teacher_temp = 0.07
warmup_teacher_temp_epochs = 30
center_momentum = 0.9
momentum_teacher = 0.996
[optim]
name = "adamw"
lr = 5e-4
lr_scaling = "linear"
min_lr = 0.0
warmup_epochs = 10
weight_decay = 0.04
weight_decay_end = 0.4
weight_decay_update = "epoch"
decay_bias_and_norm = true
clip_grad = 3.0
clip_mode = "global"
freeze_last_layer_epochs = 0
[train]
batch_size = 32
accumulate = 1
epochs = 100
max_steps = 0
precision = "f32"
device = "auto"
threads = 0
checkpoint_every_epochs = 20
checkpoint_every_minutes = 15
keep_checkpoints = 3
snapshot_every_epochs = 10
log_every_steps = 10
knn_every_epochs = 5
knn_label = ""
"#;

#[test]
fn the_defaults_are_the_documented_values() {
    let mut written = Merged::defaults();
    written.overlay(DOCUMENTED, "cli.md").unwrap();
    let (written, default) = (
        written.typed().unwrap(),
        Merged::defaults().typed().unwrap(),
    );
    assert_eq!(written, default);
    assert_eq!(default, RunConfig::default());
}

#[test]
fn what_a_resumed_run_may_change_is_what_no_bit_depends_on() {
    // Of cli.md, section 4, and two that came after it: train.max_memory_mib and data.cache_mib.
    let mut may: Vec<&str> = MAY_CHANGE.to_vec();
    may.sort_unstable();
    let expected = [
        "data.cache_mib",
        "data.prefetch_batches",
        "data.workers",
        "train.checkpoint_every_epochs",
        "train.checkpoint_every_minutes",
        "train.device",
        "train.keep_checkpoints",
        "train.knn_every_epochs",
        "train.log_every_steps",
        "train.max_memory_mib",
        "train.max_steps",
        "train.threads",
    ];
    assert_eq!(may, expected);
}

#[test]
fn each_changed_value_shows_where_it_came_from() {
    let mut merged = Merged::defaults();
    merged.overlay("[optim]\nlr = 0.1\n", "mine.toml").unwrap();
    merged.set_all(&["train.epochs=20".to_owned()]).unwrap();
    let text = merged.annotated(&merged.typed().unwrap()).unwrap();
    assert!(text.contains("lr = 0.1  # mine.toml"), "{text}");
    assert!(text.contains("epochs = 20  # --set"), "{text}");
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("# ") && first.contains("default"),
        "{text}"
    );
}

#[test]
fn a_run_keeps_where_its_values_came_from() {
    let mut merged = Merged::defaults();
    let file = "[optim]\nlr = 0.1\n[[augment.local]]\nop = \"grayscale\"\np = 0.5\n";
    merged.overlay(file, "mine.toml").unwrap();
    merged.set_all(&["train.max_steps=20".to_owned()]).unwrap();
    let first = merged.annotated(&merged.typed().unwrap()).unwrap();

    let mut again = Merged::from_text(&first, "run/config.toml").unwrap();
    again.set_all(&["train.max_steps=30".to_owned()]).unwrap();
    let second = again.annotated(&again.typed().unwrap()).unwrap();
    assert_eq!(second, first.replace("max_steps = 20", "max_steps = 30"));
    assert_eq!(second.matches(COMMENT).count(), 3, "{second}");
    // What is wrong with it is a matter of its file all the same.
    again
        .set_all(&["optim.warmup_epochs=0".to_owned()])
        .unwrap();
    let broken = second.replace("lr = 0.1", "lr = -0.1");
    let broken = Merged::from_text(&broken, "run/config.toml").unwrap();
    let error = broken.resolve().unwrap_err().to_string();
    assert!(error.contains("(from run/config.toml)"), "{error}");
}

#[test]
fn a_text_of_several_lines_is_kept_on_one() {
    let mut merged = Merged::defaults();
    let odd = "a \"b\" \\ 'c'\n[d]\n\t\"\"\"\u{7f}\u{1b}é\n";
    merged
        .put("data.train", Value::String(odd.to_owned()), "flag")
        .unwrap();
    merged.put("seed", Value::Integer(7), "two\nlines").unwrap();
    let config = merged.typed().unwrap();
    let text = merged.annotated(&config).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("  # ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0] == "seed = 7  # two\\nlines" && lines[1].ends_with("  # flag"));
    let again = Merged::from_text(&text, "file").unwrap();
    assert_eq!(again.typed().unwrap(), config);
    assert_eq!(again.annotated(&config).unwrap(), text);
}

/// Damages configuration files and `--set` texts until `enough` says so; how many were taken.
fn fuzz(seed: u64, mut enough: impl FnMut(u64) -> bool) -> [u64; 2] {
    let sets: [&[u8]; 5] = [
        b"augment.global_scale=[0.3, 1]",
        b"optim.lr=1e-3",
        b"model.arch=vit_tiny",
        b"augment.local=[{ op = \"grayscale\", p = 0.5 }]",
        b"train.batch_size=64",
    ];
    let files: Vec<&[u8]> = PRESETS.iter().map(|(_, text)| text.as_bytes()).collect();
    let mutations = Mutations {
        telling: b"[]{}=.,\"\"'#\n0999-+e_\\inf\0\xff",
        header: usize::MAX,
    };
    let mut dice = Dice(seed);
    let (mut taken, mut done) = (0, 0);
    while !enough(done) {
        let corpus: &[&[u8]] = if dice.below(2) == 0 { &sets } else { &files };
        let mut bytes = corpus[dice.below(corpus.len())].to_vec();
        let other = corpus[dice.below(corpus.len())];
        mutations.apply(&mut bytes, other, &mut dice);
        let text = String::from_utf8_lossy(&bytes);
        let mut merged = Merged::defaults();
        let put = match corpus.len() == sets.len() {
            true => merged.set_all(&[text.into_owned()]),
            false => merged.overlay(&text, "file"),
        };
        if let Ok(config) = put.and_then(|()| merged.resolve()) {
            merged.annotated(&config).unwrap();
            taken += 1;
        }
        done += 1;
    }
    [done, taken]
}

#[test]
fn damaged_configurations_are_answered() {
    let [done, taken] = fuzz(0x5e1f_5a3e, |done| done == 2000);
    assert!((1..done).contains(&taken), "{taken}");
}

/// `cargo test --release -p selfsame --bin selfsame damaged -- --ignored --nocapture`
#[test]
#[ignore = "takes half an hour"]
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn damaged_configurations_are_answered_for_half_an_hour() {
    let began = Instant::now();
    let seed = u64::from(std::process::id()) | 1;
    let [done, taken] = fuzz(seed, |_| began.elapsed() > Duration::from_secs(1800));
    println!("seed {seed}: {done} configurations, {taken} of them taken");
}
