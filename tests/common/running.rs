//! A program that was started and is told to stop.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use super::command;

/// A started run that has said what was waited for.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stderr: BufReader<ChildStderr>,
}

/// Starts `selfsame` and waits for a line of stderr.
pub(crate) fn begin_with(args: &[String], is_it: impl Fn(&str) -> bool) -> Running {
    begin_as(command(args), is_it)
}

/// The same of any command.
pub(crate) fn begin_as(mut command: Command, is_it: impl Fn(&str) -> bool) -> Running {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !is_it(&line) {
        line.clear();
        assert!(
            stderr.read_line(&mut line).unwrap() > 0,
            "it ended before that"
        );
    }
    Running { child, stderr }
}

impl Running {
    /// Sends signals, such as INT.
    pub(crate) fn signal(&self, names: &[&str]) {
        let id = self.child.id();
        let kills: Vec<String> = names
            .iter()
            .map(|name| format!("kill -{name} {id}"))
            .collect();
        let status = Command::new("sh").args(["-c", &kills.join("; ")]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end: the exit code, and the rest of stderr.
    pub(crate) fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), text)
    }
}
