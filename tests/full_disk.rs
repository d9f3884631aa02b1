//! A disk that runs full: the error names what did not fit, the checkpoint before stays good, and
//! with room again the run goes on to the same bits.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{
    Answer, checkpoint_bytes, checkpoints, command, done, scratch, selfsame, text, tiny_run,
};

/// Runs `selfsame` where no file may grow past so many blocks of 512 bytes.
fn limited(blocks: u64, args: &[String]) -> Answer {
    let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let program = command::<&str>(&[]).get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(program).args(args);
    shell.output().unwrap().into()
}

fn program() -> String {
    let command = command::<&str>(&[]);
    command.get_program().to_str().unwrap().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn resume(run: &Path, max_steps: u64) -> Vec<String> {
    let set = format!("train.max_steps={max_steps}");
    ["resume", &text(run), "--set", &set]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_checkpoint_that_does_not_fit_leaves_the_one_before_and_no_rest() {
    let dir = scratch("full-disk");
    let run = dir.join("run");
    done(&tiny_run(&run, &["train.max_steps=3"]));
    let before = checkpoint_bytes(&run, 3);
    let largest = std::fs::metadata(run.join("checkpoints/step-00000003/optimizer.safetensors"));
    let largest = largest.unwrap().len();

    let answer = limited(largest / 512 / 2, &resume(&run, 7));
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let needed: u64 = before.iter().map(|file| file.len() as u64).sum();
    for words in [
        "no room left to write",
        ".safetensors",
        &format!("{needed} bytes"),
    ] {
        assert!(
            answer.stderr.contains(words),
            "{words} is not in {}",
            answer.stderr
        );
    }
    assert_eq!(names(&run.join("checkpoints")), ["step-00000003"]);
    assert!(checkpoint_bytes(&run, 3) == before);

    assert_eq!(selfsame(&resume(&run, 7)).code, 0);
    let whole = dir.join("whole");
    done(&tiny_run(&whole, &["train.max_steps=7"]));
    assert!(checkpoint_bytes(&run, 7) == checkpoint_bytes(&whole, 7));
}

#[test]
fn metrics_that_do_not_fit_end_the_run_with_their_name() {
    let run = scratch("full-metrics").join("run");
    done(&tiny_run(&run, &["train.max_steps=12"]));
    let before = checkpoint_bytes(&run, 12);
    let length = std::fs::metadata(run.join("metrics.jsonl")).unwrap().len();
    let answer = limited(length / 512 + 2, &resume(&run, 0));
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let error = answer
        .stderr
        .lines()
        .find(|line| line.starts_with("error:"));
    assert!(
        error.is_some_and(|error| error.contains("metrics.jsonl")),
        "{}",
        answer.stderr
    );
    assert_eq!(checkpoints(&run), [12]);
    assert!(checkpoint_bytes(&run, 12) == before);
    assert_eq!(selfsame(&resume(&run, 13)).code, 0);
}

/// A file system of its own that is really full, where the machine lets us mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_file_system_costs_nothing() {
    let dir = scratch("full-tmpfs");
    let (disk, kept) = (dir.join("disk"), dir.join("kept"));
    std::fs::create_dir(&disk).unwrap();
    let mounts = |script: &str, args: &[String]| {
        let mut shell = Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        shell.arg(text(&disk)).args(args).output()
    };
    let mount = "mount -t tmpfs -o size=3m none \"$0\" || exit 77; ";
    if !mounts(mount, &[]).is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this machine lets no test mount a file system");
        return;
    }
    let run = disk.join("run");
    let sets = [
        "train.epochs=60",
        "train.checkpoint_every_epochs=1",
        "train.keep_checkpoints=100",
    ];
    let mut args = vec![text(&kept), program()];
    args.extend(tiny_run(&run, &sets));
    let script =
        format!("{mount} kept=$1; shift; \"$@\"; code=$?; cp -a \"$0/run\" \"$kept\"; exit $code");
    let answer: Answer = mounts(&script, &args).unwrap().into();
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("warning: --run ") && answer.stderr.contains("keep_checkpoints"),
        "{}",
        answer.stderr
    );
    assert!(
        answer.stderr.contains("no room left to write"),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains(&text(&run)), "{}", answer.stderr);

    let steps = checkpoints(&kept);
    let last = *steps.last().expect("the first checkpoint fits");
    let left = names(&kept.join("checkpoints"));
    assert!(
        left.iter().all(|name| name.starts_with("step-")),
        "{left:?}"
    );
    assert_eq!(selfsame(&resume(&kept, last + 5)).code, 0);
    let whole = dir.join("whole");
    let mut args = tiny_run(&whole, &sets);
    args.extend(["--set".to_owned(), format!("train.max_steps={}", last + 5)]);
    done(&args);
    assert!(checkpoint_bytes(&kept, last + 5) == checkpoint_bytes(&whole, last + 5));

    let mut args = vec![program()];
    args.extend(tiny_run(&run, &[]));
    let script = "mount -t tmpfs -o size=200k none \"$0\" || exit 77; \"$@\"";
    for (command, code) in [("train", 2), ("plan", 1)] {
        args[1] = command.to_owned();
        args.retain(|arg| command == "train" || arg != "--no-report");
        let answer: Answer = mounts(script, &args).unwrap().into();
        assert_eq!(answer.code, code, "{}", answer.stderr);
        let told = answer.stderr + &answer.stdout;
        assert!(told.contains("a checkpoint takes"), "{told}");
    }
}
