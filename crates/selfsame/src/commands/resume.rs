//! `selfsame resume`

use super::begin::{Opened, weights_to_begin_with};
use super::train::{Execution, execute, go_on};
use crate::cli::Resume;
use crate::config::{refuse_changes, to_toml};
use crate::exit::Done;
use crate::{run_dir, signals};

pub(crate) fn run(args: &Resume) -> anyhow::Result<Done> {
    let mut merged = run_dir::read_config_to_go_on(&args.run)?;
    let before = merged.typed()?;
    let device = args.device.as_deref();
    merged.put_machine(device, args.threads, args.max_memory, |flag| flag)?;
    merged.set_all(&args.set)?;
    merged.make_absolute()?;
    let config = merged.resolve()?;
    refuse_changes(&before, &config)?;
    run_dir::refuse_earlier_end(&args.run, &config)?;
    let opened = Opened::of(&config, Some(&args.run))?;
    opened.check_room(&config, &args.run)?;
    let init = weights_to_begin_with(&args.run, &config, &opened.device)?;
    let _lock = run_dir::claim(&args.run)?;
    let text = to_toml(&config)?;
    if config != before {
        run_dir::write_config(&args.run, &merged.annotated(&config)?)?;
    }
    let stop = signals::stop_flag()?;
    let outcome = execute(&Execution {
        config: &config,
        config_text: &text,
        run_dir: &args.run,
        device: &opened.device,
        train: opened.train,
        val: opened.val,
        capture_step: None,
        init: init.as_ref(),
        accept_data_change: args.accept_data_change,
        stop: &stop,
        report: !args.no_report,
        go_on: &go_on(&args.run),
    })?;
    Ok(outcome.into())
}
