//! `selfsame plan`

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::Device;
use selfsame_data::Dataset;
use selfsame_models::device_memory;
use selfsame_train::{MemoryEstimate, Plan, RunConfig, Trial};
use serde_json::{Value, json};

use super::begin::{Opened, goes_on, init_of, refuse_place};
use crate::config::{Merged, OwnFlag};
use crate::disk::{Room, room};
use crate::exit::{Done, usage};
use crate::memory::{Budget, Stage, budget, explain, in_words, remedy};
use crate::progress::duration;
use crate::scores::{print_json, print_text};
use crate::stderr::tell;
use crate::{cli, disk, run_dir};

pub(crate) fn run(args: &cli::Plan) -> anyhow::Result<Done> {
    let merged = Merged::from_settings(&args.settings, OwnFlag::init(args.init.as_deref())?)?;
    let config = merged.resolve()?;
    if config.data.train.is_empty() {
        return Err(usage("--data SPEC: say which pictures to train on"));
    }
    let begun = begun(args, &config)?;
    let Opened {
        device,
        train,
        plan,
        stage,
        ..
    } = Opened::of(&config, begun)?;
    if begun.is_none() {
        init_of(&config, &device)?;
    }
    let free = args.run.as_deref().and_then(disk::free);
    let mut planned = Planned {
        config: &config,
        device,
        stage,
        limit: budget(&config),
        free,
        room: room(&plan, free, stage),
        plan,
        trial: None,
    };
    if planned.fits() && !args.no_trial {
        planned.try_steps(&train)?;
    }
    match args.json {
        true => print_json(&planned.json()?),
        false => planned.print(args.run.as_deref())?,
    }
    Ok(match planned.can_start() {
        true => Done::Well,
        false => Done::No,
    })
}

/// The directory of `--run` if what it holds goes on; refuses one that cannot be a run's.
fn begun<'a>(args: &'a cli::Plan, config: &RunConfig) -> anyhow::Result<Option<&'a Path>> {
    let Some(run) = &args.run else {
        return Ok(None);
    };
    refuse_place(run, config)?;
    if goes_on(run, args.resume, config)? {
        return Ok(Some(run));
    }
    run_dir::refuse_used(run)?;
    Ok(None)
}

/// What a run would be, and what there is for it here.
struct Planned<'a> {
    config: &'a RunConfig,
    device: Device,
    stage: Stage,
    plan: Plan,
    /// Memory that it may take.
    limit: Budget,
    /// Bytes free where it would be written, if that was said and is known.
    free: Option<u64>,
    room: Room,
    /// `None` if no steps were tried.
    trial: Option<Trial>,
}

