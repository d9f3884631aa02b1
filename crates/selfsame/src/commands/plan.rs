//! `selfsame plan`

use anyhow::Context;
use candle_core::Device;
use selfsame_models::device_memory;
use selfsame_train::{MemoryEstimate, Plan, RunConfig, Trial};
use serde_json::json;

use super::begin::{Opened, goes_on, init_of, refuse_place};
use crate::config::{Merged, OwnFlag};
use crate::disk::{Room, room};
use crate::exit::{Done, usage};
use crate::memory::{Budget, budget, explain, in_words, remedy};
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
    let mut begun = None;
    if let Some(run) = &args.run {
        refuse_place(run, &config)?;
        match goes_on(run, args.resume, &config)? {
            true => begun = Some(run.as_path()),
            false => run_dir::refuse_used(run)?,
        }
    }
    let Opened {
        device,
        train,
        mut plan,
        stage,
        ..
    } = Opened::of(&config, begun)?;
    if begun.is_none() {
        init_of(&config, &device)?;
    }
    let limit = budget(&config);
    let free = args.run.as_deref().and_then(disk::free);
    let room = room(&plan, free, stage);
    let fits = !device.is_cpu() || plan.memory.total() as u64 <= limit.bytes;
    let trial = if fits && !args.no_trial {
        tell!("trying a few steps over a handful of pictures");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let trial = Trial::run(&config, &train, &device, cores)
            .map_err(|error| explain(error, &config, &device, stage));
        Some(trial.context("trying a few steps (--no-trial leaves that out)")?)
    } else {
        None
    };
    let of_files = trial.filter(|_| train.path(0).is_some());
    let large = of_files.and_then(|trial| trial.large_pictures(&config));
    plan.warnings.extend(large);
    if args.json {
        let seconds = trial.map(|trial| {
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
            "limit": limit.bytes,
            "parts": plan.memory,
            "device": device_memory(&device)?,
        });
        print_json(&json!({
            "images": plan.images,
            "images_per_step": plan.images_per_step,
            "steps_per_epoch": plan.steps_per_epoch,
            "left_over": plan.left_over,
            "steps": plan.steps,
            "memory": memory,
            "fits": fits,
            "remedy": (!fits).then(|| remedy(&config, &device, stage, Some(limit.bytes))),
            "checkpoint_bytes": plan.checkpoint_bytes,
            "disk_bytes": plan.disk_bytes,
            "disk_free": free,
            "evaluations": plan.evaluations,
            "evaluation_images": plan.evaluation_images,
            "seconds": seconds,
            "warnings": plan.warnings,
        }));
    } else {
        print(
            &config,
            &plan,
            &memory_lines(&config, &plan, &limit, &device)?,
            trial.as_ref(),
        );
        if !fits {
            print_text(&format!(
                "this run does not fit, so `train` refuses it. {}",
                remedy(&config, &device, stage, Some(limit.bytes))
            ));
        }
        if let Some(run) = &args.run {
            let at = run.display();
            match &room {
                Room::None(text) => {
                    print_text(&format!("`train` refuses this run, --run {at}: {text}"));
                }
                Room::Tight(text) if fits => {
                    print_text(&format!("warning     --run {at}: {text}"));
                }
                _ => {}
            }
            if fits && !matches!(room, Room::None(_)) {
                print_text(&format!(
                    "start it: the same flags with `train` instead of `plan` ({at})"
                ));
            }
        }
    }
    Ok(match fits && !matches!(room, Room::None(_)) {
        true => Done::Well,
        false => Done::No,
    })
}

/// What will be needed of which memory.
fn memory_lines(
    config: &RunConfig,
    plan: &Plan,
    limit: &Budget,
    device: &Device,
) -> anyhow::Result<Vec<String>> {
    if let Some(total) = device_memory(device)? {
        let memory = &plan.memory;
        let lasting = memory.weights + memory.optimizer + memory.gradients;
        if let Some(whole) = MemoryEstimate::on_cuda(config)? {
            let mut lines = vec![format!(
                "memory      about {} of the device's {} at the peak: {} for weights, optimizer and \
                 gradients, {} for activations",
                in_words(whole.total() as u64),
                in_words(total),
                in_words(lasting as u64),
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
                in_words(config.part_bytes_on(device)? as u64)
            ),
            false => "of the whole batch come on top".to_owned(),
        };
        return Ok(vec![format!(
            "memory      {} of the device's {} for weights, optimizer and gradients; activations \
             {activations}",
            in_words(lasting as u64),
            in_words(total),
        )]);
    }
    let mut lines = vec![format!(
        "memory      about {} at the peak of {} ({})",
        in_words(plan.memory.total() as u64),
        in_words(limit.bytes),
        limit.whose
    )];
    let parts = plan.memory.parts().into_iter();
    lines.extend(
        parts
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(what, bytes)| format!("  {:>9} {what}", in_words(bytes as u64))),
    );
    Ok(lines)
}

fn print(config: &RunConfig, plan: &Plan, memory: &[String], trial: Option<&Trial>) {
    print_text(&format!(
        "pictures    {} of {}; {} a step, {} steps an epoch, {} left over in each",
        plan.images, config.data.train, plan.images_per_step, plan.steps_per_epoch, plan.left_over
    ));
    print_text(&format!(
        "steps       {} ({} epochs); learning rate up to {:.2e}",
        plan.steps,
        config.train.epochs,
        config.schedule().lr
    ));
    for line in memory {
        print_text(line);
    }
    match trial {
        Some(trial) => print_text(&format!(
            "time        about {}: {:.3} s a step, of which the network {:.3} s ({} cores now, \
             {} trial images)",
            duration(plan.duration(trial).as_secs_f64()),
            trial.step.as_secs_f64(),
            trial.compute.as_secs_f64(),
            std::thread::available_parallelism().map_or(1, usize::from),
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
    for warning in &plan.warnings {
        print_text(&format!("warning     {warning}"));
    }
}
