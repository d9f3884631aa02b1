//! Flags that are not there, but whose names are those of configuration keys.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};

use super::Cli;
use crate::config::keys_like;

/// Adds to the error of a flag that does not exist which key it may have meant, where the command
/// takes keys.
pub(crate) fn with_key(mut error: Error, command: Option<&str>) -> Error {
    if let Some(tip) = tip(&error, command) {
        // `--set` for `--seed`, for example.
        error.remove(ContextKind::SuggestedArg);
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

fn tip(error: &Error, command: Option<&str>) -> Option<String> {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let cli = Cli::command();
    let mut flags = cli.find_subcommand(command?)?.get_arguments();
    if !flags.any(|known| known.get_long() == Some("set")) {
        return None;
    }
    let flag = flag.split('=').next().unwrap_or(flag);
    let keys = keys_like(&flag.strip_prefix("--")?.replace('-', "_"));
    let ways = keys.iter().map(|key| format!("--set {key}=VALUE"));
    let ways = ways.collect::<Vec<_>>().join(" or ");
    (!keys.is_empty()).then(|| format!("{flag} is set as a key: {ways}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn told(args: &[&str]) -> String {
        let error = Cli::try_parse_from([&["selfsame"], args].concat()).unwrap_err();
        let before = error.to_string();
        let told = with_key(error, args.first().copied()).to_string();
        assert!(before.lines().next() == told.lines().next(), "{told}");
        told
    }

    #[test]
    fn a_flag_that_is_a_key_is_said_to_be_one() {
        for (flag, way) in [
            ("--epochs", "--set train.epochs=VALUE"),
            ("--batch-size=8", "--set train.batch_size=VALUE"),
            ("--seed", "--set seed=VALUE"),
            ("--optim.lr", "--set optim.lr=VALUE"),
        ] {
            let flag_only = flag.split('=').next().unwrap();
            let tip = format!("tip: {flag_only} is set as a key: {way}\n");
            for command in ["train", "plan", "config"] {
                let told = told(&[command, "--run", "r", flag]);
                assert!(told.contains(&tip), "{told}");
                assert_eq!(told.matches("tip").count(), 1, "{told}");
            }
        }
    }

    #[test]
    fn other_flags_are_left_to_clap() {
        assert!(!told(&["train", "--run", "r", "--nothing-like-it"]).contains("tip"));
        assert!(told(&["train", "--run", "r", "--dat", "x"]).contains("'--data'"));
        // It takes no keys.
        assert!(!told(&["knn", "--epochs", "3"]).contains("--set"));
    }
}