impl Planned<'_> {
    /// Whether there is memory for it.
    fn fits(&self) -> bool {
        !self.device.is_cpu() || self.plan.memory.total() as u64 <= self.limit.bytes
    }

    /// Whether `train` would not refuse it.
    fn can_start(&self) -> bool {
        self.fits() && !matches!(self.room, Room::None(_))
    }

    fn remedy(&self) -> String {
        remedy(
            self.config,
            &self.device,
            self.stage,
            Some(self.limit.bytes),
        )
    }

    /// Tries a few steps, and warns of pictures so large that reading them takes most of the time.
    fn try_steps(&mut self, train: &Arc<dyn Dataset>) -> anyhow::Result<()> {
        tell!("trying a few steps over a handful of pictures");
        let trial = Trial::run(self.config, train, &self.device, cores())
            .map_err(|error| explain(error, self.config, &self.device, self.stage))
            .context("trying a few steps (--no-trial leaves that out)")?;
        if train.path(0).is_some() {
            self.plan.warnings.extend(trial.large_pictures(self.config));
        }
        self.trial = Some(trial);
        Ok(())
    }

    fn json(&self) -> anyhow::Result<Value> {
        let Self { plan, .. } = self;
        let seconds = self.trial.map(|trial| {
            json!({
                "total": plan.duration(&trial).as_secs_f64(),
                "step": trial.step.as_secs_f64(),
                "compute": trial.compute.as_secs_f64(),
                "picture": trial.picture.as_secs_f64(),
                "trial_images": trial.images,
            })
        });
        let memory = json!({
            "total": plan.memory.total(),
            "limit": self.limit.bytes,
            "parts": plan.memory,
            "device": device_memory(&self.device)?,
        });
        Ok(json!({
            "images": plan.images,
            "images_per_step": plan.images_per_step,
            "steps_per_epoch": plan.steps_per_epoch,
            "left_over": plan.left_over,
            "steps": plan.steps,
            "memory": memory,
            "fits": self.fits(),
            "remedy": (!self.fits()).then(|| self.remedy()),
            "checkpoint_bytes": plan.checkpoint_bytes,
            "disk_bytes": plan.disk_bytes,
            "disk_free": self.free,
            "evaluations": plan.evaluations,
            "evaluation_images": plan.evaluation_images,
            "seconds": seconds,
            "warnings": plan.warnings,
        }))
    }

    /// Prints it for people, with what `train` would say of `run`.
    fn print(&self, run: Option<&Path>) -> anyhow::Result<()> {
        let memory = self.memory_lines()?;
        self.print_length();
        for line in memory {
            print_text(&line);
        }
        self.print_costs();
        for warning in &self.plan.warnings {
            print_text(&format!("warning     {warning}"));
        }
        if !self.fits() {
            print_text(&format!(
                "this run does not fit, so `train` refuses it. {}",
                self.remedy()
            ));
        }
        if let Some(run) = run {
            self.print_start(run);
        }
        Ok(())
    }

    fn print_length(&self) {
        let Self { config, plan, .. } = self;
        print_text(&format!(
            "pictures    {} of {}; {} a step, {} steps an epoch, {} left over in each",
            plan.images,
            config.data.train,
            plan.images_per_step,
            plan.steps_per_epoch,
            plan.left_over
        ));
        print_text(&format!(
            "steps       {} ({} epochs); learning rate up to {:.2e}",
            plan.steps,
            config.train.epochs,
            config.schedule().lr
        ));
    }

    /// What will be needed of which memory.
    fn memory_lines(&self) -> anyhow::Result<Vec<String>> {
        if let Some(total) = device_memory(&self.device)? {
            return self.device_memory_lines(total);
        }
        let memory = &self.plan.memory;
        let mut lines = vec![format!(
            "memory      about {} at the peak of {} ({})",
            in_words(memory.total() as u64),
            in_words(self.limit.bytes),
            self.limit.whose
        )];
        let parts = memory.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
        lines.extend(parts.map(|(what, bytes)| format!("  {:>9} {what}", in_words(bytes as u64))));
        Ok(lines)
    }

    /// The same where a device has `total` bytes of its own.
    fn device_memory_lines(&self, total: u64) -> anyhow::Result<Vec<String>> {
        let Self { config, plan, .. } = self;
        let lasting = plan.memory.weights + plan.memory.optimizer + plan.memory.gradients;
        let lasting = in_words(lasting as u64);
        if let Some(whole) = MemoryEstimate::on_cuda(config)? {
            let mut lines = vec![format!(
                "memory      about {} of the device's {} at the peak: {lasting} for weights, \
                 optimizer and gradients, {} for activations",
                in_words(whole.total() as u64),
                in_words(total),
                in_words(whole.activations as u64),
            )];
            if whole.total() as u64 > total {
                lines.push("warning     train.batch_size: the device has less memory".to_owned());
            }
            return Ok(lines);
        }
        let activations = match config.model.arch.is_vit() && !config.head.use_bn {
            true => format!(
                "of a part of a batch take up to {}",
                in_words(config.part_bytes_on(&self.device)? as u64)
            ),
            false => "of the whole batch come on top".to_owned(),
        };
        Ok(vec![format!(
            "memory      {lasting} of the device's {} for weights, optimizer and gradients; \
             activations {activations}",
            in_words(total),
        )])
    }

    /// Prints what it takes of time and disk.
    fn print_costs(&self) {
        let Self { plan, .. } = self;
        match &self.trial {
            Some(trial) => print_text(&format!(
                "time        about {}: {:.3} s a step, of which the network {:.3} s ({} cores now, \
                 {} trial images)",
                duration(plan.duration(trial).as_secs_f64()),
                trial.step.as_secs_f64(),
                trial.compute.as_secs_f64(),
                cores(),
                trial.images
            )),
            None => print_text("time        not tried"),
        }
        print_text(&format!(
            "disk        about {}: checkpoints of {} and snapshots; pictures of the report on top",
            in_words(plan.disk_bytes as u64),
            in_words(plan.checkpoint_bytes as u64)
        ));
        if plan.evaluations > 0 {
            print_text(&format!(
                "scores      {} times over {} pictures",
                plan.evaluations, plan.evaluation_images
            ));
        }
    }

    /// Prints whether it can be started as `--run`, and how.
    fn print_start(&self, run: &Path) {
        let at = run.display();
        match &self.room {
            Room::None(text) => {
                print_text(&format!("`train` refuses this run, --run {at}: {text}"));
            }
            Room::Tight(text) if self.fits() => {
                print_text(&format!("warning     --run {at}: {text}"));
            }
            _ => {}
        }
        if self.can_start() {
            print_text(&format!(
                "start it: the same flags with `train` instead of `plan` ({at})"
            ));
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
