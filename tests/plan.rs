//! `selfsame plan`, the limit of memory, and the plan's figures beside what a run really takes.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use serde_json::Value;

#[cfg(target_os = "linux")]
use common::command;
use common::{done, selfsame, text, tiny_run};

const DATA: [&str; 2] = ["--data", "synthetic:portraits?count=200&seed=0"];

fn plan(flags: &[&str]) -> Value {
    let mut args = vec!["plan", "--json"];
    args.extend(DATA);
    args.extend(flags);
    serde_json::from_str(&done(&args)).unwrap()
}

#[test]
fn a_plan_tells_what_the_run_does() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let args = tiny_run(
        &run,
        &[
            "train.epochs=3",
            "train.knn_every_epochs=2",
            "train.snapshot_every_epochs=1",
        ],
    );
    done(&args);
    let mut flags = args;
    flags[0] = "plan".to_owned();
    flags.push("--json".to_owned());
    // What `train` refuses is no plan.
    let answer = selfsame(&flags);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("not empty"), "{}", answer.stderr);
    // But with --resume it goes on.
    flags.push("--resume".to_owned());
    done(&flags);
    let other = ["--set", "optim.lr=1"].map(str::to_owned);
    let answer = selfsame(&[&flags[..], &other].concat());
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert!(answer.stderr.contains("optim.lr"), "{}", answer.stderr);
    flags.pop();
    let place = flags.iter().position(|flag| flag == "--run").unwrap() + 1;
    flags[place] = text(&dir.path().join("next"));
    let plan: Value = serde_json::from_str(&done(&flags)).unwrap();
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (scores, steps): (Vec<Value>, Vec<Value>) =
        lines.partition(|line| line.get("knn").is_some());
    let last = steps.last().unwrap()["step"].as_u64().unwrap();
    assert_eq!(plan["steps"].as_u64().unwrap(), last + 1);
    assert_eq!(plan["steps_per_epoch"].as_u64().unwrap() * 3, last + 1);
    assert_eq!(scores.len(), 3, "before, after two epochs and at the end");
    assert_eq!(plan["evaluations"], 3);
    assert!(plan["seconds"]["total"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["fits"], true);
    let saved: u64 = std::fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap())
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    let planned = plan["checkpoint_bytes"].as_f64().unwrap();
    let ratio = saved as f64 / planned;
    assert!(
        (0.95..1.3).contains(&ratio),
        "{saved} bytes, planned {planned}"
    );
    // Three snapshots, of the backbone alone, and room for one checkpoint more than are kept.
    let snapshots: u64 = std::fs::read_dir(run.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let planned = plan["disk_bytes"].as_f64().unwrap() - 4.0 * planned;
    let ratio = snapshots as f64 / planned;
    assert!(
        (0.95..1.1).contains(&ratio),
        "{snapshots} bytes of snapshots, planned {planned}"
    );
}

#[test]
fn warnings_name_their_keys() {
    let plan = plan(&[
        "--no-trial",
        "--preset",
        "cpu",
        "--set",
        "train.max_steps=5",
        "--set",
        "objective.teacher_temp=0.2",
    ]);
    let warnings = plan["warnings"].to_string();
    for key in [
        "train.max_steps",
        "train.epochs",
        "objective.momentum_teacher",
        "head.out_dim",
        "objective.teacher_temp",
    ] {
        assert!(warnings.contains(key), "{key} is not in {warnings}");
    }
    assert!(plan["seconds"].is_null());
}

#[test]
fn a_run_that_does_not_fit_is_refused_before_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = vec![
        "train",
        "--run",
        run.to_str().unwrap(),
        "--max-memory",
        "300MiB",
    ];
    args.extend(DATA);
    args.extend(["--preset", "cpu"]);
    let answer = selfsame(&args);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    for word in ["--max-memory", "300 MiB", "train.part_mib", "activations"] {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
    assert!(!run.exists());
    args[0] = "plan";
    let answer = selfsame(&args);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    for word in ["does not fit", "Set train.part_mib below"] {
        assert!(answer.stdout.contains(word), "{word}: {}", answer.stdout);
    }
    args.push("--json");
    let answer = selfsame(&args);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let plan: Value = serde_json::from_str(&answer.stdout).unwrap();
    let remedy = plan["remedy"].as_str().unwrap();
    assert!(remedy.contains("train.batch_size"), "{remedy}");
}

#[test]
fn a_resumed_run_may_get_another_limit_and_is_held_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    done(&tiny_run(&run, &["train.epochs=2", "train.max_steps=3"]));
    let resume = |limit: &str| {
        let run = text(&run);
        let args = [
            "resume",
            &run,
            "--no-report",
            "--set",
            "train.max_steps=4",
            "--max-memory",
            limit,
        ];
        selfsame(&args)
    };
    let refused = resume("10MiB");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let done = resume("4GiB");
    assert_eq!(done.code, 0, "{}", done.stderr);
}

/// The peak of six recipes beside the plan's. Minutes each, so on demand:
/// `cargo test --release -p selfsame --test plan peak -- --ignored --nocapture`.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes minutes"]
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn peak_memory_is_within_a_fifth_of_the_plan() {
    let presets: [&[&str]; 6] = [
        &["--preset", "cpu"],
        &["--preset", "notebook", "--set", "train.batch_size=16"],
        &["--preset", "small"],
        &["--preset", "official", "--set", "train.batch_size=4"],
        &[
            "--preset",
            "official-resnet50",
            "--set",
            "train.batch_size=4",
        ],
        &["--preset", "cpu", "--set", "model.arch=resnet18"],
    ];
    for preset in presets {
        let dir = tempfile::tempdir().unwrap();
        let run = text(&dir.path().join("run"));
        let flags = ["--set", "train.knn_every_epochs=0"];
        let mut args = vec!["--no-trial"];
        args.extend(preset);
        args.extend(flags);
        let planned = plan(&args)["memory"]["total"].as_f64().unwrap();
        let mut args = vec!["train", "--no-report", "--run", &run];
        args.extend(["--set", "train.max_steps=3"]);
        args.extend(DATA);
        args.extend(preset);
        args.extend(flags);
        let peak = peak_bytes(&args);
        println!(
            "{preset:?}: planned {:.0} MiB, took {:.0} MiB",
            planned / 1_048_576.0,
            peak / 1_048_576.0
        );
        let ratio = planned / peak;
        assert!((0.8..1.2).contains(&ratio), "{preset:?}: {ratio:.2}");
    }
}

/// Runs the program; the most memory it had.
#[cfg(target_os = "linux")]
fn peak_bytes(args: &[&str]) -> f64 {
    let mut child = command(args)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak: f64 = 0.0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) * 1024.0);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success());
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
