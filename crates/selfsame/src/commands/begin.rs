//! What `train`, `resume` and `plan` open, and refuse, before anything is written.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use selfsame_data::{DataError, Dataset};
use selfsame_models::ModelError;
use selfsame_train::{Plan, RunConfig};

use crate::cli::Which;
use crate::config::refuse_changes;
use crate::exit::{Usage, usage};
use crate::memory::Stage;
use crate::overwriting::lies_within;
use crate::stderr::tell;
use crate::weights::{Weights, refuse_reference};
use crate::{data, device, disk, memory, run_dir};

/// Whether `run` holds a run that is to go on with this configuration.
///
/// # Errors
/// A usage error for what may not change of a run that has begun, or an end that is behind it.
pub(super) fn goes_on(run: &Path, resume: bool, config: &RunConfig) -> anyhow::Result<bool> {
    let continues = resume && run.join(run_dir::CONFIG_FILE).exists();
    if continues {
        let before = run_dir::read_config_to_go_on(run)?.typed()?;
        refuse_changes(&before, config)?;
        run_dir::refuse_earlier_end(run, config)?;
    }
    Ok(continues)
}

/// What a run is planned with.
pub(super) struct Opened {
    pub(super) device: Device,
    pub(super) train: Arc<dyn Dataset>,
    pub(super) val: Option<Arc<dyn Dataset>>,
    pub(super) plan: Plan,
    pub(super) stage: Stage,
}

impl Opened {
    /// Opens device and pictures; `begun` is the directory of a run that goes on.
    ///
    /// # Errors
    /// Usage errors for a device or pictures that are not there, or too few of them.
    pub(super) fn of(config: &RunConfig, begun: Option<&Path>) -> anyhow::Result<Self> {
        let open = |key: &str, spec: &str| {
            data::of_run(spec, &config.data).map_err(|error| match begun {
                Some(run) => where_to_say_it(error, key, run),
                None => error,
            })
        };
        device::set_threads(config.train.threads)?;
        let device = device::open_for_training(config)?;
        let train = open("data.train", &config.data.train)?;
        let val = match config.data.val.as_str() {
            "" => None,
            spec => Some(open("data.val", spec)?),
        };
        Ok(Self {
            plan: Plan::of(config, &train, val.as_ref(), &device)?,
            device,
            train,
            val,
            stage: match begun {
                Some(_) => Stage::Begun,
                None => Stage::New,
            },
        })
    }

    /// Refuses too little memory, and a disk without room.
    ///
    /// # Errors
    /// Usage errors with what is needed and what would need less.
    pub(super) fn check_room(&self, config: &RunConfig, run: &Path) -> anyhow::Result<()> {
        memory::check(config, &self.device, self.stage)?;
        disk::check(run, &self.plan, self.stage)
    }
}

/// Adds what to do if the pictures of a run are no longer where they were.
fn where_to_say_it(error: anyhow::Error, key: &str, run: &Path) -> anyhow::Error {
    match error.downcast_ref() {
        Some(DataError::NotFound { .. }) => usage(format!(
            "{error:#}: the pictures that the run began with; if they have moved, write the new \
             place to {key} in {}, and it will be seen whether they are the same",
            run.join(run_dir::CONFIG_FILE).display()
        )),
        _ => error,
    }
}

/// Refuses a run directory that is a file, or within a folder of its pictures.
pub(super) fn refuse_place(run: &Path, config: &RunConfig) -> anyhow::Result<()> {
    run_dir::refuse_file(run)?;
    for (flag, spec) in [("--data", &config.data.train), ("--val", &config.data.val)] {
        refuse_inside(run, flag, spec)?;
    }
    Ok(())
}

/// Refuses a run directory within a folder of pictures: its curves and checkpoints would be taken
/// for pictures from then on.
pub(super) fn refuse_inside(run: &Path, flag: &str, spec: &str) -> anyhow::Result<()> {
    if !lies_within(run, Path::new(spec)) {
        return Ok(());
    }
    Err(usage(format!(
        "--run {} lies within {flag} {spec}: what is written there would be taken for pictures; \
         name a folder outside",
        run.display()
    )))
}

/// The weights that a run in `dir` starts from, if it has not begun: what it was given is in its
/// first checkpoint.
pub(super) fn weights_to_begin_with(
    dir: &Path,
    config: &RunConfig,
    device: &Device,
) -> anyhow::Result<Option<Weights>> {
    if !selfsame_checkpoint::list(dir)?.is_empty() {
        return Ok(None);
    }
    let weights = init_of(config, device)?;
    if weights.is_some() {
        let spec = &config.train.init;
        tell!("beginning with the backbone of {spec}; the projection head is drawn anew");
    }
    Ok(weights)
}

/// The weights that a configuration names to start from.
pub(super) fn init_of(config: &RunConfig, device: &Device) -> anyhow::Result<Option<Weights>> {
    match config.train.init.as_str() {
        "" => Ok(None),
        spec => start_weights(spec, config, device).map(Some),
    }
}

/// Opens the weights to start from, if they fit, before a run directory exists.
pub(super) fn start_weights(
    spec: &str,
    config: &RunConfig,
    device: &Device,
) -> anyhow::Result<Weights> {
    refuse_reference("--init", spec)?;
    let other = |error: &anyhow::Error| {
        matches!(error.downcast_ref(), Some(ModelError::OtherNetwork { .. }))
    };
    let mut weights = match Weights::open(spec, Which::Teacher, None, device) {
        Err(error) if other(&error) => {
            tell!("note: {spec} has no teacher; beginning with its student");
            Weights::open(spec, Which::Student, None, device)?
        }
        weights => weights?,
    };
    weights
        .fit_to(&config.model, device)
        .map_err(|error| match error.is::<Usage>() {
            true => usage(format!("--init {spec}: {error}")),
            false => error,
        })?;
    Ok(weights)
}
