//! `selfsame resume`

use std::path::Path;

use selfsame_data::DataError;
use selfsame_train::Plan;
use toml::Value;

use super::train::{Execution, check_room, execute, go_on, weights_to_begin_with};
use crate::cli::Resume;
use crate::config::{refuse_changes, to_toml};
use crate::exit::{Done, usage};
use crate::memory::Stage;
use crate::{data, device, disk, run_dir, signals};

pub(crate) fn run(args: &Resume) -> anyhow::Result<Done> {
    let mut merged = run_dir::read_config_to_go_on(&args.run)?;
    let before = merged.typed()?;
    if let Some(device) = &args.device {
        merged.put("train.device", Value::String(device.clone()), "--device")?;
    }
    if let Some(threads) = args.threads {
        merged.put("train.threads", Value::Integer(threads as i64), "--threads")?;
    }
    if let Some(mib) = args.max_memory {
        let mib = Value::Integer(mib as i64);
        merged.put("train.max_memory_mib", mib, "--max-memory")?;
    }
    merged.set_all(&args.set)?;
    merged.make_absolute()?;
    let config = merged.resolve()?;
    refuse_changes(&before, &config)?;
    device::set_threads(config.train.threads)?;
    let device = device::open_for_training(&config)?;
    let train_data = data::of_run(&config.data.train, &config.data)
        .map_err(|error| where_to_say_it(error, &args.run))?;
    check_room(&config, train_data.as_ref(), &device, Stage::Begun)?;
    let val_data = match config.data.val.as_str() {
        "" => None,
        spec => Some(data::of_run(spec, &config.data)?),
    };
    let plan = Plan::of(&config, &train_data, val_data.as_ref(), &device)?;
    disk::check(&args.run, &plan, Stage::Begun)?;
    let init = weights_to_begin_with(&args.run, &config, &device)?;
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
        device: &device,
        train: train_data,
        val: val_data,
        capture_step: None,
        init: init.as_ref(),
        accept_data_change: args.accept_data_change,
        stop: &stop,
        report: !args.no_report,
        go_on: &go_on(&args.run),
    })?;
    Ok(outcome.into())
}

/// Adds what to do if the pictures of a run are no longer where they were.
fn where_to_say_it(error: anyhow::Error, run: &Path) -> anyhow::Error {
    match error.downcast_ref() {
        Some(DataError::NotFound { .. }) => usage(format!(
            "{error:#}: the pictures that the run began with; if they have moved, write the new \
             place to data.train in {}, and it will be seen whether they are the same",
            run.join(run_dir::CONFIG_FILE).display()
        )),
        _ => error,
    }
}
