//! What ends a run early, and how it goes on: signals, a second trainer, refused changes, a loss
//! that is not finite, pictures that cannot be used.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;

use common::{
    Answer, bmp, check_step_line, checkpoint_bytes, checkpoints, done, metrics, put_data, scratch,
    selfsame, text, tiny_run,
};

fn resume(run: &Path, sets: &[&str]) -> Answer {
    let mut args = vec!["resume".to_owned(), text(run)];
    for set in sets {
        args.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    selfsame(&args)
}

#[cfg(unix)]
mod signals {
    use std::io::BufRead;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::common::command;
    use crate::common::running::{Running, begin_as, begin_with};

    /// A run far too long for a test.
    fn endless(run: &Path) -> Vec<String> {
        tiny_run(run, &["train.epochs=100000"])
    }

    fn begin(run: &Path) -> Running {
        begin_with(&endless(run), |line| line.starts_with("step "))
    }

    fn stops_and_goes_on(signal: &str, code: i32) {
        let dir = scratch(&format!("stopped-by-{signal}"));
        let run = dir.join("run");
        let running = begin(&run);
        running.signal(&[signal]);
        let (status, stderr) = running.end();
        assert_eq!(status, code, "{stderr}");
        let [step] = checkpoints(&run)[..] else {
            panic!("{:?}: {stderr}", checkpoints(&run));
        };
        assert!(
            stderr.contains(&format!("stopped after {step} steps")),
            "{stderr}"
        );
        assert!(
            stderr.contains(&format!("selfsame resume {}", text(&run))),
            "{stderr}"
        );
        assert!(run.join("curves.png").is_file());

        let end = step + 3;
        let answer = resume(&run, &[&format!("train.max_steps={end}")]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let steps: Vec<u64> = metrics(&run)
            .iter()
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, (0..end).collect::<Vec<_>>());

        let whole = dir.join("whole");
        let mut args = endless(&whole);
        args.extend(["--set".to_owned(), format!("train.max_steps={end}")]);
        done(&args);
        assert!(
            checkpoint_bytes(&run, end) == checkpoint_bytes(&whole, end),
            "the interrupted run has other bits than the whole one"
        );
    }

    #[test]
    fn ctrl_c_ends_a_run_after_a_checkpoint_that_resumes_to_the_same_bits() {
        stops_and_goes_on("INT", 130);
    }

    #[test]
    fn sigterm_ends_a_run_after_a_checkpoint_that_resumes_to_the_same_bits() {
        stops_and_goes_on("TERM", 143);
    }

    /// Whether this process, and so its children, was started with SIGHUP ignored.
    #[cfg(target_os = "linux")]
    fn hangups_are_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap() & 1 == 1
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_closed_terminal_ends_a_run_after_a_checkpoint_that_resumes_to_the_same_bits() {
        // Whoever runs the tests under `nohup` has the other case below.
        if !hangups_are_ignored() {
            stops_and_goes_on("HUP", 129);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_run_under_nohup_outlives_a_closed_terminal() {
        let run = scratch("under-nohup").join("run");
        let mut nohup = Command::new("nohup");
        let program = command(&endless(&run));
        nohup.arg(program.get_program()).args(program.get_args());
        nohup.stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = begin_as(nohup, |line| line.starts_with("step "));
        running.signal(&["HUP"]);
        // The first of two lines may have been written before the signal came.
        let mut steps = 0;
        while steps < 2 {
            let mut line = String::new();
            assert!(running.stderr.read_line(&mut line).unwrap() > 0);
            steps += u32::from(line.starts_with("step "));
        }
        running.signal(&["TERM"]);
        let (status, stderr) = running.end();
        assert_eq!(status, 143, "{stderr}");
    }

    #[test]
    fn a_signal_is_heard_within_a_score_which_is_taken_when_the_run_goes_on() {
        let dir = scratch("stopped-in-a-score");
        // Scores of 3,000 pictures take long beside steps of eight.
        let sets = [
            "data.train=synthetic:portraits?count=3000&seed=3",
            "train.knn_every_epochs=1",
            "train.max_steps=2",
        ];
        let (run, whole) = (dir.join("run"), dir.join("whole"));
        let running = begin_with(&tiny_run(&run, &sets), |line| {
            line.contains("steps an epoch")
        });
        running.signal(&["TERM"]);
        let (status, stderr) = running.end();
        assert_eq!(status, 143, "{stderr}");
        assert!(stderr.contains("stopped after 0 steps"), "{stderr}");
        assert!(metrics(&run).is_empty(), "{stderr}");
        assert_eq!(checkpoints(&run), [0]);

        let answer = resume(&run, &[]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        done(&tiny_run(&whole, &sets));
        assert!(checkpoint_bytes(&run, 2) == checkpoint_bytes(&whole, 2));
        let scores = |run: &Path| -> Vec<_> {
            let lines = metrics(run).into_iter();
            lines.filter(|line| line.get("knn").is_some()).collect()
        };
        assert_eq!(scores(&run), scores(&whole));
        assert_eq!(scores(&run).len(), 1);
    }

    #[test]
    fn a_run_outlives_whoever_reads_its_words() {
        let run = scratch("unread").join("run");
        let sets = ["train.epochs=40"];
        let running = begin_with(&tiny_run(&run, &sets), |line| line.starts_with("step "));
        let Running { mut child, stderr } = running;
        drop(stderr);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(checkpoints(&run).last(), Some(&200));
    }

    #[test]
    fn two_signals_at_once_leave_a_run_that_goes_on() {
        for (i, signals) in [["INT", "INT"], ["INT", "TERM"]].into_iter().enumerate() {
            let run = scratch(&format!("two-signals-{i}")).join("run");
            let running = begin(&run);
            running.signal(&signals);
            let (status, stderr) = running.end();
            assert!(
                status == 130 || (i == 1 && status == 143),
                "{status}: {stderr}"
            );
            let end = checkpoints(&run).last().unwrap_or(&0) + 2;
            let answer = resume(&run, &[&format!("train.max_steps={end}")]);
            assert_eq!(answer.code, 0, "{}", answer.stderr);
            assert_eq!(checkpoints(&run).last(), Some(&end));
            let names = std::fs::read_dir(run.join("checkpoints")).unwrap();
            for name in names.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
                assert!(name.starts_with("step-"), "{name} was left behind");
            }
        }
    }

    #[test]
    fn a_run_directory_in_use_is_refused_with_the_holder() {
        let run = scratch("in-use").join("run");
        let running = begin(&run);
        let holder = running.child.id().to_string();
        let second = resume(&run, &[]);
        assert_eq!(second.code, 2, "{}", second.stderr);
        assert!(second.stderr.contains(&holder), "{}", second.stderr);
        let third = selfsame(&endless(&run));
        assert_eq!(third.code, 2, "{}", third.stderr);
        assert!(third.stderr.contains("not empty"), "{}", third.stderr);
        running.signal(&["TERM"]);
        let (status, stderr) = running.end();
        assert_eq!(status, 143, "{stderr}");
    }
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_told_once() {
    let run = scratch("flipped-bit").join("run");
    let sets = [
        "train.keep_checkpoints=2",
        "train.checkpoint_every_epochs=1",
    ];
    done(&tiny_run(
        &run,
        &[&sets[..], &["train.max_steps=10"]].concat(),
    ));
    assert_eq!(checkpoints(&run), [5, 10]);
    let whole = checkpoint_bytes(&run, 10);
    let student = run.join("checkpoints/step-00000010/student.safetensors");
    let mut bytes = std::fs::read(&student).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&student, bytes).unwrap();

    let answer = resume(&run, &[]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("damaged-step-00000010"),
        "{}",
        answer.stderr
    );
    assert!(run.join("checkpoints/damaged-step-00000010").is_dir());
    assert!(
        checkpoint_bytes(&run, 10) == whole,
        "done again from step 5"
    );
    let again = resume(&run, &["train.max_steps=11"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(!again.stderr.contains("damaged"), "{}", again.stderr);
    assert_eq!(checkpoints(&run), [10, 11]);
}

#[test]
fn moved_pictures_and_a_lost_configuration_are_told_with_what_to_do() {
    let dir = scratch("moved");
    let (run, pictures) = (dir.join("a run"), dir.join("pictures"));
    std::fs::create_dir_all(&pictures).unwrap();
    for i in 0..8 {
        std::fs::write(
            pictures.join(format!("{i}.bmp")),
            bmp(40, [i * 20, 80, 120]),
        )
        .unwrap();
    }
    let data = format!("data.train={}", text(&pictures));
    done(&tiny_run(&run, &[&data, "train.max_steps=1"]));
    std::fs::rename(&pictures, dir.join("elsewhere")).unwrap();
    let answer = resume(&run, &["train.max_steps=2"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    for word in ["pictures: no such", "data.train", "config.toml"] {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }

    let config = run.join("config.toml");
    let said = std::fs::read_to_string(&config).unwrap();
    let elsewhere = said.replace(&text(&pictures), &text(&dir.join("elsewhere")));
    std::fs::write(&config, elsewhere).unwrap();
    let answer = resume(&run, &["train.max_steps=2"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);

    std::fs::write(&config, "").unwrap();
    let answer = resume(&run, &[]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("manifest.json"), "{}", answer.stderr);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_is_captured() {
    let run = scratch("not-finite").join("run");
    // Step 0 has learning rate 0; the update of step 1 is absurd; step 2 meets its result.
    let sets = [
        "optim.lr=1e30",
        "optim.lr_scaling=none",
        "train.max_steps=1",
    ];
    done(&tiny_run(&run, &sets));
    let before = checkpoint_bytes(&run, 1);

    let answer = resume(&run, &["train.max_steps=0"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("error: step 2: the loss is NaN"),
        "{}",
        answer.stderr
    );
    assert!(
        answer.stderr.contains("nothing was updated"),
        "{}",
        answer.stderr
    );
    assert_eq!(checkpoints(&run), [1]);
    assert!(
        checkpoint_bytes(&run, 1) == before,
        "the checkpoint before it has changed"
    );
    assert_eq!(metrics(&run).len(), 2, "only steps 0 and 1 were done");

    let capture = run.join("captures/step-00000002");
    let replayed = selfsame(&["replay", &text(&capture)]);
    assert_eq!(replayed.code, 1, "{}", replayed.stderr);
    assert!(
        replayed.stderr.contains("step 2: the loss is NaN"),
        "{}",
        replayed.stderr
    );
    assert_eq!(replayed.stdout, "");
    // Its page does not advise a larger learning rate.
    let page = text(&run.join("page.html"));
    let told = done(&["report", &text(&run), "--json", "--out", &page]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["verdict"], "diverged", "{told}");
    assert!(told["why"].as_str().unwrap().contains("the loss of step 2"));
    let advice = told["advice"].to_string();
    assert!(advice.contains("optim.lr = 1") && advice.contains("lower"));
    assert!(!advice.contains("raise"), "{advice}");
    // The run is still there to be used or gone on with from its checkpoint.
    done(&["inspect", &text(&run)]);
    assert_eq!(resume(&run, &["train.max_steps=2"]).code, 0);
    assert_eq!(checkpoints(&run), [1, 2]);
}

#[test]
fn a_captured_step_replays_to_the_bits_of_the_run() {
    let run = scratch("captured").join("run");
    let mut args = tiny_run(&run, &["train.max_steps=8", "model.drop_path_rate=0.1"]);
    args.extend(["--capture-step".to_owned(), "7".to_owned()]);
    done(&args);
    let line = done(&["replay", &text(&run.join("captures/step-00000007"))]);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let logged = &metrics(&run)[7];
    for key in [
        "step",
        "loss",
        "grad_norm",
        "lr",
        "weight_decay",
        "momentum",
        "teacher_temp",
    ] {
        assert_eq!(line[key], logged[key], "{key}");
    }
    check_step_line(logged);
    // A step that was done cannot be had any more.
    let mut args = tiny_run(&run, &["train.max_steps=9", "model.drop_path_rate=0.1"]);
    args.extend(["--resume", "--capture-step", "6"].map(str::to_owned));
    let answer = selfsame(&args);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("step 6"), "{}", answer.stderr);
}

/// `config.toml` of a run with a checkpoint, edited by hand and taken away.
fn edits_are_refused(run: &Path) {
    let file = run.join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    assert!(config.contains("batch_size = 8"), "{config}");
    std::fs::write(&file, config.replace("batch_size = 8", "batch_size = 4")).unwrap();
    let mut train = tiny_run(run, &["train.max_steps=3"]);
    train.push("--resume".to_owned());
    for answer in [resume(run, &["train.max_steps=3"]), selfsame(&train)] {
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        let words = "train.batch_size: 8 in the newest checkpoint, 4 in the file";
        for words in ["config.toml", words, "data.images_root"] {
            assert!(answer.stderr.contains(words), "{words}: {}", answer.stderr);
        }
    }
    std::fs::remove_file(&file).unwrap();
    let answer = resume(run, &[]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("manifest.json"), "{}", answer.stderr);
    std::fs::write(
        &file,
        config.replace("log_every_steps = 5", "log_every_steps = 2"),
    )
    .unwrap();
    assert_eq!(resume(run, &["train.max_steps=3"]).code, 0);
}

#[test]
fn a_resumed_run_refuses_other_settings_with_the_differences() {
    let run = scratch("refused").join("run");
    done(&tiny_run(&run, &["train.max_steps=1"]));
    let config = std::fs::read(run.join("config.toml")).unwrap();

    let answer = resume(
        &run,
        &["optim.lr=1", "augment.local_crops=3", "train.max_steps=0"],
    );
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    for words in [
        "optim.lr: 0.0005 in the run, 1.0 asked for",
        "augment.local_crops: 2 in the run, 3 asked for",
        "train.max_steps",
    ] {
        assert!(
            answer.stderr.contains(words),
            "{words} is not in {}",
            answer.stderr
        );
    }
    assert!(
        !answer.stderr.contains("train.max_steps: "),
        "{}",
        answer.stderr
    );
    let list = "augment.global2=[{ op = \"horizontal_flip\", p = 1.0 }]";
    let answer = resume(&run, &[list]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("augment.global2: "),
        "{}",
        answer.stderr
    );

    assert_eq!(resume(&run, &["train.lr=1"]).code, 2);
    assert_eq!(std::fs::read(run.join("config.toml")).unwrap(), config);
    assert_eq!(
        resume(&run, &["train.max_steps=2", "train.log_every_steps=5"]).code,
        0
    );
    edits_are_refused(&run);
    assert_eq!(resume(&scratch("no-run"), &[]).code, 2);
}

#[test]
fn weights_that_do_not_fit_are_refused_before_a_run_begins() {
    let run = scratch("init").join("run");
    for (init, words) in [
        ("pixels", "needs a backbone"),
        ("random:vit_tiny/16@32", "patch_embed.proj.weight"),
        ("no/such/weights", "no such run"),
    ] {
        let mut args = tiny_run(&run, &[]);
        args.extend(["--init".to_owned(), init.to_owned()]);
        let answer = selfsame(&args);
        assert_eq!(answer.code, 2, "{init}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{init}: {}", answer.stderr);
        assert!(!run.exists(), "{init} left a run directory");
    }
}

#[test]
fn pictures_that_cannot_be_used_stay_listed_when_the_run_goes_on() {
    let dir = scratch("skipped");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for i in 0..12_u8 {
        std::fs::write(
            pictures.join(format!("{i:02}.bmp")),
            bmp(32, [20 * i, 90, 40]),
        )
        .unwrap();
    }
    std::fs::write(pictures.join("broken.bmp"), "not a picture").unwrap();
    let run = dir.join("run");
    let sets = [
        "train.batch_size=4",
        "train.max_steps=3",
        "data.max_bad_fraction=0.5",
        "data.workers=0",
    ];
    let mut args = tiny_run(&run, &sets);
    put_data(&mut args, text(&pictures));
    let answer = selfsame(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let words = "1 picture could not be used; it is listed in skipped.csv";
    assert!(answer.stderr.contains(words), "{}", answer.stderr);
    let listed = std::fs::read_to_string(run.join("skipped.csv")).unwrap();
    assert!(listed.contains("broken.bmp,"), "{listed}");

    std::fs::write(pictures.join("broken.bmp"), bmp(32, [0, 0, 0])).unwrap();
    let answer = resume(&run, &["train.max_steps=4"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    for words in [
        "the pictures have changed",
        "--accept-data-change",
        "broken.bmp: 13 bytes then, 3126 bytes now",
    ] {
        assert!(
            answer.stderr.contains(words),
            "{words} is not in {}",
            answer.stderr
        );
    }
    let set = "train.max_steps=4".to_owned();
    let run_text = text(&run);
    let accepted = selfsame(&["resume", &run_text, "--accept-data-change", "--set", &set]);
    assert_eq!(accepted.code, 0, "{}", accepted.stderr);
    let manifest = run.join("checkpoints/step-00000004/manifest.json");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let changes = &manifest["extra"]["data_changes"];
    assert_eq!(changes[0]["step"], 3, "{manifest}");
    // Accepted once, the new pictures are those of the run.
    assert_eq!(resume(&run, &["train.max_steps=5"]).code, 0);
    assert_eq!(
        std::fs::read_to_string(run.join("skipped.csv")).unwrap(),
        listed
    );
}

#[test]
fn too_many_bad_pictures_end_the_run_with_the_ledger() {
    let dir = scratch("too-many-bad");
    let pictures = dir.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for i in 0..12_u8 {
        let bytes = match i % 3 {
            0 => bmp(32, [20 * i, 90, 40])[..60 + usize::from(i)].to_vec(),
            _ => bmp(32, [20 * i, 90, 40]),
        };
        std::fs::write(pictures.join(format!("{i:02}.bmp")), bytes).unwrap();
    }
    let run = dir.join("run");
    let sets = ["train.batch_size=4", "data.max_bad_fraction=0.2"];
    let mut args = tiny_run(&run, &sets);
    put_data(&mut args, text(&pictures));
    let answer = selfsame(&args);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    for words in [
        "3 of 12 images cannot be used",
        "data.max_bad_fraction",
        ".bmp",
    ] {
        assert!(
            answer.stderr.contains(words),
            "{words} is not in {}",
            answer.stderr
        );
    }
    let listed = std::fs::read_to_string(run.join("skipped.csv")).unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");
}

#[test]
fn non_finite_steps_may_be_left_out_but_not_for_ever() {
    let run = scratch("skipping").join("run");
    let sets = [
        "optim.lr=1e30",
        "optim.lr_scaling=none",
        "train.non_finite=skip",
    ];
    let answer = selfsame(&tiny_run(&run, &sets));
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let skipped = answer
        .stderr
        .lines()
        .filter(|line| line.contains("skipped: step"));
    assert_eq!(skipped.count(), 3, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("error: step 5: the loss is NaN"),
        "{}",
        answer.stderr
    );
    let captures = std::fs::read_dir(run.join("captures")).unwrap();
    assert_eq!(captures.count(), 1, "the first of them is captured");
}

#[test]
fn steps_left_out_are_counted_over_a_resume() {
    let run = scratch("skipping-resumed").join("run");
    let sets = [
        "optim.lr=1e30",
        "optim.lr_scaling=none",
        "train.non_finite=skip",
        "train.max_steps=4",
    ];
    let answer = selfsame(&tiny_run(&run, &sets));
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let answer = resume(&run, &["train.max_steps=0"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    // Steps 2 and 3 were left out before the resume, so that step 4 is the last that may be.
    assert!(
        answer.stderr.contains("error: step 5: the loss is NaN"),
        "{}",
        answer.stderr
    );
}
